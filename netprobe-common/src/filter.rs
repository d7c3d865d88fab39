//! What the programs test before an event costs anything: a conjunction of tests on the flow.
//!
//! User space fills in a [`Filter`] and the programs find it in their frozen `Config`. Both run
//! the very same [`Filter::admits`], which reads each setting through [`Setting`]: for the
//! verifier a setting is a constant, so that a test which is not set is dead code to it.

#![expect(
    clippy::inline_always,
    reason = "for the verifier a test that is not set must be dead code where it is called"
)]

use crate::{record, record::Plain, records::Flow};

/// Ranges of a [`Ports`].
pub const RANGES: usize = 4;
/// Prefixes of a [`Prefixes`].
pub const PREFIXES: usize = 4;
/// Codes of a [`Codes`].
pub const CODES: usize = 16;

/// Mode of a test that is not made.
pub const ANY: u32 = 0;
/// Mode of a test that must hold.
pub const IS: u32 = 1;
/// Mode of a test that must not hold.
pub const IS_NOT: u32 = 2;

/// The bit of [`Filter::states`] that stands for no socket, or an unknown state.
pub const NO_STATE: u32 = 1;

const AF_INET: u32 = 2;
const AF_INET6: u32 = 10;
/// `::ffff:0:0/96` is where IPv6 sockets keep IPv4 addresses.
const MAPPED: u32 = 0xffff_u32.to_be();

/// How a setting is read.
pub trait Setting: Copy {
    /// The value of `setting`.
    fn read<T: Plain>(self, setting: &T) -> T;
}

/// As any other memory.
#[derive(Clone, Copy, Debug)]
pub struct Plainly;

impl Setting for Plainly {
    fn read<T: Plain>(self, setting: &T) -> T {
        *setting
    }
}

record! {
    /// A number to compare with.
    pub struct Number {
        /// The number.
        pub value: u32,
        /// [`ANY`], [`IS`] or [`IS_NOT`].
        pub mode: u32,
    }
}

record! {
    /// A set of ports.
    pub struct Ports {
        /// First and last port of each range, host byte order.
        pub ranges: [[u16; 2]; RANGES],
        /// How many of them count; 0 is any port.
        pub len: u32,
    }
}

record! {
    /// The addresses that share their first bits.
    pub struct Prefix {
        /// The bits, in network byte order; IPv4 in the first word.
        pub address: [u32; 4],
        /// Which bits are compared.
        pub mask: [u32; 4],
        /// `AF_INET`, which IPv4-mapped addresses belong to as well, or `AF_INET6`.
        pub family: u32,
    }
}

record! {
    /// A set of addresses.
    pub struct Prefixes {
        /// An address belongs to the set if it is in one of these.
        pub list: [Prefix; PREFIXES],
        /// How many of them count; 0 is any address.
        pub len: u32,
    }
}

record! {
    /// A set of codes, such as drop reasons.
    pub struct Codes {
        /// The codes.
        pub list: [u32; CODES],
        /// How many of them count.
        pub len: u32,
        /// [`ANY`], [`IS`] or [`IS_NOT`].
        pub mode: u32,
    }
}

record! {
    /// The name of an interface or process.
    pub struct Name {
        /// The name, NUL padded.
        pub words: [u32; 4],
        /// Which bits are compared: up to the first NUL.
        pub mask: [u32; 4],
        /// [`ANY`], [`IS`] or [`IS_NOT`].
        pub mode: u32,
    }
}

record! {
    /// A control group (version 2), with all that are below it.
    pub struct Cgroup {
        /// Its id: the lower half, then the upper one.
        pub id: [u32; 2],
        /// [`ANY`], [`IS`] or [`IS_NOT`].
        pub mode: u32,
    }
}

record! {
    /// Tests that must all hold; all zero admits everything.
    pub struct Filter {
        /// Of `Flow::family`.
        pub family: Number,
        /// Of `Flow::netns`.
        pub netns: Number,
        /// The cookie of that namespace, lower half first, which is not given to another one after its end as its number
        /// is; 0 is not known. Only the kernel can look it up.
        pub netns_cookie: [u32; 2],
        /// Of `Flow::ifindex`.
        pub ifindex: Number,
        /// Of `Flow::sport`.
        pub sport: Ports,
        /// Of `Flow::dport`.
        pub dport: Ports,
        /// Of either port.
        pub port: Ports,
        /// Where `Flow::saddr` must be.
        pub src: Prefixes,
        /// Where it must not be, if this is not empty.
        pub src_not: Prefixes,
        /// Where `Flow::daddr` must be.
        pub dst: Prefixes,
        /// Where it must not be, if this is not empty.
        pub dst_not: Prefixes,
        /// Where one of both addresses must be.
        pub host: Prefixes,
        /// TCP states, one bit each, see [`NO_STATE`]; 0 is any.
        pub states: u32,
        /// Of the drop reason.
        pub reasons: Codes,
        /// Of the interface's name.
        pub interface: Name,
        /// Of the cgroup of the socket, which only the kernel can look up.
        pub cgroup: Cgroup,
        /// Of the process that called.
        pub pid: Number,
        /// Of its name.
        pub comm: Name,
    }
}

