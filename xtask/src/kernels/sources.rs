//! Where this machine gets Debian from: the archives' addresses, read from its own apt sources.
//!
//! Nothing in this repository names a host, so a machine with a mirror of its own keeps using it.
//! Both formats of sources.list(5) are read: one line per source, and deb822 stanzas.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// One source of packages: an address and the suites used from it.
#[derive(Debug, PartialEq, Eq)]
struct Source {
    uri: String,
    suites: Vec<String>,
}

/// The addresses of Debian's archives.
pub(super) struct Mirror {
    main: String,
    security: Option<String>,
}

impl Mirror {
    /// The archives that this machine itself uses.
    pub(super) fn of_this_machine() -> Result<Self> {
        let release = fs::read_to_string("/etc/os-release").context("read /etc/os-release")?;
        let codename = release
            .lines()
            .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
            .context("kernels come as Debian packages, and this system names no codename")?;
        let mut sources = Vec::new();
        for file in files() {
            let text =
                fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
            if file.extension().is_some_and(|suffix| suffix == "sources") {
                sources.extend(parse_stanzas(&text));
            } else {
                sources.extend(text.lines().filter_map(parse_line));
            }
        }
        Self::choose(&sources, codename.trim_matches('"')).with_context(|| {
            format!("no apt source here has suite {codename}: kernels come as Debian packages")
        })
    }

    fn choose(sources: &[Source], codename: &str) -> Option<Self> {
        let with = |suites: &[String]| {
            let found = sources
                .iter()
                .find(|source| source.suites.iter().any(|suite| suites.contains(suite)));
            found.map(|source| source.uri.clone())
        };
        let security = [
            format!("{codename}-security"),
            format!("{codename}/updates"),
        ];
        Some(Self {
            main: with(&[codename.to_owned(), "stable".to_owned()])?,
            security: with(&security),
        })
    }

    /// The text of a sources.list for some suites of the main archive and one of the security archive.
    pub(super) fn sources(&self, suites: &[&str], security: Option<&str>) -> String {
        let line = |(uri, suite)| format!("deb [signed-by={KEYRING}] {uri} {suite} main\n");
        let main = suites.iter().map(|&suite| (&self.main, suite));
        main.chain(self.security.as_ref().zip(security))
            .map(line)
            .collect()
    }
}

fn files() -> Vec<PathBuf> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    if let Ok(entries) = fs::read_dir("/etc/apt/sources.list.d") {
        files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
    }
    files.retain(|file| file.is_file() && is_source(file));
    files.sort();
    files
}

fn is_source(file: &Path) -> bool {
    file.extension()
        .is_some_and(|suffix| suffix == "list" || suffix == "sources")
}

/// Reads `deb [options] URI SUITE COMPONENT…`.
fn parse_line(line: &str) -> Option<Source> {
    let line = line.split('#').next()?.trim();
    let mut rest = line.strip_prefix("deb")?;
    if !rest.starts_with([' ', '\t']) {
        return None;
    }
    rest = rest.trim_start();
    if rest.starts_with('[') {
        rest = rest.split_once(']')?.1;
    }
    let mut words = rest.split_whitespace();
    let uri = words.next()?.to_owned();
    let suites = vec![words.next()?.to_owned()];
    Some(Source { uri, suites })
}

/// Reads deb822 stanzas: `Types`, `URIs`, `Suites`, unless `Enabled: no`.
fn parse_stanzas(text: &str) -> Vec<Source> {
    let lines: Vec<_> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let stanzas = lines.split(|line| line.trim().is_empty());
    stanzas.filter_map(parse_stanza).collect()
}

fn parse_stanza(lines: &[&str]) -> Option<Source> {
    let words = |name: &str| field(lines, name);
    if !words("Types").contains(&"deb".to_owned()) || words("Enabled").contains(&"no".to_owned()) {
        return None;
    }
    Some(Source {
        uri: words("URIs").into_iter().next()?,
        suites: words("Suites"),
    })
}

/// The words of a field, continuation lines included.
fn field(lines: &[&str], name: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut inside = false;
    for line in lines {
        let value = if line.starts_with([' ', '\t']) {
            *line
        } else {
            let (key, value) = line.split_once(':').unwrap_or((line, ""));
            inside = key.eq_ignore_ascii_case(name);
            value
        };
        if inside {
            words.extend(value.split_whitespace().map(str::to_owned));
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const STANZAS: &str = "\
Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: bookworm
 bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Enabled: no
Types: deb
URIs: http://off.example/debian-security
Suites: bookworm-security

Types: deb
URIs: http://mirror.example/debian-security
Suites: bookworm-security
";

    #[test]
    fn stanzas_are_read_without_the_disabled() {
        let mirror = Mirror::choose(&parse_stanzas(STANZAS), "bookworm").expect("a mirror");
        assert_eq!(mirror.main, "http://mirror.example/debian");
        assert_eq!(
            mirror.security.as_deref(),
            Some("http://mirror.example/debian-security")
        );
    }

    #[test]
    fn lines_are_read() {
        let cases = [
            (
                "deb http://a/debian bookworm main",
                Some(("http://a/debian", "bookworm")),
            ),
            (
                "deb [arch=amd64 signed-by=/k.gpg] http://b/debian bookworm main # why",
                Some(("http://b/debian", "bookworm")),
            ),
            ("deb-src http://a/debian bookworm main", None),
            ("# deb http://a/debian bookworm main", None),
            ("", None),
        ];
        for (line, expected) in cases {
            let found = parse_line(line);
            let found = found
                .as_ref()
                .map(|source| (source.uri.as_str(), source.suites[0].as_str()));
            assert_eq!(found, expected, "{line}");
        }
    }

    #[test]
    fn only_the_suite_is_replaced() {
        let mirror = Mirror {
            main: "http://a/debian".into(),
            security: Some("http://a/debian-security".into()),
        };
        let text = mirror.sources(&["bullseye"], Some("bullseye-security"));
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert!(lines[0].ends_with(" http://a/debian bullseye main"));
        assert!(lines[1].ends_with(" http://a/debian-security bullseye-security main"));
    }
}
