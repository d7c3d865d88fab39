//! The values of `src` and `dst`: an address or a prefix, a port or a range, as ss(8) writes them.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::Range,
};

use super::{Family, Ports, Prefix, parse::Services};

/// `[FAMILY:]ADDRESS[/LENGTH][:PORT]`
#[derive(Debug, Default)]
pub(super) struct Host {
    /// Of the socket, if it stands before the address: to ss(8) a v4-mapped address is not of `inet`.
    pub(super) family: Option<Family>,
    /// None is any address; several are those of a name.
    pub(super) prefixes: Vec<Prefix>,
    /// `None` is any port.
    pub(super) ports: Option<Ports>,
}

/// What is wrong with part of a value.
pub(super) type Wrong = (String, Range<usize>);

impl Host {
    /// Reads one; what is wrong is said with its place in `text`.
    pub(super) fn parse(text: &str, services: &dyn Services) -> Result<Self, Wrong> {
        let (family, skipped) = match text.split_once(':') {
            Some(("inet", _)) => (Some(Family::V4), 5),
            Some(("inet6", _)) => (Some(Family::V6), 6),
            _ => (None, 0),
        };
        let text = &text[skipped..];
        let shift = |(why, at): Wrong| (why, at.start + skipped..at.end + skipped);
        // As `inet6:`, which is any address of the family.
        let (address, port) = if family.is_some() && text.is_empty() {
            (0..0, None)
        } else {
            split_host(text, services).map_err(shift)?
        };
        let mut prefixes = match &text[address.clone()] {
            // As in iproute2 (`get_prefix`).
            "" | "*" | "any" | "all" | "default" => Vec::new(),
            name => match of_name(name, services) {
                prefixes if prefixes.is_empty() => vec![read_prefix(text, address).map_err(shift)?],
                prefixes => prefixes,
            },
        };
        let ports = match port {
            Some(at) => {
                let ports = parse_ports(&text[at.clone()], services);
                let ports = ports.map_err(|why| shift((why, at)))?;
                (!ports.is_all()).then_some(ports)
            }
            None => None,
        };
        let has_address = !prefixes.is_empty();
        prefixes.retain(|prefix| family.is_none_or(|family| family == prefix.family()));
        if has_address && prefixes.is_empty() {
            let why = "this address is not of the family before it".into();
            return Err((why, 0..skipped + text.len()));
        }
        Ok(Self {
            family,
            prefixes,
            ports,
        })
    }
}

/// The addresses of the host `name`; none if it is no name.
fn of_name(name: &str, services: &dyn Services) -> Vec<Prefix> {
    if name.parse::<IpAddr>().is_ok() {
        return Vec::new();
    }
    let addresses = services.hosts(name).into_iter();
    let bits = |address: &IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let prefixes = addresses.filter_map(|address| Prefix::new(address, bits(&address)));
    prefixes.collect()
}

/// Splits at the colon that separates the port, wherever colons of the address are.
fn split_host(
    text: &str,
    services: &dyn Services,
) -> Result<(Range<usize>, Option<Range<usize>>), Wrong> {
    if text.is_empty() {
        return Err(("an address is missing here".into(), 0..0));
    }
    let from = if text.starts_with('[') {
        match text.find(']') {
            Some(close) => close,
            None => return Err(("this bracket is not closed".into(), 0..1)),
        }
    } else {
        let slash = text.find('/');
        let colons = text[..slash.unwrap_or(text.len())].matches(':').count();
        match (slash, colons) {
            (Some(slash), _) => slash,
            // More than one: an IPv6 address without brackets, so all of it is.
            (None, 2..) => {
                let all = 0..text.len();
                return match ambiguity(text, services) {
                    Some(why) => Err((why, all)),
                    None => Ok((all, None)),
                };
            }
            (None, _) => 0,
        }
    };
    Ok(match text[from..].find(':') {
        Some(colon) => (0..from + colon, Some(from + colon + 1..text.len())),
        None => (0..text.len(), None),
    })
}

/// What to write instead of an IPv6 address without brackets that ends as if a port stood behind it: to ss(8) one does.
fn ambiguity(text: &str, services: &dyn Services) -> Option<String> {
    let is_address = |text: &str| text.parse::<Ipv6Addr>().is_ok();
    let (address, port) = text.rsplit_once(':')?;
    if !is_address(address) || parse_ports(port, services).is_err() {
        return None;
    }
    Some(if is_address(text) {
        format!(
            "this is an address, but port {port} of {address} to ss(8): write `[{text}]` or `[{address}]:{port}`"
        )
    } else {
        format!("a port after an IPv6 address needs brackets: write `[{address}]:{port}`")
    })
}

