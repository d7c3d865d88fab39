//! What tells a network namespace from the next one that gets its inode number, once it has ended.

use std::{net::UdpSocket, os::fd::AsFd};

use netprobe_common::filter::{Filter, IS, halves};

use super::pod;
use crate::observe::namespaces;

/// The filter with the cookie of the namespace that it wants, if it wants one; without it where that cannot be found out.
pub(super) fn only_this(filter: &Filter) -> Filter {
    if filter.netns.mode != IS {
        return *filter;
    }
    let cookie = cookie(filter.netns.value);
    if cookie.is_none() {
        log::debug!(
            "network namespace {} has no cookie here: another one may get its number",
            filter.netns.value
        );
    }
    Filter {
        netns_cookie: halves(cookie.unwrap_or(0)),
        ..*filter
    }
}

/// The cookie of the namespace with this inode number. It is not held longer than that takes: it would outlive its
/// container.
fn cookie(inode: u32) -> Option<u64> {
    let namespace = namespaces::find(inode).ok()?;
    let ask = |_: &_| {
        let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
        pod::netns_cookie(socket.as_fd())
    };
    let asked = namespaces::in_each(&[namespace], ask).ok()?;
    asked.into_iter().next()?.ok()?
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::MetadataExt};

    use netprobe_common::filter::{IS_NOT, Number};

    use super::*;

    #[test]
    fn a_namespace_that_is_wanted_is_known_by_its_cookie() {
        let own = fs::metadata("/proc/self/ns/net").unwrap().ino();
        let wants = |mode| {
            only_this(&Filter {
                netns: Number {
                    value: own.try_into().unwrap(),
                    mode,
                },
                ..Filter::NONE
            })
        };
        assert_eq!(wants(IS_NOT).netns_cookie, [0; 2]);
        let socket = UdpSocket::bind(("0.0.0.0", 0)).unwrap();
        let Some(cookie) = pod::netns_cookie(socket.as_fd()) else {
            println!("SKIP before 5.14 the kernel does not tell");
            return;
        };
        assert_ne!(cookie, 0);
        assert_eq!(wants(IS).netns_cookie, halves(cookie));
    }
}
