//! `--columns`: which columns of a layout, in which order.

use anyhow::Result;

use crate::{filter::Error, report::Layout};

/// Positions of the columns that are named; `usual` if none is.
pub(super) fn pick(layout: Layout, usual: &[usize], wanted: &[String]) -> Result<Vec<usize>> {
    if wanted.is_empty() {
        return Ok(usual.to_vec());
    }
    let mut picked = Vec::new();
    // As in `+netns,cgroup`: who adds one adds all.
    if wanted[0].starts_with('+') {
        picked.extend(usual);
    }
    for name in wanted {
        let name = name.strip_prefix('+').unwrap_or(name);
        if name == "all" {
            picked.extend(0..layout.columns.len());
        } else {
            picked.push(find(layout, name)?);
        }
    }
    let mut seen = Vec::new();
    picked.retain(|index| {
        let is_new = !seen.contains(index);
        seen.push(*index);
        is_new
    });
    Ok(picked)
}

/// By name, or by title.
fn find(layout: Layout, name: &str) -> Result<usize> {
    let is_meant = |own: &str| own.eq_ignore_ascii_case(name);
    let mut columns = layout.columns.iter();
    let found = columns.position(|column| is_meant(column.name) || is_meant(column.title));
    found.ok_or_else(|| {
        let names: Vec<&str> = layout.columns.iter().map(|column| column.name).collect();
        let names = names.join(", ");
        let kind = layout.kind;
        Error::elsewhere(format!(
            "--columns: `{kind}` has no `{name}`; it has {names}"
        ))
        .into()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Column;

    const LAYOUT: Layout = Layout {
        kind: "sample",
        columns: &[
            Column::number("pid", "PID", 7, ""),
            Column::text("daddr", "RADDR", 15, ""),
            Column::text("family", "FAMILY", 4, "").hidden(),
        ],
    };

    #[test]
    fn columns_are_picked_by_name_or_title_in_the_order_given() {
        let cases: [(&[&str], &[usize]); 8] = [
            (&[], &[0, 1]),
            (&["family", "pid"], &[2, 0]),
            (&["raddr"], &[1]),
            (&["+family"], &[0, 1, 2]),
            (&["+family", "pid"], &[0, 1, 2]),
            (&["family", "+pid"], &[2, 0]),
            (&["pid", "pid"], &[0]),
            (&["all"], &[0, 1, 2]),
        ];
        for (wanted, expected) in cases {
            let wanted: Vec<String> = wanted.iter().map(ToString::to_string).collect();
            assert_eq!(
                pick(LAYOUT, &[0, 1], &wanted).unwrap(),
                expected,
                "{wanted:?}"
            );
        }
    }

    #[test]
    fn an_unknown_column_is_a_usage_error_that_lists_the_known() {
        let refused = pick(LAYOUT, &[0], &["prot".into()]).unwrap_err();
        assert!(refused.is::<Error>());
        assert!(refused.to_string().ends_with("it has pid, daddr, family"));
    }
}
