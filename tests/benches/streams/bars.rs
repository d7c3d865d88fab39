//! What is compared, and the bar for each.

use netprobe_tests::watcher::{
    Case,
    Output::{Events, Totals},
    bpftrace, netprobe,
};

/// The traffic that provokes the events.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Traffic {
    /// Packets that TCP drops, as many as a CPU sends.
    Drops,
    /// Data over a path that loses some of it.
    Retransmits,
}

/// Two ways to watch the same, and how much ours may cost of the other.
#[derive(Debug)]
pub(crate) struct Bar {
    pub(crate) name: &'static str,
    pub(crate) traffic: Traffic,
    pub(crate) own: Case,
    pub(crate) other: Case,
    pub(crate) most: &'static str,
}

/// The whole record: addresses, ports, reason.
const DROP_LINE: &str = r#"tracepoint:skb:kfree_skb {
  $skb = (struct sk_buff *)args->skbaddr;
  $ip = (struct iphdr *)($skb->head + $skb->network_header);
  $tcp = (struct tcphdr *)($skb->head + $skb->transport_header);
  printf("%d %x:%d %x:%d\n", args->reason, $ip->saddr, $tcp->source, $ip->daddr, $tcp->dest);
}"#;
const DROP_COUNT: &str = "tracepoint:skb:kfree_skb { @[args->reason] = count(); }";
const STACK_COUNT: &str = "tracepoint:skb:kfree_skb { @[kstack] = count(); }";
const RETRANSMIT_LINE: &str = r#"tracepoint:tcp:tcp_retransmit_skb {
  printf("%d %s:%d %s:%d %d\n", pid, ntop(args->saddr), args->sport, ntop(args->daddr), args->dport, args->state);
}"#;
const RETRANSMIT_COUNT: &str = "tracepoint:tcp:tcp_retransmit_skb { @[args->dport] = count(); }";

/// Every comparison.
pub(crate) const BARS: &[Bar] = &[
    Bar {
        name: "drop, whole record : line with addresses",
        traffic: Traffic::Drops,
        own: netprobe(
            "own",
            &["drops", "--json", "--max-overhead", "100%"],
            Events,
        ),
        other: bpftrace("other", &[DROP_LINE], Events),
        most: "0.6",
    },
    Bar {
        name: "drop, counted by reason, place and port : by reason",
        traffic: Traffic::Drops,
        own: netprobe("own", &["drops", "--count"], Totals),
        other: bpftrace("other", &[DROP_COUNT], Totals),
        most: "1.0",
    },
    Bar {
        name: "drop, counted by stack : by stack",
        traffic: Traffic::Drops,
        own: netprobe(
            "own",
            &[
                "drops",
                "--count",
                "--by",
                "stack",
                "--max-overhead",
                "100%",
            ],
            Totals,
        ),
        other: bpftrace("other", &[STACK_COUNT], Totals),
        most: "0.3",
    },
    Bar {
        name: "retransmit, whole record : line with addresses",
        traffic: Traffic::Retransmits,
        own: netprobe(
            "own",
            &["retransmits", "--json", "--max-overhead", "100%"],
            Events,
        ),
        other: bpftrace("other", &[RETRANSMIT_LINE], Events),
        most: "0.3",
    },
    Bar {
        name: "retransmit, counted : by port",
        traffic: Traffic::Retransmits,
        own: netprobe("own", &["retransmits", "--count"], Totals),
        other: bpftrace("other", &[RETRANSMIT_COUNT], Totals),
        most: "-",
    },
];
