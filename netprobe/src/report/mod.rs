//! What renderers see: rows of events, totals, and how complete they are. Nothing else.

mod connects;
pub mod diagnosis;
mod flame;
mod summary;
mod table;
mod totals;
mod values;

pub use self::{
    connects::{ConnectView, Destination},
    flame::{Flame, Folded, Palette, Profile},
    summary::{Cost, Hook, Limit, Probe, Reconciled, Setting, Summary},
    table::{Align, Column, Layout, Row, Shown, Type},
    totals::{Group, Interval, Named, Total},
    values::{Value, name_bytes},
};

#[cfg(test)]
pub(crate) use self::summary::lacking;
