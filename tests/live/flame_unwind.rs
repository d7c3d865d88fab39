//! User stacks of programs without frame pointers: whole, or labelled, and never glued together wrong.

use std::{
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::Duration,
};

use netprobe_tests::program::binary;

use crate::burner::{
    Burner, assert_shares, build, build_hash_go, build_leaf, build_leaf_go, build_rust, build_spin,
    draw, share,
};

/// As often as two pages of every stack can be copied.
const OFTEN: &str = "719";
const UNFRAMED: [&str; 3] = ["-O2", "-g", "-fomit-frame-pointer"];

/// The share of the stacks with functions of `kind` that have `callers` side by side.
fn share_below(stacks: &[(String, u64)], callers: &str, kind: &str) -> f64 {
    let weight = |part: &str| -> u64 {
        let those = stacks.iter().filter(|(stack, _)| stack.contains(part));
        those.map(|(_, weight)| weight).sum()
    };
    #[expect(clippy::cast_precision_loss, reason = "weights are small")]
    let percent = 100.0 * weight(callers) as f64 / weight(kind) as f64;
    percent
}

#[test]
fn without_frame_pointers_stacks_are_whole() {
    assert_whole("burn-nofp", &UNFRAMED);
}

#[test]
fn without_an_index_of_its_tables_stacks_of_a_static_program_are_whole() {
    let flags = ["-static", "-Wl,--no-eh-frame-hdr"];
    assert_whole("burn-static", &[&UNFRAMED[..], &flags].concat());
}

/// Nearly all stacks of a program that is built so are whole.
#[track_caller]
fn assert_whole(name: &str, flags: &[&str]) {
    let folder = tempfile::tempdir().expect("make a folder");
    let Some(program) = build(folder.path(), name, flags) else {
        return;
    };
    let graph = ["cpu", "-F", OFTEN, "--comm", name];
    let stacks = draw(&graph, || Burner::start(&program, "run", 3));
    assert_shares(&stacks, "burn_");
    let whole = share_below(&stacks, ";main;round_of_burning;burn_", ";burn_");
    assert!(whole > 97.0, "{whole:.1} % are whole: {stacks:#?}");
    let cut = share(&stacks, "[truncated]", name);
    assert!(cut < 3.0, "{cut:.1} % are cut: {stacks:#?}");
}

#[test]
fn without_frame_pointers_blocked_stacks_are_whole() {
    let folder = tempfile::tempdir().expect("make a folder");
    let Some(program) = build(folder.path(), "wait-nofp", &UNFRAMED) else {
        return;
    };
    let graph = ["offcpu", "--comm", "wait-nofp"];
    let stacks = draw(&graph, || Burner::start(&program, "wait", 2));
    assert_shares(&stacks, "wait_");
    let whole = share_below(&stacks, ";main;round_of_waiting;wait_", ";wait_");
    assert!(whole > 97.0, "{whole:.1} % are whole: {stacks:#?}");
}

#[test]
fn short_blocks_leave_the_copies_to_long_ones() {
    let folder = tempfile::tempdir().expect("make a folder");
    let Some(program) = build(folder.path(), "wait-flurry", &UNFRAMED) else {
        return;
    };
    let graph = ["offcpu", "--min-block", "5ms", "--comm", "wait-flurry"];
    let stacks = draw(&graph, || Burner::start(&program, "flurry", 3));
    let whole = share_below(&stacks, ";wait_long;", "wait-flurry;");
    assert!(whole > 80.0, "{whole:.1} % are whole: {stacks:#?}");
}

#[test]
fn where_cost_is_kept_low_short_blocks_leave_the_stacks_to_long_ones() {
    let folder = tempfile::tempdir().expect("make a folder");
    let Some(program) = build(folder.path(), "wait-cheap", &UNFRAMED) else {
        return;
    };
    let graph = ["offcpu", "--max-overhead", "0.01%", "--comm", "wait-cheap"];
    let stacks = draw(&graph, || Burner::start(&program, "flurry", 4));
    let waited_us = |part: &str| -> u64 {
        let those = stacks.iter().filter(|(stack, _)| stack.contains(part));
        those.map(|(_, us)| us).sum()
    };
    // A hundred times 20 ms, and 60 us or more in between, two hundred times each.
    assert!(waited_us(";wait_long;") > 1_900_000, "{stacks:#?}");
    assert!(
        waited_us("wait-cheap;[no stack, to stay cheap]") > 100_000,
        "{stacks:#?}"
    );
    assert!(waited_us("wait-cheap;") > 3_000_000, "{stacks:#?}");
}

