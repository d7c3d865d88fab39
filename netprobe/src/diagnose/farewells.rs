//! The last words of a protocol, which no answer follows: nobody misses anything when they are reset.

use super::events::Event;

/// Bytes of a TLS record with the alert close_notify: of TLS 1.3 (RFC 8446; the JDK pads it), of 1.2 with AEAD ciphers (RFC
/// 5288, RFC 7905), and with CBC of SHA-1, SHA-256 and SHA-384, in both orders of encryption and MAC (RFC 7366).
const CLOSE_NOTIFY: [u64; 8] = [24, 40, 31, 23, 53, 57, 69, 85];
/// QUIT of Redis, SMTP and FTP, COM_QUIT of MySQL, Terminate of PostgreSQL, unbind of LDAP: no request is so short.
const QUIT: std::ops::RangeInclusive<u64> = 5..=7;

/// Whether the data that is lost with a reset is as long as a farewell.
pub(super) fn is_farewell(reset: &Event) -> bool {
    let data = reset.number("data");
    data.is_some_and(|bytes| CLOSE_NOTIFY.contains(&bytes) || QUIT.contains(&bytes))
}
