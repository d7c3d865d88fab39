//! How wide the range of local ports must be: new connections/s x (how long they are open + 60 s in TIME_WAIT).

use super::super::super::{
    ports::{Place, ROUND, Range},
    sizing::{PERSIST, spoken},
};
use super::{HORIZON_S, SPARE, TIME_WAIT_S};
use crate::report::diagnosis::Finding;

/// Fewer that were closed do not tell how long connections are open.
const LEAST_CLOSED: u64 = 5;
/// A lifetime that the window has room for so many times is known; else it may be longer.
const OFTEN: f64 = 2.0;

/// Ports that are needed, and how that is known.
struct Needed {
    ports: f64,
    arithmetic: String,
}

/// How long connections are open, in seconds.
struct Lifetime {
    seconds: f64,
    is_at_least: bool,
    text: String,
}

impl Place<'_> {
    /// For any: more ports, as many as were measured to be needed. Where open connections only grow in number, by so many
    /// each second, no number is.
    pub(super) fn widen(&self, found: Finding, growth: Option<f64>) -> Finding {
        let widest = self.range.widest().usable();
        if self.range.usable() * 10 >= widest * 9 {
            return found;
        }
        match growth.filter(|growth| *growth > 0.0) {
            Some(growth) => self.gain_time(found, growth),
            None => self.hold_all(found),
        }
    }

    fn hold_all(&self, found: Finding) -> Finding {
        let needed = self.needed();
        let with_spare = (needed.ports * SPARE).ceil();
        let range = self.widened(with_spare);
        let is_enough = with_spare <= f64::from(range.usable());
        let enough = if is_enough {
            ""
        } else {
            ", more than there are: it does not help alone"
        };
        let found = self.set(
            found,
            range,
            &format!(
                "{}, and half as much again, rounded up so that the range has a multiple of {ROUND}{enough}",
                needed.arithmetic
            ),
        );
        if is_enough { found.at_once() } else { found }
    }

    fn gain_time(&self, found: Finding, growth: f64) -> Finding {
        let used = f64::from(self.ports.used());
        let range = self.widened((used + growth * HORIZON_S).ceil());
        let lasts = (f64::from(range.usable()) - used) / growth;
        let arithmetic = format!(
            "at {growth:.1} more open connections each second that lasts {}: it gains time, and is full then unless as many \
             are closed as are opened",
            spoken(lasts)
        );
        self.set(found, range, &arithmetic).at_once()
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a bounded positive number"
    )]
    fn widened(&self, ports: f64) -> Range {
        self.range.widened(ports.min(1e6) as u32)
    }

    fn set(&self, found: Finding, range: Range, arithmetic: &str) -> Finding {
        let more = range.usable().saturating_sub(self.range.usable());
        if more == 0 {
            return found;
        }
        let Range { first, last, .. } = range;
        found.sysctl(
            format!(
                "widen the port range to {first}-{last}, {more} more ports: {arithmetic}; {PERSIST}"
            ),
            &[("net.ipv4.ip_local_port_range", format!("{first} {last}"))],
            "put ports that services listen at into net.ipv4.ip_local_reserved_ports first",
        )
    }

    fn needed(&self) -> Needed {
        let (open, time_wait) = (self.ports.open, self.ports.time_wait);
        let fails = self.failures(&[]) > 0;
        let (rate, connects) = self.demand();
        // Those that were connected earlier may be more than those of the window.
        let waiting = if self.is_share(time_wait) {
            f64::from(time_wait).max(rate * TIME_WAIT_S)
        } else {
            f64::from(time_wait)
        };
        let waiting_text = if waiting > f64::from(time_wait) {
            format!("{connects} x 60 s in TIME_WAIT + ")
        } else if time_wait > 0 {
            format!("{time_wait} in TIME_WAIT + ")
        } else {
            String::new()
        };
        let lifetime = self.lifetime().filter(|_| self.is_share(open));
        let known = lifetime.as_ref();
        let Some(lifetime) = known.filter(|lifetime| rate * lifetime.seconds > f64::from(open))
        else {
            let ports = waiting + f64::from(open);
            let unsure = known.filter(|lifetime| lifetime.is_at_least);
            let is_lower = fails && ports <= f64::from(self.range.usable());
            let or_more = if is_lower {
                ", or more, as connects that fail are slow"
            } else {
                ""
            };
            let arithmetic = match (waiting_text.as_str(), unsure) {
                ("", Some(unsure)) => format!("{open} are open ({})", unsure.text),
                ("", None) => format!("{open} are open"),
                (waiting, _) => format!("{waiting}{open} open = {ports:.0}{or_more}"),
            };
            return Needed { ports, arithmetic };
        };
        let ports = waiting + rate * lifetime.seconds;
        let at_least = if lifetime.is_at_least {
            "at least "
        } else {
            ""
        };
        let again = if fails { " (each failed try too)" } else { "" };
        Needed {
            ports,
            arithmetic: format!(
                "{waiting_text}{connects}{again} x {at_least}{:.1} s open ({}) = {at_least}{ports:.0}",
                lifetime.seconds, lifetime.text
            ),
        }
    }

    /// How long connections to the port are open, by Little's law.
    fn lifetime(&self) -> Option<Lifetime> {
        let window = self.window;
        window.watched_required("lifetimes").ok()?;
        let port = self.destination.port;
        let [before, after] = [&self.netns.before, &self.netns.after].map(|snapshot| {
            let sockets = snapshot.sockets.iter();
            let places = sockets.flat_map(|table| &table.ports);
            let at_port = places.filter(|(destination, _)| destination.port == port);
            at_port.map(|(_, ports)| f64::from(ports.open)).sum::<f64>()
        });
        let open = f64::midpoint(before, after);
        let (port, inode) = (port.to_string(), self.netns.inode.to_string());
        let group = [
            ("role", "client"),
            ("service_port", port.as_str()),
            ("netns", inode.as_str()),
        ];
        let failed = [&group[..], &[("result", "failed")]].concat();
        let events = &window.events;
        let closed = events.count("lifetimes", &group) - events.count("lifetimes", &failed);
        let rate = window.rate(closed);
        // Who was there all the time has lived for as long.
        let seconds = if closed < LEAST_CLOSED {
            window.seconds
        } else {
            open / rate
        };
        let is_at_least = closed < LEAST_CLOSED || seconds * OFTEN > window.seconds;
        let known = format!("{open:.0} open / {rate:.1} closed/s");
        Some(Lifetime {
            seconds,
            is_at_least,
            text: match (closed < LEAST_CLOSED, is_at_least) {
                (true, _) => "hardly any was closed: look for longer, with --duration".to_owned(),
                (false, true) => format!("{known}; look for longer, with --duration, to be sure"),
                (false, false) => known,
            },
        })
    }
}
