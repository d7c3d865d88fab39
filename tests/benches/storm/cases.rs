//! The ways to watch a storm.

use netprobe_tests::watcher::{Case, Output, bpftrace, netprobe};

/// What people type who want the addresses: a line per packet.
const LINE: &str = r#"tracepoint:skb:kfree_skb {
  $skb = (struct sk_buff *)args->skbaddr;
  $ip = (struct iphdr *)($skb->head + $skb->network_header);
  $tcp = (struct tcphdr *)($skb->head + $skb->transport_header);
  printf("%d %x:%d %x:%d\n", args->reason, $ip->saddr, $tcp->source, $ip->daddr, $tcp->dest);
}"#;

/// Every way.
pub(crate) const CASES: &[Case] = &[
    netprobe(
        "netprobe, counted by reason, place, port",
        &["drops", "--count"],
        Output::Totals,
    ),
    netprobe(
        "netprobe, every event (JSON Lines)",
        &["drops", "--json", "--max-overhead", "100%"],
        Output::Events,
    ),
    netprobe(
        "netprobe, every event with stack",
        &["drops", "--json", "--stack", "--max-overhead", "100%"],
        Output::Events,
    ),
    netprobe(
        "netprobe, counted by stack",
        &[
            "drops",
            "--count",
            "--by",
            "stack",
            "--max-overhead",
            "100%",
        ],
        Output::Totals,
    ),
    bpftrace(
        "bpftrace, nothing",
        &["tracepoint:skb:kfree_skb { $x = 1; }"],
        Output::Totals,
    ),
    bpftrace(
        "bpftrace, counted by reason",
        &["tracepoint:skb:kfree_skb { @[args->reason] = count(); }"],
        Output::Totals,
    ),
    bpftrace("bpftrace, a line each", &[LINE], Output::Events),
    bpftrace(
        "bpftrace, counted by stack",
        &["tracepoint:skb:kfree_skb { @[kstack] = count(); }"],
        Output::Totals,
    ),
];
