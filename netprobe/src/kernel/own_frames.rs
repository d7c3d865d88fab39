//! The frames that tracing itself puts on a kernel stack, between the traced function and our
//! program.

use std::sync::Arc;

/// So many frames without a known name may lie between two of tracing's own: the trampolines of
/// ftrace and of kprobes have none.
const GAP: usize = 2;

/// What the names of tracing's frames begin with, but for the program's own.
const TRACING: &[&str] = &[
    "bpf_trampoline_",
    "bpf_trace_run",
    "__bpf_trace_",
    "__traceiter_",
    "bpf_get_stackid",
    "kprobe_perf_func",
    "kretprobe_perf_func",
    "kprobe_ftrace_handler",
    "kprobe_dispatcher",
    "kretprobe_dispatcher",
    "ftrace_trampoline",
    "trace_call_bpf",
    "kretprobe_trampoline",
    "arch_rethook_trampoline",
    "rethook_trampoline_handler",
    "__kretprobe_trampoline",
    "kretprobe_rethook_handler",
    "arch_rethook_trampoline_callback",
    "opt_pre_handler",
    "optimized_callback",
    "trampoline_handler",
    "__kretprobe_trampoline_handler",
    "pre_handler_kretprobe",
    "ftrace_regs_call",
    "ftrace_call",
    "ftrace_ops_list_func",
    "arch_ftrace_ops_list_func",
];

/// A stack, innermost first, without the frames that tracing added: those at its inner end only. BPF
/// programs further out, as of a network plug-in, and the syscall that loads one, belong to it.
pub fn without_own(frames: &[Arc<str>]) -> &[Arc<str>] {
    let mut own = 0;
    let (mut saw_program, mut left_program) = (false, false);
    for (depth, name) in frames.iter().enumerate() {
        if depth > own + GAP || left_program && is_program(name) {
            break;
        }
        if is_program(name) || is_tracing(name) {
            own = depth + 1;
        }
        left_program |= saw_program && !is_program(name);
        saw_program |= is_program(name);
    }
    &frames[own..]
}

/// A program as kallsyms names it: `bpf_prog_`, 16 hexadecimal digits of its tag, its name.
fn is_program(function: &str) -> bool {
    function
        .strip_prefix("bpf_prog_")
        .and_then(|rest| rest.get(..16))
        .is_some_and(|tag| tag.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

fn is_tracing(function: &str) -> bool {
    TRACING.iter().any(|own| function.starts_with(own))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trimmed(frames: &[&str]) -> Vec<String> {
        let frames: Vec<Arc<str>> = frames.iter().map(|&name| Arc::from(name)).collect();
        let left = without_own(&frames).iter();
        left.map(ToString::to_string).collect()
    }

    #[test]
    fn tracing_is_taken_from_the_inner_end() {
        let tracepoint = [
            "bpf_get_stackid_raw_tp",
            "bpf_prog_6deef7357e7b4530_drops",
            "bpf_trace_run5",
            "__traceiter_kfree_skb",
            "kfree_skb_reason",
            "tcp_v4_rcv",
        ];
        assert_eq!(trimmed(&tracepoint), ["kfree_skb_reason", "tcp_v4_rcv"]);
        let kprobe = [
            "bpf_prog_6deef7357e7b4530_connects",
            "trace_call_bpf",
            "kprobe_perf_func",
            "0xffffffffc0201001",
            "kprobe_ftrace_handler",
            "inet_hash_connect",
            "tcp_v4_connect",
        ];
        assert_eq!(trimmed(&kprobe), ["inet_hash_connect", "tcp_v4_connect"]);
    }

    #[test]
    fn other_programs_and_their_loading_stay() {
        let plugin = [
            "bpf_prog_6deef7357e7b4530_drops",
            "bpf_trace_run5",
            "kfree_skb_reason",
            "bpf_prog_0123456789abcdef_cil_from_container",
            "cls_bpf_classify",
        ];
        assert_eq!(trimmed(&plugin), plugin[2..]);
        let loading = [
            "memset_erms",
            "do_check",
            "bpf_check",
            "bpf_prog_load",
            "__sys_bpf",
        ];
        assert_eq!(trimmed(&loading), loading);
        let deep = ["a", "b", "c", "bpf_trace_run5", "d"];
        assert_eq!(trimmed(&deep), deep);
    }
}
