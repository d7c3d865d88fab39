//! The frames of a stack, from its thread to the kernel's functions, once all are named.

use std::sync::Arc;

use netprobe_common::samples::{LEFT_OUT, TaskStack};

use super::{
    super::{
        complaints::CutIn,
        copies::{NOT_HELD, NOT_UNWOUND},
        nameless::Counted,
        roots::{self, By},
    },
    Naming, call_sites,
};
use crate::{
    kernel::{own_frames::without_own, task_stacks::Addresses},
    render::text,
    report::Value,
    symbols::{
        self, Missing, Names,
        found::{Found, Whose},
        unwind::Unwound,
    },
};

/// The kernel goes from one program to the next there: the thread has the name of the next one before it has its code.
const IN_EXEC: &str = "load_elf_binary_[k]";

impl Naming {
    /// The frames of a stack, from its root.
    pub(in super::super) fn frames(&mut self, stack: &TaskStack, weight: u64) -> Vec<Arc<str>> {
        let mut comm = String::new();
        text::push(&mut comm, &Value::name(stack.comm));
        let mut frames = vec![Arc::from(comm.as_str())];
        if stack.kernel == LEFT_OUT {
            frames.push(Arc::from("[no stack, to stay cheap]"));
            return frames;
        }
        let kernel = self.kernel_frames(stack);
        let in_exec = kernel.iter().any(|frame| &**frame == IN_EXEC);
        frames.extend(self.all_user_frames(stack, &comm, in_exec, weight));
        frames.extend(kernel);
        frames
    }

    /// The functions of the kernel in a stack, from the outermost.
    pub(in super::super) fn kernel_frames(&mut self, stack: &TaskStack) -> Vec<Arc<str>> {
        let mut frames = Vec::new();
        match self.addresses(stack.kernel) {
            Addresses::None | Addresses::Unended => {}
            Addresses::Known { ips, is_cut } => {
                if is_cut {
                    frames.push(Arc::from("[truncated]_[k]"));
                }
                let names: Vec<Arc<str>> = call_sites(&ips)
                    .map(|address| self.kernel.lookup(address).drawn())
                    .collect();
                let names = if self.begins_in_bpf {
                    without_own(&names)
                } else {
                    &names
                };
                frames.extend(
                    names
                        .iter()
                        .rev()
                        .map(|name| Arc::from(format!("{name}_[k]"))),
                );
            }
            Addresses::Collision => frames.push(Arc::from("[kernel stack lost: collision]_[k]")),
            Addresses::Failed(errno) => {
                frames.push(Arc::from(format!("[kernel stack lost: errno {errno}]_[k]")));
            }
        }
        frames
    }

    fn all_user_frames(
        &mut self,
        stack: &TaskStack,
        comm: &str,
        in_exec: bool,
        weight: u64,
    ) -> Vec<Arc<str>> {
        let thread = Thread {
            pid: stack.pid,
            comm: (!in_exec).then_some(&stack.comm),
            shown: comm,
        };
        if let Some(unwound) = self.copies.stack(stack.user).cloned() {
            return self.unwound_frames(thread, &unwound, weight);
        }
        let why = match stack.user {
            NOT_UNWOUND => "not unwound in time".to_owned(),
            NOT_HELD => "gave way to newer copies".to_owned(),
            user => match self.addresses(user) {
                Addresses::None => return Vec::new(),
                Addresses::Known { ips, is_cut } => {
                    return self.walked_frames(thread, &ips, is_cut, weight);
                }
                Addresses::Collision => "collision".to_owned(),
                Addresses::Unended => "the ring was full".to_owned(),
                Addresses::Failed(errno) => format!("errno {errno}"),
            },
        };
        let frame = Arc::from(format!("[user stack lost: {why}]"));
        self.stacks_weighed += weight;
        *self.lost.entry(why).or_default() += weight;
        vec![frame]
    }

