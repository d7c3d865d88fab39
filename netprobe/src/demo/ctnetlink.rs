//! Empties the connection tracking table of a namespace, as `conntrack -F` does, over netlink.

use anyhow::{Context, Result, bail};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// `NFNL_SUBSYS_CTNETLINK` in the upper half, `IPCTNL_MSG_CT_DELETE` in the lower.
const DELETE: u16 = 0x0102;
/// `NLM_F_REQUEST | NLM_F_ACK`.
const ACKNOWLEDGED: u16 = 5;
const NLMSG_ERROR: u16 = 2;
/// `struct nlmsghdr` and, behind it, `struct nfgenmsg`: of any family, so of every entry.
const HEADER: usize = 16;
const FAMILY: [u8; 4] = [0; 4];
const ANSWER_BYTES: usize = 1024;

/// Forgets every connection in the namespace of this thread.
pub(super) fn forget_all() -> Result<()> {
    let mut message = Vec::with_capacity(HEADER + FAMILY.len());
    message.extend(u32::try_from(HEADER + FAMILY.len())?.to_ne_bytes());
    message.extend(DELETE.to_ne_bytes());
    message.extend(ACKNOWLEDGED.to_ne_bytes());
    message.extend([0; 8]);
    message.extend(FAMILY);
    let mut socket = Socket::new(NETLINK_NETFILTER).context("open a netfilter socket")?;
    socket.bind_auto().context("bind a netlink socket")?;
    socket
        .send_to(&message, &SocketAddr::new(0, 0), 0)
        .context("ask the kernel to forget connections")?;
    let mut answer = Vec::with_capacity(ANSWER_BYTES);
    socket.recv(&mut answer, 0).context("read its answer")?;
    match acknowledged(&answer) {
        Some(0) => Ok(()),
        Some(errno) => Err(std::io::Error::from_raw_os_error(-errno))
            .context("empty the connection tracking table"),
        None => bail!("expected an acknowledgement of the kernel, got {answer:?}"),
    }
}

/// The error number of an acknowledgement, negative, or 0.
fn acknowledged(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(*answer.get(4..)?.first_chunk()?);
    let errno = i32::from_ne_bytes(*answer.get(HEADER..)?.first_chunk()?);
    (kind == NLMSG_ERROR).then_some(errno)
}
