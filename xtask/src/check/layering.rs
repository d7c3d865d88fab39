//! The layering rules: which part of the source may name what. All of them are in `RULES`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::tokens::{self, Token};
use crate::kernels;

/// A rule: in some folder, only some files may do a thing.
struct Rule {
    /// The folders that it holds for.
    within: &'static [&'static str],
    /// The files and folders in them that may do it.
    except: &'static [&'static str],
    /// Whether the token at this index does it.
    broken: fn(&[Token<'_>], usize) -> bool,
    /// What to say.
    message: &'static str,
}

const RULES: [Rule; 4] = [
    Rule {
        within: &["netprobe/src/"],
        except: &["netprobe/src/kernel/", "netprobe/src/capture/live.rs"],
        broken: names_aya,
        message: "only kernel/ and capture/live.rs name aya",
    },
    Rule {
        within: &["netprobe/src/"],
        // A test, which makes records to filter.
        except: &["netprobe/src/probes/", "netprobe/src/filter/equivalence.rs"],
        broken: names_records,
        message: "only probes/ names the records of single probes",
    },
    Rule {
        within: &["netprobe/src/render/"],
        except: &[],
        broken: names_more_than_report,
        message: "a renderer names crate::report and crate::render, nothing else of netprobe",
    },
    Rule {
        // Tests provoke incidents with system calls that no safe library offers.
        within: &["netprobe", "xtask/"],
        except: &[
            "netprobe-common/src/record.rs",
            "netprobe-ebpf/src/emit.rs",
            "netprobe-ebpf/src/load.rs",
            "netprobe-ebpf/src/maps.rs",
            "netprobe/src/kernel/pod.rs",
        ],
        broken: is_unsafe,
        message: "unsafe code lives in record.rs, emit.rs, load.rs, maps.rs and pod.rs",
    },
];

/// The broken rules of the checkout at `root`, each as `file:line: message`.
pub(super) fn violations(root: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let crates = [
        "netprobe",
        "netprobe-common",
        "netprobe-ebpf",
        "tests",
        "xtask",
    ];
    for folder in crates {
        let mut files = kernels::walk(&root.join(folder))?;
        files.retain(|file| file.extension().is_some_and(|suffix| suffix == "rs"));
        files.sort();
        for file in files {
            let source =
                fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            let path = file.strip_prefix(root).unwrap_or(&file);
            found.extend(judge(&path.to_string_lossy(), &source));
        }
    }
    Ok(found)
}

/// The broken rules in one file.
fn judge(path: &str, source: &str) -> Vec<String> {
    let tokens = tokens::tokens(source);
    let starts = |prefixes: &[&str]| prefixes.iter().any(|prefix| path.starts_with(prefix));
    let rules = RULES
        .iter()
        .filter(|rule| starts(rule.within) && !starts(rule.except));
    let mut found = Vec::new();
    for rule in rules {
        for index in (0..tokens.len()).filter(|index| (rule.broken)(&tokens, *index)) {
            let line = tokens[index].line;
            found.push(format!("{path}:{line}: {}", rule.message));
        }
    }
    found.dedup();
    found
}

fn text<'a>(tokens: &[Token<'a>], index: usize) -> &'a str {
    tokens.get(index).map_or("", |token| token.text)
}

