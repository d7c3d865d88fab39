//! Flame graphs of tasks: programs that spend known shares of their time in known functions.

use std::{
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use netprobe_tests::{probe::Probe, skip::skip};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/live/programs/burner.c");
/// Enough for shares that are known to a point.
const OFTEN: &str = "997";

/// A burner, built with `flags` under the name `name`; none where there is no compiler.
fn build(folder: &Path, name: &str, flags: &[&str]) -> Option<PathBuf> {
    let program = folder.join(name);
    let built = Command::new("gcc")
        .args(flags)
        .arg("-o")
        .args([&program, Path::new(SOURCE)])
        .status();
    match built {
        Ok(status) if status.success() => Some(program),
        Ok(status) => panic!("gcc: {status}"),
        Err(why) => {
            skip(&format!("no gcc here ({why})"));
            None
        }
    }
}

/// A running burner.
struct Burner {
    child: Child,
    output: ChildStdout,
}

impl Burner {
    fn start(program: &Path, mode: &str, seconds: u32) -> Self {
        let mut command = Command::new(program);
        command.args([mode, &seconds.to_string()]);
        Self::spawn(&mut command)
    }

    fn spawn(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("start the burner");
        let output = child.stdout.take().expect("its output is a pipe");
        Self { child, output }
    }

    /// Waits until its time is spent.
    fn wait(&mut self) {
        let mut byte = [0];
        self.output.read_exact(&mut byte).expect("the burner lives");
    }

    fn map(&self) -> PathBuf {
        format!("/tmp/perf-{}.map", self.child.id()).into()
    }
}

impl Drop for Burner {
    fn drop(&mut self) {
        // It may have ended by itself, and not all write a map.
        self.child.kill().ok();
        self.child.wait().ok();
        fs::remove_file(self.map()).ok();
    }
}

/// Stacks of `comm` and their weights, drawn while a burner runs.
fn draw(graph: &[&str], burner: impl FnOnce() -> Burner) -> Vec<(String, u64)> {
    let folder = tempfile::tempdir().expect("make a folder");
    let file = folder.path().join("graph.folded");
    let path = file.to_str().expect("a path of ours is text");
    let common = ["--folded", "--duration", "60s", "-o", path];
    let probe = Probe::start(&[&["flame"], graph, &common].concat());
    let mut burner = burner();
    burner.wait();
    probe.stop_without_summary();
    let text = fs::read_to_string(&file).expect("read the graph");
    let stacks = text.lines().map(|line| {
        let (stack, weight) = line.rsplit_once(' ').expect("a stack and its weight");
        (
            stack.to_owned(),
            weight.parse().expect("a weight is a number"),
        )
    });
    stacks.collect()
}

/// The share of the stacks with `frame`, of those with any of its kind, in percent.
fn share(stacks: &[(String, u64)], frame: &str, kind: &str) -> f64 {
    let weight = |name: &str| -> u64 {
        let has = |stack: &str| stack.split(';').any(|one| one.starts_with(name));
        let those = stacks.iter().filter(|(stack, _)| has(stack));
        those.map(|(_, weight)| weight).sum()
    };
    let all = weight(kind);
    assert!(all > 0, "no {kind}: {stacks:?}");
    #[expect(clippy::cast_precision_loss, reason = "weights are small")]
    let percent = 100.0 * weight(frame) as f64 / all as f64;
    percent
}

/// The functions of `kind` have their shares, within 3 points.
#[track_caller]
fn assert_shares(stacks: &[(String, u64)], kind: &str) {
    for (name, expected) in [("fifty", 50.0), ("thirty", 30.0), ("twenty", 20.0)] {
        let share = share(stacks, &format!("{kind}{name}"), kind);
        assert!(
            (share - expected).abs() <= 3.0,
            "{kind}{name}: {share:.1} % of {expected} %: {stacks:#?}"
        );
    }
}

#[test]
fn functions_have_the_shares_of_the_cpu_that_they_used() {
    let folder = tempfile::tempdir().expect("make a folder");
    let flags = ["-O1", "-g", "-fno-omit-frame-pointer"];
    let Some(program) = build(folder.path(), "burn-fp", &flags) else {
        return;
    };
    let graph = ["cpu", "-F", OFTEN, "--comm", "burn-fp"];
    let stacks = draw(&graph, || Burner::start(&program, "run", 3));
    assert_shares(&stacks, "burn_");
    let whole = share(&stacks, "round_of_burning", "burn_");
    assert!(whole > 97.0, "{whole:.1} % have their caller: {stacks:#?}");
    for (stack, _) in &stacks {
        assert!(stack.starts_with("burn-fp;"), "{stack}");
    }
}

#[test]
fn without_frame_pointers_the_innermost_function_is_right_and_the_stack_is_labelled() {
    let folder = tempfile::tempdir().expect("make a folder");
    let flags = ["-O2", "-g", "-fomit-frame-pointer"];
    let Some(program) = build(folder.path(), "burn-nofp", &flags) else {
        return;
    };
    let graph = ["cpu", "-U", "-F", OFTEN, "--comm", "burn-nofp"];
    let stacks = draw(&graph, || Burner::start(&program, "run", 3));
    assert_shares(&stacks, "burn_");
    for (stack, _) in &stacks {
        let functions = stack.matches("burn_").count();
        assert!(functions <= 1, "glued to a wrong parent: {stack}");
        let is_labelled = stack.contains("[truncated]") || stack.contains("main");
        assert!(is_labelled, "{stack}");
    }
}

#[test]
fn functions_made_at_run_time_have_the_names_of_the_perf_map() {
    let folder = tempfile::tempdir().expect("make a folder");
    let flags = ["-O1", "-fno-omit-frame-pointer"];
    let Some(program) = build(folder.path(), "burn-jit", &flags) else {
        return;
    };
    let graph = ["cpu", "-U", "-F", OFTEN, "--comm", "burn-jit"];
    let stacks = draw(&graph, || Burner::start(&program, "jit", 3));
    assert_shares(&stacks, "jit_");
    assert!(share(&stacks, "jit_fifty_[j]", "jit_fifty") > 99.0);
}

#[test]
fn a_pipe_or_a_huge_file_for_a_perf_map_holds_nothing_up() {
    let folder = tempfile::tempdir().expect("make a folder");
    let flags = ["-O1", "-fno-omit-frame-pointer"];
    let Some(program) = build(folder.path(), "burn-bad", &flags) else {
        return;
    };
    for hostile in [make_pipe as fn(&Path), make_huge] {
        let graph = ["cpu", "-U", "-F", OFTEN, "--comm", "burn-bad"];
        let mut ended = Instant::now();
        let stacks = draw(&graph, || {
            let mut command = Command::new(&program);
            command.args(["jit", "1"]).env("BURNER_NO_MAP", "1");
            let burner = Burner::spawn(&mut command);
            hostile(&burner.map());
            ended = Instant::now() + Duration::from_secs(1);
            burner
        });
        assert!(ended.elapsed() < Duration::from_secs(10), "it was held up");
        assert!(share(&stacks, "[jit]", "[jit]") > 99.0, "{stacks:?}");
    }
}

fn make_pipe(path: &Path) {
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mkfifoat(rustix::fs::CWD, path, mode).expect("make a pipe");
}

/// Ten gigabytes without a name in them.
fn make_huge(path: &Path) {
    let file = fs::File::create(path).expect("make a file");
    file.set_len(10 << 30).expect("make it large");
    let permissions = fs::Permissions::from_mode(0o644);
    file.set_permissions(permissions).expect("let all read it");
}

#[test]
fn functions_have_the_shares_of_the_time_that_they_were_blocked() {
    let folder = tempfile::tempdir().expect("make a folder");
    let flags = ["-O1", "-g", "-fno-omit-frame-pointer"];
    let Some(program) = build(folder.path(), "burn-wait", &flags) else {
        return;
    };
    let graph = ["offcpu", "--min-block", "1ms", "--comm", "burn-wait"];
    let started = Instant::now();
    let stacks = draw(&graph, || Burner::start(&program, "wait", 3));
    let most = started.elapsed();
    assert_shares(&stacks, "wait_");
    let waited: u64 = stacks
        .iter()
        .filter(|(stack, _)| stack.contains("wait_"))
        .map(|(_, us)| us)
        .sum();
    let waited = Duration::from_micros(waited);
    assert!(waited >= Duration::from_millis(2990), "{waited:?}");
    assert!(waited < most, "{waited:?} of {most:?}");
}

#[test]
fn short_blocks_are_left_out() {
    let folder = tempfile::tempdir().expect("make a folder");
    let flags = ["-O1", "-g", "-fno-omit-frame-pointer"];
    let Some(program) = build(folder.path(), "burn-min", &flags) else {
        return;
    };
    let graph = ["offcpu", "--min-block", "40ms", "--comm", "burn-min"];
    let stacks = draw(&graph, || Burner::start(&program, "wait", 1));
    let has = |name: &str| stacks.iter().any(|(stack, _)| stack.contains(name));
    assert!(has("wait_fifty"), "{stacks:?}");
    assert!(!has("wait_twenty"), "{stacks:?}");
}

#[test]
fn filters_choose_the_tasks() {
    let folder = tempfile::tempdir().expect("make a folder");
    let flags = ["-O1", "-fno-omit-frame-pointer"];
    let build = |name| build(folder.path(), name, &flags);
    let (Some(program), Some(unwanted)) = (build("burn-one"), build("burn-two")) else {
        return;
    };
    let mut other = Burner::start(&program, "run", 20);
    let pid = other.child.id().to_string();
    for filter in [["--pid", &*pid], ["--tid", &*pid]] {
        let graph = [&["cpu", "-F", OFTEN], &filter[..]].concat();
        let stacks = draw(&graph, || Burner::start(&unwanted, "run", 1));
        let weight: u64 = stacks.iter().map(|(_, weight)| weight).sum();
        assert!(weight > 0, "{filter:?}");
        for (stack, _) in &stacks {
            assert!(stack.starts_with("burn-one;"), "{filter:?}: {stack}");
        }
    }
    assert!(other.child.try_wait().expect("wait").is_none());
    let stacks = draw(&["cpu", "-F", OFTEN], || Burner::start(&unwanted, "run", 1));
    let has = |name: &str| stacks.iter().any(|(stack, _)| stack.starts_with(name));
    assert!(has("burn-two;"), "without a filter it is there");
}
