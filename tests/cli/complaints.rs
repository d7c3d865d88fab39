//! What cannot work says so in one line, names the next step, and chooses its exit code.

use std::{
    fs::{self, File, Permissions},
    io,
    net::TcpStream,
    os::unix::{
        fs::{PermissionsExt, symlink},
        process::CommandExt,
    },
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    thread,
};

use netprobe_tests::{program::binary, skip::is_root};
use tempfile::TempDir;

use crate::{assert_complaint, complaint, netprobe};

const NOBODY: u32 = 65_534;

/// A copy that everybody may run, wherever the program is built.
fn public_copy() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir_in("/tmp").expect("make a folder");
    let all = Permissions::from_mode(0o755);
    fs::set_permissions(folder.path(), all).expect("let everybody in");
    let copy = folder.path().join("netprobe");
    fs::copy(binary(), &copy).expect("copy the program");
    (folder, copy)
}

/// Runs `program` without any privilege.
fn as_nobody(program: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).current_dir("/");
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.output().expect("run netprobe")
}

#[test]
fn without_root_each_command_names_what_it_needs() {
    let (_folder, program) = public_copy();
    let cases: [&[&str]; 4] = [
        &["drops"],
        &["listeners", "--json"],
        &["check"],
        &["flame", "drops"],
    ];
    for arguments in cases {
        let output = as_nobody(&program, arguments);
        assert_complaint(&output, 3, "sudo");
        assert!(
            complaint(&output).contains("CAP_"),
            "{}",
            complaint(&output)
        );
        assert!(output.stdout.is_empty(), "{arguments:?}");
    }
}

/// Runs it as nobody with `CAP_BPF` and `CAP_PERFMON`; `None` where that cannot be done.
fn with_two_capabilities(arguments: &[&str]) -> Option<Output> {
    let has_setpriv = Command::new("setpriv").arg("--version").output().is_ok();
    if !is_root() || !has_setpriv {
        return None;
    }
    let (_folder, program) = public_copy();
    let path = program.to_str().expect("a path of ours is text");
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let two = "+bpf,+perfmon";
    let sets = [
        format!("--inh-caps={two}"),
        format!("--ambient-caps={two}"),
        format!("--bounding-set=-all,{two}"),
    ];
    let output = Command::new("setpriv")
        .args(nobody)
        .args(sets)
        .arg(path)
        .args(arguments)
        .current_dir("/")
        .output();
    Some(output.expect("run netprobe"))
}

#[test]
fn two_capabilities_are_enough_for_a_stream() {
    let Some(output) = with_two_capabilities(&["drops", "--json", "--duration", "100ms"]) else {
        return;
    };
    assert!(output.status.success(), "{}", complaint(&output));
    // Only CAP_SYS_ADMIN may have run time measured, and that is said.
    let complaint = complaint(&output);
    let price = "run time in the kernel unknown";
    assert!(complaint.contains(price), "{complaint}");
}

#[test]
fn what_is_mistyped_is_told_in_a_line() {
    let cases: [(&[&str], &str); 4] = [
        (&["drosp"], "a similar subcommand exists: 'drops'"),
        (&["drops", "--foo"], "unexpected argument '--foo'"),
        (&["drops", "--duration", "x"], "such as 10s, 5m or 1h30m"),
        (&["drops", "--timestamps", "x"], "[possible values: "),
    ];
    for (arguments, words) in cases {
        assert_complaint(&netprobe(arguments), 2, words);
    }
    assert_complaint(&netprobe(&["drops", "--pcap", "-"]), 2, "needs -o FILE");
    let pcap = ["drops", "--pcap", "x.pcap", "-o", "x.pcap"];
    assert_complaint(&netprobe(&pcap), 2, "name the same file");
}

#[test]
fn with_two_capabilities_the_own_namespace_is_diagnosed_and_what_is_missing_named() {
    let Some(output) = with_two_capabilities(&["diagnose", "--duration", "300ms"]) else {
        return;
    };
    assert!(output.status.success(), "{}", complaint(&output));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("1 network namespace;"), "{text}");
    assert!(text.contains("CAP_SYS_ADMIN"), "{text}");
    assert!(!text.contains("not there at the beginning"), "{text}");
}

#[test]
fn a_limit_of_nothing_is_refused() {
    for wrong in ["0", "-1%", "101%", "much"] {
        let limit = format!("--max-overhead={wrong}");
        let output = netprobe(&["drops", &limit]);
        let complaint = complaint(&output);
        assert_eq!(output.status.code(), Some(2), "{complaint}");
        let wanted = "a percentage above 0 and up to 100";
        assert!(complaint.contains(wanted), "{complaint}");
    }
}

#[test]
fn without_root_nothing_is_written_to_the_output_file() {
    let (folder, program) = public_copy();
    let all = Permissions::from_mode(0o777);
    fs::set_permissions(folder.path(), all).expect("let everybody write");
    let file = folder.path().join("drops.svg");
    let path = file.to_str().expect("a path of ours is text");
    as_nobody(&program, &["flame", "drops", "-o", path]);
    assert!(!file.exists(), "{path} was made");
}

