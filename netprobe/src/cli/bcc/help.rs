//! What the long help and the man pages of the bcc names say beside the options: examples, and what columns mean.

/// By the name of the tool.
pub(in super::super) static TEXTS: [(&str, &str); 9] = [
    (
        "tcpdrop",
        "\
Examples:
  netprobe tcpdrop
  netprobe tcpdrop --pid-netns 4711 -x

Columns:
  TIME         time of day
  PID          process that owns the socket, 0 if there is none or nobody knows
  IP           4 or 6
  SADDR:SPORT  who sent the packet
  DADDR:DPORT  whom it was for
  STATE        TCP state of the socket; FLAGS are those of the packet
  REASON       why the kernel dropped it; CODE is its number there
  COMM         with -x: name of the process
  LOCATION     with -x: the function that dropped it
  IFACE        with -x: the interface of the packet
  LEN          with -x: its length in bytes
The kernel functions that led there follow, the innermost first.",
    ),
    (
        "tcpretrans",
        "\
Examples:
  netprobe tcpretrans -l
  netprobe tcpretrans -c --duration 10s

Columns:
  TIME         time of day
  PID          process that owns the socket, 0 if nobody knows
  IP           4 or 6
  LADDR:LPORT  local address and port
  T            R for a retransmission, L for a tail loss probe (with -l)
  RADDR:RPORT  remote address and port
  STATE        TCP state of the socket
  SEQ          with -s: sequence number of the segment
  COMM         with -x: name of the process
  CAUSE        with -x: rto, fast, tlp, syn, syn-ack, or other (without loss)
  TRY          with -x: how many times it has been sent again
  SEGS         with -x: segments that went out
  ERR          with -x: why none did
  RETRANSMITS  with -c: how many of the connection",
    ),
    (
        "tcpconnlat",
        "\
Examples:
  netprobe tcpconnlat 100        those that took 100 ms or longer
  netprobe tcpconnlat -x -L

Columns:
  TIME(s)   with -t: seconds since the first line
  PID COMM  process that connected, 0 and - if nobody knows
  IP        4 or 6
  SADDR     local address
  LPORT     with -L: local port
  DADDR     remote address
  DPORT     remote port
  LAT(ms)   from the call to the outcome
  OUTCOME   with -x: established, failed or aborted
  ERRNO     with -x: why it failed
  SYNS      with -x: how many SYNs were sent",
    ),
    (
        "tcplife",
        "\
Examples:
  netprobe tcplife -D 80,443
  netprobe tcplife -x -T

Columns:
  TIME      with -T: time of day
  TIME(s)   with -t: seconds since the first line
  PID COMM  process that owns the socket, 0 and - if nobody knows
  IP        with -s or -w: 4 or 6
  LADDR     local address
  LPORT     local port
  RADDR     remote address
  RPORT     remote port
  TX_KB     data sent, in units of 1,024 bytes
  RX_KB     data received
  MS        from open to close, milliseconds
  ROLE      with -x: client or server
  RESULT    with -x: how it ended: fin, reset, failed, timeout
  CLOSER    with -x: who closed first: local, remote
  RETR      with -x: segments sent again
  SRTT_US   with -x: smoothed round-trip time, microseconds",
    ),
    (
        "tcpsynbl",
        "\
Examples:
  netprobe tcpsynbl
  netprobe tcpsynbl -x 5 12      twelve times, every 5 seconds

For each limit of an accept queue (backlog_max): how many SYNs (count) came when it
held how many connections (backlog). With -x: which listeners turned connections away,
and why.",
    ),
    (
        "tcpstates",
        "\
Examples:
  netprobe tcpstates -L 443
  netprobe tcpstates -s -T > states.csv

Columns:
  TIME           with -T: time of day
  TIME(s)        with -t: seconds since the first line
  SKADDR         which socket it is: equal in all its lines
  C-PID C-COMM   process that owns the socket, 0 and - if nobody knows
  IP             with -s or -w: 4 or 6
  LADDR          local address
  LPORT          local port
  RADDR          remote address
  RPORT          remote port
  OLDSTATE       TCP state before
  NEWSTATE       TCP state after
  MS             how long it was in the state before, milliseconds
  NETNS          with -x: network namespace (inode number)",
    ),
    (
        "tcptop",
        "\
Examples:
  netprobe tcptop -C 5
  netprobe tcptop -S -s received -r 10

Columns:
  PID COMM       process that owns the socket, 0 and - if nobody knows
  LADDR LADDR6   local address and port
  RADDR RADDR6   remote address and port
  RX_KB          data received in the interval, in units of 1,024 bytes
  TX_KB          data sent
  NETNS          with -x: network namespace (inode number)",
    ),
    (
        "tcpaccept",
        "\
Examples:
  netprobe tcpaccept -P 80,443
  netprobe tcpaccept -x          does the queue fill?

Columns:
  TIME      with -T: time of day
  TIME(s)   with -t: seconds since the first line
  PID COMM  process that accepted, 0 and - if nobody knows
  IP        4 or 6
  RADDR     remote address
  RPORT     remote port
  LADDR     local address
  LPORT     local port
  WAIT(ms)  with -x: how long the connection waited to be accepted
  ACCEPTQ   with -x: how many more waited then
  LIMIT     with -x: how many may",
    ),
    (
        "tcpconnect",
        "\
Examples:
  netprobe tcpconnect -P 443
  netprobe tcpconnect -c --duration 10s

Columns:
  TIME(s)   with -t: seconds since the first line
  UID       with -U: user of the process
  PID COMM  process that connects
  IP        4 or 6
  SADDR     local address
  LPORT     with -L: local port
  DADDR     remote address
  DPORT     remote port
  NETNS     with -x: network namespace (inode number)
  CONNECTS  with -c: how many from LADDR to RADDR and RPORT",
    ),
];
