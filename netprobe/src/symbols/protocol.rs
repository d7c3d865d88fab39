//! What goes between netprobe and its symbol worker: lines of text, tabs between the parts.
//!
//! `see PID` asks to look at the mappings of a process now, `look PID…` at those of young processes that run another program
//! by now, and whether these and some others have other libraries, which have no answer. `resolve PID
//! ADDRESS…` is answered by a line for each address, in any order, and by `done`, or `done several` if the process has run
//! more than one program, or may have, or different files at the same place. Of an address that does not tell which it is of there are `of NAME` lines, for
//! threads of this name, and an `of-known` line, for stacks that are of a program that was looked at;
//! if libraries took turns there, `of-version NUMBER` lines, for stacks taken while that was mapped. Both sides
//! treat what they read as coming from a stranger.
//!
//! `unwind PID BYTES AFTER BEFORE REGISTER… WALKED…` is followed by so many bytes of a stack that was copied between these moments,
//! and answered by `stack whole|cut copy|walk VERSION ADDRESS…`: whether it is whole, whether the process needs copies at
//! all, and what was mapped.

use std::{
    fmt::{self, Write},
    str::Split,
};

use super::unwind::{Taken, Unwound};

/// Names for one address, outermost function first; those after the first were inlined.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Names with their FlameGraph suffix.
    pub frames: Vec<String>,
    /// Why it has no real name, if it has none.
    pub missing: Option<Missing>,
    /// A function may return to what follows it: a call ends here, as far as can be told.
    pub is_call: bool,
}

/// Why an address has no name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Missing {
    /// Nothing executable was mapped there whenever somebody looked; of a caller, no return address at all.
    Unmapped,
    /// Only so much of a process's mappings is read, and it was not there.
    TooMany,
    /// The file has no symbol for it.
    Stripped,
    /// Code that was made at run time, and nobody wrote down its names.
    Jit,
    /// The same, and what was written down is more than is read.
    JitCut,
    /// The same, and what was written down is from before the process began.
    JitOlder,
    /// The same, and what was written down may not be read.
    JitDenied,
    /// The process has run two programs with different code there, or may have.
    Replaced,
    /// The process had different files there, one after another.
    Remapped,
    /// The process had ended before anybody could look.
    Exited,
    /// What the process has mapped may not be looked at.
    Denied,
    /// The process is not in netprobe's pid namespace.
    Outside,
    /// The file could not be read: no permission, or gone.
    Unreadable,
    /// It is no regular file of a local file system, so it was not opened.
    NotRegular,
    /// The file was written to after it had been mapped.
    Overwritten,
    /// Only so many files are kept open, for one process and for all.
    TooManyFiles,
    /// The worker was stopped, for it took too long or too much memory.
    Stopped,
}

impl Missing {
    /// All reasons.
    pub const ALL: [Self; 17] = [
        Self::Unmapped,
        Self::TooMany,
        Self::Stripped,
        Self::Jit,
        Self::JitCut,
        Self::JitOlder,
        Self::JitDenied,
        Self::Replaced,
        Self::Remapped,
        Self::Exited,
        Self::Denied,
        Self::Outside,
        Self::Unreadable,
        Self::NotRegular,
        Self::Overwritten,
        Self::TooManyFiles,
        Self::Stopped,
    ];

