//! One `netprobe diagnose --interval` that watches all incidents, one after the other, as somebody
//! would who tries one fix after the other.

use std::{
    env, fs,
    io::{BufRead, BufReader},
    process::{Child, Command, Stdio},
    sync::{
        Mutex, PoisonError,
        mpsc::{self, Receiver},
    },
    thread,
    time::Duration,
};

use netprobe_tests::{program::binary, skip::is_disposable};
use serde_json::Value;

/// How long each window is.
const WINDOW: &str = "1s";
/// The same in a machine of the matrix, which may be an emulated one: it looks at a queue less often, and
/// has to look at it a few times.
const SLOW_WINDOW: &str = "2s";
/// An emulated machine may be busy with the incident itself.
const LATEST: Duration = Duration::from_mins(1);

static WATCHER: Mutex<Option<Watcher>> = Mutex::new(None);

/// The running program.
struct Watcher {
    child: Child,
    verdicts: Receiver<Value>,
}

/// The verdict on the first window that begins from now on.
#[track_caller]
pub(crate) fn next() -> Value {
    let mut watcher = WATCHER.lock().unwrap_or_else(PoisonError::into_inner);
    let watcher = watcher.get_or_insert_with(Watcher::start);
    // Those before are over, and one is open.
    while watcher.verdicts.try_recv().is_ok() {}
    watcher.hear();
    watcher.hear()
}

/// The flame graph that a diagnosis draws of what it finds first.
#[track_caller]
pub(crate) fn drawing() -> String {
    let file = env::temp_dir().join(format!("netprobe-culprit-{}.svg", std::process::id()));
    let output = Command::new(binary())
        // In an emulated machine stacks would soon be left out.
        .args([
            "diagnose",
            "--quiet",
            "--duration",
            "2s",
            "--max-overhead",
            "100%",
            "--svg",
        ])
        .arg(&file)
        .output()
        .expect("run netprobe diagnose");
    assert!(output.status.success(), "{output:?}");
    let text = fs::read_to_string(&file);
    fs::remove_file(&file).ok();
    text.unwrap_or_else(|why| panic!("nothing was drawn ({why}): {output:?}"))
}

impl Watcher {
    fn start() -> Self {
        let window = if is_disposable() { SLOW_WINDOW } else { WINDOW };
        let mut child = Command::new(binary())
            .args(["diagnose", "--quiet", "--json", "--interval", window])
            .stdout(Stdio::piped())
            .spawn()
            .expect("run netprobe diagnose");
        let stdout = child.stdout.take().expect("standard output is a pipe");
        let (sender, verdicts) = mpsc::channel();
        // Read at once: who does not read stops the clock of the one who writes. The program ends
        // with the pipe, which ends with this process.
        thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let verdict = serde_json::from_str(&line).expect("a verdict is a line of JSON");
                if sender.send(verdict).is_err() {
                    return;
                }
            }
        });
        Self { child, verdicts }
    }

    #[track_caller]
    fn hear(&mut self) -> Value {
        let verdict = self.verdicts.recv_timeout(LATEST);
        verdict.unwrap_or_else(|why| {
            let status = self.child.try_wait();
            panic!("netprobe diagnose says nothing more ({why}): {status:?}");
        })
    }
}
