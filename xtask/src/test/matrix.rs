//! The live tests and the scenarios inside each kernel of the matrix, two machines at a time.
//!
//! What a machine prints goes to `target/tests/VERSION-TARGET.log`; what did not pass is shown.

use std::env;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::shown::Shown;
use super::tally::Tally;
use super::{Options, cargo, logs};
use crate::kernels::roots::Programs;
use crate::vm::{self, Machine};
use crate::{kernels, process};

/// As many as the smallest machine of a developer has processors.
const AT_ONCE: usize = 2;
/// Where all the live tests take a minute or two.
const TIMEOUT: Duration = Duration::from_mins(15);

/// The kernel that other programs run in, which are those of its suite: bcc there can compile for it.
const BESIDE_KERNEL: &str = "6.1";
/// They are part of the machine's memory, and bcc compiles a program for each tool, all at once.
const ROOMY: &str = "4G";
/// Which of the tools the test takes, handed on.
const BCC_TOOLS: &str = "NETPROBE_BCC_TOOLS";
/// As long as that may take without acceleration.
const BCC_TIMEOUT: Duration = Duration::from_mins(40);

/// Runs the tests that need these programs, and no others, in one kernel.
pub(super) fn beside(programs: Programs, options: &Options) -> Result<Tally> {
    let log = logs()?.join(format!("{BESIDE_KERNEL}-{}.log", programs.name()));
    let target = match programs {
        Programs::Bcc => "live",
        Programs::Web => "scenarios",
    };
    let boot = Boot {
        version: BESIDE_KERNEL,
        target,
        test: &cargo::build(target)?,
        netprobe: &vm::build_netprobe()?,
        log: &log,
        beside: Some(programs),
        tests: &[],
    };
    Ok(boot.run(options).of(&format!("kernel {BESIDE_KERNEL}")))
}

/// Runs a test target in each kernel.
pub(super) fn run(target: &str, options: &Options) -> Result<Tally> {
    let test = cargo::build(target)?;
    let netprobe = vm::build_netprobe()?;
    let logs = logs()?;
    let versions: Vec<String> = match options.kernels.as_slice() {
        [] => kernels::versions().map(str::to_owned).collect(),
        some => some.to_vec(),
    };
    // Fetched one after the other: all that waits for here is the network.
    for version in &versions {
        kernels::get(version)?;
    }
    let mut shares = shares(versions, &test, options)?;
    shares.reverse();
    let queue = Mutex::new(shares);
    let sum = Mutex::new(Tally::default());
    let worker = || {
        // Taken in a closure: in the condition itself the lock would last as long as the machine.
        let next = || lock(&queue).pop();
        while let Some(share) = next() {
            let boot = Boot {
                version: &share.version,
                target,
                test: &test,
                netprobe: &netprobe,
                log: &logs.join(share.log(target)),
                beside: None,
                tests: &share.tests,
            };
            let tally = boot.run(options);
            *lock(&sum) += tally.of(&format!("kernel {}", share.version));
        }
    };
    thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(worker);
        }
    });
    let tally = lock(&sum).clone();
    Ok(tally)
}

/// What one machine does.
struct Share {
    version: String,
    /// Which part of the tests, counted from one, and their names; all if there are none.
    part: usize,
    tests: Vec<String>,
}

impl Share {
    fn log(&self, target: &str) -> String {
        let part = match self.part {
            0 => String::new(),
            part => format!("-{part}"),
        };
        format!("{}-{target}{part}.log", self.version)
    }
}

/// A machine for each kernel. Of an odd number, the last would run alone at the end: half of its tests run in one
/// machine, half in another.
fn shares(versions: Vec<String>, test: &Path, options: &Options) -> Result<Vec<Share>> {
    let share = |version: String| Share {
        version,
        part: 0,
        tests: Vec::new(),
    };
    let mut shares: Vec<Share> = versions.into_iter().map(share).collect();
    let is_even = shares.len().is_multiple_of(AT_ONCE);
    if is_even || shares.len() == 1 || !options.arguments.is_empty() {
        return Ok(shares);
    }
    let names = process::output(Command::new(test).args(["--list", "--format", "terse"]))?;
    let names = names.lines().filter_map(|line| line.strip_suffix(": test"));
    let names: Vec<&str> = names.collect();
    if let Some(last) = shares.pop() {
        for part in 1..=AT_ONCE {
            let tests = names.iter().skip(part - 1).step_by(AT_ONCE);
            shares.push(Share {
                version: last.version.clone(),
                part,
                tests: tests.map(|name| (*name).to_owned()).collect(),
            });
        }
    }
    Ok(shares)
}

/// One kernel to test.
#[derive(Clone, Copy)]
struct Boot<'a> {
    version: &'a str,
    target: &'a str,
    test: &'a Path,
    netprobe: &'a Path,
    log: &'a Path,
    /// Run the tests that need these programs, and no others.
    beside: Option<Programs>,
    /// Names of the tests to run; all if there are none.
    tests: &'a [String],
}

