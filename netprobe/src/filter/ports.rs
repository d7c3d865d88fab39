//! Sets of ports.

/// A set of ports, as ranges in ascending order that do not touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ports {
    ranges: Vec<(u16, u16)>,
}

impl Ports {
    /// From the first to the last, which may be one.
    pub fn range(low: u16, high: u16) -> Self {
        Self {
            ranges: if low <= high {
                vec![(low, high)]
            } else {
                Vec::new()
            },
        }
    }

    /// Every port.
    pub fn all() -> Self {
        Self::range(0, u16::MAX)
    }

    /// Its ranges.
    pub fn ranges(&self) -> &[(u16, u16)] {
        &self.ranges
    }

    /// Whether no port is in it.
    pub const fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Whether every port is in it.
    pub fn is_all(&self) -> bool {
        self.ranges == [(0, u16::MAX)]
    }

    /// Whether `port` is in it.
    pub fn contains(&self, port: u16) -> bool {
        self.ranges
            .iter()
            .any(|(low, high)| (*low..=*high).contains(&port))
    }

    /// The ports that are not in it.
    #[must_use]
    pub fn complement(&self) -> Self {
        let mut ranges = Vec::new();
        let mut next = Some(0);
        for (low, high) in &self.ranges {
            if let (Some(next), Some(last)) = (next, low.checked_sub(1))
                && next <= last
            {
                ranges.push((next, last));
            }
            next = high.checked_add(1);
        }
        if let Some(next) = next {
            ranges.push((next, u16::MAX));
        }
        Self { ranges }
    }

    /// The ports in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut all = [&self.ranges[..], &other.ranges].concat();
        all.sort_unstable();
        let mut ranges: Vec<(u16, u16)> = Vec::new();
        for (low, high) in all {
            match ranges.last_mut() {
                Some(last) if low <= last.1.saturating_add(1) => last.1 = last.1.max(high),
                _ => ranges.push((low, high)),
            }
        }
        Self { ranges }
    }

    /// The ports in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.complement().union(&other.complement()).complement()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_are_combined_as_sets() {
        let set = Ports::range(10, 20).union(&Ports::range(30, 40));
        assert_eq!(set.complement().ranges(), [(0, 9), (21, 29), (41, 65535)]);
        assert_eq!(set.complement().complement(), set);
        assert_eq!(set.union(&Ports::range(21, 29)).ranges(), [(10, 40)]);
        assert_eq!(
            set.intersection(&Ports::range(15, 35)).ranges(),
            [(15, 20), (30, 35)]
        );
        assert!(set.intersection(&Ports::range(21, 29)).is_empty());
        assert!(Ports::all().is_all());
        assert!(Ports::all().complement().is_empty());
        assert!(
            Ports::range(0, 0)
                .complement()
                .union(&Ports::range(0, 0))
                .is_all()
        );
        let top = Ports::range(65535, 65535);
        assert_eq!(top.complement().ranges(), [(0, 65534)]);
    }
}