#[test]
fn what_a_pattern_does_not_want_is_left_alone_once_it_is_known() {
    let ended = AtomicBool::new(false);
    let said = thread::scope(|scope| {
        scope.spawn(|| toss(&ended));
        let graph = [
            "flame",
            "offcpu",
            "--comm",
            "wait-no*",
            "-v",
            "--max-overhead",
            "100%",
        ];
        let output = Command::new(binary())
            .args([&graph[..], &["--duration", "6s", "--folded"]].concat())
            .output();
        ended.store(true, Ordering::Relaxed);
        String::from_utf8(output.expect("run netprobe").stderr).expect("it is text")
    });
    let (taken, not_wanted) = (before(&said, " taken:"), before(&said, " not wanted,"));
    assert!(taken > 10_000, "{said}");
    assert!(not_wanted > taken / 10 * 7, "{said}");
}

#[test]
fn waits_in_accept_are_told_from_all_others_without_their_stacks() {
    let ended = AtomicBool::new(false);
    let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
    let address = listener.local_addr().expect("it has an address");
    let output = thread::scope(|scope| {
        scope.spawn(|| toss(&ended));
        let accepts = thread::Builder::new().name("wait-accept".to_owned());
        let accept = || while listener.accept().is_ok() && !ended.load(Ordering::Relaxed) {};
        accepts.spawn_scoped(scope, accept).expect("a thread");
        scope.spawn(|| {
            let connect = || TcpStream::connect(address).expect("connect");
            while !ended.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(100));
                connect();
            }
            connect();
        });
        let graph = ["flame", "accept-wait", "-v", "--max-overhead", "100%"];
        let output = Command::new(binary())
            .args([&graph[..], &["--duration", "3s", "--folded"]].concat())
            .output();
        ended.store(true, Ordering::Relaxed);
        output.expect("run netprobe")
    });
    let said = String::from_utf8(output.stderr).expect("it is text");
    let (taken, not_wanted) = (before(&said, " taken:"), before(&said, " not wanted,"));
    assert!(taken > 10_000 && not_wanted > taken / 10 * 9, "{said}");
    let drawn = String::from_utf8(output.stdout).expect("it is text");
    let of_ours = |line: &&str| line.starts_with("wait-accept;") && line.contains(";inet_csk_acc");
    let waited_us: u64 = drawn
        .lines()
        .filter(of_ours)
        .filter_map(|line| line.rsplit_once(' '))
        .map(|(_, us)| us.parse::<u64>().expect("a number"))
        .sum();
    // The first wait has begun before the window, the last one does not end in it.
    assert!((2_000_000..3_500_000).contains(&waited_us), "{drawn}");
}

/// The number before these words.
fn before(said: &str, words: &str) -> u64 {
    let (text, _) = said.split_once(words).expect("the account is there");
    let number = text.rsplit(' ').next().expect("something before it");
    number.parse().expect("a number")
}

/// Two threads that wait for each other tens of thousands of times a second.
fn toss(ended: &AtomicBool) {
    let (mut here, mut there) = UnixStream::pair().expect("a pair of sockets");
    thread::scope(|scope| {
        scope.spawn(move || {
            let mut byte = [0];
            while there.read_exact(&mut byte).is_ok() && there.write_all(&byte).is_ok() {}
        });
        while !ended.load(Ordering::Relaxed) {
            here.write_all(b".").expect("throw");
            here.read_exact(&mut [0]).expect("catch");
        }
        drop(here);
    });
}

#[test]
fn by_frame_pointers_only_stacks_without_them_are_labelled() {
    let folder = tempfile::tempdir().expect("make a folder");
    let Some(program) = build(folder.path(), "burn-walk", &UNFRAMED) else {
        return;
    };
    let how = ["--unwind", "frame-pointers"];
    let graph = [&["cpu", "-U", "-F", OFTEN, "--comm", "burn-walk"], &how[..]].concat();
    let stacks = draw(&graph, || Burner::start(&program, "run", 1));
    for (stack, _) in stacks.iter().filter(|(stack, _)| stack.contains("burn_")) {
        let functions = stack.matches("burn_").count();
        assert!(functions <= 1, "glued to a wrong parent: {stack}");
        let is_labelled = stack.contains("[truncated]") || stack.contains("main");
        assert!(is_labelled, "{stack}");
    }
}

#[test]
fn by_frame_pointers_only_no_caller_is_invented() {
    let folder = tempfile::tempdir().expect("make a folder");
    let Some(program) = build_spin(folder.path()) else {
        return;
    };
    let stacks = sample(&program, &["--unwind", "frame-pointers"]);
    let alone = share_below(&stacks, "spin;[truncated];spin", "spin;");
    assert!(alone > 97.0, "{alone:.1} % have no caller: {stacks:#?}");
}

#[test]
fn stacks_deeper_than_what_is_copied_are_labelled() {
    let folder = tempfile::tempdir().expect("make a folder");
    let Some(program) = build(folder.path(), "burn-deep", &UNFRAMED) else {
        return;
    };
    let graph = ["cpu", "-U", "-F", OFTEN, "--comm", "burn-deep"];
    let stacks = draw(&graph, || Burner::start(&program, "deep", 1));
    for (stack, _) in &stacks {
        if stack.contains(";burn_deep") {
            // The innermost may be alone: no page is waited for to copy it.
            let begins = stack.starts_with("burn-deep;[truncated];burn_deep");
            assert!(begins || stack.contains(";main;burn_deep"), "{stack}");
        }
    }
    let cut = share(&stacks, "[truncated]", "burn-deep");
    assert!(cut > 90.0, "{cut:.1} % are cut: {stacks:#?}");
}

