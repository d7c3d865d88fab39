//! Addresses of hosts by their names, from `/etc/hosts`: a filter asks nobody on the network.

use std::{fs, net::IpAddr};

/// The addresses of the host `name`.
pub fn addresses(name: &str) -> Vec<IpAddr> {
    find(&fs::read_to_string("/etc/hosts").unwrap_or_default(), name)
}

/// Lines are `address name alias… # comment`.
pub(crate) fn find(hosts: &str, name: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in hosts.lines() {
        let mut words = line
            .split('#')
            .next()
            .unwrap_or("")
            .split_ascii_whitespace();
        let address = words.next().and_then(|word| word.parse().ok());
        let is_meant = words.any(|word| word.eq_ignore_ascii_case(name));
        found.extend(address.filter(|address| is_meant && !found.contains(address)));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_the_addresses_of_all_its_lines() {
        let hosts =
            "127.0.0.1 localhost\n::1 ip6-localhost localhost # db\n10.0.0.7\tdb DB.local\nx db\n";
        let of = |name| {
            find(hosts, name)
                .iter()
                .map(IpAddr::to_string)
                .collect::<Vec<_>>()
        };
        assert_eq!(of("localhost"), ["127.0.0.1", "::1"]);
        assert_eq!(of("db.local"), ["10.0.0.7"]);
        assert!(of("10.0.0.7").is_empty() && of("web").is_empty());
    }
}