impl Filter {
    /// Admits everything.
    pub const NONE: Self = Self {
        family: Number::ANY,
        netns: Number::ANY,
        netns_cookie: [0; 2],
        ifindex: Number::ANY,
        sport: Ports::ANY,
        dport: Ports::ANY,
        port: Ports::ANY,
        src: Prefixes::ANY,
        src_not: Prefixes::ANY,
        dst: Prefixes::ANY,
        dst_not: Prefixes::ANY,
        host: Prefixes::ANY,
        states: 0,
        reasons: Codes {
            list: [0; CODES],
            len: 0,
            mode: ANY,
        },
        interface: Name::ANY,
        cgroup: Cgroup {
            id: [0; 2],
            mode: ANY,
        },
        pid: Number::ANY,
        comm: Name::ANY,
    };

    /// Whether any test is of flows.
    pub fn tests_flows(&self) -> bool {
        *self
            != Self {
                states: self.states,
                reasons: self.reasons,
                interface: self.interface,
                cgroup: self.cgroup,
                pid: self.pid,
                comm: self.comm,
                ..Self::NONE
            }
    }

    /// Whether `flow` passes the tests of flows.
    #[inline(always)]
    pub fn admits<S: Setting>(&self, setting: S, flow: &Flow) -> bool {
        self.family.admits(setting, u32::from(flow.family))
            && self.netns.admits(setting, flow.netns)
            && self.ifindex.admits(setting, flow.ifindex)
            && self.admits_ports(setting, flow)
            && self.admits_addresses(setting, flow)
    }

    #[inline(always)]
    fn admits_ports<S: Setting>(&self, setting: S, flow: &Flow) -> bool {
        let sport = u16::from_be_bytes(flow.sport);
        let dport = u16::from_be_bytes(flow.dport);
        if self.sport.is_set(setting) && self.sport.has(setting, sport) == 0 {
            return false;
        }
        if self.dport.is_set(setting) && self.dport.has(setting, dport) == 0 {
            return false;
        }
        !self.port.is_set(setting)
            || self.port.has(setting, sport) | self.port.has(setting, dport) != 0
    }

    #[inline(always)]
    fn admits_addresses<S: Setting>(&self, setting: S, flow: &Flow) -> bool {
        let family = u32::from(flow.family);
        let (saddr, daddr) = (words(&flow.saddr), words(&flow.daddr));
        for (wanted, unwanted, address) in [
            (&self.src, &self.src_not, &saddr),
            (&self.dst, &self.dst_not, &daddr),
        ] {
            if wanted.is_set(setting) && wanted.has(setting, family, address) == 0 {
                return false;
            }
            if unwanted.is_set(setting) && unwanted.has(setting, family, address) != 0 {
                return false;
            }
        }
        !self.host.is_set(setting)
            || self.host.has(setting, family, &saddr) | self.host.has(setting, family, &daddr) != 0
    }

    /// Whether the namespace with this number is another one than that which is wanted by it, with a cookie that is looked
    /// up only if anybody asks for it.
    #[inline(always)]
    pub fn is_another_netns<S: Setting>(
        &self,
        setting: S,
        inode: u32,
        cookie: impl FnOnce() -> u64,
    ) -> bool {
        let wanted = whole(setting, &self.netns_cookie);
        wanted != 0 && inode == setting.read(&self.netns.value) && cookie() != wanted
    }

    /// Whether a TCP state is wanted; 0 is unknown.
    #[inline(always)]
    pub fn admits_state<S: Setting>(&self, setting: S, state: u8) -> bool {
        let states = setting.read(&self.states);
        states == 0 || (states >> (state & 31)) & 1 != 0
    }

    /// Whether a drop reason is wanted.
    #[inline(always)]
    pub fn admits_reason<S: Setting>(&self, setting: S, reason: u32) -> bool {
        let mode = setting.read(&self.reasons.mode);
        mode == ANY || (mode == IS) == (self.reasons.has(setting, reason) != 0)
    }

