//! Every command explains itself.

use crate::{complaint, netprobe};

const COMMANDS: [&str; 25] = [
    "diagnose",
    "explain",
    "demo",
    "drops",
    "retransmits",
    "connects",
    "listeners",
    "conntrack",
    "resets",
    "lifetimes",
    "time-wait",
    "states",
    "accepts",
    "tcpdrop",
    "tcpretrans",
    "tcpconnlat",
    "tcplife",
    "tcpsynbl",
    "tcpstates",
    "tcptop",
    "tcpaccept",
    "tcpconnect",
    "schema",
    "flame",
    "check",
];

#[test]
fn every_command_has_help_that_ends_well() {
    for command in COMMANDS {
        let output = netprobe(&[command, "--help"]);
        let help = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{command}: {}", complaint(&output));
        assert!(
            help.contains(&format!("Usage: netprobe {command}")),
            "{help}"
        );
        assert!(
            output.stderr.is_empty(),
            "{command}: {}",
            complaint(&output)
        );
    }
}

#[test]
fn the_overview_names_every_command_and_exit_code() {
    let output = netprobe(&["--help"]);
    let help = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", complaint(&output));
    for command in COMMANDS {
        assert!(
            help.contains(&format!("\n  {command} ")),
            "{command}: {help}"
        );
    }
    assert!(help.contains("Exit codes: 0"), "{help}");
}

#[test]
fn unknown_words_are_usage_errors() {
    let cases: [&[&str]; 7] = [
        &[],
        &["dorps"],
        &["--no-such-option"],
        &["drops", "--no-such-option"],
        &["drops", "--duration", "soon"],
        &["drops", "-4", "-6"],
        &["flame", "weather"],
    ];
    for arguments in cases {
        let output = netprobe(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(
            complaint(&output).contains("--help"),
            "{arguments:?}: {}",
            complaint(&output)
        );
    }
}

#[test]
fn an_impossible_port_is_a_usage_error_that_says_what_is_possible() {
    let output = netprobe(&["drops", "--port", "70000"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(complaint(&output).contains("65535"));
}

#[test]
fn a_misspelt_command_is_guessed() {
    let output = netprobe(&["retransmit"]);
    assert!(
        complaint(&output).contains("'retransmits'"),
        "{}",
        complaint(&output)
    );
}

#[test]
fn man_pages_and_completions_are_generated_without_root() {
    let folder = tempfile::tempdir().expect("make a folder");
    let path = folder.path().to_str().expect("a path of ours is text");
    let output = netprobe(&["generate", "man", path]);
    assert!(output.status.success(), "{}", complaint(&output));
    for command in COMMANDS {
        let page = folder.path().join(format!("netprobe-{command}.1"));
        assert!(page.exists(), "no {}", page.display());
    }
    for shell in ["bash", "zsh", "fish"] {
        let output = netprobe(&["generate", "completions", shell]);
        assert!(output.status.success(), "{shell}: {}", complaint(&output));
        assert!(!output.stdout.is_empty(), "{shell}");
    }
}
