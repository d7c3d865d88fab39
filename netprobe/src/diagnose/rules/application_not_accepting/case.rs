//! A listener whose connections are not accepted: how bad it is, and what it is to the services beside it.

use super::super::super::{
    accepting::{self, Accepting},
    overflow::Overflow,
    tiers::Upstream,
    window::{Netns, Queue, Window},
    workers::{Before, Workers},
};
use crate::report::diagnosis::Severity;

/// A listener whose connections are not accepted, and what is known of it.
pub(super) struct Case<'a> {
    pub(super) window: &'a Window,
    pub(super) netns: &'a Netns,
    pub(super) queue: &'a Queue,
    pub(super) overflow: Option<Overflow>,
    pub(super) accepting: Accepting,
    /// The service that its processes seem to wait for.
    pub(super) upstream: Option<Upstream<'a>>,
    /// Its place among the cases, if it is one.
    pub(super) waits_for: Option<usize>,
    /// The services that wait for this one.
    pub(super) before: Vec<Before>,
    /// Whether clients of one of those are turned away.
    pub(super) keeps_critical: bool,
}

impl<'a> Case<'a> {
    pub(super) fn new(
        window: &'a Window,
        netns: &'a Netns,
        queue: &'a Queue,
        accepting: Accepting,
        overflow: Option<Overflow>,
    ) -> Self {
        Self {
            window,
            netns,
            queue,
            overflow,
            upstream: Upstream::of(window, netns, queue, &accepting),
            accepting,
            waits_for: None,
            before: Vec::new(),
            keeps_critical: false,
        }
    }

    /// The service that takes no connection, though its processes wait for one.
    pub(super) fn silent(&self) -> Option<&Upstream<'a>> {
        let upstream = self.upstream.as_ref();
        upstream
            .and_then(Upstream::silent)
            .filter(|_| self.waits_for.is_none())
    }

    /// The service to which packets are lost, if its processes wait for those most of the time.
    pub(super) fn late(&self) -> Option<&Upstream<'a>> {
        let upstream = self.upstream.as_ref();
        upstream
            .and_then(|upstream| upstream.late(self.window))
            .filter(|_| self.waits_for.is_none() && self.silent().is_none())
    }

    pub(super) const fn port(&self) -> u16 {
        self.queue.listener.port
    }

    pub(super) fn is_critical(&self) -> bool {
        let is_hopeless = self.accepting.is_hopeless() && !self.accepting.is_left;
        self.keeps_critical || self.overflow.is_some() || is_hopeless
    }

    /// How bad it is: where nobody came, nobody was kept waiting or turned away in the window.
    pub(super) fn severity(&self) -> Severity {
        if self.is_critical() {
            Severity::Critical
        } else if self.accepting.is_left && !(self.turns_next_away() && self.is_queue()) {
            Severity::Info
        } else {
            Severity::Warning
        }
    }

    /// Whether more wait than somebody who knocked at a port that nobody uses.
    pub(super) const fn is_queue(&self) -> bool {
        self.queue.listener.queue >= accepting::LEAST_WAITING
    }

    /// Whether there is no room for one more: `sk_acceptq_is_full()`.
    pub(super) const fn turns_next_away(&self) -> bool {
        self.queue.listener.queue > self.queue.listener.limit
    }

    /// What it passes on to the service that it waits for.
    pub(super) fn as_before(&self) -> Option<Before> {
        let accepted = self.accepting.accepted.filter(|accepted| *accepted > 0)?;
        let each = self.upstream.as_ref().and_then(Upstream::each);
        let (arrivals, about) = self.workers().arrival_rate();
        Some(Before {
            name: format!("port {} of {}", self.port(), self.comm()),
            arrivals,
            about,
            each: each.unwrap_or(1.0),
            opens: each.map_or(0.0, |each| self.window.rate(accepted) * each),
        })
    }

    pub(super) fn comm(&self) -> &str {
        let holder = self.window.holder(&self.queue.listener);
        holder.map_or("the application", |process| process.comm.as_str())
    }

    pub(super) fn workers(&self) -> Workers<'_> {
        Workers {
            window: self.window,
            netns: self.netns,
            listener: &self.queue.listener,
            accepting: &self.accepting,
            overflow: self.overflow.as_ref(),
            before: &self.before,
        }
    }
}