    /// Whether processes are tested at all.
    #[inline(always)]
    pub fn names_callers<S: Setting>(&self, setting: S) -> bool {
        setting.read(&self.pid.mode) != ANY || setting.read(&self.comm.mode) != ANY
    }

    /// Whether a process with this id and name is wanted.
    #[inline(always)]
    pub fn admits_caller<S: Setting>(&self, setting: S, pid: u32, comm: &[u8; 16]) -> bool {
        self.pid.admits(setting, pid) && self.comm.admits(setting, comm)
    }

    /// Whether interface names are tested at all.
    #[inline(always)]
    pub fn names_interface<S: Setting>(&self, setting: S) -> bool {
        setting.read(&self.interface.mode) != ANY
    }

    /// Whether an interface of this name is wanted; an empty one is unknown.
    #[inline(always)]
    pub fn admits_interface<S: Setting>(&self, setting: S, name: &[u8; 16]) -> bool {
        self.interface.admits(setting, name)
    }
}

/// A number as settings have it, lower half first.
pub const fn halves(number: u64) -> [u32; 2] {
    [(number & 0xffff_ffff) as u32, (number >> 32) as u32]
}

#[inline(always)]
fn whole<S: Setting>(setting: S, [low, high]: &[u32; 2]) -> u64 {
    u64::from(setting.read(low)) | u64::from(setting.read(high)) << 32
}

impl Name {
    /// Any name.
    pub const ANY: Self = Self {
        words: [0; 4],
        mask: [0; 4],
        mode: ANY,
    };

    #[inline(always)]
    fn admits<S: Setting>(&self, setting: S, name: &[u8; 16]) -> bool {
        let mode = setting.read(&self.mode);
        let (wanted, mask) = (&self.words, &self.mask);
        mode == ANY || (mode == IS) == (difference(setting, &words(name), wanted, mask) == 0)
    }
}

impl Cgroup {
    /// The group with this id.
    pub const fn of(id: u64, mode: u32) -> Self {
        Self {
            id: halves(id),
            mode,
        }
    }

    /// Its id.
    #[inline(always)]
    pub fn wanted<S: Setting>(&self, setting: S) -> u64 {
        whole(setting, &self.id)
    }
}

impl Number {
    /// Any number.
    pub const ANY: Self = Self {
        value: 0,
        mode: ANY,
    };

    #[inline(always)]
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "a copy would be read before the mode says whether it is needed"
    )]
    fn admits<S: Setting>(&self, setting: S, number: u32) -> bool {
        let mode = setting.read(&self.mode);
        mode == ANY || (mode == IS) == (number == setting.read(&self.value))
    }
}

impl Ports {
    /// Any port.
    pub const ANY: Self = Self {
        ranges: [[0; 2]; RANGES],
        len: 0,
    };

    #[inline(always)]
    fn is_set<S: Setting>(&self, setting: S) -> bool {
        setting.read(&self.len) != 0
    }

    /// Not 0 if `port` is in one of the ranges. Without branches on the port, each of which would
    /// double the paths that the verifier follows.
    #[inline(always)]
    fn has<S: Setting>(&self, setting: S, port: u16) -> u64 {
        let port = u64::from(port);
        let mut found = 0;
        for [low, high] in self.ranges.iter().take(setting.read(&self.len) as usize) {
            let above = port.wrapping_sub(u64::from(setting.read(low)));
            let below = u64::from(setting.read(high)).wrapping_sub(port);
            found |= !(above | below) >> 63;
        }
        found
    }
}

impl Prefix {
    /// No prefix.
    pub const NONE: Self = Self {
        address: [0; 4],
        mask: [0; 4],
        family: 0,
    };
}

impl Prefixes {
    /// Any address.
    pub const ANY: Self = Self {
        list: [Prefix::NONE; PREFIXES],
        len: 0,
    };

    #[inline(always)]
    fn is_set<S: Setting>(&self, setting: S) -> bool {
        setting.read(&self.len) != 0
    }

    /// Not 0 if `address` is in one of the prefixes.
    #[inline(always)]
    fn has<S: Setting>(&self, setting: S, family: u32, address: &[u32; 4]) -> u64 {
        let [first, second, third, fourth] = *address;
        let is_inet = zero(family ^ AF_INET);
        let is_mapped = zero(first | second | (third ^ MAPPED) | (family ^ AF_INET6));
        let inet = if is_mapped == 0 { first } else { fourth };
        let mut found = 0;
        for prefix in self.list.iter().take(setting.read(&self.len) as usize) {
            let (bits, mask) = (&prefix.address, &prefix.mask);
            if setting.read(&prefix.family) == AF_INET {
                let differs = (inet ^ setting.read(&bits[0])) & setting.read(&mask[0]);
                found |= zero(differs) & (is_inet | is_mapped);
            } else {
                found |= zero(difference(setting, address, bits, mask) | (family ^ AF_INET6));
            }
        }
        found
    }
}

