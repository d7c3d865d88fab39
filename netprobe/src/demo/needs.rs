//! What a demo needs of the kernel that a kernel may lack, and which demos do without it.

use super::{SCENARIOS, incident::find_tool, stage::Stage};

/// What tc(8) says of a queueing discipline without a module, on newer and older kernels.
const NO_MODULE: [&str; 2] = ["kind is unknown", "No such file or directory"];

/// Says which module is missing if that is what tc(8) complains of, and which demos work without.
pub(super) fn explain_queue(discipline: &str, complaint: &str) -> Option<String> {
    if !NO_MODULE.iter().any(|words| complaint.contains(words)) {
        return None;
    }
    let kind = kind(discipline);
    Some(format!(
        "this demo needs sch_{kind}, a kernel module that is missing here; without it work: {}",
        without(kind).join(", ")
    ))
}

/// Demos that work on this machine, and harm nothing, without this queueing discipline.
fn without(kind_missing: &str) -> Vec<&'static str> {
    let can_run = |stage: &Stage| {
        let mut queues = stage.queues.iter();
        let tools = stage.tools();
        stage.machine.is_empty()
            && !queues.any(|(_, discipline)| kind(discipline) == kind_missing)
            && tools.iter().all(|tool| find_tool(tool).is_some())
    };
    let possible = SCENARIOS
        .iter()
        .filter(|scenario| can_run(&(scenario.stage)()) && can_run(&(scenario.cured)()));
    possible.map(|scenario| scenario.id).collect()
}

/// Kernel modules of the queueing disciplines of a stage, which not every machine has.
pub fn modules(stage: &Stage) -> Vec<String> {
    let queues = stage.queues.iter();
    let mut modules: Vec<String> = queues
        .map(|(_, discipline)| format!("sch_{}", kind(discipline)))
        .collect();
    modules.sort();
    modules.dedup();
    modules
}

/// The name of a queueing discipline, which stands before its options.
fn kind(discipline: &str) -> &str {
    discipline.split(' ').next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_module_is_named_with_what_works_without_it() {
        for complaint in [
            "Error: Specified qdisc kind is unknown.",
            "RTNETLINK answers: No such file or directory",
        ] {
            let said = explain_queue("netem delay 5ms", complaint).expect("an explanation");
            assert!(said.contains("sch_netem"), "{said}");
            assert!(said.contains("accept-queue-overflow"), "{said}");
            for lacking in ["path-loss", "half-open-established", "neighbour-table-full"] {
                assert!(!said.contains(lacking), "{said}");
            }
            assert_eq!(said.lines().count(), 1);
        }
        assert_eq!(explain_queue("netem delay x", "Illegal \"latency\""), None);
    }
}
