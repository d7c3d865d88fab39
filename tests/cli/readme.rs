//! Every command in the README works.
//!
//! Blocks marked `sh` are run as scripts, each in a folder and a network namespace of its own.
//! Building is left out, as the program under test is built already, and so is running these tests.

use std::{
    fs,
    os::unix::{fs::symlink, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
};

use netprobe_tests::{netns::Netns, program::binary, skip};
use rustix::process::{Pid, Signal, kill_process_group};

/// The scripts of a text in Markdown.
fn scripts(text: &str) -> Vec<String> {
    let mut scripts = Vec::new();
    let mut script: Option<String> = None;
    for line in text.lines() {
        match &mut script {
            None if matches!(line.trim(), "```sh" | "```console") => script = Some(String::new()),
            Some(_) if line.trim() == "```" => scripts.extend(script.take()),
            Some(lines) => {
                lines.push_str(line.strip_prefix("$ ").unwrap_or(line));
                lines.push('\n');
            }
            None => {}
        }
    }
    scripts
}

/// The script as it is run: by root, without builds, and not for long.
fn adapted(script: &str) -> String {
    let script = script
        .replace("cargo build --release && ", "")
        .replace("sudo ", "")
        .replace("--duration 10s", "--duration 1s");
    let is_wanted = |line: &&str| !line.starts_with("cargo ");
    let lines = script.lines().filter(is_wanted);
    lines.fold(String::new(), |text, line| text + line + "\n")
}

#[test]
fn every_command_of_the_readme_works() {
    if !skip::is_root() {
        return;
    }
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let Ok(text) = fs::read_to_string(&readme) else {
        skip::skip(&format!("no {}", readme.display()));
        return;
    };
    let scripts = scripts(&text);
    assert!(
        scripts.len() >= 2,
        "{} scripts in the README",
        scripts.len()
    );
    for script in scripts {
        run(&adapted(&script));
    }
}

#[track_caller]
fn run(script: &str) {
    let folder = tempfile::tempdir().expect("make a folder");
    let release = folder.path().join("target/release");
    fs::create_dir_all(&release).expect("make a folder");
    symlink(binary(), release.join("netprobe")).expect("make a link");
    let path = std::env::var("PATH").unwrap_or_default();
    let netns = Netns::new();
    let output = netns.run(|| {
        let child = Command::new("sh")
            .args(["-e", "-c", script])
            .current_dir(folder.path())
            .env("PATH", format!("{}:{path}", release.display()))
            .process_group(0)
            .stdin(Stdio::null())
            // What it leaves in the background must not keep us.
            .stdout(fs::File::create(folder.path().join("out")).expect("make a file"))
            .stderr(fs::File::create(folder.path().join("err")).expect("make a file"))
            .spawn()
            .expect("run sh");
        let group = Pid::from_child(&child);
        let output = child.wait_with_output().expect("wait for sh");
        // The group may be gone already.
        kill_process_group(group, Signal::KILL).ok();
        output
    });
    let complaints = fs::read_to_string(folder.path().join("err")).unwrap_or_default();
    assert!(
        output.status.success(),
        "{}: {script}\n{complaints}",
        output.status
    );
}

#[test]
fn scripts_are_found_in_markdown() {
    let text = "text\n```sh\na\nb\n```\n```text\nc\n```\n```console\n$ d\n```\n";
    assert_eq!(scripts(text), ["a\nb\n", "d\n"]);
}

#[test]
fn building_and_testing_are_left_out() {
    let script =
        "cargo build --release && sudo ./target/release/netprobe check\ncargo xtask test\n";
    assert_eq!(adapted(script), "./target/release/netprobe check\n");
}
