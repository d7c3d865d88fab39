//! Dropped packets as pcapng, for Wireshark and tshark: the headers, and why and where the packet
//! was dropped as its comment. One interface of raw IP with times in nanoseconds. Its statistics come last: how many
//! packets the file lacks.
//!
//! Format: draft-ietf-opsawg-pcapng, little endian.

use std::io::{self, Write};

use super::text;
use crate::report::{Layout, Row};

/// Kinds of blocks and options.
const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const STATISTICS: u32 = 5;
const PACKET: u32 = 6;
const COMMENT: u16 = 1;
const SECTION_APPLICATION: u16 = 4;
const INTERFACE_RESOLUTION: u16 = 9;
const PACKETS_RECEIVED: u16 = 4;
const PACKETS_DROPPED: u16 = 5;
/// `LINKTYPE_RAW`: packets begin with their IPv4 or IPv6 header.
const RAW: u16 = 101;
/// Times are in 10^-9 seconds.
const NANOSECONDS: u8 = 9;

/// Writes what comes before the first packet.
pub fn begin(out: &mut dyn Write) -> io::Result<()> {
    let mut section = Vec::new();
    section.extend(0x1a2b_3c4d_u32.to_le_bytes());
    section.extend([1, 0, 0, 0]);
    // Length of the section: not known yet.
    section.extend(u64::MAX.to_le_bytes());
    option(&mut section, SECTION_APPLICATION, b"netprobe");
    option(&mut section, 0, &[]);
    block(out, SECTION, &section)?;
    let mut interface = Vec::new();
    interface.extend(RAW.to_le_bytes());
    interface.extend([0; 2]);
    // No limit to the length of packets.
    interface.extend([0; 4]);
    option(&mut interface, INTERFACE_RESOLUTION, &[NANOSECONDS]);
    option(&mut interface, 0, &[]);
    block(out, INTERFACE, &interface)
}

/// Writes a packet, if the event has one.
pub fn packet(out: &mut dyn Write, layout: Layout, row: &Row) -> io::Result<()> {
    if row.packet.is_empty() {
        return Ok(());
    }
    let captured = u32::try_from(row.packet.len()).unwrap_or(0);
    let original = original_length(&row.packet).max(captured);
    let mut body = Vec::new();
    body.extend([0; 4]);
    time(&mut body, row.unix_ns);
    for number in [captured, original] {
        body.extend(number.to_le_bytes());
    }
    body.extend(&row.packet);
    pad(&mut body);
    option(&mut body, COMMENT, comment(layout, row).as_bytes());
    option(&mut body, 0, &[]);
    block(out, PACKET, &body)
}

/// Writes what comes after the last packet: at which time there were how many that the file has or lacks.
pub fn end(out: &mut dyn Write, unix_ns: i64, has: u64, lacks: u64) -> io::Result<()> {
    let mut body = Vec::new();
    body.extend([0; 4]);
    time(&mut body, unix_ns);
    option(&mut body, PACKETS_RECEIVED, &(has + lacks).to_le_bytes());
    option(&mut body, PACKETS_DROPPED, &lacks.to_le_bytes());
    option(&mut body, 0, &[]);
    block(out, STATISTICS, &body)
}

/// Half a time after the other, the high one first.
fn time(out: &mut Vec<u8>, unix_ns: i64) {
    let at = unix_ns.cast_unsigned();
    for half in [at >> 32, at & 0xffff_ffff] {
        out.extend(u32::try_from(half).unwrap_or(0).to_le_bytes());
    }
}

/// Bytes of the whole packet, as its own header says.
fn original_length(packet: &[u8]) -> u32 {
    let word = |at: usize| {
        let bytes = packet.get(at..at + 2).unwrap_or(&[0, 0]);
        u32::from(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    if packet[0] >> 4 == 4 {
        word(2)
    } else {
        word(4) + 40
    }
}

/// Why, where and whose.
fn comment(layout: Layout, row: &Row) -> String {
    let mut comment = String::new();
    for name in [
        "reason", "location", "pid", "comm", "state", "iface", "netns",
    ] {
        let columns = layout.columns.iter().zip(&row.values);
        for (_, value) in columns.filter(|(column, _)| column.name == name) {
            if !comment.is_empty() {
                comment.push(' ');
            }
            comment.push_str(name);
            comment.push('=');
            text::push(&mut comment, value);
        }
    }
    comment
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let length = u16::try_from(value.len()).unwrap_or(u16::MAX);
    out.extend(code.to_le_bytes());
    out.extend(length.to_le_bytes());
    out.extend(&value[..usize::from(length)]);
    pad(out);
}

fn pad(out: &mut Vec<u8>) {
    out.resize(out.len().next_multiple_of(4), 0);
}

fn block(out: &mut dyn Write, kind: u32, body: &[u8]) -> io::Result<()> {
    const FRAME: usize = 12;
    let length = u32::try_from(body.len() + FRAME).map_err(io::Error::other)?;
    out.write_all(&kind.to_le_bytes())?;
    out.write_all(&length.to_le_bytes())?;
    out.write_all(body)?;
    out.write_all(&length.to_le_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::{Column, Value};

    const LAYOUT: Layout = Layout {
        kind: "drops",
        columns: &[
            Column::text("reason", "REASON", 9, ""),
            Column::text("comm", "COMM", 9, ""),
        ],
    };

    /// Kinds and bodies of blocks whose lengths agree.
    fn blocks(mut bytes: &[u8]) -> Vec<(u32, &[u8])> {
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes[..4].try_into().unwrap());
        let mut blocks = Vec::new();
        while !bytes.is_empty() {
            let length = word(&bytes[4..]) as usize;
            assert_eq!(length % 4, 0);
            assert_eq!(word(&bytes[length - 4..]) as usize, length);
            blocks.push((word(bytes), &bytes[8..length - 4]));
            bytes = &bytes[length..];
        }
        blocks
    }

    #[test]
    fn a_packet_carries_its_time_its_bytes_and_a_comment() {
        let mut packet_bytes = vec![0x45, 0, 5, 0xdc];
        packet_bytes.resize(41, 7);
        let row = Row {
            unix_ns: 0x1_0000_0002,
            values: vec![
                Value::Word("NO_SOCKET"),
                Value::name(*b"a\x1b[2Jb\0\0\0\0\0\0\0\0\0\0"),
            ],
            packet: packet_bytes.clone(),
            ..Row::default()
        };
        let mut out = Vec::new();
        begin(&mut out).unwrap();
        packet(&mut out, LAYOUT, &row).unwrap();
        packet(&mut out, LAYOUT, &Row::default()).unwrap();
        end(&mut out, 0x1_0000_0003, 1, 0x200).unwrap();
        let found = blocks(&out);
        let kinds: Vec<u32> = found.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, [SECTION, INTERFACE, PACKET, STATISTICS]);
        let statistics = [
            [0, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0],
            [4, 0, 8, 0, 1, 2, 0, 0, 0, 0, 0, 0],
            [5, 0, 8, 0, 0, 2, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(found[3].1, [&statistics.concat()[..], &[0; 4]].concat());
        let body = found[2].1;
        let words: Vec<u32> = body[..20]
            .chunks(4)
            .map(|word| u32::from_le_bytes(word.try_into().unwrap()))
            .collect();
        assert_eq!(words, [0, 1, 2, 41, 1500]);
        assert_eq!(body[20..61], packet_bytes);
        let comment = String::from_utf8_lossy(&body[64..]);
        assert!(
            comment.contains("reason=NO_SOCKET comm=a\\u{1b}[2Jb"),
            "{comment}"
        );
    }
}
