//! What every probe promises, and names for the tests of single ones.

use super::*;
use crate::decode::NoNames;
use netprobe_common::record::bytes_of;

/// Process 815 listens everywhere; remembers what it was asked.
#[derive(Default)]
pub(crate) struct Listens {
    pub(crate) arrivals: Vec<Arrival>,
    pub(crate) at_ns: Option<u64>,
}

/// Whose listener a probe asks for by an event, and the values.
pub(crate) fn asked(spec: &ProbeSpec, event: &impl Plain) -> (Option<Arrival>, Vec<Value>) {
    let (mut names, mut values) = (Listens::default(), Vec::new());
    (spec.decode)(bytes_of(event), &mut names, &mut values).unwrap();
    (names.arrivals.pop(), values)
}

impl Names for Listens {
    fn at(&mut self, monotonic_ns: Option<u64>) {
        self.at_ns = monotonic_ns;
    }

    fn listener(&mut self, arrival: &Arrival) -> Option<(u32, [u8; 16])> {
        self.arrivals.push(*arrival);
        Some((815, [b'x'; 16]))
    }
}

#[test]
fn a_listener_is_asked_for_by_both_address_and_port_and_by_when_the_connection_came() {
    let mut names = Listens::default();
    let flow = Flow {
        saddr: Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets(),
        sport: 443_u16.to_be_bytes(),
        family: 10,
        netns: 7,
        ..Flow::zeroed()
    };
    let owner = Owner {
        cgroup: 5,
        ..Owner::zeroed()
    };
    let [pid, ..] = accepted_owner(&owner, &flow, Some(99), &mut names);
    assert_eq!(pid, Value::Unsigned(815));
    let asked = Arrival {
        netns: 7,
        local: (Some(IpAddr::V4(Ipv4Addr::LOCALHOST)), 443),
        cgroup: 5,
        opened_ns: Some(99),
    };
    assert_eq!(names.arrivals, [asked]);
}

#[test]
fn every_kind_has_its_probe_in_the_list() {
    assert_eq!(PROBES.len(), Kind::ALL.len());
    for (spec, kind) in PROBES.iter().zip(Kind::ALL) {
        assert_eq!(spec.kind, *kind);
    }
}

#[test]
fn every_probe_decodes_zeroes_into_its_columns_and_refuses_other_lengths() {
    for spec in PROBES {
        let zeroes = vec![0; spec.kind.size() + 1];
        let mut values = Vec::new();
        (spec.decode)(&zeroes[..spec.kind.size()], &mut NoNames, &mut values).unwrap();
        assert_eq!(values.len(), spec.columns.len(), "{}", spec.name());
        for wrong in [0, 1, spec.kind.size() - 1, spec.kind.size() + 1] {
            let refused = (spec.decode)(&zeroes[..wrong], &mut NoNames, &mut values);
            assert!(refused.is_err(), "{} took {wrong} bytes", spec.name());
        }
    }
}

#[test]
fn what_is_added_up_is_a_column() {
    for spec in PROBES {
        let sum = spec.weight.strip_prefix("sum(");
        let Some(name) = sum.and_then(|rest| rest.strip_suffix(')')) else {
            assert_ne!(spec.weight, "ns", "{} of what?", spec.name());
            continue;
        };
        let is_column = spec.columns.iter().any(|column| column.name == name);
        assert!(is_column, "{}: {name}", spec.name());
    }
}

#[test]
fn columns_are_unique_and_documented() {
    for spec in PROBES {
        for (index, column) in spec.columns.iter().enumerate() {
            assert!(!column.about.is_empty(), "{}.{}", spec.name(), column.name);
            let twice = spec.columns[..index]
                .iter()
                .any(|other| other.name == column.name);
            assert!(!twice, "{}.{} twice", spec.name(), column.name);
        }
    }
}

#[test]
fn mapped_addresses_are_shown_as_ipv4() {
    let mapped = Ipv4Addr::new(10, 0, 0, 1).to_ipv6_mapped().octets();
    let flow = Flow {
        family: 10,
        daddr: mapped,
        ..Flow::zeroed()
    };
    assert_eq!(
        ip(10, mapped),
        Value::Ip(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)))
    );
    assert_eq!(family(&flow), Value::Word("ipv4-mapped"));
}
