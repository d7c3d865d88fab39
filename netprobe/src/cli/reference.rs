//! What the definition of the command line takes from the lists of the program: the meaning of columns in the long help
//! and the man page, the words that shells complete, and that nobody is offered what a stream does not have.

use std::fmt::Write as _;

use clap::{
    Arg, Command, Error, ValueHint,
    builder::{PossibleValue, StringValueParser, TypedValueParser},
};
use netprobe_common::header::Kind;

use super::{bcc, open, stream};
use crate::{
    aggregate::groups,
    demo::SCENARIOS,
    diagnose::RULES,
    probes::{PROBES, ProbeSpec},
    render::{self, summary::heading},
    report::Column,
};

/// Characters of a line, so that no terminal breaks it.
const WIDTH: usize = 80;
/// Characters before what a column says.
const INDENT: usize = 31;

/// The definition with all of that.
pub(super) fn complete(command: Command) -> Command {
    let rules = RULES.iter().map(|rule| (rule.id, rule.title));
    let scenarios = SCENARIOS
        .iter()
        .map(|scenario| (scenario.id, scenario.about));
    let command = command
        .mut_subcommand("explain", |explain| hint(explain, "id", rules))
        .mut_subcommand("demo", |demo| hint(demo, "scenario", scenarios));
    let command = bcc::help::TEXTS
        .iter()
        .fold(command, |command, (name, text)| {
            command.mut_subcommand(name, |tool| tool.after_long_help(*text))
        });
    let command = PROBES.iter().fold(command, |command, spec| {
        command.mut_subcommand(spec.name(), |stream| of_stream(stream, spec))
    });
    without_files(command)
}

/// Shells offer files only where a file is meant.
fn without_files(command: Command) -> Command {
    let command = command.mut_args(|arg| {
        let takes_values = arg.get_action().takes_values();
        match arg.get_value_hint() {
            ValueHint::Unknown if takes_values => arg.value_hint(ValueHint::Other),
            _ => arg,
        }
    });
    command.mut_subcommands(without_files)
}

/// The commands and options that people are told of.
pub(super) fn shown(command: &Command) -> Command {
    let arguments = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let commands = command
        .get_subcommands()
        .filter(|below| !below.is_hide_set());
    // The definition is there until the program ends; so is this copy of its names.
    let copy = Command::new(&*command.get_name().to_owned().leak())
        .about(command.get_about().cloned().unwrap_or_default());
    let copy = match command.get_version() {
        Some(_) => copy.version(env!("CARGO_PKG_VERSION")),
        None => copy,
    };
    copy.args(arguments.cloned())
        .subcommands(commands.map(shown))
}

fn of_stream(command: Command, spec: &'static ProbeSpec) -> Command {
    let mut layouts = vec![stream::layout(spec)];
    let has_open = command.get_arguments().any(|arg| arg.get_id() == "open");
    layouts.extend(has_open.then_some(open::LAYOUT));
    let mut text = String::new();
    for layout in &layouts {
        let of = match layout.kind {
            kind if kind == open::LAYOUT.kind => " of --open",
            _ => "",
        };
        let title = format!("Columns{of}, by heading and name (in JSON, CSV and --columns):");
        columns(&mut text, &title, layout.columns);
        text.push('\n');
    }
    totals(&mut text, spec);
    if spec.kind == Kind::Connects {
        let title = "\nColumns of the destinations at the end, by heading and name (in JSON):";
        columns(&mut text, title, render::connects::COLUMNS);
    }
    if let Some(examples) = command.get_after_help() {
        let _infallible = write!(text, "\n{examples}");
    }
    let mut names: Vec<(&str, &str)> = vec![("all", "every column")];
    for column in layouts.iter().flat_map(|layout| layout.columns) {
        if names.iter().all(|(name, _)| *name != column.name) {
            names.push((column.name, column.about));
        }
    }
    let groups = groups::known(spec.kind).into_iter();
    let command = command.after_long_help(text);
    let command = hint(command, "columns", names);
    let command = hint(command, "by", groups.map(|name| (name, "")));
    without_what_it_lacks(command, spec)
}

/// Options that the stream would refuse are not shown.
fn without_what_it_lacks(command: Command, spec: &ProbeSpec) -> Command {
    let has = |name: &str| spec.columns.iter().any(|column| column.name == name);
    let options = ["pid", "comm", "iface", "reason", "cgroup"];
    let lacking = options.into_iter().filter(|option| !has(option));
    // Those that have an interface have a packet.
    let lacking = lacking.chain((!has("iface")).then_some("pcap"));
    lacking.fold(command, |command, option| {
        command.mut_arg(option, |arg: Arg| arg.hide(true))
    })
}

/// Lets shells complete the values of an argument; any other is taken as before, and checked later.
fn hint(
    command: Command,
    argument: &str,
    values: impl IntoIterator<Item = (&'static str, &'static str)>,
) -> Command {
    let value = |(name, about): (&'static str, &'static str)| match about {
        "" => PossibleValue::new(name),
        about => PossibleValue::new(name).help(about),
    };
    let hints = Hints(values.into_iter().map(value).collect());
    command.mut_arg(argument, |arg| {
        arg.value_parser(hints).hide_possible_values(true)
    })
}

/// Takes any text, and knows which there could be.
#[derive(Clone)]
struct Hints(Vec<PossibleValue>);