#[test]
fn check_says_in_json_too_why_nothing_can_run() {
    let (_folder, program) = public_copy();
    let output = as_nobody(&program, &["check", "--json"]);
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("it is JSON");
    let why = report["cannot_run"].as_str().unwrap_or_default();
    assert!(why.contains("CAP_BPF"), "{report}");
    assert_eq!(report["schema"], "netprobe.check/1");
    assert_eq!(output.status.code(), Some(3));
}

#[test]
fn a_missing_folder_for_the_output_is_named_at_once() {
    if !is_root() {
        return;
    }
    let path = "/nonexistent/drops.svg";
    for graph in [["flame", "drops", "-o"], ["diagnose", "--quiet", "--svg"]] {
        let output = netprobe(&[&graph[..], &[path, "--duration", "1h"]].concat());
        assert_complaint(&output, 1, path);
    }
}

#[test]
fn a_full_disk_is_a_failure_of_a_picture() {
    if !is_root() {
        return;
    }
    let path = "/dev/full";
    let is_over = AtomicBool::new(false);
    let output = thread::scope(|scope| {
        // Something to draw: connects to a port where nobody listens.
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                TcpStream::connect(("127.0.0.1", 9)).expect_err("nobody listens on port 9");
            }
        });
        let output = netprobe(&["-q", "flame", "drops", "--duration", "500ms", "-o", path]);
        is_over.store(true, Relaxed);
        output
    });
    assert_complaint(&output, 1, path);
    // What was collected is not lost with it.
    let complaint = complaint(&output);
    let (_, kept) = complaint.split_once("kept in ").expect(&complaint);
    let (kept, _) = kept.split_once(' ').expect(&complaint);
    let stacks = fs::read_to_string(kept).expect("read the stacks");
    fs::remove_file(kept).expect("remove the stacks");
    assert!(stacks.contains("tcp_v4_rcv"), "{stacks}");
}

#[test]
fn what_a_full_disk_leaves_is_whole_and_counted() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("events");
    // A disk of its own, which nobody else sees.
    let script = "mkdir \"$1\" && mount -t tmpfs -o size=64k full \"$1\" || exit 9
        \"$0\" drops --json --duration 60s --port 9 -o \"$1/events\"
        code=$?; cp \"$1/events\" \"$2\"; exit $code";
    let is_over = AtomicBool::new(false);
    let output = thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Relaxed) {
                TcpStream::connect(("127.0.0.1", 9)).expect_err("nobody listens on port 9");
            }
        });
        let mut command = Command::new("unshare");
        let command = command.args(["-m", "sh", "-c", script]).arg(binary());
        let output = command.arg(folder.path().join("disk")).arg(&file);
        let output = output.output().expect("run netprobe");
        is_over.store(true, Relaxed);
        output
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let text = fs::read_to_string(&file).expect("it was written");
    assert!(text.ends_with("}\n"), "torn, or nothing: {said}");
    let shown = format!("; {} shown, ", text.lines().count());
    assert!(said.contains(&shown), "{shown}: {said}");
}

#[test]
fn files_are_for_their_owner_only_and_links_are_not_followed() {
    if !is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("make a folder");
    let (file, link) = (folder.path().join("drops"), folder.path().join("link"));
    symlink(&file, &link).expect("make a link");
    for command in [&["drops", "--json"][..], &["flame", "drops", "--folded"]] {
        let write_to = |path: &Path| {
            let mut arguments = vec!["-q"];
            arguments.extend(command);
            let path = path.to_str().expect("a path of ours is text");
            arguments.extend(["--duration", "10ms", "-o", path]);
            netprobe(&arguments)
        };
        assert_complaint(&write_to(&link), 1, "symbolic link");
        assert!(!file.exists(), "{command:?} followed a link");
        write_to(&file);
        let mode = fs::metadata(&file).expect("it was written").permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        fs::remove_file(&file).expect("remove it");
    }
}

#[test]
fn a_full_disk_is_a_failure_of_a_stream() {
    if !is_root() {
        return;
    }
    let arguments = ["-q", "drops", "--json", "--duration", "10ms"];
    assert_complaint(&onto_full_disk(&arguments), 1, "No space left");
}

/// Runs the program with a full disk for standard output.
fn onto_full_disk(arguments: &[&str]) -> Output {
    let full = File::create("/dev/full").expect("open /dev/full");
    Command::new(binary())
        .args(arguments)
        .stdout(full)
        .stderr(Stdio::piped())
        .output()
        .expect("run netprobe")
}