/// Reads `ADDRESS[/LENGTH]`, the address perhaps in brackets, with the length in or after them.
fn read_prefix(text: &str, at: Range<usize>) -> Result<Prefix, Wrong> {
    let whole = &text[at.clone()];
    let mut inner = at.start..at.end;
    let mut length = None;
    if let Some(slash) = whole.rfind('/') {
        let end = at.start + whole.trim_end_matches(']').len();
        length = Some(at.start + slash + 1..end.max(at.start + slash + 1));
        inner.end = at.start + slash;
    }
    if text[inner.clone()].starts_with('[') {
        inner.start += 1;
        if text[inner.clone()].ends_with(']') {
            inner.end -= 1;
        } else if !whole.ends_with(']') {
            return Err(("expected `/`, `:` or the end after the bracket".into(), at));
        }
    }
    let address =
        read_address(&text[inner.clone()], length.is_some()).map_err(|why| (why, inner))?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let Some(length) = length else {
        return Prefix::new(address, bits).ok_or_else(|| (String::new(), at));
    };
    let number = &text[length.clone()];
    let prefix = number
        .parse()
        .ok()
        .and_then(|number| Prefix::new(address, number));
    prefix.ok_or_else(|| {
        let why = format!("the length of this prefix is a number from 0 to {bits}");
        (why, length)
    })
}

fn read_address(text: &str, has_length: bool) -> Result<IpAddr, String> {
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let numbers: Vec<Option<u8>> = text.split('.').map(|part| part.parse().ok()).collect();
    // `10/8` is short for `10.0.0.0/8`.
    if has_length && numbers.len() < 4 && numbers.iter().all(Option::is_some) {
        let mut octets = [0; 4];
        for (octet, number) in octets.iter_mut().zip(numbers) {
            *octet = number.unwrap_or(0);
        }
        return Ok(IpAddr::from(octets));
    }
    if let Some(address) = shortened(&numbers) {
        return Err(format!(
            "`{text}` is {address} to ss(8) and {} to ping(8): write all four numbers, or a prefix such as {text}/{}",
            stretched(&numbers),
            numbers.len() * 8
        ));
    }
    // As ss(8) shows link-local addresses.
    if let Some((address, interface)) = text.split_once('%')
        && address.parse::<IpAddr>().is_ok()
    {
        return Err(format!(
            "events tell addresses without their interface: write `{address}`, and of drops `dev {interface}` beside it"
        ));
    }
    if text.contains(':') {
        return Err(format!("`{text}` is no IPv6 address"));
    }
    if !text.is_empty()
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || byte == b'.')
    {
        return Err(format!(
            "`{text}` is no IPv4 address: it has four numbers up to 255"
        ));
    }
    Err(format!(
        "`{text}` is no address, and no name of a host in /etc/hosts"
    ))
}

/// What ss(8) takes two or three numbers for: zeroes follow.
fn shortened(numbers: &[Option<u8>]) -> Option<Ipv4Addr> {
    let [Some(a), Some(b), rest @ ..] = numbers else {
        return None;
    };
    match rest {
        [] => Some(Ipv4Addr::new(*a, *b, 0, 0)),
        [Some(c)] => Some(Ipv4Addr::new(*a, *b, *c, 0)),
        _ => None,
    }
}

/// What most others take the same for: zeroes stand before the last.
fn stretched(numbers: &[Option<u8>]) -> Ipv4Addr {
    let mut octets = [0; 4];
    if let Some((last, first)) = numbers.split_last() {
        for (octet, number) in octets.iter_mut().zip(first) {
            *octet = number.unwrap_or(0);
        }
        octets[3] = last.unwrap_or(0);
    }
    Ipv4Addr::from(octets)
}

/// A port, a range of ports, or the name of a service.
pub fn parse_ports(text: &str, services: &dyn Services) -> Result<Ports, String> {
    let text = text.strip_prefix(':').unwrap_or(text);
    if text == "*" {
        return Ok(Ports::all());
    }
    let number = |text: &str| -> Option<Result<u16, String>> {
        let (digits, radix) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
            Some(digits) => (digits, 16),
            None => (text, 10),
        };
        let is_digit = |letter: char| letter.is_digit(radix);
        let is_number = !digits.is_empty() && digits.chars().all(is_digit);
        is_number.then(|| {
            u16::from_str_radix(digits, radix)
                .map_err(|_too_large| format!("there is no port {text}: the last is 65535"))
        })
    };
    if let Some(port) = number(text) {
        let port = port?;
        return Ok(Ports::range(port, port));
    }
    if let Some((low, high)) = text.split_once('-')
        && let (Some(low), Some(high)) = (number(low), number(high))
    {
        let (low, high) = (low?, high?);
        if low > high {
            return Err(format!(
                "no port is in {low}-{high}: write the smaller number first"
            ));
        }
        return Ok(Ports::range(low, high));
    }
    match services.port(text) {
        Some(port) => Ok(Ports::range(port, port)),
        None if text.is_empty() => Err("a port is missing here".into()),
        None => Err(format!(
            "`{text}` is neither a port nor a service in /etc/services"
        )),
    }
}