    /// The frames of a stack that unwind tables led through.
    fn unwound_frames(
        &mut self,
        thread: Thread<'_>,
        unwound: &Unwound,
        weight: u64,
    ) -> Vec<Arc<str>> {
        let mut innermost_first: Vec<Arc<str>> = Vec::new();
        let whose = Whose {
            version: unwound.version,
            ..thread.whose(&self.found, unwound.places.iter().copied())
        };
        let mut is_whole = unwound.is_whole;
        let mut counted = Counted::default();
        for address in &unwound.places {
            let Some(names) = self.found.get(thread.pid, *address, whose) else {
                continue;
            };
            innermost_first.extend(names.frames.iter().rev().map(|name| Arc::from(&**name)));
            counted.add(names);
            if is_of_unknown(names, whose) {
                is_whole = false;
                break;
            }
        }
        is_whole |= roots::is_whole(&innermost_first, By::Tables);
        let cut = (!is_whole).then(|| cut_in(&innermost_first, &counted));
        self.nameless.add(counted, weight);
        self.finish_user(thread.shown, innermost_first, cut, weight)
    }

    /// The frames of a stack that frame pointers led through.
    fn walked_frames(
        &mut self,
        thread: Thread<'_>,
        ips: &[u64],
        is_cut: bool,
        weight: u64,
    ) -> Vec<Arc<str>> {
        let mut innermost_first: Vec<Arc<str>> = Vec::new();
        let mut has_begun = false;
        let mut counted = Counted::default();
        let whose = thread.whose(&self.found, call_sites(ips));
        for address in call_sites(ips) {
            let Some(names) = self.found.get(thread.pid, address, whose) else {
                break;
            };
            let function = names.frames.first().map_or("", String::as_str);
            if let Some(callee) = innermost_first.last() {
                let is_return = names.is_call || symbols::interrupts(callee);
                if !is_return || names.missing.is_some_and(Missing::is_unmapped) {
                    break;
                }
            }
            // What seems to call the start is whatever lay there.
            if has_begun && !roots::may_begin(function) {
                break;
            }
            has_begun |= roots::is_start(function);
            innermost_first.extend(names.frames.iter().rev().map(|name| Arc::from(&**name)));
            counted.add(names);
            if is_of_unknown(names, whose) {
                break;
            }
        }
        let is_whole = roots::is_whole(&innermost_first, By::FramePointers);
        let cut = (!is_whole || is_cut).then(|| cut_in(&innermost_first, &counted));
        self.nameless.add(counted, weight);
        self.finish_user(thread.shown, innermost_first, cut, weight)
    }

    fn finish_user(
        &mut self,
        comm: &str,
        mut innermost_first: Vec<Arc<str>>,
        cut: Option<CutIn>,
        weight: u64,
    ) -> Vec<Arc<str>> {
        self.stacks_weighed += weight;
        if let Some(end) = cut {
            // Where it is not known what ran, that is what is said of it.
            let is_unknown = |frame: &Arc<str>| frame.starts_with("[unknown");
            if !innermost_first.first().is_some_and(is_unknown) {
                *self.cut.entry(comm.to_owned()).or_default() += weight;
                *self.cut_in.entry(end).or_default() += weight;
            }
            innermost_first.push(Arc::from("[truncated]"));
        }
        innermost_first.reverse();
        innermost_first
    }
}

/// The thread that a user stack is of.
#[derive(Clone, Copy)]
struct Thread<'a> {
    pid: u32,
    /// Its name, if that tells its program.
    comm: Option<&'a [u8; 16]>,
    /// Its name for people.
    shown: &'a str,
}

impl Thread<'_> {
    fn whose(&self, found: &Found, addresses: impl Iterator<Item = u64>) -> Whose<'_> {
        Whose {
            comm: self.comm,
            is_known: found.is_known(self.pid, addresses),
            version: 0,
        }
    }
}

/// In what a stack ends that is cut.
fn cut_in(innermost_first: &[Arc<str>], counted: &Counted) -> CutIn {
    let outermost = innermost_first.last().map(|name| &**name);
    CutIn::of(outermost, counted.outermost())
}

/// Whether it is not known what program ran, so that neither are the callers.
fn is_of_unknown(names: &Names, whose: Whose<'_>) -> bool {
    names.missing == Some(Missing::Replaced) && !whose.is_known
}