impl Boot<'_> {
    /// Tests one kernel and says how that went; what failed is run again in a new machine.
    fn run(&self, options: &Options) -> Tally {
        let tally = self.once(options);
        let Some(failed) = tally.worth_repeating() else {
            return tally;
        };
        println!("kernel {}: again what failed", self.version);
        let (failed, log) = (failed.to_vec(), self.log.with_extension("again.log"));
        let mut again = *self;
        (again.tests, again.log) = (&failed, &log);
        let again = again.once(options);
        tally.repeated(again)
    }

    fn once(&self, options: &Options) -> Tally {
        let start = Instant::now();
        let status = self.boot(options);
        let text = fs::read(self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let mut tally = Tally::read(&text);
        match status {
            Ok(0) => {}
            Ok(status) if tally.is_good() => {
                tally += Tally::failure(format!("the tests ended with status {status}"));
            }
            Ok(_) => {}
            Err(error) => tally += Tally::failure(format!("{error:#}")),
        }
        if !tally.is_good() {
            let mut shown = Shown::default();
            let lines: Vec<_> = text
                .lines()
                .filter(|line| shown.next(line))
                .map(|line| format!("{}| {line}\n", self.version))
                .collect();
            print!("{}", lines.concat());
        }
        let seconds = start.elapsed().as_secs();
        println!("kernel {}: {tally} in {seconds} s", self.version);
        tally
    }

    fn boot(&self, options: &Options) -> Result<u8> {
        let mut machine = Machine::new(kernels::get(self.version)?, self.command(options));
        machine.timeout = TIMEOUT;
        machine.files = vec![
            (self.test.to_owned(), self.program()),
            (self.netprobe.to_owned(), "/bin/netprobe".to_owned()),
        ];
        let only = env::var(BCC_TOOLS).ok();
        let mut variables = vec![
            ("NETPROBE_BIN", "/bin/netprobe"),
            ("NETPROBE_REQUIRE_LIVE", "1"),
            ("NETPROBE_DISPOSABLE", "1"),
        ];
        match self.beside {
            Some(Programs::Bcc) => {
                machine.timeout = BCC_TIMEOUT;
                variables.push(("NETPROBE_BCC", "/bcc"));
                variables.extend(only.as_deref().map(|tools| (BCC_TOOLS, tools)));
            }
            Some(Programs::Web) => variables.push(("NETPROBE_WEB", "/web")),
            None => {}
        }
        if let Some(programs) = self.beside {
            ROOMY.clone_into(&mut machine.memory);
            machine.programs = vec![programs];
        }
        machine.environment = variables
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let log = Log::create(self.log)?;
        Ok(machine.run(&log, &log)?.status)
    }

    /// The test program in the machine.
    fn program(&self) -> String {
        format!("/bin/{}", self.target)
    }

    fn command(&self, options: &Options) -> Vec<String> {
        let program = self.program();
        if let Some(programs) = self.beside {
            let tests = match programs {
                Programs::Bcc => "bcc_beside::",
                Programs::Web => "web_server::",
            };
            let mut command =
                [&program, "--show-output", "--test-threads=1", tests].map(str::to_owned);
            if let [test] = self.tests {
                test.clone_into(&mut command[3]);
            }
            return command.into();
        }
        // Tests that spoil the machine are ignored elsewhere, and run last here.
        let script = format!(
            "{program} --show-output --test-threads=1 --skip spoiling:: \"$@\"; status=$?; \
             {program} --show-output --test-threads=1 --ignored \"$@\" && exit $status"
        );
        let mut command: Vec<String> = ["/bin/sh", "-c", &script, self.target]
            .map(str::to_owned)
            .into();
        command.extend(options.arguments.iter().cloned());
        if !self.tests.is_empty() {
            command.push("--exact".to_owned());
            command.extend(self.tests.iter().cloned());
        }
        command
    }
}

/// A file that both streams of a machine are written to.
struct Log(Mutex<File>);

impl Log {
    fn create(file: &Path) -> Result<Self> {
        let opened = File::create(file).with_context(|| format!("create {}", file.display()))?;
        Ok(Self(Mutex::new(opened)))
    }
}

impl Write for &Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        lock(&self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        lock(&self.0).flush()
    }
}

/// Locks, also after another thread panicked: what it left is still worth showing.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;
    use std::path::PathBuf;

    use super::*;

    /// A program that lists three tests.
    fn lister(folder: &Path) -> PathBuf {
        let program = folder.join("tests");
        let script = "#!/bin/sh\nprintf 'a::one: test\\nb::two: test\\nb::three: test\\n'\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        program
    }

    fn shared(versions: &[&str], arguments: &[&str]) -> Vec<(String, Vec<String>)> {
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            kernels: Vec::new(),
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
        };
        let versions = versions.iter().map(|&version| version.to_owned()).collect();
        let shares = shares(versions, &lister(folder.path()), &options).unwrap();
        let named = |share: Share| (share.log("live"), share.tests);
        shares.into_iter().map(named).collect()
    }

    #[test]
    fn the_last_of_an_odd_number_of_kernels_is_shared_by_two_machines() {
        let shares = shared(&["5.10", "6.1", "7.2"], &[]);
        let logs: Vec<&str> = shares.iter().map(|(log, _)| log.as_str()).collect();
        let expected = [
            "5.10-live.log",
            "6.1-live.log",
            "7.2-live-1.log",
            "7.2-live-2.log",
        ];
        assert_eq!(logs, expected);
        assert!(shares[0].1.is_empty());
        assert_eq!(shares[2].1, ["a::one", "b::three"]);
        assert_eq!(shares[3].1, ["b::two"]);
    }

    #[test]
    fn nothing_is_shared_out_that_fills_the_machines_or_is_asked_for_by_name() {
        assert_eq!(shared(&["5.10", "6.1"], &[]).len(), 2);
        assert_eq!(shared(&["5.10"], &[]).len(), 1);
        assert_eq!(shared(&["5.10", "6.1", "7.2"], &["drops::"]).len(), 3);
    }
}
