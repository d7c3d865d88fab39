//! `cargo xtask bench flame`: what a CPU flame graph of a busy machine costs, beside perf(1), its script and
//! inferno on the same load at the same time. The result is in `docs/performance.md`.
#![expect(clippy::print_stdout, reason = "the result goes there")]

use std::{
    fs::{self, File},
    io::{self, BufReader, Cursor, Read, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use inferno::{
    collapse::{Collapse, perf},
    flamegraph,
};
use netprobe_tests::program::binary;
use netprobe_tests::ready::await_ready;

const WINDOW: Duration = Duration::from_secs(10);
const HERTZ: &str = "99";

/// What a graph has cost.
#[derive(Clone, Copy, Default)]
struct Cost {
    /// From the end of sampling to the picture.
    after: Duration,
    /// Processor time of everything that took part, from the start on.
    cpu: Duration,
    /// Largest resident memory, in KiB.
    rss_kib: i64,
    /// Bytes of files in between.
    files: u64,
}

fn main() {
    let load = Load::start();
    let folder = tempfile::tempdir().expect("make a folder");
    let record = record(folder.path());
    let ours = netprobe(folder.path());
    let theirs = record.map(|record| pipeline(folder.path(), &record));
    let average = fs::read_to_string("/proc/loadavg").expect("read the load");
    println!("short connections per second: {}", load.per_second());
    println!("load average: {}", average.trim());
    println!("| made by | SVG after | CPU | RSS | files |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    row("netprobe flame cpu", ours);
    match theirs {
        Some(theirs) => row("perf record, script, inferno", theirs),
        None => println!("(no perf here: its package linux-perf is not installed)"),
    }
}

fn row(name: &str, cost: Cost) {
    println!(
        "| {name} | {:.2} s | {:.2} s | {} MiB | {:.1} MB |",
        cost.after.as_secs_f64(),
        cost.cpu.as_secs_f64(),
        cost.rss_kib / 1024,
        megabytes(cost.files)
    );
}

#[expect(
    clippy::cast_precision_loss,
    reason = "files are smaller than 2^52 bytes"
)]
fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// Connections that are made, answered and closed, as fast as they go.
struct Load {
    began: Instant,
    made: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
}

impl Load {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address");
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                // A client that has gone gets no answer.
                let _gone = (&connection).write_all(b"HTTP/1.0 200 OK\r\n\r\n");
            }
        });
        let load = Self {
            began: Instant::now(),
            made: Arc::default(),
            is_over: Arc::default(),
        };
        let (made, is_over) = (load.made.clone(), load.is_over.clone());
        thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                let answered = TcpStream::connect(address)
                    .and_then(|mut connection| connection.read_to_end(&mut Vec::new()));
                made.fetch_add(u64::from(answered.is_ok()), Ordering::Relaxed);
            }
        });
        load
    }

    fn per_second(&self) -> u64 {
        self.is_over.store(true, Ordering::Relaxed);
        self.made.load(Ordering::Relaxed) / self.began.elapsed().as_secs().max(1)
    }
}

fn netprobe(folder: &Path) -> Cost {
    let mut child = Command::new(binary())
        .args(["flame", "cpu", "-F", HERTZ, "--duration", "10s", "-o"])
        .arg(folder.join("ours.svg"))
        .stderr(Stdio::piped())
        .spawn()
        .expect("start netprobe");
    let _complaints = await_ready(&mut child);
    let end = Instant::now() + WINDOW;
    // The worker is its only child, and gone before it ends.
    let mut rss_kib = 0;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        thread::sleep(left.min(Duration::from_millis(200)));
        rss_kib = rss_kib.max(resident_kib(child.id()));
    }
    let mut cost = wait(&child);
    cost.after = end.elapsed();
    cost.rss_kib = cost.rss_kib.max(rss_kib);
    cost
}

/// Resident memory of a process and its children.
fn resident_kib(pid: u32) -> i64 {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let threads = fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten();
    let mut all = children.unwrap_or_default();
    for task in threads.flatten() {
        all.push_str(&fs::read_to_string(task.path().join("children")).unwrap_or_default());
    }
    let mut pids: Vec<u32> = all.split_whitespace().flat_map(str::parse).collect();
    pids.push(pid);
    pids.sort_unstable();
    pids.dedup();
    let of = |pid: u32| -> Option<i64> {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.split_whitespace().next()?.parse().ok()
    };
    pids.into_iter().filter_map(of).sum()
}

/// Waits for a process and those that it waited for.
fn wait(child: &Child) -> Cost {
    let mut status = 0;
    // SAFETY: all zeroes are a valid `rusage`.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    let pid = child.id().cast_signed();
    // SAFETY: both places are valid for writes.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    assert_eq!((waited, status), (pid, 0), "it has failed");
    let time = |time: libc::timeval| {
        let micros = time.tv_sec * 1_000_000 + time.tv_usec;
        Duration::from_micros(u64::try_from(micros).unwrap_or_default())
    };
    Cost {
        cpu: time(usage.ru_utime) + time(usage.ru_stime),
        rss_kib: usage.ru_maxrss,
        ..Cost::default()
    }
}

fn record(folder: &Path) -> Option<Child> {
    Command::new("perf")
        .args([
            "record",
            "-q",
            "-a",
            "-g",
            "-e",
            "cpu-clock",
            "-F",
            HERTZ,
            "-o",
        ])
        .arg(folder.join("perf.data"))
        .args(["--", "sleep", "10"])
        .spawn()
        .ok()
}

#[expect(clippy::zombie_processes, reason = "`wait` waits for it")]
fn pipeline(folder: &Path, record: &Child) -> Cost {
    let (data, script, stacks) = (
        folder.join("perf.data"),
        folder.join("perf.script"),
        folder.join("perf.folded"),
    );
    let recorded = wait(record);
    let began = Instant::now();
    let out = File::create(&script).expect("make a file");
    let child = Command::new("perf")
        .args(["script", "-i"])
        .arg(&data)
        .stdout(out)
        .stderr(Stdio::null())
        .spawn()
        .expect("start perf script");
    let printed = wait(&child);
    let before = thread_cpu();
    draw(&script, &stacks, &folder.join("theirs.svg")).expect("draw");
    let size = |path: &Path| fs::metadata(path).map_or(0, |metadata| metadata.len());
    Cost {
        after: began.elapsed(),
        cpu: recorded.cpu + printed.cpu + thread_cpu().saturating_sub(before),
        rss_kib: recorded.rss_kib.max(printed.rss_kib),
        files: size(&data) + size(&script) + size(&stacks),
    }
}

/// What `inferno-collapse-perf` and `inferno-flamegraph` do.
fn draw(script: &Path, folded: &Path, svg: &Path) -> io::Result<()> {
    let mut lines = Vec::new();
    perf::Folder::default().collapse(BufReader::new(File::open(script)?), &mut lines)?;
    fs::write(folded, &lines)?;
    let mut options = flamegraph::Options::default();
    flamegraph::from_reader(&mut options, Cursor::new(lines), File::create(svg)?)
}

fn thread_cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    let nanos = time.tv_sec * 1_000_000_000 + time.tv_nsec;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or_default())
}
