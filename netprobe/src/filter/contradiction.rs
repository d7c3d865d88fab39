//! Filters that nothing can satisfy. They are mistakes, and said to be, rather than obeyed.
//!
//! What is found are tests of one thing that exclude each other, also across parentheses; not
//! everything that a logician would find.

use super::{Error, Expression, Ports, Predicate, Prefix, Side, Test};

/// Refuses an expression that holds for nothing. Alternatives may: what is left of "all of these but some" says some
/// things twice.
pub fn check(expression: &Expression) -> Result<(), Error> {
    check_within(expression, &mut Vec::new())
}

/// `given` must hold as well; it is the same again afterwards.
fn check_within<'a>(expression: &'a Expression, given: &mut Vec<&'a Test>) -> Result<(), Error> {
    let before = given.len();
    let conjuncts = expression.conjuncts();
    let checked = check_tests(conjuncts, given).and_then(|()| {
        conjuncts.iter().try_for_each(|part| match part {
            Expression::Or(alternatives) => check_alternatives(alternatives, given),
            Expression::Test(_) | Expression::And(_) => Ok(()),
        })
    });
    given.truncate(before);
    checked
}

/// Adds the tests among `conjuncts` to what is given.
fn check_tests<'a>(conjuncts: &'a [Expression], given: &mut Vec<&'a Test>) -> Result<(), Error> {
    let before = given.len();
    for part in conjuncts {
        if let Expression::Test(test) = part {
            check_alone(test)?;
            if let Some(other) = given.iter().find(|other| excludes(other, test)) {
                let message = format!("`{}` and `{}` cannot both hold", other.origin, test.origin);
                return Err(Error::of(test, message));
            }
            given.push(test);
        }
    }
    if given.len() > before {
        check_ports(given)?;
    }
    Ok(())
}

/// One of them has to be possible; otherwise it is said why the first is not.
fn check_alternatives<'a>(
    alternatives: &'a [Expression],
    given: &mut Vec<&'a Test>,
) -> Result<(), Error> {
    let mut why = Ok(());
    for alternative in alternatives {
        let checked = check_within(alternative, given);
        if checked.is_ok() {
            return Ok(());
        }
        why = why.and(checked);
    }
    why
}

fn check_alone(test: &Test) -> Result<(), Error> {
    match &test.predicate {
        Predicate::Any if test.is_negated => Err(Error::of(
            test,
            format!("the opposite of `{}` never holds", test.origin),
        )),
        Predicate::State(0) => Err(Error::of(test, "no state is left by this")),
        Predicate::Port(_, ports) if ports.is_empty() => {
            Err(Error::of(test, "no port is left by this"))
        }
        _ => Ok(()),
    }
}

/// Several tests of the ports may exclude what two of them do not.
fn check_ports(given: &[&Test]) -> Result<(), Error> {
    let mut left = [Ports::all(), Ports::all()];
    let sides = [Side::Source, Side::Destination];
    let mut last = None;
    for test in given {
        for (side, left) in sides.iter().zip(&mut left) {
            match &test.predicate {
                Predicate::Port(of, ports) if of == side => {
                    *left = left.intersection(ports);
                    last = Some(test);
                }
                _ => {}
            }
        }
    }
    let [source, destination] = &left;
    for test in given {
        let is_left = match &test.predicate {
            Predicate::Port(Side::Source, _) => !source.is_empty(),
            Predicate::Port(Side::Destination, _) => !destination.is_empty(),
            Predicate::Port(Side::Either, ports) => {
                let meets = |left: &Ports| !left.intersection(ports).is_empty();
                meets(source) || meets(destination)
            }
            _ => true,
        };
        if !is_left {
            let test = match test.predicate {
                Predicate::Port(Side::Either, _) => test,
                _ => last.unwrap_or(test),
            };
            return Err(Error::of(
                test,
                "left tests of the ports cannot hold together",
            ));
        }
    }
    Ok(())
}

/// Whether no event passes both.
fn excludes(a: &Test, b: &Test) -> bool {
    use Predicate::{Address, Family, Port, State};
    let is_same_question = a.predicate == b.predicate;
    match (&a.predicate, &b.predicate) {
        (Port(x, left), Port(y, right)) if x == y && *x != Side::Either => {
            left.intersection(right).is_empty()
        }
        (State(left), State(right)) => left & right == 0,
        (Address(x, left), Address(y, right)) if x == y && *x != Side::Either => {
            match (a.is_negated, b.is_negated) {
                (false, false) => all(left, |p| right.iter().all(|q| p.is_disjoint(q))),
                (false, true) => all(left, |p| right.iter().any(|q| p.is_within(q))),
                (true, false) => all(right, |p| left.iter().any(|q| p.is_within(q))),
                (true, true) => false,
            }
        }
        // A listener for both families takes connections of either.
        (Family(_), Address(Side::Listener, _)) | (Address(Side::Listener, _), Family(_)) => false,
        (Family(family), Address(_, prefixes)) => {
            is_other_family(*family, a.is_negated, prefixes, b.is_negated)
        }
        (Address(_, prefixes), Family(family)) => {
            is_other_family(*family, b.is_negated, prefixes, a.is_negated)
        }
        _ if is_same_question => a.is_negated != b.is_negated,
        _ => !a.is_negated && !b.is_negated && has_one_value(&a.predicate, &b.predicate),
    }
}

fn all(prefixes: &[Prefix], is_so: impl Fn(&Prefix) -> bool) -> bool {
    prefixes.iter().all(is_so)
}

/// IPv4 packets have no IPv6 addresses; the other way round there are mapped ones.
fn is_other_family(
    family: super::Family,
    is_not: bool,
    prefixes: &[Prefix],
    is_outside: bool,
) -> bool {
    family == super::Family::V4
        && !is_not
        && !is_outside
        && prefixes.iter().all(|prefix| prefix.family() != family)
}

/// Whether left name different values of a thing that has only one.
fn has_one_value(a: &Predicate, b: &Predicate) -> bool {
    match (a, b) {
        (Predicate::Comm(left), Predicate::Comm(right))
        | (Predicate::Iface(left), Predicate::Iface(right)) => {
            left.exact().is_some() && right.exact().is_some() && left != right
        }
        (Predicate::Reason(left), Predicate::Reason(right)) => {
            let (Some(left), Some(right)) = (left.codes(), right.codes()) else {
                return false;
            };
            !left.iter().any(|code| right.contains(code))
        }
        (Predicate::Pid(_), Predicate::Pid(_))
        | (Predicate::Netns(_), Predicate::Netns(_))
        | (Predicate::Ifindex(_), Predicate::Ifindex(_))
        | (Predicate::Family(_), Predicate::Family(_)) => a != b,
        _ => false,
    }
}
