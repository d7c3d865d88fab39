//! `netprobe flame diff`: what has changed between two profiles.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    fs::File,
    io::Read as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use clap::Args;

use super::draw::{Look, must_be_readable};
use crate::{
    cli::later::Later,
    render::{flamegraph, folded, pprof, text},
    report::{Folded, Palette},
};

/// Bytes of a profile that are read.
const MOST_BYTES: u64 = 64 << 20;

/// The weights of each stack in the first profile and in the second.
type Weights = BTreeMap<String, (u128, u64)>;

/// Options of `diff`.
#[derive(Args, Clone, Debug)]
pub(super) struct Options {
    /// The first profile: folded stacks or pprof.
    before: PathBuf,
    /// The second; its widths are drawn. Red has grown, blue has shrunk.
    after: PathBuf,
    /// Scale the first to the sum of the second, as for windows of different lengths.
    #[arg(short, long)]
    normalize: bool,
    /// File to write; `-` is stdout.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// Folded stacks with two weights instead of SVG.
    #[arg(long)]
    folded: bool,
    #[command(flatten)]
    look: Look,
}

/// Draws the difference.
pub(super) fn run(options: &Options) -> Result<ExitCode> {
    if !options.folded {
        must_be_readable(&options.output, "a picture")?;
    }
    let (before, after) = (read(&options.before)?, read(&options.after)?);
    must_be_alike(options, &before, &after)?;
    if let Some(unlike) = unlike_windows(options, &before, &after) {
        log::warn!("{unlike}");
    }
    let kind = after.kind.as_ref().or(before.kind.as_ref()).cloned();
    let unit = kind.map(|(name, unit)| if unit == "count" { name } else { unit });
    let (before, after) = (before.stacks, after.stacks);
    let totals = (
        total(&options.before, &before)?,
        total(&options.after, &after)?,
    );
    let weights = weights(&before, &after, options.normalize.then_some(totals));
    drop((before, after));
    let out = Later::open(options.output.clone())?;
    let vanished = (!options.folded).then(|| Vanished::find(&weights));
    let vanished = vanished.filter(|vanished| vanished.percent > 0);
    if let Some(vanished) = &vanished {
        log::warn!("{}", vanished.said(options));
    }
    let subtitle = subtitle(options, totals, unit.as_deref(), vanished.as_ref());
    let lines: Vec<String> = weights
        .into_iter()
        .map(|(names, (before, after))| format!("{names} {before} {after}"))
        .collect();
    out.write(|mut out| {
        if options.folded {
            let written = lines.iter().try_for_each(|line| writeln!(out, "{line}"));
            return Ok(written?);
        }
        let caption = flamegraph::Caption {
            title: &options.look.title("Differential Flame Graph"),
            subtitle: &subtitle,
            unit: unit.as_deref().unwrap_or("samples"),
        };
        if totals.1 == 0 && totals.0 > 0 {
            let nothing = "nothing is left: the second profile is empty";
            return flamegraph::write_nothing(&mut out, caption, nothing);
        }
        let style = options.look.style(Palette::Hot);
        flamegraph::write_difference(&mut out, caption, &lines, style)
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The weights of each stack in both profiles, those of the first scaled if there are totals to scale by.
fn weights(before: &[Folded], after: &[Folded], totals: Option<(u64, u64)>) -> Weights {
    let scale = |weight: u64| match totals {
        Some((first @ 1.., second)) => u128::from(weight) * u128::from(second) / u128::from(first),
        _ => u128::from(weight),
    };
    let mut weights = Weights::new();
    for stack in before {
        weights.entry(names(stack)).or_default().0 += scale(stack.weight);
    }
    for stack in after {
        weights.entry(names(stack)).or_default().1 += stack.weight;
    }
    weights
}

fn subtitle(
    options: &Options,
    (before, after): (u64, u64),
    unit: Option<&str>,
    vanished: Option<&Vanished>,
) -> String {
    format!(
        "{} ({before}) to {} ({after}{}){}; red has grown, blue has shrunk{}",
        name(&options.before),
        name(&options.after),
        unit.map_or_else(String::new, |unit| format!(" {unit}")),
        if options.normalize {
            ", normalized"
        } else {
            ""
        },
        vanished.map_or_else(String::new, |vanished| {
            let percent = vanished.percent;
            format!("; {percent} % of the first has vanished and is not drawn")
        })
    )
}

fn name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    text::visible(&name.to_string_lossy())
}

/// The sum of the weights of a file; no more than pictures can count with.
fn total(path: &Path, stacks: &[Folded]) -> Result<u64> {
    let mut weights = stacks.iter().map(|stack| stack.weight);
    let sum = weights.try_fold(0_u64, u64::checked_add);
    let sum = sum.filter(|sum| i64::try_from(*sum).is_ok());
    sum.with_context(|| format!("{}: its weights add up to more than 2^63", name(path)))
}

/// The frames of a stack as folded text has them.
fn names(stack: &Folded) -> String {
    let line = folded::line(stack);
    line.rsplit_once(' ')
        .map_or_else(String::new, |(names, _)| names.to_owned())
}

/// What stacks were read, and what they are of where the file says so.
struct Profile {
    kind: Option<(String, String)>,
    /// How long it was measured; 0 if that is not said.
    elapsed_ns: u64,
    stacks: Vec<Folded>,
}

fn read(path: &Path) -> Result<Profile> {
    let profile = File::open(path).map_err(anyhow::Error::from);
    let profile = profile.and_then(|file| {
        let mut bytes = Vec::new();
        file.take(MOST_BYTES + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MOST_BYTES {
            bail!(
                "it has more than the {} MiB that are read",
                MOST_BYTES >> 20
            );
        }
        parse(bytes)
    });
    profile.with_context(|| format!("read {}", path.display()))
}

fn parse(bytes: Vec<u8>) -> Result<Profile> {
    if pprof::is_packed(&bytes) {
        let pprof::Read {
            kind,
            elapsed_ns,
            stacks,
        } = pprof::read(&bytes)?;
        return Ok(Profile {
            kind: Some(kind),
            elapsed_ns,
            stacks,
        });
    }
    let text = String::from_utf8(bytes);
    let text = text.context("neither folded text nor a compressed pprof profile")?;
    Ok(Profile {
        kind: None,
        elapsed_ns: 0,
        stacks: folded::read(&text)?,
    })
}

/// Refuses profiles of different things, as of samples and of microseconds.
fn must_be_alike(options: &Options, before: &Profile, after: &Profile) -> Result<()> {
    if let (Some(one), Some(other)) = (&before.kind, &after.kind)
        && one != other
    {
        let shown = |(name, unit): &(String, String)| text::harmless(&format!("{name}/{unit}"));
        bail!(
            "{} is of {}, {} of {}: they cannot be compared",
            name(&options.before),
            shown(one),
            name(&options.after),
            shown(other)
        );
    }
    Ok(())
}

/// Says that everything seems to grow or shrink where the second profile was measured longer or shorter than the first.
fn unlike_windows(options: &Options, before: &Profile, after: &Profile) -> Option<String> {
    let (first, second) = (before.elapsed_ns, after.elapsed_ns);
    let is_alike = first.abs_diff(second) <= first.max(second) / 10;
    if options.normalize || first == 0 || second == 0 || is_alike {
        return None;
    }
    let seconds = |ns: u64| Duration::from_nanos(ns).as_secs_f64();
    Some(format!(
        "{} was measured for {:.1} s and {} for {:.1} s: what did not change has another width too; -n scales the first",
        name(&options.before),
        seconds(first),
        name(&options.after),
        seconds(second)
    ))
}

/// What the first profile has and the second has not: the picture has the widths of the second, so it is not there.
#[derive(Debug, PartialEq, Eq)]
struct Vanished {
    percent: u128,
    /// The largest, each by its outermost frame that has vanished.
    largest: Vec<(String, u128)>,
}

impl Vanished {
    fn find(weights: &Weights) -> Self {
        let mut drawn = Tree::default();
        for (names, _) in weights.iter().filter(|(_, (_, after))| *after > 0) {
            drawn.grow(names);
        }
        let mut vanished: BTreeMap<(usize, &str), u128> = BTreeMap::new();
        let mut all = 0;
        for (names, (before, _)) in weights.iter().filter(|(_, (before, _))| *before > 0) {
            all += before;
            if let Some(first) = drawn.first_without(names) {
                *vanished.entry(first).or_default() += before;
            }
        }
        let sum: u128 = vanished.values().sum();
        let mut largest: Vec<(&str, u128)> = vanished
            .into_iter()
            .map(|((_, name), weight)| (name, weight))
            .collect();
        largest.sort_by_key(|(_, weight)| Reverse(*weight));
        let largest = largest.into_iter().take(3);
        Self {
            percent: (sum * 100).div_ceil(all.max(1)),
            largest: largest
                .map(|(name, weight)| (name.to_owned(), weight))
                .collect(),
        }
    }

    fn said(&self, options: &Options) -> String {
        let largest = self.largest.iter();
        let largest = largest.map(|(name, weight)| format!("{} {weight}", text::harmless(name)));
        let largest: Vec<String> = largest.collect();
        format!(
            "{} % of {} has vanished, which the picture cannot show ({}): draw the reverse too, with the files the other way round",
            self.percent,
            name(&options.before),
            largest.join(", ")
        )
    }
}

/// The frames that are drawn: each by its caller and its name, so that a deep stack costs no more than its length.
#[derive(Debug, Default)]
struct Tree<'a> {
    frames: HashMap<(usize, &'a str), usize>,
}

impl<'a> Tree<'a> {
    /// What has no caller is called by this.
    const ROOT: usize = 0;

    /// Adds the frames of a folded stack.
    fn grow(&mut self, names: &'a str) {
        let mut caller = Self::ROOT;
        for name in names.split(';') {
            let next = self.frames.len() + 1;
            caller = *self.frames.entry((caller, name)).or_insert(next);
        }
    }

    /// The outermost frame of a folded stack that is not there, with its caller.
    fn first_without<'b>(&self, names: &'b str) -> Option<(usize, &'b str)> {
        let mut caller = Self::ROOT;
        for name in names.split(';') {
            match self.frames.get(&(caller, name)) {
                Some(frame) => caller = *frame,
                None => return Some((caller, name)),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_vanished_is_counted_where_it_began() {
        let weights = [
            ("a", (5, 5)),
            ("a;gone", (30, 0)),
            ("a;gone;deeper", (20, 0)),
            ("a;inner", (40, 0)),
            ("a;inner;leaf", (0, 9)),
            ("a;new", (0, 100)),
            ("z", (105, 100)),
        ];
        let weights = weights.map(|(names, weights)| (names.to_owned(), weights));
        let vanished = Vanished::find(&weights.into());
        let expected = Vanished {
            percent: 25,
            largest: vec![("gone".to_owned(), 50)],
        };
        assert_eq!(vanished, expected);
    }

    #[test]
    fn a_deep_stack_costs_no_more_than_its_length() {
        let deep = vec!["f"; 500_000].join(";");
        let weights = [
            (deep.clone(), (1, 1)),
            (format!("{deep};gone"), (1, 0)),
            (format!("{deep};stays"), (0, 1)),
        ];
        let begun = std::time::Instant::now();
        let vanished = Vanished::find(&weights.into());
        // By the square of the depth it would take hours.
        assert!(begun.elapsed() < Duration::from_secs(20));
        assert_eq!(vanished.largest, [("gone".to_owned(), 1)]);
    }

    fn options(normalize: bool) -> Options {
        Options {
            before: "before".into(),
            after: "aft\u{1b}er".into(),
            normalize,
            output: "-".into(),
            folded: false,
            look: Look::default(),
        }
    }

    #[test]
    fn windows_of_different_lengths_are_told_unless_scaled() {
        let of = |seconds: u64| Profile {
            kind: None,
            elapsed_ns: seconds * 1_000_000_000,
            stacks: Vec::new(),
        };
        let said = unlike_windows(&options(false), &of(10), &of(20)).unwrap();
        assert!(said.starts_with("before was measured for 10.0 s and aft\\u{1b}er for 20.0 s:"));
        assert!(said.contains("-n scales"), "{said}");
        assert_eq!(unlike_windows(&options(true), &of(10), &of(20)), None);
        for (first, second) in [(10, 10), (10, 11), (0, 10), (10, 0)] {
            assert_eq!(
                unlike_windows(&options(false), &of(first), &of(second)),
                None
            );
        }
    }

    #[test]
    fn weights_that_cannot_be_added_up_are_refused() {
        let stack = |weight| Folded {
            frames: vec!["a".into()],
            weight,
        };
        let most = i64::MAX.unsigned_abs();
        let path = Path::new("f");
        assert_eq!(total(path, &[stack(most - 5), stack(5)]).unwrap(), most);
        for other in [6, u64::MAX] {
            let refused = total(path, &[stack(most - 5), stack(other)]).unwrap_err();
            assert_eq!(
                refused.to_string(),
                "f: its weights add up to more than 2^63"
            );
        }
    }

    #[test]
    fn where_nothing_is_left_the_picture_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("before"), "a;b 3\n").unwrap();
        for after in ["", "a;b 0\n"] {
            std::fs::write(at("after"), after).unwrap();
            let options = Options {
                before: at("before"),
                after: at("after"),
                normalize: false,
                output: at("diff.svg"),
                folded: false,
                look: Look::default(),
            };
            run(&options).unwrap();
            let svg = std::fs::read_to_string(at("diff.svg")).unwrap();
            assert!(svg.contains("nothing is left"), "{svg}");
            assert!(svg.contains("before (3) to after (0)"), "{svg}");
        }
    }
}
