//! Machines that are not as they should be: it starts, or refuses in one line and at once.

use std::{
    net::TcpStream,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use caps::{CapSet, Capability, CapsHashSet};
use netprobe_tests::{
    netns::Netns,
    program::{binary, check},
    skip::{is_root, skip},
};

const PORT: u16 = 7701;
/// A refusal must not keep anybody waiting.
const AT_ONCE: Duration = Duration::from_secs(2);

/// Runs `netprobe drops` after the shell command `before`, with no capabilities but `kept`.
fn drops_after(before: &str, kept: &[Capability]) -> (Output, Duration) {
    let script = format!("{before} exec \"$0\" drops --json --duration 200ms");
    let kept: CapsHashSet = kept.iter().copied().collect();
    let run = move || {
        let others: Vec<_> = caps::all().difference(&kept).copied().collect();
        for capability in others {
            // Those that this kernel does not know need not be dropped.
            if caps::has_cap(None, CapSet::Bounding, capability).unwrap_or(false) {
                caps::drop(None, CapSet::Bounding, capability).expect("drop a capability");
            }
        }
        let start = Instant::now();
        let output = Command::new("sh")
            .arg("-c")
            .arg(script)
            .arg(binary())
            .output();
        (output.expect("run a shell"), start.elapsed())
    };
    // Capabilities belong to a thread; its children inherit them.
    thread::spawn(run).join().expect("run netprobe")
}

fn all_capabilities() -> Vec<Capability> {
    caps::all().into_iter().collect()
}

/// It refused: exit code 3, nothing on standard output, one line that has `words`, at once.
#[track_caller]
fn assert_refusal((output, took): &(Output, Duration), words: &[&str]) {
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(3), "{complaint}");
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
    assert!(complaint.starts_with("netprobe: "), "{complaint}");
    for word in words {
        assert!(complaint.contains(word), "{word:?} is not in: {complaint}");
    }
    assert!(output.stdout.is_empty(), "{output:?}");
    assert!(*took < AT_ONCE, "{took:?}: {complaint}");
}

