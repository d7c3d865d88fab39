//! `drops --pcap`: what tshark reads from the file are the events, one by one.

use std::{path::Path, process::Command};

use netprobe_tests::{
    event::{number, text},
    netns::Cable,
    probe::Probe,
    skip::{has_hooks, skip},
    traffic::Family,
};

const PORT: u16 = 7671;
const TIMES: u64 = 5;

/// Fields of every packet, as tshark reads them; `None` without tshark.
fn tshark(file: &Path) -> Option<Vec<Vec<String>>> {
    let fields = [
        "tcp.srcport",
        "tcp.dstport",
        "tcp.seq_raw",
        "frame.len",
        "frame.comment",
    ];
    let fields = fields.iter().flat_map(|field| ["-e", field]);
    let output = Command::new("tshark")
        .arg("-r")
        .arg(file)
        .args(["-T", "fields", "-E", "separator=|"])
        .args(fields)
        .output()
        .ok()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let fields = |line: &str| line.split('|').map(str::to_owned).collect();
    Some(text.lines().map(fields).collect())
}

#[test]
fn tshark_reads_the_events_from_the_file() {
    if !has_hooks("drops", &[]) {
        return;
    }
    for family in Family::OF_PACKETS {
        let cable = Cable::new();
        let folder = tempfile::tempdir().expect("make a folder");
        let file = folder.path().join("drops.pcapng");
        let path = file.to_str().expect("a path of ours is text");
        let netns = cable.server.inum().to_string();
        let probe = Probe::start(&["drops", "--json", "--pcap", path, "--netns", &netns]);
        for _ in 0..TIMES {
            let refused = cable.client.run(|| family.connect(PORT));
            refused.expect_err("nobody listens");
        }
        let run = probe.stop();
        assert_eq!(run.all().len() as u64, TIMES);
        let Some(packets) = tshark(&file) else {
            skip("no tshark here");
            return;
        };
        assert_eq!(packets.len(), run.all().len(), "{packets:#?}");
        for (packet, event) in packets.iter().zip(run.all()) {
            let found: Vec<u64> = packet[..3]
                .iter()
                .filter_map(|field| field.parse().ok())
                .collect();
            let expected = ["sport", "dport", "seq"].map(|name| number(event, name));
            assert_eq!(found, expected, "{family:?}: {packet:?}");
            let reason = event["reason"].as_str().unwrap_or("-");
            assert!(
                packet[4].starts_with(&format!("reason={reason} ")),
                "{packet:?}"
            );
            let location = format!("location={} ", text(event, "location"));
            assert!(packet[4].contains(&location), "{packet:?}");
        }
    }
}
