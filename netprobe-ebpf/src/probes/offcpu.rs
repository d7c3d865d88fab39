//! Where tasks wait: the stack with which each leaves its CPU, and how long it stays away.
//!
//! A task that was only preempted is not blocked. The time ends when the task runs again, so that
//! waiting for a CPU after the wake-up is part of it.

use aya_ebpf::{
    helpers::bpf_get_current_pid_tgid,
    macros::{btf_tracepoint, map},
    maps::PerCpuArray,
    programs::BtfTracePointContext,
};
use netprobe_common::{
    config::{LEVEL_ALL, LEVEL_NO_STACKS},
    offsets::Field,
    samples::{Blocked, COPIED, LEFT_OUT, Tally},
};

use crate::{
    budget,
    emit::now,
    load::{Load, Typed, has},
    maps::{CONFIG, add, count, frozen, level, value},
    sampling::{BLOCKED, TASK_STACKS, admits, stack, tally, who},
    shorts,
    stack_copies::{self, Call},
};

/// When the stacks taken on this CPU are paid for, where cost is to be kept low. Cannot be full.
#[map]
static STACKS_DUE: PerCpuArray<u64> = PerCpuArray::with_max_entries(1, 0);

/// What a nanosecond that a stack took costs of that budget, so that all take half a percent of a CPU.
const PRICE: u64 = 200;
/// What it costs where that was too much.
const HIGHER_PRICE: u64 = 3 * PRICE;

/// The task's last time on a CPU is over.
const TASK_DEAD: u32 = 0x80;

#[btf_tracepoint(function = "sched_switch")]
pub(crate) fn off_cpu(ctx: BtfTracePointContext) -> i32 {
    let Some(tally) = tally() else {
        return 0;
    };
    let next: u64 = ctx.arg(2);
    end(tally, Typed.field(next, Field::TaskPid));
    begin(&ctx, tally);
    0
}

/// The running task leaves its CPU.
#[inline(always)]
fn begin(ctx: &BtfTracePointContext, tally: &mut Tally) {
    let is_preempted: u64 = ctx.arg(0);
    let previous: u64 = ctx.arg(1);
    let thread = bpf_get_current_pid_tgid() as u32;
    let state = state(previous);
    if is_preempted & 1 != 0 || thread == 0 || state == 0 {
        return;
    }
    // What is dead does not wait for anything.
    if state & TASK_DEAD != 0 {
        let _not_known = BLOCKED.remove(thread);
        return;
    }
    add(&mut tally.taken, 1);
    let call = Call::of(previous);
    if !admits_call(call.as_ref()) || !admits() {
        add(&mut tally.filtered, 1);
        return;
    }
    let since_ns = now();
    let place = shorts::place(thread, call.map_or(0, |call| call.id()));
    let reserve_ns = if shorts::is_expected(place) {
        budget::RESERVE_NS
    } else {
        0
    };
    let stack = if is_left_out(reserve_ns, since_ns) {
        add(&mut tally.left_out, 1);
        who(LEFT_OUT)
    } else {
        let stack = stack(ctx, tally, 0, reserve_ns);
        pay(since_ns);
        stack
    };
    let blocked = Blocked {
        since_ns,
        stack,
        place,
        reserved: 0,
    };
    // It stays there from block to block, which spares the map's lock.
    if let Some(last) = value(BLOCKED.get_ptr_mut(thread)) {
        *last = blocked;
    } else if BLOCKED.insert(thread, blocked, 0).is_err() {
        // How long it will have been blocked nobody will know.
        add(&mut tally.map_full, 1);
    }
}

/// Whether it may be that waiting in this call is wanted.
#[inline(always)]
fn admits_call(call: Option<&Call>) -> bool {
    frozen(&CONFIG.sampling.accepts) == 0 || call.is_none_or(Call::may_accept)
}

/// Whether there is no budget for a stack.
#[inline(always)]
fn is_left_out(reserve_ns: u64, now: u64) -> bool {
    level() != LEVEL_ALL
        && value(STACKS_DUE.get_ptr_mut(0))
            .is_some_and(|due| !budget::allows(*due, reserve_ns, now))
}

/// Takes a stack that was begun then from the budget.
#[inline(always)]
fn pay(began_ns: u64) {
    let price = match level() {
        LEVEL_ALL => return,
        LEVEL_NO_STACKS => PRICE,
        _ => HIGHER_PRICE,
    };
    if let Some(due) = value(STACKS_DUE.get_ptr_mut(0)) {
        let now = now();
        budget::spend(due, now.saturating_sub(began_ns) * price, now);
    }
}

/// The state of a task; 0 is running.
#[inline(always)]
fn state(task: u64) -> u32 {
    if has(Field::TaskState) {
        Typed.field(task, Field::TaskState)
    } else {
        let state: u64 = Typed.field(task, Field::TaskStateLong);
        state as u32
    }
}

/// The task `thread` runs again.
#[inline(always)]
fn end(tally: &mut Tally, thread: u32) {
    let Some(blocked) = value(BLOCKED.get_ptr_mut(thread)) else {
        return;
    };
    let Blocked {
        since_ns,
        stack,
        place,
        ..
    } = *blocked;
    if since_ns == 0 {
        return;
    }
    blocked.since_ns = 0;
    let blocked_ns = now().saturating_sub(since_ns);
    let least_ns = u64::from(frozen(&CONFIG.sampling.min_block_us)) * 1000;
    let most_ns = u64::from(frozen(&CONFIG.sampling.max_block_us)) * 1000;
    shorts::learn(place, blocked_ns, least_ns);
    if blocked_ns < least_ns || blocked_ns > most_ns {
        add(&mut tally.short, 1);
    } else if stack.user == COPIED && stack_copies::send_end(thread, blocked_ns) {
        add(&mut tally.sent, 1);
    } else if count(&TASK_STACKS, &stack, blocked_ns) {
        add(&mut tally.counted, 1);
    } else {
        add(&mut tally.map_full, 1);
        add(&mut tally.map_full_weight, blocked_ns);
    }
}