fn names_aya(tokens: &[Token<'_>], index: usize) -> bool {
    let name = text(tokens, index);
    (name == "aya" || name.starts_with("aya_")) && is_path(tokens, index)
}

fn names_records(tokens: &[Token<'_>], index: usize) -> bool {
    text(tokens, index) == "records" && is_path(tokens, index)
}

/// Whether a name is part of a path, and not a variable or field of that name.
fn is_path(tokens: &[Token<'_>], index: usize) -> bool {
    let before = index.checked_sub(1).map_or("", |at| text(tokens, at));
    text(tokens, index + 1) == "::" || before == "::" || before == "use"
}

fn names_more_than_report(tokens: &[Token<'_>], index: usize) -> bool {
    let after = |steps: usize| text(tokens, index + steps);
    let other = |name: &str| !matches!(name, "report" | "render");
    match text(tokens, index) {
        "crate" if after(1) == "::" && after(2) == "{" => group(tokens, index + 3).any(other),
        "crate" if after(1) == "::" => other(after(2)),
        "super" => after(1) == "::" && after(2) == "super",
        name => name.starts_with("netprobe_") && is_path(tokens, index),
    }
}

/// The first name of each path in a group whose brace was opened before `start`.
fn group<'a>(tokens: &'a [Token<'a>], start: usize) -> impl Iterator<Item = &'a str> {
    let mut depth = 1;
    let mut first = true;
    let inside = tokens[start..].iter().take_while(move |token| {
        depth += i32::from(token.text == "{") - i32::from(token.text == "}");
        depth > 0
    });
    let mut nested = 0;
    inside.filter_map(move |token| {
        nested += i32::from(token.text == "{") - i32::from(token.text == "}");
        let is_first = std::mem::replace(&mut first, nested == 0 && token.text == ",");
        (is_first && token.text != ",").then_some(token.text)
    })
}

fn is_unsafe(tokens: &[Token<'_>], index: usize) -> bool {
    // `#[unsafe(no_mangle)]` is an attribute: it does nothing by itself.
    text(tokens, index) == "unsafe" && text(tokens, index + 1) != "("
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_forbidden_is_found() {
        let cases = [
            ("netprobe/src/cli/drops.rs", "fn f() { aya::x(); }"),
            ("netprobe/src/cli/drops.rs", "use aya_log::EbpfLogger;"),
            (
                "netprobe/src/report.rs",
                "use netprobe_common::records::drops::Drop;",
            ),
            ("netprobe/src/render/table.rs", "use crate::decode::Row;"),
            (
                "netprobe/src/render/table.rs",
                "use crate::{report::Report, decode};",
            ),
            ("netprobe/src/render/table.rs", "use super::super::decode;"),
            (
                "netprobe/src/render/table.rs",
                "use netprobe_common::kind::Kind;",
            ),
            ("netprobe/src/cli/mod.rs", "fn f() { unsafe { g() } }"),
            ("xtask/src/main.rs", "unsafe fn f() {}"),
            (
                "netprobe-ebpf/src/probes/drops.rs",
                "unsafe impl A for B {}",
            ),
        ];
        for (path, source) in cases {
            let source = format!("//! A file.\n{source}\n");
            let found = judge(path, &source);
            assert_eq!(found.len(), 1, "{path}: {source}");
            assert!(found[0].starts_with(&format!("{path}:2: ")), "{}", found[0]);
        }
    }

    #[test]
    fn what_is_allowed_is_not() {
        let cases = [
            ("netprobe/src/kernel/load.rs", "use aya::Ebpf;"),
            ("netprobe/src/capture/live.rs", "use aya::maps::RingBuf;"),
            (
                "netprobe/src/cli/drops.rs",
                "// aya::x\nfn f() { g(\"aya::x\") }",
            ),
            (
                "netprobe/src/probes/drops.rs",
                "use netprobe_common::records::drops;",
            ),
            (
                "netprobe/src/cli/drops.rs",
                "fn f(records: u32) -> u32 { records }",
            ),
            (
                "netprobe/src/render/table.rs",
                "use crate::report::{Report, Row};",
            ),
            (
                "netprobe/src/render/table.rs",
                "use crate::{render::time, report::{Report, Row}};",
            ),
            (
                "netprobe-ebpf/src/main.rs",
                "#[unsafe(no_mangle)]\nstatic A: u8 = 0;",
            ),
            ("netprobe-ebpf/src/maps.rs", "fn f() { unsafe { g() } }"),
        ];
        for (path, source) in cases {
            assert_eq!(
                judge(path, source),
                Vec::<String>::new(),
                "{path}: {source}"
            );
        }
    }
}