    const fn word(self) -> &'static str {
        match self {
            Self::Unmapped => "unmapped",
            Self::TooMany => "too-many",
            Self::Stripped => "stripped",
            Self::Jit => "jit",
            Self::JitCut => "jit-cut",
            Self::JitOlder => "jit-older",
            Self::JitDenied => "jit-denied",
            Self::Replaced => "replaced",
            Self::Remapped => "remapped",
            Self::Exited => "exited",
            Self::Denied => "denied",
            Self::Outside => "outside",
            Self::Unreadable => "unreadable",
            Self::NotRegular => "not-regular",
            Self::Overwritten => "overwritten",
            Self::TooManyFiles => "too-many-files",
            Self::Stopped => "stopped",
        }
    }

    /// Whether an address that lacks its name for this shows which program a stack is of: one of those that were
    /// looked at.
    pub const fn is_of_known(self) -> bool {
        match self {
            Self::Unmapped
            | Self::TooMany
            | Self::Replaced
            | Self::Remapped
            | Self::Exited
            | Self::Denied
            | Self::Outside
            | Self::Stopped => false,
            Self::Stripped
            | Self::Jit
            | Self::JitCut
            | Self::JitOlder
            | Self::JitDenied
            | Self::Unreadable
            | Self::NotRegular
            | Self::Overwritten
            | Self::TooManyFiles => true,
        }
    }

    /// Whether it is not even known whether there is code at the address.
    pub const fn is_unmapped(self) -> bool {
        matches!(self, Self::Unmapped | Self::TooMany)
    }

    /// What it means and how to get the names, for people.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::Unmapped => {
                "the code had come and gone between two looks at the process: a program that ended soon after its exec, or \
                 code made at run time"
            }
            Self::TooMany => {
                "the process has more mappings than are read: 4 MiB of /proc/PID/maps, some 40,000"
            }
            Self::Stripped => {
                "the file has no symbols: install its -dbgsym or -debuginfo package, or build with -g"
            }
            Self::Jit => {
                "made at run time: have it write /tmp/perf-PID.map (node --perf-basic-prof, php opcache.jit_debug=0x10, jcmd \
                 PID Compiler.perfmap for java -XX:+PreserveFramePointer, python -X perf for a Python built with \
                 -fno-omit-frame-pointer: without frame pointers their stacks are cut)"
            }
            Self::JitCut => {
                "made at run time, and not named in the last 128 MiB of /tmp/perf-PID.map, which are all that is read: a \
                 process that was restarted has a short map"
            }
            Self::JitOlder => {
                "made at run time, and /tmp/perf-PID.map was written before the process began, by another one that had its id: \
                 remove it, and have this one write its own"
            }
            Self::JitDenied => {
                "made at run time, and /tmp/perf-PID.map may not be read: of another user namespace, run netprobe there"
            }
            Self::Replaced => {
                "the process has run other programs, which may have code at the same address: build them with -pie, or \
                 have them run for longer than 50 ms"
            }
            Self::Remapped => {
                "libraries took turns at the same address (dlclose, then dlopen), and it is not known which one ran: of code with \
                 frame pointers no time is kept, and other libraries that stay for less than 0.2 s are hard to tell"
            }
            Self::Exited => "the process had ended: sample longer, or start netprobe before it",
            Self::Denied => {
                "netprobe may not see what the process has mapped: of another user namespace, run netprobe there"
            }
            Self::Outside => {
                "the process is outside of this container's pid namespace: run netprobe on the host, or with its pid namespace \
                 (docker run --pid=host)"
            }
            Self::Unreadable => {
                "the file is gone, or of another user namespace: run netprobe there"
            }
            Self::NotRegular => "not a regular file of a local file system: not opened on purpose",
            Self::Overwritten => {
                "the file was written to since (cp, rsync --inplace): what ran is there no more; install or mv, which make a new \
                 file, leave it its names"
            }
            Self::TooManyFiles => {
                "more files are mapped than are kept open (1,024 of a process, 16,384 of all): choose fewer processes (--pid, \
                 --cgroup)"
            }
            Self::Stopped => "the symbol worker took too long or too much memory and was stopped",
        }
    }
}

impl fmt::Display for Missing {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.word())
    }
}

/// A line from netprobe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Look at what the process has mapped now.
    See(u32),
    /// Look whether young processes have become other programs, and whether processes have other libraries: these first.
    Look(Vec<u32>),
    /// Name these addresses of the process.
    Resolve(u32, Vec<u64>),
    /// Unwind a stack of the process, which follows: so many bytes, with these registers; and how the kernel has walked it.
    Unwind(u32, usize, Taken, [u64; 21], Vec<u64>),
}

impl Request {
    pub(super) fn line(&self) -> String {
        match self {
            Self::See(pid) => format!("see\t{pid}\n"),
            Self::Look(pids) => {
                let mut line = "look".to_owned();
                for pid in pids {
                    // Writing to a string cannot fail.
                    let _written = write!(line, "\t{pid}");
                }
                line + "\n"
            }
            Self::Resolve(pid, addresses) => {
                format!("resolve\t{pid}{}\n", hex(addresses))
            }
            Self::Unwind(pid, bytes, taken, registers, walked) => {
                let taken = hex(&[taken.after_ns, taken.before_ns]);
                let (registers, walked) = (hex(registers), hex(walked));
                format!("unwind\t{pid}\t{bytes}{taken}{registers}{walked}\n")
            }
        }
    }