impl Codes {
    #[inline(always)]
    fn has<S: Setting>(&self, setting: S, code: u32) -> u64 {
        let mut found = 0;
        for wanted in self.list.iter().take(setting.read(&self.len) as usize) {
            found |= zero(code ^ setting.read(wanted));
        }
        found
    }
}

/// 1 for 0, and 0 for everything else, without a branch.
#[inline(always)]
fn zero(number: u32) -> u64 {
    u64::from(number).wrapping_sub(1) >> 63
}

/// The bits in which `address` is not as wanted.
#[inline(always)]
fn difference<S: Setting>(
    setting: S,
    address: &[u32; 4],
    wanted: &[u32; 4],
    mask: &[u32; 4],
) -> u32 {
    let mut bits = 0;
    for ((word, wanted), mask) in address.iter().zip(wanted).zip(mask) {
        bits |= (word ^ setting.read(wanted)) & setting.read(mask);
    }
    bits
}

/// Sixteen bytes as four words in memory order.
#[inline(always)]
pub const fn words(bytes: &[u8; 16]) -> [u32; 4] {
    let (quarters, _none) = bytes.as_chunks::<4>();
    let mut words = [0; 4];
    let mut index = 0;
    while index < words.len() {
        words[index] = u32::from_ne_bytes(quarters[index]);
        index += 1;
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow() -> Flow {
        Flow {
            family: 2,
            sport: 443_u16.to_be_bytes(),
            dport: 40_000_u16.to_be_bytes(),
            netns: 7,
            ..Flow::zeroed()
        }
    }

    #[test]
    fn nothing_set_admits_everything() {
        assert!(Filter::NONE.admits(Plainly, &Flow::zeroed()));
        assert!(Filter::NONE.admits(Plainly, &flow()));
        assert!(Filter::NONE.admits_state(Plainly, 12));
        assert!(Filter::NONE.admits_reason(Plainly, u32::MAX));
        assert!(Filter::NONE.admits_interface(Plainly, &[b'x'; 16]));
        assert_eq!(Filter::NONE, Filter::zeroed());
    }

    #[test]
    fn a_namespace_that_has_got_the_number_of_the_one_that_is_wanted_is_another() {
        let mut filter = Filter::NONE;
        filter.netns = Number { value: 7, mode: IS };
        let is_another =
            |filter: &Filter, inode, cookie| filter.is_another_netns(Plainly, inode, || cookie);
        assert!(!is_another(&filter, 7, 1), "its cookie is not known");
        filter.netns_cookie = halves(5 << 32 | 3);
        assert!(!is_another(&filter, 7, 5 << 32 | 3));
        assert!(is_another(&filter, 7, 3));
        assert!(!is_another(&filter, 8, 3), "its number tells");
    }

    #[test]
    fn ranges_include_their_ends() {
        let mut filter = Filter::NONE;
        filter.sport.len = 2;
        filter.sport.ranges[0] = [0, 3];
        filter.sport.ranges[1] = [443, 445];
        // The third does not count.
        filter.sport.ranges[2] = [0, 65535];
        for (port, expected) in [
            (0, true),
            (3, true),
            (4, false),
            (442, false),
            (443, true),
            (445, true),
            (446, false),
            (65535, false),
        ] {
            let flow = Flow {
                sport: u16::to_be_bytes(port),
                ..flow()
            };
            assert_eq!(filter.admits(Plainly, &flow), expected, "{port}");
        }
    }

    #[test]
    fn a_name_ends_at_its_nul() {
        let mut filter = Filter::NONE;
        filter.interface.words = words(b"eth1\0\0\0\0\0\0\0\0\0\0\0\0");
        filter.interface.mask = [u32::MAX, u32::from_ne_bytes([0xff, 0, 0, 0]), 0, 0];
        filter.interface.mode = IS;
        assert!(filter.admits_interface(Plainly, b"eth1\0renamed\0\0\0\0"));
        assert!(!filter.admits_interface(Plainly, b"eth10\0\0\0\0\0\0\0\0\0\0\0"));
        assert!(!filter.admits_interface(Plainly, &[0; 16]));
    }
}
