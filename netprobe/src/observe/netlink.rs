//! Lists that the kernel sends over netlink, read as bytes as they come: a list of a hundred
//! thousand sockets is looked at one by one and never held in memory.

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use netlink_sys::{Socket, SocketAddr};

const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const HEADER: usize = 16;
/// The kernel fills datagrams up to what a reader takes at once.
const DATAGRAM: usize = 1 << 15;

/// Asks for the list of `kind` in the namespace of this thread, and hands over each message's
/// payload.
pub fn list(protocol: isize, kind: u16, request: &[u8], mut each: impl FnMut(&[u8])) -> Result<()> {
    let mut socket = Socket::new(protocol).context("open a netlink socket")?;
    socket.bind_auto().context("bind a netlink socket")?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut message = Vec::with_capacity(HEADER + request.len());
    message.extend(u32::try_from(HEADER + request.len())?.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(request);
    socket
        .send(&message, 0)
        .context("ask the kernel for a list")?;
    let mut buffer = BytesMut::with_capacity(DATAGRAM);
    loop {
        buffer.clear();
        buffer.reserve(DATAGRAM);
        socket.recv(&mut buffer, 0).context("receive a list")?;
        if buffer.is_empty() || take(&buffer, &mut each)? {
            return Ok(());
        }
    }
}

/// Takes the messages out of one datagram; true if the list has ended.
pub(crate) fn take(mut bytes: &[u8], each: &mut impl FnMut(&[u8])) -> Result<bool> {
    while let Some((length, kind)) = u32_at(bytes, 0).zip(u16_at(bytes, 4)) {
        let length = usize::try_from(length)?;
        let Some(payload) = bytes.get(HEADER..length) else {
            bail!("a message of the kernel is cut off");
        };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let errno = u32_at(payload, 0).unwrap_or_default().cast_signed();
                return Err(std::io::Error::from_raw_os_error(errno.wrapping_neg()))
                    .context("the kernel refused a list");
            }
            _ => each(payload),
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(false)
}

/// The attributes after a message's fixed part, as type and value.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let (length, kind) = u16_at(bytes, 0).zip(u16_at(bytes, 2))?;
        let value = bytes.get(4..usize::from(length))?;
        let next = usize::from(length).next_multiple_of(4);
        bytes = bytes.get(next..).unwrap_or_default();
        // The highest bits say that it is nested or in network byte order.
        Some((kind & 0x3fff, value))
    })
}

/// A number in the kernel's byte order.
pub fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A number in the kernel's byte order.
pub fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// A number in the kernel's byte order.
pub fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_and_nonsensical_bytes_are_survived() {
        let mut seen = 0;
        let mut each = |_: &[u8]| seen += 1;
        assert!(!take(&[], &mut each).unwrap());
        assert!(!take(&[1, 2, 3], &mut each).unwrap());
        assert!(take(&[200, 0, 0, 0, 20, 0, 0, 0], &mut each).is_err());
        assert!(take(&[4, 0, 0, 0, 20, 0, 0, 0], &mut each).is_err());
        let mut done = [0; 16];
        done[0] = 16;
        done[4] = 3;
        assert!(take(&done, &mut each).unwrap());
        assert_eq!(seen, 0);
        for bytes in [
            &[][..],
            &[1],
            &[0, 0, 0, 0],
            &[9, 0, 1, 0, 5],
            &[3, 0, 1, 0],
        ] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
        let two = [6, 0, 1, 0, 7, 8, 0, 0, 4, 0, 2, 0x80];
        let found: Vec<_> = attributes(&two).collect();
        assert_eq!(found, [(1, &[7, 8][..]), (2, &[][..])]);
    }
}
