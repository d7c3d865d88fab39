//! Addresses that share their first bits.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr},
};

use netprobe_common::filter;

/// Which IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6 sockets and packets, IPv4 connections of IPv6 sockets included.
    V6,
}

impl Family {
    /// `AF_INET` or `AF_INET6`.
    pub const fn number(self) -> u32 {
        match self {
            Self::V4 => 2,
            Self::V6 => 10,
        }
    }
}

/// An address and how many of its bits count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

impl Prefix {
    /// IPv4 addresses as IPv6 sockets have them.
    pub(super) const MAPPED: Self = Self {
        address: IpAddr::V6(Ipv4Addr::UNSPECIFIED.to_ipv6_mapped()),
        length: 96,
    };

    /// The first `length` bits of `address`; none if it has not so many.
    pub const fn new(address: IpAddr, length: u8) -> Option<Self> {
        let bits = match address {
            IpAddr::V4(_) => 32,
            IpAddr::V6(_) => 128,
        };
        if length > bits {
            return None;
        }
        Some(Self { address, length })
    }

    /// Its family.
    pub const fn family(&self) -> Family {
        match self.address {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        }
    }

    /// Whether an address of a socket or packet of `family` is in it. An IPv4-mapped address is
    /// in the IPv4 prefixes of the address that it stands for.
    pub fn contains(&self, family: Family, address: IpAddr) -> bool {
        match (self.address, family, raw(family, address)) {
            (IpAddr::V4(own), _, IpAddr::V4(other)) => shares(
                u128::from(own.to_bits()) << 96,
                u128::from(other.to_bits()) << 96,
                self.length,
            ),
            (IpAddr::V4(own), Family::V6, IpAddr::V6(other)) => {
                other.to_ipv4_mapped().is_some_and(|other| {
                    shares(
                        u128::from(own.to_bits()) << 96,
                        u128::from(other.to_bits()) << 96,
                        self.length,
                    )
                })
            }
            (IpAddr::V6(own), Family::V6, IpAddr::V6(other)) => {
                shares(own.to_bits(), other.to_bits(), self.length)
            }
            _ => false,
        }
    }

    /// Whether no address can be in both.
    pub fn is_disjoint(&self, other: &Self) -> bool {
        let (a, b) = (self.mapped(), other.mapped());
        !shares(a.0, b.0, a.1.min(b.1))
    }

    /// Whether every address in it is in `other` too.
    pub fn is_within(&self, other: &Self) -> bool {
        // What is plain IPv4 is in no IPv6 prefix.
        if self.family() == Family::V4 && other.family() == Family::V6 {
            return false;
        }
        let (a, b) = (self.mapped(), other.mapped());
        a.1 >= b.1 && shares(a.0, b.0, b.1)
    }

    /// As IPv6 bits and their number.
    const fn mapped(&self) -> (u128, u8) {
        match self.address {
            IpAddr::V4(address) => (address.to_ipv6_mapped().to_bits(), self.length + 96),
            IpAddr::V6(address) => (address.to_bits(), self.length),
        }
    }

    /// As the programs in the kernel want it.
    pub fn to_wire(self) -> filter::Prefix {
        let (address, mask) = match self.address {
            IpAddr::V4(address) => (
                widen(address),
                u128::from(u32::MAX) << 96 & mask(self.length),
            ),
            IpAddr::V6(address) => (address.octets(), mask(self.length)),
        };
        filter::Prefix {
            address: filter::words(&address),
            mask: filter::words(&mask.to_be_bytes()),
            family: self.family().number(),
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// An address as the socket has it: rows show IPv4-mapped ones as IPv4.
fn raw(family: Family, address: IpAddr) -> IpAddr {
    match (family, address) {
        (Family::V6, IpAddr::V4(address)) => IpAddr::V6(address.to_ipv6_mapped()),
        (Family::V4 | Family::V6, address) => address,
    }
}

const fn widen(address: Ipv4Addr) -> [u8; 16] {
    let [a, b, c, d] = address.octets();
    [a, b, c, d, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]
}

/// The first `length` of 128 bits.
const fn mask(length: u8) -> u128 {
    match u128::MAX.checked_shr(length as u32) {
        Some(rest) => !rest,
        None => u128::MAX,
    }
}

const fn shares(a: u128, b: u128, length: u8) -> bool {
    (a ^ b) & mask(length) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        let (address, length) = text.split_once('/').unwrap();
        Prefix::new(address.parse().unwrap(), length.parse().unwrap()).unwrap()
    }

    #[test]
    fn mapped_addresses_are_ipv4_to_ipv4_prefixes_only() {
        let ten = "10.1.2.3".parse().unwrap();
        assert!(prefix("10.0.0.0/8").contains(Family::V4, ten));
        assert!(prefix("10.0.0.0/8").contains(Family::V6, ten));
        assert!(prefix("0.0.0.0/0").contains(Family::V6, ten));
        assert!(!prefix("::/0").contains(Family::V4, ten));
        assert!(prefix("::/0").contains(Family::V6, ten));
        assert!(prefix("::ffff:10.0.0.0/104").contains(Family::V6, ten));
        assert!(!prefix("::ffff:10.0.0.0/104").contains(Family::V4, ten));
        assert!(!prefix("0.0.0.0/0").contains(Family::V6, "::".parse().unwrap()));
    }

    #[test]
    fn prefixes_are_compared_as_sets() {
        assert!(prefix("10.1.0.0/16").is_within(&prefix("10.0.0.0/8")));
        assert!(!prefix("10.0.0.0/8").is_within(&prefix("10.1.0.0/16")));
        assert!(prefix("10.0.0.0/8").is_disjoint(&prefix("11.0.0.0/8")));
        assert!(prefix("10.0.0.0/8").is_disjoint(&prefix("2001:db8::/32")));
        assert!(!prefix("10.0.0.0/8").is_disjoint(&prefix("::/0")));
        assert!(!prefix("10.0.0.0/8").is_within(&prefix("::/0")));
        assert!(prefix("::ffff:10.1.0.0/112").is_within(&prefix("10.0.0.0/8")));
    }
}
