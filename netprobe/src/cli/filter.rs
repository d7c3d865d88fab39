//! The options that say which events are wanted. All of them become one expression, of which the
//! kernel tests as much as it can.

use std::net::IpAddr;

use anyhow::Result;
use clap::Args;
use netprobe_common::filter;

use super::absent;
use crate::{
    filter::{
        Error, Expression, Family, KnownReasons, Origin, Pattern, Predicate, Reasons, Services,
        Side, check_columns, contradiction, matcher::Matcher, parse, parse_ports, pushdown,
    },
    observe::{
        cgroups::{self, Cgroup},
        hosts, netns, services,
    },
    probes::{KernelTest, ProbeSpec},
};

/// Which events are wanted. As much as possible is tested in the kernel, before an event costs
/// anything; the rest by netprobe.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Filters")]
#[group(skip)]
pub(super) struct Options {
    /// Only IPv4.
    #[arg(short = '4', long, conflicts_with = "ipv6")]
    ipv4: bool,
    /// Only IPv6 (sockets; includes IPv4 connections of IPv6 sockets).
    #[arg(short = '6', long)]
    ipv6: bool,
    /// Only this network namespace: inode number, process id, path or name.
    ///
    /// A number above 4194304 is an inode number, as /proc/PID/ns/net shows; a smaller one is a
    /// process id, also written pid:N. With a slash it is a path, such as /run/netns/x or
    /// /proc/PID/ns/net; all else is a name of `ip netns`.
    #[arg(long, value_name = "NETNS")]
    netns: Option<String>,
    /// Only connections with one of these ports on either side: 443, 8000-8999, https.
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    port: Vec<String>,
    /// Only sockets (or tasks) of this control group and those below it: path or id.
    ///
    /// Of version 2, and of the group that the socket was made in, as the kernel keeps it, or on kernels that do not, of
    /// its process. A path may begin at the root of version 2 or with the folder that it is mounted at.
    #[arg(long, value_name = "CGROUP")]
    cgroup: Option<String>,
    /// Only sockets of these processes.
    #[arg(long, value_name = "PID", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..))]
    pid: Vec<u32>,
    /// Only sockets of processes with this name, of which the kernel keeps 15 bytes; * and ? stand for any letters.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    comm: Vec<String>,
    /// Only packets of this interface (of `drops`); * and ? stand for any letters.
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    iface: Vec<String>,
    /// Only packets dropped for this reason (of `drops`), as the kernel names it.
    #[arg(long, value_name = "REASON", value_delimiter = ',')]
    reason: Vec<String>,
    /// Only events that this expression wants, in the grammar of ss(8).
    ///
    /// Tests: src, dst [=|!=] HOST[/PREFIX][:PORT]; sport, dport [=|!=|<|<=|>|>=] PORT, or a range
    /// PORT-PORT; state, exclude NAME (established, listening, connected, synchronized, bucket,
    /// big, all …); dev NAME (of `drops`); and beyond ss: host, port (either side), pid, comm, reason, netns,
    /// family (inet, inet6, ipv4-mapped), listener, cgroup. Joined by and, or, not, parentheses; side by side means and. Source and
    /// destination are those of the event: of the packet for `drops`, `listeners` and `conntrack`,
    /// local and remote for `retransmits` and `connects`. What is unknown is equal to nothing.
    /// IPv4 addresses also mean those that IPv6 sockets use. Of names of hosts, only those in /etc/hosts are
    /// known; fwmark and autobound of ss are not.
    #[arg(long, value_name = "EXPR")]
    filter: Option<String>,
}

/// Numbers of this machine for the names in filters.
struct Machine;

impl Services for Machine {
    fn port(&self, name: &str) -> Option<u16> {
        services::tcp_port(name)
    }

    fn hosts(&self, name: &str) -> Vec<IpAddr> {
        hosts::addresses(name)
    }

    fn netns(&self, text: &str) -> Result<u32, String> {
        netns::inode(text)
    }

    fn cgroup(&self, text: &str) -> Result<Cgroup, String> {
        cgroups::find(text)
    }
}

impl Options {
    /// What commands with other letters mean: families, a namespace, a process, an expression.
    pub(super) fn all_of(
        (ipv4, ipv6): (bool, bool),
        netns: Option<String>,
        pid: Option<u32>,
        expression: String,
    ) -> Self {
        Self {
            ipv4,
            ipv6,
            netns,
            pid: pid.into_iter().collect(),
            filter: Some(expression).filter(|text| !text.is_empty()),
            ..Self::default()
        }
    }

