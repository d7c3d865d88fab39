//! Values as text. Names that anybody may choose (tasks, interfaces, symbols) never reach a
//! terminal or a file unescaped.

use std::{
    fmt::{self, Write},
    net::IpAddr,
};

use crate::report::{Value, name_bytes};

/// Shown where a value is unknown.
pub const UNKNOWN: &str = "-";

/// Appends a value as people read it.
pub fn push(out: &mut String, value: &Value) {
    let written = match value {
        Value::Unknown => out.write_str(UNKNOWN),
        Value::Unsigned(number) => write!(out, "{number}"),
        Value::Signed(number) => write!(out, "{number}"),
        Value::Ip(address) => out.write_str(Short::address(*address).as_str()),
        Value::Word(word) => out.write_str(word),
        Value::Text(text) => escape(out, text),
        Value::Name(name) => escape(out, &String::from_utf8_lossy(name_bytes(name))),
        Value::TcpFlags(flags) => out.write_str(Short::flags(*flags).as_str()),
        Value::Stack(frames) => frames.iter().enumerate().try_for_each(|(index, frame)| {
            out.write_str(if index == 0 { "" } else { "<" })?;
            escape(out, frame)
        }),
    };
    debug_assert!(written.is_ok(), "writing to a string does not fail");
}

/// A text as it may be shown.
pub fn harmless(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let written = escape(&mut out, text);
    debug_assert!(written.is_ok(), "writing to a string does not fail");
    out
}

/// A text as it may be in a picture or a profile: letters of all scripts, and nothing that hides, moves others, or has no
/// place in XML.
pub fn visible(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() || is_invisible(character) {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}

/// Characters that hide or reorder what is shown.
pub(super) const fn is_invisible(character: char) -> bool {
    matches!(character,
        '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202f}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{ffff}' | '\u{e0000}'..='\u{e0fff}')
}

/// An address or flags as text, without the machinery of formatting where that is possible: they are in
/// every event.
#[derive(Debug)]
pub(super) struct Short {
    bytes: [u8; LONGEST],
    length: usize,
}

/// `ffff:…:255.255.255.255`; all flags together are shorter.
const LONGEST: usize = 45;

impl Short {
    const EMPTY: Self = Self {
        bytes: [0; LONGEST],
        length: 0,
    };

    /// An address.
    pub(super) fn address(address: IpAddr) -> Self {
        let mut written = Self::EMPTY;
        match address {
            IpAddr::V4(address) => {
                let [a, b, c, d] = address.octets();
                written.number(a);
                for octet in [b, c, d] {
                    written.push(b".");
                    written.number(octet);
                }
            }
            IpAddr::V6(address) => {
                let fits = write!(written, "{address}");
                debug_assert!(fits.is_ok(), "an address is short");
            }
        }
        written
    }

    /// Names of the flags from the lowest bit up (RFC 9293, 3.1), joined as bcc does.
    pub(super) fn flags(flags: u8) -> Self {
        const NAMES: [&str; 8] = ["FIN", "SYN", "RST", "PSH", "ACK", "URG", "ECE", "CWR"];
        let mut written = Self::EMPTY;
        for (bit, name) in NAMES.iter().enumerate() {
            if flags & (1 << bit) == 0 {
                continue;
            }
            if written.length > 0 {
                written.push(b"|");
            }
            written.push(name.as_bytes());
        }
        if flags == 0 {
            written.push(UNKNOWN.as_bytes());
        }
        written
    }

    /// The text.
    pub(super) fn as_str(&self) -> &str {
        str::from_utf8(&self.bytes[..self.length]).unwrap_or_default()
    }

    fn number(&mut self, number: u8) {
        if number >= 100 {
            self.push(&[b'0' + number / 100]);
        }
        if number >= 10 {
            self.push(&[b'0' + number / 10 % 10]);
        }
        self.push(&[b'0' + number % 10]);
    }

    fn push(&mut self, more: &[u8]) {
        let end = self.length + more.len();
        if let Some(place) = self.bytes.get_mut(self.length..end) {
            place.copy_from_slice(more);
            self.length = end;
        }
    }
}

impl Write for Short {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

/// Writes text with everything but plain printable characters escaped: controls, which move the
/// cursor, and the Unicode that hides or reorders what is shown.
fn escape(out: &mut String, text: &str) -> fmt::Result {
    for character in text.chars() {
        if is_plain(character) {
            out.write_char(character)?;
        } else {
            write!(out, "{}", character.escape_default())?;
        }
    }
    Ok(())
}

/// Letters and marks that a terminal shows where they stand.
pub(super) fn is_plain(character: char) -> bool {
    match character {
        ' '..='~' => character != '\\',
        '\u{a1}'..='\u{2ff}' | '\u{370}'..='\u{58f}' | '\u{1e00}'..='\u{1fff}' => {
            character != '\u{ad}'
        }
        '\u{3041}'..='\u{30ff}' | '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}' => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(name: &[u8]) -> String {
        let mut bytes = [0; 16];
        bytes[..name.len()].copy_from_slice(name);
        let mut out = String::new();
        push(&mut out, &Value::Name(bytes));
        out
    }

    #[test]
    fn addresses_are_written_as_the_standard_library_does() {
        for text in [
            "0.0.0.0",
            "127.0.0.1",
            "10.20.30.255",
            "255.255.255.255",
            "::",
            "fe80::1:2",
            "::ffff:255.255.255.255",
            "2001:db8:1111:2222:3333:4444:5555:6666",
        ] {
            let address: IpAddr = text.parse().expect("an address");
            assert_eq!(Short::address(address).as_str(), address.to_string());
        }
    }

    #[test]
    fn flags_are_joined_from_the_lowest_bit() {
        for (flags, expected) in [
            (0, "-"),
            (2, "SYN"),
            (0x12, "SYN|ACK"),
            (0xc2, "SYN|ECE|CWR"),
            (0xff, "FIN|SYN|RST|PSH|ACK|URG|ECE|CWR"),
        ] {
            let mut out = String::new();
            push(&mut out, &Value::TcpFlags(flags));
            assert_eq!(out, expected);
        }
    }

    #[test]
    fn hostile_names_are_shown_harmless() {
        let cases: &[(&[u8], &str)] = &[
            (b"nginx", "nginx"),
            (b"a\x1b[2Jb", "a\\u{1b}[2Jb"),
            (b"two\nlines", "two\\nlines"),
            (b"bell\x07", "bell\\u{7}"),
            ("\u{202e}evil".as_bytes(), "\\u{202e}evil"),
            (b"\xff\xfe", "\\u{fffd}\\u{fffd}"),
            (b"back\\slash", "back\\\\slash"),
            ("\u{9b}31m".as_bytes(), "\\u{9b}31m"),
        ];
        for (name, expected) in cases {
            assert_eq!(shown(name), *expected);
        }
    }
}