/// It ran and ended in order, with a summary.
#[track_caller]
fn assert_run((output, _): &(Output, Duration)) {
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{complaint}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains(r#""schema":"netprobe.summary/1""#), "{text}");
}

#[test]
fn two_capabilities_are_enough_where_the_kernel_knows_them() {
    if !is_root() {
        return;
    }
    let mut needed = vec![Capability::CAP_BPF, Capability::CAP_PERFMON];
    if check().version() < (5, 11) {
        // Maps count as locked memory there.
        needed.push(Capability::CAP_SYS_RESOURCE);
    }
    assert_run(&drops_after("", &needed));
}

#[test]
fn a_missing_capability_is_named() {
    if !is_root() {
        return;
    }
    for (kept, missing) in [
        (Capability::CAP_BPF, "CAP_PERFMON"),
        (Capability::CAP_PERFMON, "CAP_BPF"),
        (Capability::CAP_NET_ADMIN, "CAP_BPF"),
    ] {
        // To be root, which it is, would not help.
        assert_refusal(&drops_after("", &[kept]), &[missing, "grant CAP_BPF"]);
    }
}

#[test]
fn a_kernel_without_btf_is_refused() {
    if !is_root() {
        return;
    }
    let hide = "unshare -m sh -c 'mount -t tmpfs none /sys/kernel/btf && exec \"$@\"' -";
    let script = format!("set -e; set -- {hide} \"$0\" drops --json; exec \"$@\"; ");
    let refusal = drops_after(&script, &all_capabilities());
    assert_refusal(
        &refusal,
        &["/sys/kernel/btf/vmlinux", "CONFIG_DEBUG_INFO_BTF"],
    );
}

#[test]
fn a_small_limit_on_locked_memory_is_lifted_or_named() {
    if !is_root() {
        return;
    }
    let limit = "ulimit -l 64;";
    assert_run(&drops_after(limit, &all_capabilities()));
    let run = drops_after(limit, &[Capability::CAP_BPF, Capability::CAP_PERFMON]);
    if check().version() < (5, 11) {
        assert_refusal(&run, &["memlock", "ulimit -l unlimited"]);
    } else {
        assert_run(&run);
    }
}

#[test]
fn tracefs_is_not_needed() {
    if !is_root() {
        return;
    }
    let hide = "mount -t tmpfs none /sys/kernel/tracing 2>/dev/null; \
                mount -t tmpfs none /sys/kernel/debug 2>/dev/null; \
                exec \"$0\" drops --json --duration 200ms";
    let script = format!("exec unshare -m sh -c '{hide}' \"$0\";");
    assert_run(&drops_after(&script, &all_capabilities()));
}

#[test]
fn a_container_sees_other_namespaces() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    let script = "exec unshare -m -n -p -f \"$0\" drops --json --duration 2s --netns $1";
    let child = Command::new("sh")
        .args(["-c", script])
        .arg(binary())
        .arg(netns.inum().to_string())
        .stdout(Stdio::piped())
        .spawn();
    let mut child = child.expect("run a shell");
    // Somebody knocks where nobody listens, all the while.
    while child.try_wait().expect("wait for netprobe").is_none() {
        netns.run(|| TcpStream::connect(("127.0.0.1", PORT)).expect_err("nobody listens"));
        thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output().expect("read what it printed");
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).expect("it is text");
    let is_of_netns = |line: &str| line.contains(&format!(r#""netns":{}"#, netns.inum()));
    let (summary, events) = text
        .lines()
        .rev()
        .collect::<Vec<_>>()
        .split_first()
        .map_or_else(
            || panic!("it printed nothing"),
            |(summary, events)| ((*summary).to_owned(), events.len()),
        );
    assert!(summary.contains("netprobe.summary/1"), "{summary}");
    assert!(events > 0, "{text}");
    assert!(text.lines().take(events).all(is_of_netns), "{text}");
}

#[test]
fn in_a_container_processes_have_the_ids_that_they_have_there() {
    if !is_root() {
        return;
    }
    let netns = Netns::new();
    // The second shell says its id, and is the one that connects: nobody listens there.
    let script = "\"$0\" connects --json --duration 3s & sleep 1.5; \
        sh -c 'echo pid $$; exec busybox nc 127.0.0.1 9' 2>/dev/null; wait";
    let output = netns.run(|| {
        Command::new("unshare")
            .args(["-m", "-p", "-f", "--mount-proc", "sh", "-c", script])
            .arg(binary())
            .output()
            .expect("unshare")
    });
    let text = String::from_utf8_lossy(&output.stdout);
    let pid = text.lines().find_map(|line| line.strip_prefix("pid "));
    let pid: u64 = pid.expect("its id").parse().expect("a number");
    assert!(pid < 100, "{output:?}");
    let events = text
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok());
    let mut pids = events
        .filter(|event: &serde_json::Value| event["kind"] == "connects" && event["dport"] == 9)
        .map(|event| event["pid"].as_u64());
    assert_eq!(pids.next(), Some(Some(pid)), "{output:?}");
}

#[test]
fn a_graph_that_the_disk_has_no_room_for_leaves_the_one_that_was_there() {
    if !is_root() {
        return;
    }
    let folder = std::env::temp_dir().join(format!("np-full-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    // An empty graph would fit into the page of the old one.
    let script = "mount -t tmpfs -o size=64k none $1 && cd $1 && echo old >g.svg && head -c 60000 /dev/zero >rest
        timeout 3 sh -c 'while :; do :; done' &
        \"$0\" flame cpu --duration 1s -o g.svg 2>&1; echo ended with $?; cat g.svg";
    let output = Command::new("unshare")
        .args(["-m", "sh", "-c", script])
        .args([binary().as_os_str(), folder.as_os_str()])
        .output()
        .expect("unshare");
    std::fs::remove_dir(&folder).expect("it is empty outside");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("No space left on device"), "{text}");
    assert!(text.ends_with("ended with 1\nold\n"), "{text}");
}

/// What cannot be taken back: only for a machine that is thrown away afterwards.
mod spoiling {
    use super::{
        Command, all_capabilities, assert_refusal, assert_run, drops_after, is_root, skip,
    };

    #[test]
    #[ignore = "locks the kernel down until it boots again; the matrix runs it last"]
    fn lockdown_is_survived_or_refused() {
        const LOCKDOWN: &str = "/sys/kernel/security/lockdown";
        if !is_root() {
            return;
        }
        let securityfs = ["-t", "securityfs", "none", "/sys/kernel/security"];
        // It may be mounted.
        Command::new("mount").args(securityfs).output().ok();
        if std::fs::write(LOCKDOWN, "integrity").is_err() {
            skip("this kernel has no lockdown (CONFIG_SECURITY_LOCKDOWN_LSM)");
            return;
        }
        assert_run(&drops_after("", &all_capabilities()));
        std::fs::write(LOCKDOWN, "confidentiality").expect("lock it down further");
        let refusal = drops_after("", &all_capabilities());
        assert_refusal(&refusal, &["confidentiality", "lockdown=integrity"]);
    }
}
