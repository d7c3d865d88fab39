//! Windows in which an application does not accept, or hardly.

mod chain;
mod left;
mod queues;
mod sizes;

use super::{
    super::super::accepting::{self, Accepting},
    Case,
};
use crate::{
    diagnose::{fixtures::quiet, window::Window},
    report::{Value, diagnosis::Severity},
};

/// A listener that is always full, whose application holds so many connections and serves 20/s, where 60/s come from this
/// machine.
fn busy(held: u32) -> Window {
    let mut window = busy_from_elsewhere(held);
    let group = [
        ("role", Value::Word("client")),
        ("service_port", Value::Unsigned(9000)),
    ];
    window.total("lifetimes", 600, &group);
    window
}

/// As [`busy`], but nothing is known of the clients, who make 60 attempts/s.
fn busy_from_elsewhere(held: u32) -> Window {
    let mut window = quiet();
    window.listen(9000, 10, &[11; 10]);
    window.serving(9000, held, 200);
    window.grow(&[("TcpExt.ListenOverflows", 400), ("Tcp.PassiveOpens", 200)]);
    window
}

fn first_fix(window: &Window) -> (Vec<(String, String)>, String) {
    let fix = window.findings()[0].fixes[0].clone();
    (fix.set, fix.text)
}

fn set(name: &str, value: &str) -> Vec<(String, String)> {
    vec![(name.to_owned(), value.to_owned())]
}

fn summary_of(window: &Window) -> String {
    window.findings()[0].summary.clone()
}