    /// The control group that is wanted, and the rest: what is watched may be tasks, not sockets.
    pub(super) fn without_cgroup(&self) -> (Option<String>, Self) {
        let mut rest = self.clone();
        (rest.cgroup.take(), rest)
    }

    /// The processes of `--pid`.
    pub(super) fn pids(&self) -> &[u32] {
        &self.pid
    }

    /// Whether one namespace is wanted only.
    pub(super) const fn is_of_one_netns(&self) -> bool {
        self.netns.is_some()
    }

    /// Inode number of the namespace that is wanted, if any is.
    pub(super) fn netns(&self) -> Result<Option<u32>, Error> {
        let inode = self.netns.as_ref().map(|text| {
            let inode = Machine.netns(text);
            inode.map_err(|why| Error::elsewhere(format!("--netns {text}: {why}")))
        });
        inode.transpose()
    }

    /// The one expression that all options mean together.
    pub(super) fn expression(&self) -> Result<Expression, Error> {
        let mut parts = Vec::new();
        if self.ipv4 || self.ipv6 {
            let (name, family) = if self.ipv4 {
                ("-4", Family::V4)
            } else {
                ("-6", Family::V6)
            };
            parts.push(test(name, "", Predicate::Family(family)));
        }
        if let Some((text, inode)) = self.netns.as_ref().zip(self.netns()?) {
            parts.push(test("--netns", text, Predicate::Netns(inode)));
        }
        if let Some(text) = &self.cgroup {
            let group = Machine.cgroup(text);
            let group = group.map_err(|why| Error::elsewhere(format!("--cgroup {text}: {why}")))?;
            parts.push(test("--cgroup", text, Predicate::Cgroup(group)));
        }
        parts.push(alternatives("--port", &self.port, |text| {
            let wanted = parse_ports(text, &Machine);
            let wanted = wanted.map_err(|why| Error::elsewhere(format!("--port {text}: {why}")))?;
            Ok(Predicate::Port(Side::Either, wanted))
        })?);
        let pids: Vec<String> = self.pid.iter().map(ToString::to_string).collect();
        parts.push(alternatives("--pid", &pids, |text| {
            let pid = text
                .parse()
                .map_err(|_error| Error::elsewhere("no process id"))?;
            Ok(Predicate::Pid(pid))
        })?);
        parts.push(alternatives("--comm", &self.comm, |name| {
            Ok(Predicate::Comm(Pattern::of_task(name)))
        })?);
        parts.push(alternatives("--iface", &self.iface, |name| {
            Ok(match name.parse() {
                Ok(index) => Predicate::Ifindex(index),
                Err(_) => Predicate::Iface(Pattern::new(name)),
            })
        })?);
        parts.push(alternatives("--reason", &self.reason, |name| {
            Ok(Predicate::Reason(Reasons::new(name)))
        })?);
        if let Some(text) = &self.filter {
            parts.push(parse(text, &Machine)?);
        }
        Ok(Expression::all(parts))
    }

    /// The filter for one probe, checked as far as it can be without its kernel.
    pub(super) fn plan(&self, spec: &'static ProbeSpec) -> Result<Plan, Error> {
        let plan = self.check(spec)?;
        absent::warn(&plan.expression);
        Ok(plan)
    }

    fn check(&self, spec: &'static ProbeSpec) -> Result<Plan, Error> {
        let expression = self.expression()?;
        check_columns(&expression, spec.name(), |name| {
            spec.columns.iter().any(|column| column.name == name)
        })?;
        contradiction::check(&expression)?;
        Ok(Plan { spec, expression })
    }
}

fn test(option: &str, value: &str, predicate: Predicate) -> Expression {
    let words = format!("{option} {value}").trim_end().to_owned();
    Expression::test(predicate, Origin::option(words))
}

/// An option with several values wants any of them.
fn alternatives(
    option: &str,
    values: &[String],
    read: impl Fn(&str) -> Result<Predicate, Error>,
) -> Result<Expression, Error> {
    if values.is_empty() {
        return Ok(Expression::ALL);
    }
    let tests = values
        .iter()
        .map(|value| Ok(test(option, value, read(value)?)));
    Ok(Expression::any(tests.collect::<Result<Vec<_>, Error>>()?))
}

/// Network namespaces of which every event is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whole {
    /// All of them.
    All,
    /// The one with this inode number.
    One(u32),
}

