//! Interfaces that drop what they are to send, behind any qdisc: their own queue is full, or who takes from it does not.

use std::collections::HashMap;

use super::{
    super::{
        super::{
            dropped,
            events::Event,
            finding::{finding, named},
            senders,
            window::{Netns, Window, ratio},
        },
        receive_path_drops::of_backlogs,
    },
    LEAST, MUCH, RULE, plain,
};
use crate::{
    observe::interfaces::{Interface, Output},
    report::diagnosis::{Confidence, Finding, Severity},
};

/// Fewer that nobody is seen to miss are noise: broadcasts to a virtual machine that stands still.
const MANY: u64 = 50;
/// A queue that holds what comes in this time is long enough: a longer one is only more delay.
const LONG_S: f64 = 0.1;

/// An interface that drops packets.
struct Dropping<'a> {
    window: &'a Window,
    netns: &'a Netns,
    name: &'a str,
    interface: &'a Interface,
    drops: u64,
    /// Packets that it sent, or that were taken from its queue.
    taken: u64,
    /// How fast, in millions of bits per second.
    mbits: f64,
    /// Drops that were seen as TCP.
    seen: Vec<&'a Event>,
}

/// What is found of all interfaces of a namespace.
pub(super) fn all<'a>(
    window: &'a Window,
    netns: &'a Netns,
) -> impl Iterator<Item = Finding> + use<'a> {
    let interfaces = netns.after.interfaces.iter();
    let dropping = interfaces.filter_map(|(name, after)| {
        let before = netns.before.interfaces.get(name)?;
        Dropping::of((window, netns), name, before, after)
    });
    dropping.map(|dropping| dropping.describe())
}

impl<'a> Dropping<'a> {
    /// `None` where it drops next to nothing, or nothing that is missed.
    fn of(
        (window, netns): (&'a Window, &'a Netns),
        name: &'a str,
        before: &Interface,
        after: &'a Interface,
    ) -> Option<Self> {
        let drops = after.tx_dropped.checked_sub(before.tx_dropped)?;
        let taken = after.tx_packets.checked_sub(before.tx_packets)?;
        let bytes = after.tx_bytes.checked_sub(before.tx_bytes)?;
        let was_up = before.is_up && after.is_up && before.link_downs == after.link_downs;
        // What comes out of a veth goes through the backlog of a CPU, which has a finding of its own.
        let elsewhere = match after.output {
            Output::Veth => of_backlogs(window),
            Output::Tun | Output::Device => 0,
            Output::Other => return None,
        };
        let own = drops.saturating_sub(elsewhere);
        if !was_up || own < LEAST || ratio(own, own + taken) < MUCH {
            return None;
        }
        let events = window.events.within("drops", netns.inode);
        let seen: Vec<&Event> = events.filter(|event| is_by(event, name)).collect();
        let is_missed = !seen.is_empty() || (own >= MANY && taken > 0);
        is_missed.then_some(Self {
            window,
            netns,
            name,
            interface: after,
            drops,
            taken,
            mbits: window.rate(bytes) * 8.0 / 1e6,
            seen,
        })
    }

    fn percent(&self) -> f64 {
        ratio(self.drops, self.taken + self.drops) * 100.0
    }

    fn describe(&self) -> Finding {
        let (drops, name, mbits) = (self.drops, self.name, self.mbits);
        // Others than full queues are counted, too: what a filter of a tun does not want, or what is larger than the far MTU.
        let confidence = if self.seen.is_empty() {
            Confidence::Medium
        } else {
            Confidence::High
        };
        let whose = self.sender();
        let fills = whose.map_or(String::new(), |whose| format!("; {whose} fills it"));
        let found = finding(
            RULE.id,
            Severity::Warning,
            confidence,
            format!(
                "interface {name}{} dropped {drops} packets in {:.0} s, {:.1} % of what was to be sent: {}{fills}",
                self.netns.place(),
                self.window.seconds,
                self.percent(),
                self.why()
            ),
        )
        .counted(
            format!("{drops} packets dropped behind its qdisc, at least {} of them TCP", self.seen.len()),
            drops,
            "packets",
            "tx_dropped, kfree_skb",
        )
        .measured(
            format!("{} packets got through, {mbits:.1} Mbit/s", self.taken),
            mbits,
            "Mbit/s",
            "tx_packets, tx_bytes",
        )
        .hits([named("interface", name, Some(self.netns.inode))]);
        self.relieve(found)
    }

    /// How fast they are taken, in words, if that is worth the name.
    fn rate(&self) -> Option<String> {
        (self.mbits >= 0.1).then(|| format!("{:.1} Mbit/s", self.mbits))
    }

    /// Who does not take them.
    fn why(&self) -> String {
        match self.interface.output {
            Output::Tun => format!(
                "its queue (txqueuelen {}) is full, the program that reads it (a VPN, a virtual machine) takes {}",
                self.interface.tx_queue_len,
                self.rate().unwrap_or_else(|| "next to nothing".to_owned())
            ),
            Output::Veth => {
                "the other end of the pair does not take them, its queue is full or its MTU smaller"
                    .to_owned()
            }
            Output::Device | Output::Other => {
                "its driver or the hardware did not take them".to_owned()
            }
        }
    }