    pub(super) fn parse(line: &str) -> Option<Self> {
        let mut parts = line.trim_end_matches('\n').split('\t');
        let word = parts.next()?;
        if word == "look" {
            let pids = parts.map(|pid| pid.parse().ok());
            return pids.collect::<Option<_>>().map(Self::Look);
        }
        let pid = parts.next()?.parse().ok()?;
        match word {
            "see" => Some(Self::See(pid)),
            "resolve" => {
                let addresses = parts.map(unhex).collect::<Option<_>>()?;
                Some(Self::Resolve(pid, addresses))
            }
            "unwind" => {
                let bytes = parts.next()?.parse().ok()?;
                let taken = Taken {
                    after_ns: unhex(parts.next()?)?,
                    before_ns: unhex(parts.next()?)?,
                };
                let numbers: Vec<u64> = parts.map(unhex).collect::<Option<_>>()?;
                let (registers, walked) = numbers.split_first_chunk()?;
                let walked = walked.to_vec();
                Some(Self::Unwind(pid, bytes, taken, *registers, walked))
            }
            _ => None,
        }
    }
}

/// Numbers, each after a tab.
fn hex(numbers: &[u64]) -> String {
    let mut text = String::with_capacity(numbers.len() * 14);
    for number in numbers {
        // Writing to a string cannot fail.
        let _written = write!(text, "\t{number:x}");
    }
    text
}

fn unhex(text: &str) -> Option<u64> {
    u64::from_str_radix(text, 16).ok()
}

/// A line from the worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The names for an address.
    Names(u64, Names),
    /// The same of an address that may be of several programs of the process: in that with threads of this name.
    Of(String, u64, Names),
    /// The same if it was a program that was looked at.
    OfKnown(u64, Names),
    /// The same while the process had this mapped, by number.
    OfVersion(u32, u64, Names),
    /// The functions of a stack, and whether those of its process are to be copied at all.
    Stack(Unwound, bool),
    /// The request is answered; whether the process has run several programs, or may have, or had different files at the
    /// same place.
    Done(bool),
}

impl Answer {
    pub(super) fn line(&self) -> String {
        match self {
            Self::Names(address, names) => format!("{}\n", named(*address, names)),
            Self::Of(program, address, names) => {
                format!("of\t{}\t{}\n", plain(program), named(*address, names))
            }
            Self::OfKnown(address, names) => format!("of-known\t{}\n", named(*address, names)),
            Self::OfVersion(version, address, names) => {
                format!("of-version\t{version}\t{}\n", named(*address, names))
            }
            Self::Stack(unwound, needs_copies) => {
                let whole = if unwound.is_whole { "whole" } else { "cut" };
                let how = if *needs_copies { "copy" } else { "walk" };
                let (version, places) = (unwound.version, hex(&unwound.places));
                format!("stack\t{whole}\t{how}\t{version}{places}\n")
            }
            Self::Done(false) => "done\n".to_owned(),
            Self::Done(true) => "done several\n".to_owned(),
        }
    }

    pub(super) fn parse(line: &str) -> Option<Self> {
        let line = line.trim_end_matches('\n');
        if let Some(rest) = line.strip_prefix("done") {
            return match rest {
                "" => Some(Self::Done(false)),
                " several" => Some(Self::Done(true)),
                _ => None,
            };
        }
        let mut parts = line.split('\t');
        let first = parts.next()?;
        if first == "stack" {
            let (whole, how) = (parts.next()?, parts.next()?);
            let version = parts.next()?.parse().ok()?;
            let unwound = Unwound {
                version,
                places: parts.map(unhex).collect::<Option<_>>()?,
                is_whole: whole == "whole",
            };
            return Some(Self::Stack(unwound, how == "copy"));
        }
        if first == "of" {
            let program = parts.next()?.to_owned();
            let (address, names) = parse_named(parts.next()?, parts)?;
            return Some(Self::Of(program, address, names));
        }
        if first == "of-version" {
            let version = parts.next()?.parse().ok()?;
            let (address, names) = parse_named(parts.next()?, parts)?;
            return Some(Self::OfVersion(version, address, names));
        }
        if first == "of-known" {
            let (address, names) = parse_named(parts.next()?, parts)?;
            return Some(Self::OfKnown(address, names));
        }
        parse_named(first, parts).map(|(address, names)| Self::Names(address, names))
    }
}

