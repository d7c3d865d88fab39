//! What ends a run of `connects`: how connects went, and where to.

use std::net::IpAddr;

/// What a run of `connects` adds up to. Pairs are a name or number and how many connects.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnectView {
    /// Connects that were established.
    pub established: u64,
    /// Those that were not, by errno, or `closed` if the application closed before an answer came.
    pub failed: Vec<(String, u64)>,
    /// Whether these are all that there were, and not only those that were shown.
    pub are_all: bool,
    /// How many were shown; all that follows is of these.
    pub shown: u64,
    /// Established ones by the power of two of microseconds that they took less than.
    pub latency: Vec<(u32, u64)>,
    /// By the number of SYNs that were sent.
    pub attempts: Vec<(u64, u64)>,
    /// Established ones that waited so many whole seconds for a SYN to be sent again.
    pub steps: Vec<(u64, u64)>,
    /// Destinations, those in trouble first.
    pub destinations: Vec<Destination>,
    /// All other destinations together.
    pub other: Destination,
    /// Whether they are of several network namespaces.
    pub has_many_netns: bool,
}

/// How connects to a destination went.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Destination {
    /// Network namespace of the connects, as the same address may be another machine in another one; none for several
    /// together.
    pub netns: Option<u64>,
    /// Address and port; none for several together.
    pub end: Option<(IpAddr, u64)>,
    /// Connects.
    pub connects: u64,
    /// Those that were not established.
    pub failed: u64,
    /// Those that nobody answered until the kernel (ETIMEDOUT) or the application gave up.
    pub unanswered: u64,
    /// SYNs that were sent again.
    pub sent_again: u64,
    /// The longest time to an outcome that is known; none of those that began before netprobe.
    pub worst_ns: Option<u64>,
}

impl Destination {
    /// Adds another destination's sums.
    pub fn add(&mut self, other: &Self) {
        self.connects += other.connects;
        self.failed += other.failed;
        self.unanswered += other.unanswered;
        self.sent_again += other.sent_again;
        self.worst_ns = self.worst_ns.max(other.worst_ns);
    }
}