    /// Who sends most of what is dropped, if that is a process of this machine.
    fn sender(&self) -> Option<String> {
        let mut addresses = HashMap::new();
        for address in self.seen.iter().filter_map(|event| event.ip("daddr")) {
            *addresses.entry(address).or_insert(0) += 1;
        }
        let (address, _) = addresses.into_iter().max_by_key(|(_, count)| *count)?;
        senders::named(&senders::owner(self.window, address, |_| true))
    }

    fn relieve(&self, found: Finding) -> Finding {
        let (name, enter) = (plain(self.name), self.netns.enter());
        match self.interface.output {
            Output::Tun => self.relieve_tun(found),
            Output::Veth => found.command(
                format!(
                    "compare `{enter}ip -d link show dev {name}` with its other end (MTU, GRO, XDP), and see whether a CPU has no \
                     time left; since Linux 6.16 a qdisc lets the sender wait instead: {enter}tc qdisc replace dev {name} root \
                     fq_codel"
                ),
                "a change of qdisc empties the queue",
            ),
            Output::Device | Output::Other => found.command(
                format!(
                    "`{enter}ethtool -S {name}` tells why; if its ring is full: `{enter}ethtool -g {name}` shows how long it may \
                     be, `{enter}ethtool -G {name} tx N` sets it"
                ),
                "a new ring: the link is down for a moment",
            ),
        }
    }

    fn relieve_tun(&self, found: Finding) -> Finding {
        let (name, enter) = (plain(self.name), self.netns.enter());
        let whose = self.sender();
        let whose = whose.unwrap_or_else(|| "who sends over it".to_owned());
        let found = match self.longer() {
            Some(length) => {
                let present = self.interface.tx_queue_len;
                let [now_ms, then_ms] =
                    [present, length].map(|length| self.lasting_s(length) * 1e3);
                found.command(
                    format!(
                        "let more packets wait: {enter}ip link set dev {name} txqueuelen {length} ({present} are {now_ms:.0} ms at \
                         this rate, {length} are {then_ms:.0} ms); to keep it, have the program set it (OpenVPN: txqueuelen)"
                    ),
                    "packets wait longer, up to that time",
                )
            }
            None => found,
        };
        let found = match self.rate() {
            Some(rate) => found.application(
                format!(
                    "limit what {whose} sends over {name}, below the {rate} that get through now: fewer streams, a limit of its \
                     own (rsync --bwlimit, curl --limit-rate, SO_MAX_PACING_RATE), or BBR"
                ),
                &[],
                "it takes longer",
            ),
            None => found,
        };
        found.command(
            format!(
                "see why the program that reads it is slow, and make it faster: grep -ls 'iff:.{name}$' /proc/[0-9]*/fdinfo/* \
                 names it"
            ),
            "none",
        )
    }

    /// How long packets wait in a queue of so many, at the rate at which they are taken.
    fn lasting_s(&self, packets: u32) -> f64 {
        f64::from(packets) / self.window.rate(self.taken).max(1.0)
    }

    /// A queue that is long enough, if the present one is not.
    fn longer(&self) -> Option<u32> {
        let present = self.interface.tx_queue_len;
        let mut lengths = (0..u32::BITS).map(|bits| 1 << bits);
        let enough = lengths.find(|length| self.lasting_s(*length) >= LONG_S)?;
        (enough > present && self.taken > 0).then_some(enough)
    }
}

/// Whether an interface dropped it for want of room; kernels before 5.18 tell the function only.
fn is_by(event: &Event, name: &str) -> bool {
    let is_full = match dropped::reason(event) {
        Some(reason) => reason == "FULL_RING",
        None => event.text("location").is_some_and(|function| {
            ["tun_net_xmit", "veth_"]
                .iter()
                .any(|own| function.starts_with(own))
        }),
    };
    is_full && event.text("iface").as_deref() == Some(name)
}

#[cfg(test)]
mod tests {
    use crate::{
        diagnose::{fixtures::quiet, window::Window},
        observe::{
            interfaces::{Interface, Output},
            softnet::{Cpu, Softnet},
        },
        report::{
            Value,
            diagnosis::{Confidence, Fix},
        },
    };

    const DROPS: u64 = 4000;

    /// An interface that drops one packet of five.
    fn dropping(output: Output) -> Window {
        let mut window = quiet();
        let before = Interface {
            tx_dropped: 1000,
            tx_queue_len: 50,
            output,
            is_up: true,
            ..Interface::default()
        };
        let after = Interface {
            tx_dropped: 1000 + DROPS,
            tx_packets: 16_000,
            tx_bytes: 20_000_000,
            ..before
        };
        let netns = window.netns();
        netns.before.interfaces.insert("tun0".to_owned(), before);
        netns.after.interfaces.insert("tun0".to_owned(), after);
        window
    }