/// A name without what separates.
pub(super) fn plain(name: &str) -> String {
    let plain = name.chars().map(|character| match character {
        character if character.is_control() => '_',
        character => character,
    });
    plain.collect()
}

fn named(address: u64, names: &Names) -> String {
    let why = names.missing.map_or("", Missing::word);
    let call = if names.is_call { "call" } else { "" };
    let mut line = format!("{address:x}\t{why}\t{call}");
    for frame in &names.frames {
        line.push('\t');
        line.push_str(&plain(frame));
    }
    line
}

fn parse_named(address: &str, mut parts: Split<'_, char>) -> Option<(u64, Names)> {
    let address = unhex(address)?;
    let (why, call) = (parts.next()?, parts.next()?);
    let missing = Missing::ALL
        .into_iter()
        .find(|missing| missing.word() == why);
    let frames: Vec<String> = parts.map(str::to_owned).collect();
    let is_whole = !frames.is_empty() && (missing.is_some() || why.is_empty());
    let is_call = call == "call";
    is_whole.then_some((
        address,
        Names {
            frames,
            missing,
            is_call,
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_they_were_written() {
        for request in [
            Request::See(7),
            Request::Look(Vec::new()),
            Request::Look(vec![7, 8]),
            Request::Resolve(1, vec![0, u64::MAX]),
            Request::Unwind(
                2,
                4096,
                Taken {
                    after_ns: 1,
                    before_ns: u64::MAX,
                },
                [u64::MAX; 21],
                vec![7, 0],
            ),
        ] {
            assert_eq!(Request::parse(&request.line()), Some(request));
        }
        let names = |missing: Option<Missing>| Names {
            frames: vec!["main".into(), "inner_[i]".into()],
            is_call: missing.is_none(),
            missing,
        };
        let whys = Missing::ALL.into_iter().map(Some).chain([None]);
        for missing in whys {
            let answer = Answer::Names(0x7f00, names(missing));
            assert_eq!(Answer::parse(&answer.line()), Some(answer));
            let answer = Answer::Of("exb".into(), 0x7f00, names(missing));
            assert_eq!(Answer::parse(&answer.line()), Some(answer));
            let answer = Answer::OfKnown(0x7f00, names(missing));
            assert_eq!(Answer::parse(&answer.line()), Some(answer));
            let answer = Answer::OfVersion(3, 0x7f00, names(missing));
            assert_eq!(Answer::parse(&answer.line()), Some(answer));
        }
        for (is_whole, places) in [(true, vec![1, u64::MAX]), (false, Vec::new())] {
            let unwound = Unwound {
                places,
                is_whole,
                version: 7,
            };
            let answer = Answer::Stack(unwound, is_whole);
            assert_eq!(Answer::parse(&answer.line()), Some(answer));
        }
        for several in [false, true] {
            let answer = Answer::Done(several);
            assert_eq!(Answer::parse(&answer.line()), Some(answer));
        }
    }

    #[test]
    fn separators_in_names_stay_inside() {
        let answer = Answer::Names(
            1,
            Names {
                frames: vec!["a\tb\nc".into()],
                missing: None,
                is_call: true,
            },
        );
        let line = answer.line();
        assert_eq!(line, "1\t\tcall\ta_b_c\n");
        for wrong in [
            "",
            "x\t\t\ta",
            "1\tso\t\ta",
            "1\t\t",
            "see\t-1",
            "resolve\t1\tzz",
            "unwind\t1\t8\t0",
        ] {
            assert_eq!(Answer::parse(wrong), None, "{wrong}");
            assert_eq!(Request::parse(wrong), None, "{wrong}");
        }
    }
}