#[test]
fn functions_in_rust_have_their_shares_with_frame_pointers_and_without() {
    let folder = tempfile::tempdir().expect("make a folder");
    for (name, framed) in [("burn-rs", "no"), ("burn-rs-fp", "yes")] {
        let flags = [&*format!("-Cforce-frame-pointers={framed}")];
        let Some(program) = build_rust(folder.path(), name, &flags) else {
            return;
        };
        let graph = ["cpu", "-U", "-F", OFTEN, "--comm", name];
        let stacks = draw(&graph, || Burner::start(&program, "run", 2));
        assert_shares(&stacks, "burner::burn_");
        let callers = ";burner::main;burner::round_of_burning;burner::burn_";
        let whole = share_below(&stacks, callers, ";burner::burn_");
        assert!(whole > 97.0, "{name}: {whole:.1} % are whole: {stacks:#?}");
    }
}

#[test]
fn with_frame_pointers_the_caller_of_a_function_without_a_frame_is_there() {
    let folder = tempfile::tempdir().expect("make a folder");
    if let Some(program) = build_leaf(folder.path()) {
        assert_callers_of_leaf(&program, "");
    }
}

#[test]
fn in_go_the_caller_of_a_function_without_a_frame_is_there() {
    let folder = tempfile::tempdir().expect("make a folder");
    if let Some(program) = build_leaf_go(folder.path()) {
        assert_callers_of_leaf(&program, "main.");
    }
}

/// The function `leaf`, which has no frame, is called by `often` three times of four, and by `seldom`.
fn assert_callers_of_leaf(program: &Path, package: &str) {
    let stacks = sample(program, &[]);
    let leaf = format!(";{package}leaf");
    let below = |caller: &str| share_below(&stacks, &format!(";{package}{caller}{leaf}"), &leaf);
    assert!(below("run") < 1.0, "{stacks:#?}");
    assert!((below("often") - 75.0).abs() <= 4.0, "{stacks:#?}");
}

#[test]
fn in_go_assembly_that_uses_the_frame_pointer_for_data_has_its_callers() {
    let folder = tempfile::tempdir().expect("make a folder");
    let Some(program) = build_hash_go(folder.path()) else {
        return;
    };
    let mut stacks = sample(&program, &[]);
    stacks.retain(|(stack, _)| stack.contains(";crypto/md5.block"));
    let cut = share_below(&stacks, ";[truncated]", ";crypto/md5.block");
    assert!(cut < 1.0, "{cut:.1} % are cut: {stacks:#?}");
    let often = share_below(&stacks, ";main.main;main.often;", ";crypto/md5.block");
    assert!((often - 75.0).abs() <= 4.0, "{often:.1} %: {stacks:#?}");
}

/// Stacks of a program that runs until it is killed.
fn sample(program: &Path, options: &[&str]) -> Vec<(String, u64)> {
    let mut child = Command::new(program).spawn().expect("run it");
    let pid = child.id().to_string();
    let output = Command::new(binary())
        .args(["flame", "cpu", "-U", "-F", OFTEN, "-d", "3s", "--folded"])
        .args(["--pid", &pid])
        .args(options)
        .output()
        .expect("run netprobe");
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    let text = String::from_utf8_lossy(&output.stdout);
    let stacks = text.lines().filter_map(|line| line.rsplit_once(' '));
    let stacks =
        stacks.map(|(stack, weight)| (stack.to_owned(), weight.parse().expect("a number")));
    stacks.collect()
}

#[test]
fn a_program_in_a_container_has_names_and_whole_stacks() {
    let folder = tempfile::tempdir().expect("make a folder");
    let Some(program) = build(folder.path(), "burn-inside", &UNFRAMED) else {
        return;
    };
    // The program is in a file system that only its own mount namespace has.
    let inside = folder.path().join("inside");
    std::fs::create_dir(&inside).expect("make a folder");
    let script = "mount -t tmpfs tmpfs $1 && cp $0 $1/ && exec $1/burn-inside run 1";
    let graph = ["cpu", "-U", "-F", OFTEN, "--comm", "burn-inside"];
    let stacks = draw(&graph, || {
        let mut command = Command::new("unshare");
        command.args([
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            script,
        ]);
        Burner::spawn(command.args([&program, &inside]))
    });
    assert_eq!(std::fs::read_dir(&inside).expect("look").count(), 0);
    assert_shares(&stacks, "burn_");
    let whole = share_below(&stacks, ";main;round_of_burning;burn_", ";burn_");
    assert!(whole > 97.0, "{whole:.1} % are whole: {stacks:#?}");
}