    /// The same, changed at the end.
    fn changed(output: Output, change: impl Fn(&mut Interface)) -> Window {
        let mut window = dropping(output);
        let mut interfaces = window.netns().after.interfaces.values_mut();
        interfaces.by_ref().for_each(change);
        window
    }

    /// Lets TCP be among what is dropped.
    fn of_tcp(window: &mut Window, reason: &'static str) {
        let to = ("daddr", Value::Ip([10, 97, 2, 1].into()));
        let dropped = [
            to.clone(),
            ("reason", Value::Word(reason)),
            ("iface", Value::Text("tun0".into())),
        ];
        window.event("drops", 9, &dropped);
        let again = [
            to,
            ("cause", Value::Word("fast")),
            ("pid", Value::Unsigned(77)),
            ("comm", Value::Text("iperf3".into())),
        ];
        window.event("retransmits", 9, &again);
    }

    #[test]
    fn a_full_tun_is_told_with_its_program_its_sender_and_a_length() {
        let mut window = dropping(Output::Tun);
        of_tcp(&mut window, "FULL_RING");
        let found = window.findings().remove(0);
        assert_eq!(found.id, "egress-queue-drops");
        assert_eq!(found.affected[0].name, "tun0");
        assert_eq!(found.confidence, Confidence::High);
        for said in [
            "tun0 dropped 4000 packets in 10 s, 20.0 %",
            "(txqueuelen 50) is full",
            "takes 16.0 Mbit/s; iperf3 (pid 77) fills it",
        ] {
            assert!(found.summary.contains(said), "{said}: {}", found.summary);
        }
        // 1600 packets a second.
        let said = "dev tun0 txqueuelen 256 (50 are 31 ms at this rate, 256 are 160 ms)";
        assert!(found.fixes[0].text.contains(said), "{:?}", found.fixes);
        // One that holds packets for long is long enough.
        let window = changed(Output::Tun, |after| after.tx_queue_len = 500);
        let longer = |fix: &Fix| fix.text.contains("txqueuelen");
        assert!(!window.findings()[0].fixes.iter().any(longer));
    }

    #[test]
    fn what_follows_from_a_full_tun_stands_behind_it() {
        let mut window = dropping(Output::Tun);
        window.grow(&[("Tcp.RetransSegs", 900), ("Tcp.OutSegs", 9000)]);
        window.total("retransmits", 900, &[("cause", Value::Word("fast"))]);
        of_tcp(&mut window, "FULL_RING");
        let findings = window.findings();
        let ids: Vec<_> = findings
            .iter()
            .map(|found| (found.id, found.behind))
            .collect();
        let first = "egress-queue-drops";
        assert_eq!(ids, [(first, None), ("path-loss", Some(first))]);
    }

    #[test]
    fn the_other_end_and_hardware_are_told_as_what_they_are() {
        for (output, said) in [
            (Output::Veth, "the other end of the pair"),
            (Output::Device, "its driver or the hardware"),
        ] {
            let found = dropping(output).findings().remove(0);
            assert!(found.summary.contains(said), "{}", found.summary);
            assert!(!found.summary.contains("txqueuelen"));
            assert_eq!(found.confidence, Confidence::Medium);
        }
    }

    #[test]
    fn what_nobody_misses_or_another_finding_tells_is_not_told() {
        let is_quiet = |window: Window| !window.ids().contains(&"egress-queue-drops");
        // Of vlan and the like, the interface below tells it.
        assert!(is_quiet(dropping(Output::Other)));
        let tun = |change: fn(&mut Interface)| changed(Output::Tun, change);
        assert!(is_quiet(tun(|after| after.is_up = false)));
        assert!(is_quiet(tun(|after| after.link_downs = 1)));
        assert!(is_quiet(tun(|after| after.tx_dropped = 0)));
        assert!(is_quiet(tun(|after| after.tx_packets = DROPS * 2000)));
        // Broadcasts to a virtual machine: a few, or all while it stands still.
        assert!(is_quiet(tun(|after| after.tx_dropped = 1020)));
        let still = tun(|after| after.tx_packets = 0);
        assert!(is_quiet(still.clone()));
        // TCP that a rule drops on the way there is not what its queue dropped.
        for (reason, expected) in [("FULL_RING", false), ("NETFILTER_DROP", true)] {
            let mut window = still.clone();
            of_tcp(&mut window, reason);
            assert_eq!(is_quiet(window.clone()), expected, "{reason}");
            let stuck = window.findings();
            let fixes = stuck.iter().flat_map(|found| &found.fixes);
            assert!(!fixes.into_iter().any(|fix| fix.text.contains("0.0 Mbit/s")));
        }
        // The backlog of a CPU has a finding of its own.
        let mut window = dropping(Output::Veth);
        window.softnet = vec![Cpu {
            after: Softnet {
                dropped: 4000,
                processed: 90_000,
                ..Softnet::default()
            },
            ..Cpu::default()
        }];
        assert!(is_quiet(window));
    }
}
