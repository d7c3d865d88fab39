//! Where the running kernel keeps the fields that the programs read.
//!
//! User space resolves each [`Field`] from the kernel's BTF before loading. The result is frozen,
//! so that the verifier sees constant offsets on typed pointers. A field that this kernel lacks
//! is [`ABSENT`], and the code that needs it is dead code to the verifier.

use crate::record;

/// The offset of a field (or the position of an argument) that this kernel does not have.
pub const ABSENT: u16 = u16::MAX;

/// How a [`Field`] is found in BTF.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Byte offset of `struct.member`, dots going through nested and anonymous structs.
    Member(&'static str),
    /// As [`Source::Member`], also looked for in the module nf_conntrack.
    Conntrack(&'static str),
    /// Mask of a bit field in the byte at its [`Source::Member`] offset.
    BitMask(&'static str),
    /// Sum of two offsets: the second struct is kept inside the first member (`skb->cb`).
    Nested(&'static str, &'static str),
    /// Position of the argument of this type in a tracepoint's prototype (`btf_trace_NAME`).
    Argument(&'static str, &'static str),
}

macro_rules! fields {
    ($( $variant:ident = $source:expr; )+) => {
        /// A field of a kernel struct, or an argument of a tracepoint, that some program reads.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each variant's source says what it is")]
        #[repr(usize)]
        pub enum Field { $( $variant ),+ }

        impl Field {
            /// Every field.
            pub const ALL: &'static [Self] = &[ $( Self::$variant ),+ ];

            /// How it is found in BTF.
            pub const fn source(self) -> Source {
                match self { $( Self::$variant => $source ),+ }
            }
        }
    };
}

use Source::{Argument, BitMask, Conntrack, Member, Nested};
fields! {
    SkcDaddr = Member("sock_common.skc_daddr");
    SkcRcvSaddr = Member("sock_common.skc_rcv_saddr");
    SkcDport = Member("sock_common.skc_dport");
    SkcNum = Member("sock_common.skc_num");
    InetSport = Member("inet_sock.inet_sport");
    SkcFamily = Member("sock_common.skc_family");
    SkcState = Member("sock_common.skc_state");
    SkcHash = Member("sock_common.skc_hash");
    SkcNullsNode = Member("sock_common.skc_nulls_node");
    SkcNet = Member("sock_common.skc_net");
    SkcV6Daddr = Member("sock_common.skc_v6_daddr");
    SkcV6RcvSaddr = Member("sock_common.skc_v6_rcv_saddr");
    SkcFlags = Member("sock_common.skc_flags");
    SkShutdown = Member("sock.sk_shutdown");
    SkLingertime = Member("sock.sk_lingertime");
    SkProtocol = Member("sock.sk_protocol");
    SkErr = Member("sock.sk_err");
    SkUid = Member("sock.sk_uid");
    SkSocket = Member("sock.sk_socket");
    SkCgroup = Member("sock.sk_cgrp_data.cgroup");
    SkCgroupVal = Member("sock.sk_cgrp_data.val");
    CgroupParent = Member("cgroup.self.parent");
    CgroupKn = Member("cgroup.kn");
    KernfsNodeId = Member("kernfs_node.id");
    SkAckBacklog = Member("sock.sk_ack_backlog");
    SkMaxAckBacklog = Member("sock.sk_max_ack_backlog");
    SocketFile = Member("socket.file");
    FileInode = Member("file.f_inode");
    InodeIno = Member("inode.i_ino");
    IcskQlen = Member("inet_connection_sock.icsk_accept_queue.qlen");
    IcskRetransmits = Member("inet_connection_sock.icsk_retransmits");
    IcskPending = Member("inet_connection_sock.icsk_pending");
    IcskProbesOut = Member("inet_connection_sock.icsk_probes_out");
    IcskLastReceived = Member("inet_connection_sock.icsk_ack.lrcvtime");
    IcskCaState = Member("inet_connection_sock.icsk_ca_state");
    IcskCaStateMask = BitMask("inet_connection_sock.icsk_ca_state");
    TcpTotalRetrans = Member("tcp_sock.total_retrans");
    TcpPriorSsthresh = Member("tcp_sock.prior_ssthresh");
    TcpSrttUs = Member("tcp_sock.srtt_us");
    TcpSndCwnd = Member("tcp_sock.snd_cwnd");
    TcpLastSent = Member("tcp_sock.lsndtime");
    TcpLastHeard = Member("tcp_sock.rcv_tstamp");
    TcpLinger2 = Member("tcp_sock.linger2");
    TcpBytesSent = Member("tcp_sock.bytes_sent");
    TcpBytesRetrans = Member("tcp_sock.bytes_retrans");
    TcpBytesReceived = Member("tcp_sock.bytes_received");
    TcpBytesAcked = Member("tcp_sock.bytes_acked");
    TcpSndUna = Member("tcp_sock.snd_una");
    TcpSndNxt = Member("tcp_sock.snd_nxt");
    TcpRackTime = Member("tcp_sock.rack.mstamp");
    TcpWriteSeq = Member("tcp_sock.write_seq");
    TcpRcvNxt = Member("tcp_sock.rcv_nxt");
    TcpCopiedSeq = Member("tcp_sock.copied_seq");
    TcpSegsOut = Member("tcp_sock.segs_out");
    TcpSegsIn = Member("tcp_sock.segs_in");
    SkbSk = Member("sk_buff.sk");
    SkbDev = Member("sk_buff.dev");
    SkbLen = Member("sk_buff.len");
    SkbProtocol = Member("sk_buff.protocol");
    SkbNetworkHeader = Member("sk_buff.network_header");
    SkbHead = Member("sk_buff.head");
    SkbData = Member("sk_buff.data");
    SkbDst = Member("sk_buff._skb_refdst");
    DstDev = Member("dst_entry.dev");
    SkbIif = Member("sk_buff.skb_iif");
    SkbTcpSeq = Nested("sk_buff.cb", "tcp_skb_cb.seq");
    SkbTcpEndSeq = Nested("sk_buff.cb", "tcp_skb_cb.end_seq");
    SkbTcpFlags = Nested("sk_buff.cb", "tcp_skb_cb.tcp_flags");
    SkbTcpGsoSegs = Nested("sk_buff.cb", "tcp_skb_cb.tcp_gso_segs");
    SkbTcpTwIsn = Nested("sk_buff.cb", "tcp_skb_cb.tcp_tw_isn");
    DevIfindex = Member("net_device.ifindex");
    DevName = Member("net_device.name");
    DevNet = Member("net_device.nd_net");
    NetInum = Member("net.ns.inum");
    NetCookie = Member("net.net_cookie");
    NetMaxSynBacklog = Member("net.ipv4.sysctl_max_syn_backlog");
    NetSyncookies = Member("net.ipv4.sysctl_tcp_syncookies");
    NetHashinfo = Member("net.ipv4.tcp_death_row.hashinfo");
    NetMaxTimeWait = Member("net.ipv4.tcp_death_row.sysctl_max_tw_buckets");
    NetTimeWaitRefs = Member("net.ipv4.tcp_death_row.tw_refcount");
    NetTimeWaitCount = Member("net.ipv4.tcp_death_row.tw_count");
    HashinfoEhash = Member("inet_hashinfo.ehash");
    HashinfoEhashMask = Member("inet_hashinfo.ehash_mask");
    TaskPid = Member("task_struct.pid");
    TaskFlags = Member("task_struct.flags");
    TaskGroupLeader = Member("task_struct.group_leader");
    TaskComm = Member("task_struct.comm");
    TaskState = Member("task_struct.__state");
    TaskStateLong = Member("task_struct.state");
    TaskStack = Member("task_struct.stack");
    TaskMm = Member("task_struct.mm");
    MmStartStack = Member("mm_struct.start_stack");
    TaskNsproxy = Member("task_struct.nsproxy");
    NsproxyNet = Member("nsproxy.net_ns");
    ReqNumRetrans = Member("request_sock.num_retrans");
    TupleSaddr = Conntrack("nf_conntrack_tuple.src.u3");
    TupleSport = Conntrack("nf_conntrack_tuple.src.u");
    TupleFamily = Conntrack("nf_conntrack_tuple.src.l3num");
    TupleDaddr = Conntrack("nf_conntrack_tuple.dst.u3");
    TupleDport = Conntrack("nf_conntrack_tuple.dst.u");
    TupleProtocol = Conntrack("nf_conntrack_tuple.dst.protonum");
    ArgDropReason = Argument("btf_trace_kfree_skb", "enum skb_drop_reason");
    ArgDropSock = Argument("btf_trace_kfree_skb", "struct sock");
    ArgRetransmitErr = Argument("btf_trace_tcp_retransmit_skb", "int");
    ArgResetReason = Argument("btf_trace_tcp_send_reset", "enum sk_rst_reason");
}

/// Number of [`Field`]s.
pub const COUNT: usize = Field::ALL.len();

record! {
    /// The offset or position of every [`Field`], by its number.
    pub struct Offsets {
        /// Indexed by `Field as usize`.
        pub at: [u16; COUNT],
    }
}

impl Offsets {
    /// Nothing known.
    pub const ABSENT: Self = Self {
        at: [ABSENT; COUNT],
    };

    /// Where `field` is, or `None` if this kernel lacks it.
    pub const fn get(&self, field: Field) -> Option<u16> {
        match self.at[field as usize] {
            ABSENT => None,
            offset => Some(offset),
        }
    }

    /// Sets where `field` is.
    pub const fn set(&mut self, field: Field, offset: u16) {
        self.at[field as usize] = offset;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_is_none_until_set() {
        let mut offsets = Offsets::ABSENT;
        assert_eq!(offsets.get(Field::SkErr), None);
        offsets.set(Field::SkErr, 284);
        assert_eq!(offsets.get(Field::SkErr), Some(284));
    }

    #[test]
    fn every_field_is_found_in_one_way_only() {
        for (index, field) in Field::ALL.iter().enumerate() {
            assert_eq!(*field as usize, index);
            let twice = Field::ALL
                .iter()
                .filter(|other| other.source() == field.source());
            assert_eq!(twice.count(), 1, "{field:?}");
        }
    }
}
