//! A stack that is large enough, also where the limit of stacks (`ulimit -s`) leaves the first thread a small one.

use std::{io, panic, thread};

use rustix::process::{Resource, getrlimit};

use crate::kernel::privileges;

/// Bytes that are enough for everything here, several times over.
const ENOUGH: u64 = 1 << 20;
/// Bytes that the first thread may have as a rule.
const USUAL: usize = 8 << 20;

/// Does `work` where it has room: on this thread, which is the first, or on one with a stack of its own.
pub(super) fn with_room<T: Send>(work: impl FnOnce() -> T + Send) -> io::Result<T> {
    with_limit(getrlimit(Resource::Stack).current, work)
}

fn with_limit<T: Send>(limit: Option<u64>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    if limit.is_none_or(|limit| limit >= ENOUGH) {
        return Ok(work());
    }
    thread::scope(|scope| {
        let roomy = thread::Builder::new().stack_size(USUAL);
        let worker = roomy.spawn_scoped(scope, work)?;
        privileges::reduce_to_nothing();
        Ok(worker
            .join()
            .unwrap_or_else(|panicked| panic::resume_unwind(panicked)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes of stack.
    fn sink(bytes: usize) -> usize {
        let frame = std::hint::black_box([0_u8; 4096]);
        match bytes.checked_sub(frame.len()) {
            Some(left) => sink(left) + usize::from(frame[0]),
            None => 0,
        }
    }

    #[test]
    fn a_small_limit_leaves_as_much_room_as_usual() {
        let this = || thread::current().id();
        assert_eq!(with_limit(None, this).unwrap(), this());
        assert_eq!(with_limit(Some(ENOUGH), this).unwrap(), this());
        let deep = || (this(), sink(USUAL / 4));
        let (thread, left) = with_limit(Some(64 << 10), deep).unwrap();
        assert_ne!(thread, this());
        assert_eq!(left, 0);
    }
}
