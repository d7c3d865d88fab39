//! One file per format. A renderer sees the report and writes text; it reads nothing else.

pub mod check;
pub mod connects;
pub mod csv;
pub mod diagnosis;
pub mod diagnosis_json;
mod duration;
pub mod explanation;
pub mod flame_json;
pub mod flamegraph;
pub mod folded;
pub mod format;
pub mod jsonl;
mod layers;
mod origins;
mod page;
pub mod pcapng;
pub mod pprof;
mod protobuf;
pub mod schema;
pub mod summary;
pub mod table;
pub mod text;
pub mod time;
