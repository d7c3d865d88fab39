//! Frames coloured by layer of the TCP path, and the legend that says which colour is which.

use inferno::flamegraph::color::Color;

/// A part of the path of a packet or a connection.
struct Layer {
    name: &'static str,
    colour: Color,
    /// Beginnings of names of kernel functions that belong to it.
    prefixes: &'static [&'static str],
}

/// The first layer that has a name is the one; the order matters where one prefix begins another.
const LAYERS: [Layer; 9] = [
    Layer {
        name: "port search, TIME_WAIT",
        colour: rgb(214, 39, 40),
        prefixes: &[
            "inet_hash_connect",
            "inet6_hash_connect",
            "__inet_hash_connect",
            "__inet_check_established",
            "__inet6_check_established",
            "inet_twsk",
            "tcp_time_wait",
            "tcp_twsk",
            "inet_csk_get_port",
            "inet_csk_find_open_port",
            "inet_bind_bucket",
        ],
    },
    Layer {
        name: "connect, listen, accept",
        colour: rgb(255, 127, 14),
        prefixes: &[
            "inet_csk_accept",
            "inet_csk_",
            "inet_accept",
            "inet_stream_connect",
            "__inet_stream_connect",
            "tcp_v4_connect",
            "tcp_v6_connect",
            "tcp_conn_request",
            "tcp_v4_conn_request",
            "tcp_v6_conn_request",
            "tcp_v4_syn_recv_sock",
            "tcp_v6_syn_recv_sock",
            "tcp_check_req",
            "inet_listen",
        ],
    },
    Layer {
        name: "TCP",
        colour: rgb(255, 187, 60),
        prefixes: &[
            "tcp_",
            "__tcp_",
            "bictcp",
            "cubictcp",
            "bbr_",
            "inet_lookup",
            "__inet_lookup",
            "inet6_lookup",
            "__inet6_lookup",
            "inet_ehashfn",
            "inet6_ehashfn",
        ],
    },
    Layer {
        name: "netfilter, conntrack",
        colour: rgb(148, 103, 189),
        prefixes: &[
            "nf_",
            "__nf_",
            "nft_",
            "ipt_",
            "xt_",
            "ip6t_",
            "ipv4_conntrack",
            "ipv6_conntrack",
            "ctnetlink",
        ],
    },
    Layer {
        name: "IP, routing, neighbours",
        colour: rgb(44, 160, 44),
        prefixes: &[
            "ip_", "__ip_", "ip6_", "ipv6_", "fib_", "fib6_", "neigh_", "__neigh_", "arp_", "icmp",
            "inet_", "dst_", "rt_", "ndisc_",
        ],
    },
    Layer {
        name: "device, softirq, driver",
        colour: rgb(31, 119, 180),
        prefixes: &[
            "dev_",
            "__dev_",
            "netif_",
            "__netif_",
            "net_rx_action",
            "net_tx_action",
            "napi_",
            "__napi_",
            "process_backlog",
            "sch_",
            "qdisc_",
            "__qdisc_",
            "veth_",
            "virtnet_",
            "loopback_",
            "gro_",
            "do_softirq",
            "__do_softirq",
            "handle_softirqs",
            "ena_",
            "ixgbe",
            "mlx5",
            "br_",
            "validate_xmit",
            "sch_direct",
        ],
    },
    Layer {
        name: "packet memory",
        colour: rgb(140, 86, 75),
        prefixes: &[
            "skb_",
            "__skb_",
            "kfree_skb",
            "consume_skb",
            "sk_skb_",
            "__alloc_skb",
            "alloc_skb",
            "napi_alloc",
            "__kfree_skb",
            "sk_stream",
            "__sk_mem",
            "sk_mem",
        ],
    },
    Layer {
        name: "socket",
        colour: rgb(23, 190, 207),
        prefixes: &[
            "sock_",
            "__sock_",
            "sk_",
            "___sys_sendmsg",
            "____sys_sendmsg",
            "___sys_recvmsg",
            "____sys_recvmsg",
            "lock_sock",
            "release_sock",
            "__release_sock",
            "__lock_sock",
            "inet6_",
            "security_socket",
            "ep_",
            "do_epoll",
            "__x64_sys_socket",
            "__x64_sys_bind",
            "__x64_sys_listen",
            "__x64_sys_accept",
            "__x64_sys_connect",
            "__x64_sys_getsockname",
            "__x64_sys_getpeername",
            "__x64_sys_getsockopt",
            "__x64_sys_setsockopt",
            "__x64_sys_sendto",
            "__x64_sys_sendm",
            "__x64_sys_recvfrom",
            "__x64_sys_recvm",
            "__x64_sys_shutdown",
            "__sys_socket",
            "__sys_bind",
            "__sys_listen",
            "__sys_accept",
            "__sys_connect",
            "__sys_getsockname",
            "__sys_getpeername",
            "__sys_getsockopt",
            "__sys_setsockopt",
            "__sys_sendto",
            "__sys_sendm",
            "__sys_recvfrom",
            "__sys_recvm",
            "__sys_shutdown",
        ],
    },
    Layer {
        name: "other kernel",
        colour: rgb(174, 174, 174),
        prefixes: &[""],
    },
];

