//! What `netprobe diagnose --json` says, as far as it concerns some namespaces.

use serde_json::Value;

use crate::watcher;

/// A diagnosis.
#[derive(Debug)]
pub(crate) struct Verdict {
    findings: Vec<Finding>,
    all: Value,
}

/// A finding, as it stands in JSON.
#[derive(Clone, Debug)]
pub(crate) struct Finding(Value);

impl Verdict {
    /// What is said of the next window, as far as it concerns these namespaces or none.
    pub(crate) fn next(namespaces: &[u64]) -> Self {
        let mut verdict = Self::of_all();
        verdict.findings.retain(|found| found.concerns(namespaces));
        verdict
    }

    /// What is said of the next window, of every namespace.
    pub(crate) fn of_all() -> Self {
        let all = watcher::next();
        assert_eq!(all["schema"], "netprobe.diagnosis/1");
        let findings = all["findings"].as_array().expect("findings are a list");
        Self {
            findings: findings.iter().cloned().map(Finding).collect(),
            all,
        }
    }

    /// The finding that stands first, which must be `id`.
    #[track_caller]
    pub(crate) fn first(&self, id: &str) -> &Finding {
        let first = self.findings.first();
        let first =
            first.unwrap_or_else(|| panic!("nothing found; checked: {}", self.all["checked"]));
        assert_eq!(first.id(), id, "{}", self.story());
        assert!(
            first.is_serious() || id == "short-lived-connections",
            "{}",
            self.story()
        );
        first
    }

    /// The finding of this id.
    pub(crate) fn finding(&self, id: &str) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.id() == id)
    }

    /// The finding of this id, which stands first or is said to hide behind one of `causes`.
    #[track_caller]
    pub(crate) fn first_or_behind(&self, id: &str, causes: &[&str]) -> &Finding {
        let found = self
            .finding(id)
            .unwrap_or_else(|| panic!("no {id}: {}", self.story()));
        let is_behind = found.cause().is_some_and(|cause| causes.contains(&cause));
        assert!(self.first_id() == Some(id) || is_behind, "{}", self.story());
        found
    }

    /// Some finding of this id names something with these fields.
    #[track_caller]
    pub(crate) fn hits_with(&self, id: &str, fields: &[(&str, Value)]) {
        let mut findings = self.findings.iter().filter(|finding| finding.id() == id);
        let has = |one: &Value| fields.iter().all(|(name, value)| one[*name] == *value);
        let hits = findings.any(|finding| finding.affected().iter().any(has));
        assert!(hits, "no {id} with {fields:?}: {}", self.story());
    }

    /// There is a finding of this id, but another comes first.
    #[track_caller]
    pub(crate) fn has_behind(&self, id: &str) {
        assert!(self.finding(id).is_some(), "no {id}: {}", self.story());
        assert_ne!(self.first_id(), Some(id), "{}", self.story());
    }

    /// The id of the first finding, if there is one.
    pub(crate) fn first_id(&self) -> Option<&str> {
        self.findings.first().map(Finding::id)
    }

    /// Whether there is nothing above info.
    pub(crate) fn has_nothing_serious(&self) -> bool {
        !self.findings.iter().any(Finding::is_serious)
    }

    /// There is no finding of this id.
    #[track_caller]
    pub(crate) fn lacks(&self, id: &str) {
        assert!(self.finding(id).is_none(), "{}", self.story());
    }

    /// There is nothing above info.
    #[track_caller]
    pub(crate) fn is_quiet(&self) {
        assert!(self.has_nothing_serious(), "{}", self.story());
    }

    /// All findings, in order.
    pub(crate) fn story(&self) -> String {
        let lines = self.findings.iter().map(|finding| {
            let Value::String(summary) = &finding.0["summary"] else {
                return String::new();
            };
            format!("\n{} ({}): {summary}", finding.id(), finding.0["severity"])
        });
        let checked = self.all["checked"].as_array().into_iter().flatten();
        let unsure = checked.filter(|rule| rule["verdict"] == "not-enough-data");
        let unsure =
            unsure.map(|rule| format!("\nnot enough data: {} {}", rule["id"], rule["why"]));
        lines.chain(unsure).collect()
    }
}

impl Finding {
    /// Its id.
    pub(crate) fn id(&self) -> &str {
        self.0["id"].as_str().expect("a finding has an id")
    }

    /// The finding that it is said to hide behind.
    fn cause(&self) -> Option<&str> {
        let evidence = self.0["evidence"].as_array()?;
        let mut texts = evidence.iter().filter_map(|one| one["text"].as_str());
        texts.find_map(|text| text.strip_prefix("hidden behind "))
    }

    /// Whether it stops connections.
    pub(crate) fn is_critical(&self) -> bool {
        self.0["severity"] == "critical"
    }

    fn is_serious(&self) -> bool {
        self.0["severity"] != "info"
    }

    fn affected(&self) -> &[Value] {
        self.0["affected"].as_array().map_or(&[], Vec::as_slice)
    }

    fn concerns(&self, namespaces: &[u64]) -> bool {
        let mut known = self
            .affected()
            .iter()
            .filter_map(|one| one["netns"].as_u64())
            .peekable();
        known.peek().is_none() || known.any(|netns| namespaces.contains(&netns))
    }

    /// It names something of this kind with all of these fields.
    #[track_caller]
    pub(crate) fn hits(&self, kind: &str, fields: &[(&str, Value)]) -> &Self {
        let has = |one: &Value| {
            one["kind"] == kind && fields.iter().all(|(name, value)| one[*name] == *value)
        };
        assert!(
            self.affected().iter().any(has),
            "no {kind} with {fields:?}: {:#}",
            self.0["affected"]
        );
        self
    }

    /// It offers a fix of this kind, such as `sysctl` or `application`, that sets `name`.
    #[track_caller]
    pub(crate) fn is_fixed_by(&self, kind: &str, name: &str) -> &Self {
        let mut fixes = self.0["fixes"].as_array().into_iter().flatten();
        let sets = |fix: &Value| {
            fix["kind"] == kind && (name.is_empty() || fix["set"].get(name).is_some())
        };
        assert!(
            fixes.any(sets),
            "no {kind} fix sets {name:?}: {:#}",
            self.0["fixes"]
        );
        self
    }

    /// Sysctls of its fixes, with their new values.
    pub(crate) fn sysctls(&self) -> Vec<(String, String)> {
        let fixes = self.0["fixes"].as_array().into_iter().flatten();
        let sets = fixes
            .filter(|fix| fix["kind"] == "sysctl")
            .filter_map(|fix| fix["set"].as_object());
        let pairs = sets
            .flatten()
            .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
        pairs.collect()
    }
}