impl Whole {
    /// Whether the one with this inode number is wanted.
    pub(super) fn has(self, inode: u32) -> bool {
        match self {
            Self::All => true,
            Self::One(wanted) => wanted == inode,
        }
    }
}

/// What is wanted of a probe.
#[derive(Debug)]
pub(super) struct Plan {
    spec: &'static ProbeSpec,
    expression: Expression,
}

impl Plan {
    /// The namespaces of which every event is wanted: all, or one of them. `None` if events of a namespace are told apart.
    pub(super) fn whole_namespaces(&self) -> Option<Whole> {
        match &self.expression {
            Expression::And(none) if none.is_empty() => Some(Whole::All),
            Expression::Test(test) => match test.predicate {
                Predicate::Netns(inode) if !test.is_negated => Some(Whole::One(inode)),
                _ => None,
            },
            _ => None,
        }
    }

    /// Refuses what the kernel cannot test, because `what` happens there.
    pub(super) fn must_fit(&self, what: &str) -> Result<(), Error> {
        let rest = pushdown::split(&self.expression, self.spec.kernel_tests).rest;
        rest.each(&mut |test| {
            let message = format!(
                "`{}` cannot be tested in the kernel, where {what}",
                test.origin
            );
            Err(Error::of(test, message))
        })
    }

    /// The part for the kernel and the part for rows, now that its reasons are known, and whether it
    /// keeps the cgroup of a socket.
    pub(super) fn resolve(
        mut self,
        known: &dyn KnownReasons,
        has_socket_cgroups: bool,
    ) -> Result<(filter::Filter, Matcher), Error> {
        self.expression.each_mut(&mut |test| {
            let Predicate::Reason(reasons) = &mut test.predicate else {
                return Ok(());
            };
            reasons.resolve(known).map_err(|why| Error::of(test, why))
        })?;
        contradiction::check(&self.expression)?;
        let tests = self.spec.kernel_tests.iter().copied();
        let tests: Vec<KernelTest> = tests
            .filter(|test| *test != KernelTest::Cgroup || has_socket_cgroups)
            .collect();
        let split = pushdown::split(&self.expression, &tests);
        Ok((split.kernel, Matcher::new(split.rest, self.spec.columns)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::probes;

    fn plan(options: &Options) -> Result<Plan, String> {
        options
            .check(&probes::drops::SPEC)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn options_become_one_expression_that_the_kernel_tests() {
        let options = Options {
            ipv4: true,
            port: vec!["80".into(), "8000-8010".into()],
            filter: Some("src 10.0.0.0/8 and dev eth0 state established".into()),
            ..Options::default()
        };
        let plan = plan(&options).unwrap();
        assert_eq!(plan.must_fit("totals are counted"), Ok(()));
        let split = pushdown::split(&plan.expression, plan.spec.kernel_tests);
        assert_eq!(split.kernel.family.value, 2);
        assert_eq!(split.kernel.port.len, 2);
        assert_eq!(split.kernel.src.len, 1);
        assert_eq!(split.kernel.states, 2);
    }

    #[test]
    fn what_the_kernel_cannot_test_is_named() {
        let options = Options {
            pid: vec![5],
            filter: Some("dport 80".into()),
            ..Options::default()
        };
        let refused = plan(&options)
            .unwrap()
            .must_fit("totals are counted")
            .unwrap_err();
        assert!(refused.to_string().contains("--pid 5"), "{refused}");
        let options = Options {
            filter: Some("dport 80 and comm x".into()),
            ..Options::default()
        };
        let refused = plan(&options)
            .unwrap()
            .must_fit("totals are counted")
            .unwrap_err();
        assert!(
            refused.to_string().ends_with("               ^^^^^^"),
            "{refused}"
        );
    }

    #[test]
    fn what_a_probe_lacks_is_refused() {
        let options = Options {
            reason: vec!["NO_SOCKET".into()],
            ..Options::default()
        };
        let refused = options.plan(&probes::conntrack::SPEC).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "--reason NO_SOCKET: `conntrack` events have no reason"
        );
        assert!(options.plan(&probes::drops::SPEC).is_ok());
    }

    #[test]
    fn options_and_expression_may_contradict_each_other() {
        let options = Options {
            ipv4: true,
            filter: Some("src ::1".into()),
            ..Options::default()
        };
        let refused = plan(&options).unwrap_err();
        assert!(
            refused.contains("`-4` and `src ::1` cannot both hold"),
            "{refused}"
        );
    }
}
