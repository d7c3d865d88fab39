//! Interfaces, addresses and routes of a demo's namespaces, asked of the kernel over rtnetlink.
//!
//! Every request goes to the namespace of the calling thread. Interface indexes are chosen here,
//! not looked up: the namespaces are new, and only loopback (index 1) is in them.

use std::{
    net::{IpAddr, Ipv4Addr},
    os::fd::{AsRawFd, BorrowedFd},
};

use anyhow::{Context, Result, bail};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    link::{InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType},
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// Index of loopback in every namespace.
pub(super) const LOOPBACK: u32 = 1;
/// Longest answer to a request for an acknowledgement: an error with the request in it.
const ANSWER_BYTES: usize = 8192;

/// One end of a cable.
pub(super) struct End<'a> {
    /// Index that the interface gets.
    pub(super) index: u32,
    /// Name that the interface gets.
    pub(super) name: &'a str,
}

/// Makes a cable (veth) from `near` in this namespace to `far` in `namespace`.
pub(super) fn cable(near: &End, far: &End, namespace: BorrowedFd) -> Result<()> {
    let mut peer = LinkMessage::default();
    peer.header.index = far.index;
    peer.attributes = vec![
        LinkAttribute::IfName(far.name.to_owned()),
        LinkAttribute::NetNsFd(namespace.as_raw_fd()),
    ];
    let mut link = LinkMessage::default();
    link.header.index = near.index;
    link.attributes = vec![
        LinkAttribute::IfName(near.name.to_owned()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ];
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    request(RouteNetlinkMessage::NewLink(link), flags).context("make a pair of veth interfaces")
}

/// Sets an interface up.
pub(super) fn up(index: u32) -> Result<()> {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    request(RouteNetlinkMessage::SetLink(link), 0).context("set an interface up")
}

/// Gives an interface an IPv4 address.
pub(super) fn address(index: u32, address: Ipv4Addr, prefix: u8) -> Result<()> {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    message.header.prefix_len = prefix;
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(IpAddr::V4(address)),
        AddressAttribute::Address(IpAddr::V4(address)),
    ];
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    request(RouteNetlinkMessage::NewAddress(message), flags)
        .with_context(|| format!("add the address {address}"))
}

/// Sends everything that has no other route to `gateway`.
pub(super) fn default_route(gateway: Ipv4Addr) -> Result<()> {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.kind = RouteType::Unicast;
    message.attributes = vec![RouteAttribute::Gateway(RouteAddress::Inet(gateway))];
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    request(RouteNetlinkMessage::NewRoute(message), flags)
        .with_context(|| format!("add the default route by {gateway}"))
}

/// Sends one request and waits until the kernel has done it.
fn request(message: RouteNetlinkMessage, flags: u16) -> Result<()> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    let mut message = NetlinkMessage::new(header, message.into());
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    let mut socket = Socket::new(NETLINK_ROUTE).context("open a route netlink socket")?;
    socket.bind_auto().context("bind a netlink socket")?;
    socket
        .send_to(&bytes, &SocketAddr::new(0, 0), 0)
        .context("ask the kernel")?;
    let mut answer = Vec::with_capacity(ANSWER_BYTES);
    socket.recv(&mut answer, 0).context("read its answer")?;
    let answer = <NetlinkMessage<RouteNetlinkMessage>>::deserialize(&answer)?;
    match answer.payload {
        NetlinkPayload::Error(error) if error.code.is_none() => Ok(()),
        NetlinkPayload::Error(error) => Err(error.to_io().into()),
        other => bail!("expected an acknowledgement, got {other:?}"),
    }
}
