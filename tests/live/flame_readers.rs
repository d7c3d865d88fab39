//! Flame graphs as others read them: a browser, and pprof.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
};

use netprobe_tests::{program::binary, skip::skip};
use serde_json::Value;

/// Stacks whose names are hostile, and whose weights are known.
const STACKS: &str = "\
php-fpm: <script>window.pwned=1</script>;main;tcp_v4_connect_[k];inet_hash_connect_[k] 60
nginx\" onload=\"window.pwned=1;tcp_sendmsg_[k];nf_hook_slow_[k] 30
x;dev_queue_xmit_[k] 10
";

/// Searches and zooms, then leaves what it saw in the document.
const SCRIPT: &str = r"<script><![CDATA[
var errors = [];
window.addEventListener('error', function (event) { errors.push(String(event.message)); });
window.addEventListener('load', function () {
    setTimeout(function () {
        var seen = {};
        try {
            var frames = document.getElementById('frames');
            var all = frames.querySelectorAll('g');
            var hidden = function () { return frames.querySelectorAll('g.hide').length; };
            search('nf_hook');
            seen.matched = document.getElementById('matched').textContent;
            zoom(Array.from(all).find(function (g) { return g.textContent.includes('nf_hook'); }));
            seen.zoomed = hidden();
            unzoom();
            seen.unzoomed = hidden();
            seen.frames = all.length;
        } catch (error) { errors.push(String(error)); }
        seen.errors = errors;
        seen.pwned = window.pwned !== undefined;
        var note = document.createElementNS('http://www.w3.org/2000/svg', 'desc');
        note.textContent = 'SEEN' + JSON.stringify(seen) + 'END';
        document.documentElement.appendChild(note);
    }, 200);
});
]]></script></svg>";

/// Whether `program` is here; says so loudly if not.
fn has(program: &str) -> bool {
    let mut command = Command::new(program);
    command
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let is_here = command.status().is_ok();
    if !is_here {
        skip(&format!("no {program} here: its package is not installed"));
    }
    is_here
}

/// Draws the difference of the stacks and themselves, which needs no root.
fn draw(folder: &Path) -> String {
    let (stacks, svg) = (folder.join("a.folded"), folder.join("a.svg"));
    fs::write(&stacks, STACKS).expect("write stacks");
    let drawn = Command::new(binary())
        .args(["flame", "diff"])
        .args([&stacks, &stacks])
        .arg("-o")
        .arg(&svg)
        .status();
    assert!(drawn.expect("run netprobe").success());
    fs::read_to_string(&svg).expect("read the graph")
}

#[test]
fn a_browser_searches_and_zooms_and_runs_nothing_of_the_names() {
    if !has("chromium") {
        return;
    }
    let folder = tempfile::tempdir().expect("make a folder");
    let svg = draw(folder.path());
    let end = svg.rfind("</svg>").expect("the graph is whole");
    let page = folder.path().join("page.svg");
    fs::write(&page, format!("{}{SCRIPT}", &svg[..end])).expect("write the page");
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu"])
        .args(["--virtual-time-budget=3000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", folder.path().display()))
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("run the browser");
    let document = String::from_utf8_lossy(&output.stdout);
    // The words are in the script too, but not side by side.
    let seen = document
        .split_once("SEEN{")
        .and_then(|(_, rest)| rest.split_once("END"));
    let (seen, _) = seen.unwrap_or_else(|| panic!("the script did not run: {document:.500}"));
    let seen: Value = serde_json::from_str(&format!("{{{seen}")).expect("JSON of our own");
    assert_eq!(seen["errors"], serde_json::json!([]), "{seen}");
    assert_eq!(seen["matched"], "Matched: 30.0%", "{seen}");
    assert_eq!(seen["pwned"], false, "{seen}");
    assert!(seen["zoomed"].as_u64() > Some(0), "{seen}");
    assert_eq!(seen["unzoomed"], 0, "{seen}");
}

#[test]
fn what_has_grown_is_red_and_what_has_shrunk_is_blue() {
    let folder = tempfile::tempdir().expect("make a folder");
    let path = |name: &str| folder.path().join(name);
    fs::write(path("before"), "a;same 10\na;grown 10\na;shrunk 40\n").expect("write");
    fs::write(path("after"), "a;same 10\na;grown 40\na;shrunk 10\n").expect("write");
    let drawn = Command::new(binary())
        .args(["flame", "diff"])
        .args([path("before"), path("after")])
        .output()
        .expect("run netprobe");
    let svg = String::from_utf8_lossy(&drawn.stdout);
    for (name, is_right) in [
        ("same", (|r, b| r == b) as fn(u32, u32) -> bool),
        ("grown", |r, b| r > b),
        ("shrunk", |r, b| r < b),
    ] {
        let at = svg.find(&format!("<title>{name} ")).expect("it is drawn");
        let fill = svg[at..].split("rgb(").nth(1).expect("it has a colour");
        let numbers = fill.split(')').next().expect("the colour ends");
        let rgb: Vec<u32> = numbers
            .split(',')
            .map(|number| number.trim().parse().expect("a number"))
            .collect();
        assert!(is_right(rgb[0], rgb[2]), "{name}: {rgb:?}");
    }
}

#[test]
fn pprof_reads_a_profile_of_ours() {
    if !has("go") {
        return;
    }
    if !netprobe_tests::skip::is_root() {
        return;
    }
    let folder = tempfile::tempdir().expect("make a folder");
    let profile = folder.path().join("cpu.pb.gz");
    let drawn = Command::new(binary())
        .args([
            "flame",
            "cpu",
            "-F",
            "997",
            "--duration",
            "1s",
            "--pprof",
            "-o",
        ])
        .arg(&profile)
        .stdin(Stdio::null())
        .status();
    assert!(drawn.expect("run netprobe").success());
    let read = Command::new("go")
        .args(["tool", "pprof", "-raw"])
        .arg(&profile)
        .output()
        .expect("run pprof");
    let text = String::from_utf8_lossy(&read.stdout);
    assert!(read.status.success(), "{text}");
    assert!(text.contains("samples/count"), "{text:.300}");
    assert!(
        text.contains("_[k]"),
        "it has functions of the kernel: {text:.300}"
    );
}