impl TypedValueParser for Hints {
    type Value = String;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &std::ffi::OsStr,
    ) -> Result<String, Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().cloned()))
    }
}

/// What columns say: heading, name, meaning.
fn columns(text: &mut String, title: &str, columns: &[Column]) {
    text.push_str(title);
    text.push('\n');
    for column in columns {
        line(text, column);
    }
}

fn line(text: &mut String, column: &Column) {
    let mut current = format!("  {:<11} {:<16}", column.title, column.name);
    let mut room = WIDTH.saturating_sub(INDENT);
    // A long heading pushes what it says.
    room = room.saturating_sub(current.len().saturating_sub(INDENT - 1));
    for word in column.about.split(' ') {
        if word.len() + 1 > room {
            text.push_str(&current);
            text.push('\n');
            current = " ".repeat(INDENT - 1);
            room = WIDTH - INDENT + 1;
        }
        current.push(' ');
        current.push_str(word);
        room = room.saturating_sub(word.len() + 1);
    }
    text.push_str(&current);
    text.push('\n');
}

/// What `--count` shows.
fn totals(text: &mut String, spec: &ProbeSpec) {
    let heading = heading(spec.weight);
    let sum = spec
        .weight
        .strip_prefix("sum(")
        .and_then(|rest| rest.strip_suffix(')'));
    let sum = match sum {
        Some(name) => format!("the sum of their `{name}`"),
        None => "what they add up to".to_owned(),
    };
    let known = groups::known(spec.kind).join(", ");
    let about = format!("EVENTS is how many, {heading} {sum}; --by takes {known}");
    text.push_str("Columns of --count:\n");
    let mut room = 0;
    for word in about.split(' ') {
        if word.len() + 1 > room {
            text.push_str(if room == 0 { " " } else { "\n " });
            room = WIDTH - 1;
        }
        text.push(' ');
        text.push_str(word);
        room = room.saturating_sub(word.len() + 1).max(1);
    }
    text.push('\n');
}

#[cfg(test)]
mod tests {
    use super::{
        super::{definition, generate::completions},
        *,
    };
    use clap_complete::Shell;

    fn long_help(name: &str) -> String {
        let mut command = definition();
        let found = command.find_subcommand_mut(name).unwrap();
        found.render_long_help().to_string()
    }

    #[test]
    fn the_long_help_of_every_stream_says_what_its_columns_mean() {
        for spec in PROBES {
            let help = long_help(spec.name());
            for column in spec.columns {
                let first = column.about.split(' ').next().unwrap();
                let says = help.lines().any(|line| {
                    let mut words = line.split_whitespace();
                    let is_title = words.next() == Some(column.title);
                    is_title && words.next() == Some(column.name) && line.contains(first)
                });
                assert!(says, "{}.{}: {help}", spec.name(), column.name);
            }
            assert!(help.lines().all(|line| line.chars().count() <= 100));
        }
        assert!(long_help("lifetimes").contains("AGE>= "));
        assert!(long_help("drops").contains("netprobe drops --stack"));
        assert!(long_help("connects").contains("SUM(LATENCY) the sum of their `latency_ns`"));
        assert!(long_help("connects").contains("\n  UNANSWERED  unanswered "));
    }

    #[test]
    fn no_stream_offers_what_it_refuses() {
        assert!(long_help("drops").contains("--pcap"));
        assert!(long_help("resets").contains("--reason"));
        for option in ["--pcap", "--iface", "--reason"] {
            assert!(!long_help("connects").contains(option), "{option}");
        }
    }

    #[test]
    fn shells_complete_columns_groups_findings_and_incidents() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = String::from_utf8(completions(shell)).unwrap();
            for word in [
                "latency_ns",
                "age_at_least_ns",
                "listener_port",
                "path-loss",
            ] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
    }

    #[test]
    fn bash_offers_neither_what_is_hidden_nor_files_and_goes_on_after_a_comma() {
        let script = String::from_utf8(completions(Shell::Bash)).unwrap();
        let after = |option: &str| {
            let (_, rest) = script
                .split_once("netprobe__subcmd__drops)\n            opts")
                .unwrap();
            let (_, rest) = rest.split_once(&format!("{option})\n")).unwrap();
            rest.lines().next().unwrap().trim().to_owned()
        };
        for option in ["--reason", "--netns", "--iface", "--comm"] {
            assert_eq!(after(option), "COMPREPLY=(\"${cur}\")", "{option}");
        }
        assert!(after("--output").contains("compgen -f"));
        for option in ["--columns", "--by"] {
            let line = after(option);
            assert!(line.ends_with("-- \"${cur##*,}\"))"), "{line}");
            assert!(line.contains(" -P \"${cur%\"${cur##*,}\"}\" "), "{line}");
        }
        for hidden in ["play", "generate"] {
            assert!(!script.contains(hidden), "{hidden}");
        }
    }

    #[test]
    fn what_is_not_completed_is_taken_and_judged_as_before() {
        for line in [
            &["netprobe", "drops", "--columns", "+RADDR,all"][..],
            &["netprobe", "explain", "no-such-finding"],
            &["netprobe", "drops", "--count", "--by", "weather"],
        ] {
            assert!(definition().try_get_matches_from(line).is_ok(), "{line:?}");
        }
    }
}
