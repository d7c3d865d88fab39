//! From the addresses of a stack to the frames that are drawn: thread, user functions, functions
//! of the kernel. What has no name, and where a stack was cut, is drawn as such and explained.

mod frames;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    mem,
};

use netprobe_common::{counters::Count, samples::TaskStack};

use super::{
    complaints::{self, Copying, CutIn, Share},
    copies::{Copies, Counting},
    graph::Graph,
    nameless::Nameless,
    wanted::Wanted,
};
use crate::{
    kernel::{
        symbols::Symbols,
        task_stacks::{Addresses, Sent, TaskStacks},
    },
    observe::clock::now_ns,
    symbols::{
        background::{Background, Followed},
        found::Found,
    },
};

/// Processes that the worker is told at a time to have had their stacks copied.
const MOST_COPIED: usize = 64;

/// Names stacks.
pub(super) struct Naming {
    stacks: TaskStacks,
    kernel: Symbols,
    /// Whether stacks begin in our own program, which an event called; samples do not.
    begins_in_bpf: bool,
    worker: Option<Background>,
    found: Found,
    read: HashMap<i32, Addresses>,
    copies: Copies,
    /// Whose stacks were copied since the worker was told last.
    copied: BTreeSet<u32>,
    /// Copies that are not drawn.
    unwanted_copies: u64,
    /// Whether a kernel stack belongs into the graph, where that is asked.
    within: HashMap<i32, bool>,
    nameless: Nameless,
    /// Weight of user stacks, all and cut ones by thread name.
    stacks_weighed: u64,
    cut: BTreeMap<String, u64>,
    /// Weight of cut stacks by what their outermost function is in.
    cut_in: BTreeMap<CutIn, u64>,
    /// Weight of user stacks that are not known at all, by why.
    lost: BTreeMap<String, u64>,
}

impl Naming {
    /// Starts the worker, which sees what is running before anything is sampled.
    pub(super) fn start(
        stacks: TaskStacks,
        kernel: Symbols,
        wants_user: bool,
        counting: Counting,
    ) -> Self {
        let mut worker = wants_user.then(|| Background::start(true));
        if let Some(worker) = &mut worker {
            worker.wait_ready();
        }
        Self {
            stacks,
            kernel,
            begins_in_bpf: matches!(counting, Counting::Blocks),
            worker,
            found: Found::default(),
            read: HashMap::new(),
            copies: Copies::new(counting),
            copied: BTreeSet::new(),
            unwanted_copies: 0,
            within: HashMap::new(),
            nameless: Nameless::default(),
            stacks_weighed: 0,
            cut: BTreeMap::new(),
            cut_in: BTreeMap::new(),
            lost: BTreeMap::new(),
        }
    }

    /// Reads the names of the kernel's functions, which takes a while.
    pub(super) fn warm_up(&mut self) {
        self.kernel.learn();
    }

    /// Has the worker look at the processes that were seen for the first time.
    pub(super) fn see_new_processes(&mut self) {
        while let Some(pid) = self.stacks.sighted() {
            if let Some(worker) = &self.worker {
                worker.see(pid);
            }
        }
    }

    /// Reads the stacks that were copied, and has them unwound. Has the worker look whether processes run other programs by
    /// now or have other libraries, those first whose stacks they are.
    pub(super) fn take_copies(&mut self, wanted: &Wanted, graph: &Graph) {
        self.read_copies(wanted, graph);
        if let Some(worker) = &self.worker {
            worker.look(mem::take(&mut self.copied).into_iter().collect());
        }
        self.unwind_due(false);
        let unwound = match &mut self.worker {
            Some(worker) => worker.unwound(),
            None => Vec::new(),
        };
        self.count_unwound(unwound);
    }

    fn read_copies(&mut self, wanted: &Wanted, graph: &Graph) {
        self.copies.begin_reading(now_ns());
        while let Some(sent) = self.stacks.sent() {
            if let Sent::Copy(copy, _) = &sent
                && !self.is_drawn(&copy.stack, wanted, graph)
            {
                self.copies.forget(copy.thread);
                self.unwanted_copies += 1;
                continue;
            }
            if let Sent::Copy(copy, _) = &sent
                && self.copied.len() < MOST_COPIED
            {
                self.copied.insert(copy.stack.pid);
            }
            let walked = match &sent {
                Sent::Copy(copy, _) => self.walked(copy.walked),
                Sent::End(_) => Vec::new(),
            };
            self.copies.take(sent, walked);
        }
    }

    /// A stack as the kernel has walked it: with a 0 behind it if that is all.
    fn walked(&self, id: i32) -> Vec<u64> {
        let Addresses::Known { mut ips, is_cut } = self.stacks.read(id) else {
            return Vec::new();
        };
        ips.extend((!is_cut).then_some(0));
        ips
    }

