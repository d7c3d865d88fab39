//! Where a graph goes, and in which format.

use std::{
    env, fs,
    io::{self, BufWriter, IsTerminal, Write},
    path::{Path, PathBuf},
    process::{self, ExitCode},
};

use anyhow::{Result, anyhow};
use clap::{Args, ValueEnum};

use crate::{
    cli::{
        is_closed_pipe,
        later::Later,
        output::{Reader, create},
    },
    render::{flame_json, flamegraph, folded, pprof},
    report::{Flame, Palette},
};

/// Options of the picture.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
#[group(skip)]
pub(super) struct Options {
    /// File to write; `-` is stdout. Where nothing was seen it is an empty graph, and the exit code 0.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
    /// Folded stacks (FlameGraph's text format) instead of SVG.
    #[arg(long, conflicts_with_all = ["pprof", "json"])]
    folded: bool,
    /// A profile for `go tool pprof` and its like, compressed.
    #[arg(long, conflicts_with = "json")]
    pprof: bool,
    /// JSON for speedscope.app and, under `flame`, for d3-flame-graph.
    #[arg(long)]
    json: bool,
    /// Colours; `tcp` is by layer of the TCP path, with a legend.
    #[arg(long, value_enum)]
    palette: Option<PaletteName>,
    #[command(flatten)]
    look: Look,
}

/// How a picture looks.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Output")]
#[group(skip)]
pub(super) struct Look {
    /// The root at the top (an icicle graph).
    #[arg(long)]
    inverted: bool,
    /// Another title.
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PaletteName {
    /// Red to yellow.
    Hot,
    /// Green.
    Mem,
    /// Blue.
    Io,
    /// Kernel orange, inlined aqua, compiled at run time green, the rest red and yellow.
    Java,
    /// Red.
    Red,
    /// Green to blue.
    Aqua,
    /// By layer of the TCP path.
    Tcp,
}

impl Options {}

impl PaletteName {
    const fn palette(self) -> Palette {
        match self {
            Self::Hot => Palette::Hot,
            Self::Mem => Palette::Mem,
            Self::Io => Palette::Io,
            Self::Java => Palette::Java,
            Self::Red => Palette::Red,
            Self::Aqua => Palette::Aqua,
            Self::Tcp => Palette::Tcp,
        }
    }
}

impl Look {
    /// The look of a graph in these colours.
    pub(super) const fn style(&self, palette: Palette) -> flamegraph::Style {
        flamegraph::Style {
            is_inverted: self.inverted,
            palette,
        }
    }

    /// The title of a graph that would be called `title`.
    pub(super) fn title(&self, title: &str) -> String {
        self.title.clone().unwrap_or_else(|| title.to_owned())
    }
}

/// An open file, or standard output, and what to write there.
pub(super) struct Output<'a> {
    options: &'a Options,
    out: Later,
}

/// Refuses what nobody can read on a terminal.
pub(super) fn must_be_readable(output: &Path, what: &str) -> Result<()> {
    let is_terminal = output.as_os_str() == "-" && io::stdout().is_terminal();
    anyhow::ensure!(
        !is_terminal,
        "{what} is not for terminals; name a file with -o, or take --folded"
    );
    Ok(())
}

/// Keeps the stacks, if there are any, where there may be room, so that they are not lost with their file, and adds where
/// that is.
fn keep(error: anyhow::Error, flame: &Flame) -> anyhow::Error {
    if flame.stacks.is_empty() {
        return error;
    }
    let path = env::temp_dir().join(format!("netprobe-{}.folded", process::id()));
    let kept = create(&path).and_then(|file| {
        let mut out = BufWriter::new(file);
        folded::write(&mut out, flame)?;
        Ok(out.flush()?)
    });
    match kept {
        Ok(()) => anyhow!(
            "{error:#}; the stacks are kept in {} (inferno-flamegraph and flamegraph.pl draw them)",
            path.display()
        ),
        Err(_no_room_either) => {
            let _not_made = fs::remove_file(&path);
            error
        }
    }
}

impl<'a> Output<'a> {
    /// Who must read it, if anybody.
    pub(super) fn reader(&self) -> Option<Reader> {
        self.out.reader()
    }

    /// Opens it.
    pub(super) fn open(options: &'a Options) -> Result<Self> {
        if options.pprof {
            must_be_readable(&options.output, "a pprof profile")?;
        } else if !options.folded && !options.json {
            must_be_readable(&options.output, "a picture")?;
        }
        let out = Later::open(options.output.clone())?;
        Ok(Self { options, out })
    }

    /// Writes the graph.
    pub(super) fn draw(self, flame: &Flame) -> Result<ExitCode> {
        let Options {
            folded,
            pprof,
            json,
            palette,
            look,
            output,
        } = self.options;
        let palette = palette.map_or(flame.palette, PaletteName::palette);
        let flame = Flame {
            title: look.title(&flame.title),
            ..flame.clone()
        };
        let written = self.out.write(|mut out| {
            if *folded {
                folded::write(&mut out, &flame).map_err(Into::into)
            } else if *pprof {
                pprof::write(&mut out, &flame)
            } else if *json {
                flame_json::write(&mut out, &flame).map_err(Into::into)
            } else {
                flamegraph::write(&mut out, &flame, look.style(palette))
            }
        });
        if let Err(error) = written {
            let is_lost = output.as_os_str() != "-" && !is_closed_pipe(&error);
            return Err(if is_lost { keep(error, &flame) } else { error });
        }
        if flame.stacks.is_empty() {
            log::warn!("nothing was seen, so the graph is empty");
        }
        if output.as_os_str() != "-" {
            log::info!("wrote {}", output.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::report::{Folded, Profile};

    #[test]
    fn only_stacks_that_there_are_are_kept() {
        let flame = |stacks| Flame {
            title: String::new(),
            subtitle: String::new(),
            unit: "samples",
            palette: Palette::Hot,
            profile: Profile {
                name: "samples",
                unit: "count",
                elapsed: Duration::ZERO,
                unix_ns: 0,
                period_ns: 0,
            },
            stacks,
        };
        let full = || anyhow!("no room");
        assert_eq!(keep(full(), &flame(Vec::new())).to_string(), "no room");
        let stack = Folded {
            frames: vec!["main".into()],
            weight: 3,
        };
        let told = keep(full(), &flame(vec![stack])).to_string();
        let (_, kept) = told.split_once("kept in ").unwrap();
        let (kept, _) = kept.split_once(' ').unwrap();
        assert_eq!(fs::read_to_string(kept).unwrap(), "main 3\n");
        fs::remove_file(kept).unwrap();
    }
}
