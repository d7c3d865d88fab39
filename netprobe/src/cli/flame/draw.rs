//! Where a graph goes, and in which format.

use std::{io::Write, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::{
    cli::output,
    render::{flame_json, flamegraph, folded, pprof},
    report::{Flame, Palette},
};

/// Options of the picture.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
#[group(skip)]
pub(super) struct Options {
    /// File to write, - for stdout.
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
#[derive(Args, Clone, Debug)]
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
    out: output::Output,
}

impl<'a> Output<'a> {
    /// Opens it.
    pub(super) fn open(options: &'a Options) -> Result<Self> {
        let out = output::Output::open(Some(&options.output))?;
        if options.pprof && out.is_terminal() {
            anyhow::bail!("a pprof profile is not for terminals; name a file with -o");
        }
        Ok(Self { options, out })
    }

    /// Writes the graph.
    pub(super) fn draw(mut self, flame: &Flame) -> Result<ExitCode> {
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
        let drawn = if *folded {
            folded::write(&mut self.out, &flame).map_err(Into::into)
        } else if *pprof {
            pprof::write(&mut self.out, &flame)
        } else if *json {
            flame_json::write(&mut self.out, &flame).map_err(Into::into)
        } else {
            flamegraph::write(&mut self.out, &flame, look.style(palette))
        };
        let written = drawn.and_then(|()| self.out.flush().map_err(Into::into));
        written.with_context(|| format!("write {}", output.display()))?;
        if output.as_os_str() != "-" {
            log::info!("wrote {}", output.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}
