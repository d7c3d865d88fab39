//! Offloads of an interface, which merge or split packets before they can be counted.

use std::{io, os::fd::AsRawFd};

use crate::traffic::Family;

const ETHTOOL_SGRO: u32 = 0x2c;

/// Whether received segments are merged (GRO).
pub fn receive(interface: &str, is_on: bool) {
    set(interface, ETHTOOL_SGRO, is_on);
}

fn set(interface: &str, command: u32, is_on: bool) {
    const SIOCETHTOOL: u64 = 0x8946;
    let mut value = [command, u32::from(is_on)];
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    let socket = Family::V4.socket();
    // SAFETY: the request points to a value that outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) };
    assert_eq!(result, 0, "ethtool: {}", io::Error::last_os_error());
}
