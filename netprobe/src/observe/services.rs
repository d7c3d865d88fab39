//! Names of ports, from `/etc/services`.

use std::fs;

/// The TCP port of the service `name`.
pub fn tcp_port(name: &str) -> Option<u16> {
    find(&fs::read_to_string("/etc/services").ok()?, name)
}

/// Lines are `name port/protocol alias… # comment`.
pub(crate) fn find(services: &str, name: &str) -> Option<u16> {
    services.lines().find_map(|line| {
        let mut words = line.split('#').next()?.split_ascii_whitespace();
        let first = words.next()?;
        let port = words.next()?.strip_suffix("/tcp")?;
        let is_meant = first == name || words.any(|alias| alias == name);
        is_meant.then(|| port.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_have_names_and_aliases() {
        let services = "# comment\n\ntftp 69/udp\nhttp 80/tcp www # web\nbroken\n";
        assert_eq!(find(services, "http"), Some(80));
        assert_eq!(find(services, "www"), Some(80));
        for other in ["tftp", "web", "#", "broken", ""] {
            assert_eq!(find(services, other), None, "{other}");
        }
    }
}