/// What is no function of the kernel.
const USER: Color = rgb(225, 225, 190);

const fn rgb(r: u8, g: u8, b: u8) -> Color {
    Color { r, g, b }
}

/// The colour of a frame.
pub(super) fn colour(frame: &str) -> Color {
    let Some(function) = frame.strip_suffix("_[k]") else {
        return USER;
    };
    let layer = LAYERS.iter().find(|layer| {
        let mut prefixes = layer.prefixes.iter();
        prefixes.any(|prefix| function.starts_with(prefix))
    });
    layer.map_or(USER, |layer| layer.colour)
}

/// The legend, drawn at the left of the title.
pub(super) fn legend() -> String {
    let mut svg = vec!["<g id=\"legend\">".to_owned()];
    let user = [("user", USER)];
    let entries = LAYERS
        .iter()
        .map(|layer| (layer.name, layer.colour))
        .chain(user);
    for (index, (name, colour)) in entries.enumerate() {
        let (column, row) = (index / 5, index % 5);
        let (x, y) = (10 + column * 150, 2 + row * 11);
        let Color { r, g, b } = colour;
        svg.push(format!(
            "<rect x=\"{x}\" y=\"{y}\" width=\"9\" height=\"9\" fill=\"rgb({r},{g},{b})\"/>\
             <text x=\"{}\" y=\"{}\" style=\"font-size:9px;text-anchor:start\">{name}</text>",
            x + 13,
            y + 8
        ));
    }
    svg.push("</g>".to_owned());
    svg.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_belongs_to_the_first_layer_that_names_it() {
        let name = |frame: &str| {
            let colour = colour(frame);
            let layer = LAYERS.iter().find(|layer| layer.colour == colour);
            layer.map_or("user", |layer| layer.name)
        };
        for (frame, layer) in [
            ("__inet_check_established_[k]", "port search, TIME_WAIT"),
            ("inet_csk_accept_[k]", "connect, listen, accept"),
            ("tcp_v4_rcv_[k]", "TCP"),
            ("nf_conntrack_in_[k]", "netfilter, conntrack"),
            ("inet_sendmsg_[k]", "IP, routing, neighbours"),
            ("schedule_[k]", "other kernel"),
            ("__x64_sys_accept4_[k]", "socket"),
            ("__x64_sys_recvmsg_[k]", "socket"),
            ("__sys_sendto_[k]", "socket"),
            ("__x64_sys_clock_gettime_[k]", "other kernel"),
            ("__x64_sys_fsync_[k]", "other kernel"),
            ("__x64_sys_futex_[k]", "other kernel"),
            ("__x64_sys_sendfile64_[k]", "other kernel"),
            ("__inet_lookup_established_[k]", "TCP"),
            ("inet6_lookup_listener_[k]", "TCP"),
            ("tcp_v4_rcv", "user"),
        ] {
            assert_eq!(name(frame), layer, "{frame}");
        }
    }

    #[test]
    fn the_legend_names_every_layer() {
        let legend = legend();
        for layer in &LAYERS {
            assert!(legend.contains(layer.name));
        }
    }
}
