//! The order of Debian's package versions, as deb-version(7) defines it.

use std::cmp::Ordering;

/// Compares two versions that have no epoch.
pub(super) fn compare(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    while !a.is_empty() || !b.is_empty() {
        let order = compare_text(&mut a, &mut b).then_with(|| compare_number(&mut a, &mut b));
        if order.is_ne() {
            return order;
        }
    }
    Ordering::Equal
}

/// Compares what comes before the next digit, by character, and moves past it.
fn compare_text(a: &mut &[u8], b: &mut &[u8]) -> Ordering {
    loop {
        let order = weight(a).cmp(&weight(b));
        if order.is_ne() || weight(a) == 0 {
            return order;
        }
        (*a, *b) = (&a[1..], &b[1..]);
    }
}

/// A tilde sorts before the end, letters sort before everything else.
fn weight(text: &[u8]) -> i32 {
    match text.first() {
        None | Some(b'0'..=b'9') => 0,
        Some(b'~') => -1,
        Some(letter) if letter.is_ascii_alphabetic() => i32::from(*letter),
        Some(other) => i32::from(*other) + 256,
    }
}

fn compare_number(a: &mut &[u8], b: &mut &[u8]) -> Ordering {
    take_number(a).cmp(&take_number(b))
}

fn take_number(text: &mut &[u8]) -> u64 {
    let mut number = 0u64;
    while let Some(digit) = text.first().filter(|byte| byte.is_ascii_digit()) {
        number = number
            .saturating_mul(10)
            .saturating_add(u64::from(digit - b'0'));
        *text = &text[1..];
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn newer_versions_sort_last() {
        let ascending = [
            "5.10.9-1",
            "5.10.223-1~deb11u1",
            "5.10.223-1",
            "5.10.223-1+b1",
            "6.1.192-1",
            "6.12.107-1",
            "6.18.15-1~bpo13+1",
            "6.18.15-1",
        ];
        for pair in ascending.windows(2) {
            assert_eq!(compare(pair[0], pair[1]), Ordering::Less, "{pair:?}");
            assert_eq!(compare(pair[1], pair[0]), Ordering::Greater, "{pair:?}");
            assert_eq!(compare(pair[0], pair[0]), Ordering::Equal);
        }
    }
}