#[test]
fn a_full_disk_is_told_in_the_same_words_by_everything() {
    let cases: [(&[&str], bool); 11] = [
        (&["--version"], false),
        (&["--help"], false),
        (&["help", "drops"], false),
        (&["flame", "cpu", "--help"], false),
        (&["explain"], false),
        (&["explain", "resets"], false),
        (&["demo", "--list"], false),
        (&["schema"], false),
        (&["generate", "completions", "bash"], false),
        (&["check"], true),
        (&["-q", "diagnose", "--duration", "100ms"], true),
    ];
    for (arguments, needs_root) in cases {
        if needs_root && !is_root() {
            continue;
        }
        let output = onto_full_disk(arguments);
        assert_complaint(&output, 1, "netprobe: write standard output: No space left");
    }
}

#[test]
fn a_closed_pipe_ends_everything_quietly() {
    let cases: [(&[&str], bool); 9] = [
        (&["--help"], false),
        (&["drops", "--help"], false),
        (&["check", "--json"], true),
        (&["-q", "drops", "--json", "--duration", "10ms"], true),
        // Although it has nothing to write.
        (
            &[
                "-q",
                "drops",
                "--json",
                "--filter",
                "sport = 1 and dport = 1",
            ],
            true,
        ),
        // And although it writes at the end only, which is far.
        (&["-q", "drops", "--count"], true),
        (&["-q", "diagnose", "--duration", "1h"], true),
        (
            &["-q", "flame", "drops", "--folded", "--duration", "1h"],
            true,
        ),
        (&["-q", "tcptop", "3600"], true),
    ];
    for (arguments, needs_root) in cases {
        if needs_root && !is_root() {
            continue;
        }
        let (reader, writer) = io::pipe().expect("make a pipe");
        drop(reader);
        let output = Command::new(binary())
            .args(arguments)
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .expect("run netprobe");
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        assert_eq!(complaint(&output), "", "{arguments:?}");
    }
}

#[test]
fn what_this_kernel_lacks_is_an_error_when_asked_for_by_name() {
    if !is_root() {
        return;
    }
    let check = netprobe_tests::program::check();
    for probe in check.probes.iter().filter(|probe| probe.state == "missing") {
        let why = probe.hooks[0].why.as_deref().unwrap_or_default();
        if why.contains("not loaded") {
            continue;
        }
        let output = netprobe(&[&probe.name, "--duration", "10ms"]);
        assert_complaint(&output, 3, &probe.name);
        assert!(
            complaint(&output).contains("netprobe check"),
            "{}",
            complaint(&output)
        );
    }
}

#[test]
fn check_says_of_every_hook_how_it_is_watched_or_why_not() {
    if !is_root() {
        return;
    }
    let check = netprobe_tests::program::check();
    assert_eq!(check.schema, "netprobe.check/1");
    let names: Vec<&str> = check
        .probes
        .iter()
        .map(|probe| probe.name.as_str())
        .collect();
    let all = [
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
    ];
    assert_eq!(names, all);
    for probe in &check.probes {
        let required = probe.hooks.iter().filter(|hook| hook.required);
        let is_missing = required.clone().any(|hook| hook.via.is_none());
        assert_eq!(probe.state == "missing", is_missing, "{probe:?}");
        for hook in &probe.hooks {
            assert_ne!(hook.via.is_some(), hook.why.is_some(), "{hook:?}");
        }
    }
}

#[test]
fn a_process_whose_namespace_may_not_be_read_is_not_said_to_have_none() {
    let (_folder, program) = public_copy();
    let output = as_nobody(&program, &["drops", "--netns", "pid:1"]);
    if !complaint(&output).contains("inode numbers") {
        assert_complaint(&output, 2, "may not be read here");
        return;
    }
    assert!(!Path::new("/proc/1").exists(), "{}", complaint(&output));
}

#[test]
fn totals_that_a_full_disk_does_not_take_are_told() {
    if !is_root() {
        return;
    }
    let output = netprobe(&["drops", "--count", "--duration", "100ms", "-o", "/dev/full"]);
    let complaint = complaint(&output);
    assert_eq!(output.status.code(), Some(1), "{complaint}");
    assert!(complaint.contains("EVENTS"), "{complaint}");
    assert!(
        complaint.contains("write /dev/full: No space left"),
        "{complaint}"
    );
}

/// Runs the program with a limit of file sizes, with its output to a file.
fn with_file_limit(arguments: &str, file: &Path) -> Output {
    let script = format!("ulimit -f 1; exec \"$0\" {arguments} > \"$1\"");
    let mut shell = Command::new("sh");
    shell.args(["-c", &script]).arg(binary()).arg(file);
    shell.output().expect("run sh")
}

#[test]
fn a_limit_of_file_sizes_is_an_error_and_no_death() {
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("schema.json");
    let output = with_file_limit("schema", &file);
    assert_complaint(&output, 1, "File too large");
    let length = file.metadata().expect("a file").len();
    assert!(length <= 1024, "{length}");
    // The kernel's types do not count where the limit can be lifted for them.
    if is_root() {
        let output = with_file_limit("drops --duration 100ms", &file);
        if output.status.code() != Some(0) {
            assert_complaint(&output, 1, "ulimit -f unlimited");
        }
    }
}