    /// Whether a stack belongs into the graph, by what the programs do not know. They are told, to take no more like it.
    pub(super) fn is_drawn(&mut self, stack: &TaskStack, wanted: &Wanted, graph: &Graph) -> bool {
        if !wanted.admits(stack) {
            self.stacks.refuse(stack.of_task());
            return false;
        }
        if !graph.is_of_functions() {
            return true;
        }
        if stack.kernel < 0 {
            return false;
        }
        let is_within = match self.within.get(&stack.kernel) {
            Some(is_within) => *is_within,
            None => graph.is_within(&self.kernel_frames(stack)),
        };
        self.within.insert(stack.kernel, is_within);
        if !is_within {
            self.stacks.refuse(TaskStack::of_kernel(stack.kernel));
        }
        is_within
    }

    fn unwind_due(&mut self, is_last: bool) {
        if let (Some(worker), Some(due)) = (&mut self.worker, self.copies.due(is_last)) {
            worker.unwind(due);
        }
    }

    fn count_unwound(&mut self, unwound: Vec<Followed>) {
        for followed in unwound {
            if let Some(pid) = self.copies.unwound(followed) {
                self.stacks.walk(pid);
            }
        }
    }

    /// What was counted by copied stacks, those of `blocked` threads and their nanoseconds too;
    /// waits until they are unwound. Takes those out of `blocked` that it has counted.
    pub(super) fn count_copies(
        &mut self,
        wanted: &Wanted,
        graph: &Graph,
        blocked: &mut Vec<(u32, TaskStack, u64)>,
    ) -> Vec<(TaskStack, Count)> {
        self.see_new_processes();
        self.read_copies(wanted, graph);
        blocked.retain(|(thread, stack, ns)| !self.copies.lasting(*thread, stack, *ns));
        self.unwind_due(true);
        let unwound = match &mut self.worker {
            Some(worker) => worker.wait_unwound(),
            None => Vec::new(),
        };
        self.count_unwound(unwound);
        self.copies.give_up();
        self.copies.counts().collect()
    }

    /// Copies that are not drawn.
    pub(super) const fn unwanted_copies(&self) -> u64 {
        self.unwanted_copies
    }

    /// Frames that the kernel takes of a stack.
    pub(super) const fn stack_depth(&self) -> usize {
        self.stacks.depth()
    }

    /// Stacks that were unwound until now.
    pub(super) fn unwound(&self) -> Vec<TaskStack> {
        self.copies.counts().map(|(stack, _)| stack).collect()
    }

    /// Asks for the names of all user functions in `stacks`, without waiting for them.
    pub(super) fn ask(&mut self, stacks: &[TaskStack]) {
        for stack in stacks {
            let Some(worker) = &mut self.worker else {
                continue;
            };
            if let Some(unwound) = self.copies.stack(stack.user) {
                worker.ask(stack.pid, unwound.places.iter().copied());
            } else if let Addresses::Known { ips, .. } =
                read(&mut self.read, &self.stacks, stack.user)
            {
                worker.ask(stack.pid, call_sites(ips));
            }
        }
    }

    /// Has the worker see which processes run other programs by now.
    pub(super) fn check_programs(&mut self) {
        if let Some(worker) = &mut self.worker {
            worker.check();
        }
    }

    /// Waits for the names of all functions in `stacks`. The worker is gone then, and its
    /// memory with it.
    pub(super) fn resolve(&mut self, stacks: &[TaskStack]) {
        self.see_new_processes();
        self.ask(stacks);
        // While the worker looks for those of user functions.
        let mut addresses = Vec::new();
        for stack in stacks {
            if let Addresses::Known { ips, .. } = self.addresses(stack.kernel) {
                addresses.extend(call_sites(&ips));
            }
        }
        self.kernel.learn_all(addresses.into_iter());
        if let Some(worker) = self.worker.take() {
            self.found = worker.finish();
        }
    }

    fn addresses(&mut self, id: i32) -> Addresses {
        read(&mut self.read, &self.stacks, id).clone()
    }

    /// Why names are missing or stacks are cut or lost, where that is much, and what helps.
    pub(super) fn complaints(&self, copying: Copying) -> Vec<String> {
        let cut = Share::of(&self.cut, self.stacks_weighed);
        let lost = Share::of(&self.lost, self.stacks_weighed);
        let mut lines = complaints::of_names(&self.nameless);
        lines.extend(complaints::of_cut(
            &cut,
            complaints::most_cut(&self.cut_in),
            copying,
        ));
        lines.extend(complaints::of_lost(&lost));
        lines
    }
}

/// Reads a stack, each once.
fn read<'a>(known: &'a mut HashMap<i32, Addresses>, stacks: &TaskStacks, id: i32) -> &'a Addresses {
    known.entry(id).or_insert_with(|| stacks.read(id))
}

/// Where the calls are: a return address is one after its call, perhaps in the next function.
fn call_sites(ips: &[u64]) -> impl Iterator<Item = u64> {
    ips.iter()
        .enumerate()
        .map(|(depth, ip)| if depth == 0 { *ip } else { ip.wrapping_sub(1) })
}
