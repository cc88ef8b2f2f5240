//! Sentences and tables with the numbers.

use anyhow::{Result, ensure};

use super::table::{Table, or_dash};
use super::trees::{Comparison, GROUPING, Row};

/// `page` with the block `name` replaced: what lies between the lines `<!-- report: NAME -->` and
/// `<!-- report end -->`.
pub(super) fn fill(page: &str, name: &str, block: &str) -> Result<String> {
    let (open, close) = (format!("<!-- report: {name} -->\n"), "<!-- report end -->");
    let parts = page.split_once(&open).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(close)?;
        Some((before, after))
    });
    ensure!(parts.is_some(), "no block `{name}` to fill");
    let (before, after) = parts.unwrap_or_default();
    Ok(format!("{before}{open}{block}{close}{after}"))
}

/// The result in words.
pub(super) fn summary(comparison: &Comparison) -> String {
    let added = comparison.handicap_us;
    let slower = |added: f64| {
        let rows = comparison
            .rows
            .iter()
            .filter(|row| row.speedup(added) < 1.0);
        let names: Vec<String> = rows
            .map(|row| format!("`{}` at {:.2}x", row.workload, row.speedup(added)))
            .collect();
        if names.is_empty() {
            "no row is slower".to_owned()
        } else {
            format!("slower: {}", names.join(", "))
        }
    };
    format!(
        "{:.2} times as fast as the best peer of each row (geometric mean of {}; {}).\n\
         Through PyTorch's graph replays, as the peers were timed, our kernels take up to {added:.1} us more. With\n\
         that added to every time of ours it is {:.2} times ({}).\n",
        comparison.mean_speedup(0.0),
        comparison.rows.len(),
        slower(0.0),
        comparison.mean_speedup(added),
        slower(added),
    )
}

/// The table of all rows, how DeFT's own kernels compare, and of what commit all that is.
pub(super) fn comparison(comparison: &Comparison) -> String {
    let added = comparison.handicap_us;
    let (deft, rows) = comparison.mean_over_deft(0.0);
    let mut text = comparison_table(comparison).markdown();
    text += &format!(
        "\nDeFT's own kernels have times for {rows} of the rows: {deft:.2} times ours (geometric mean), {:.2} with those\n\
         {added:.1} us added.",
        comparison.mean_over_deft(added).0,
    );
    if let Some(commit) = &comparison.ours.commit {
        text += &format!(" Ours were measured at commit `{commit}`.");
    }
    text + "\n"
}

pub(super) fn comparison_table(comparison: &Comparison) -> Table {
    let added = comparison.handicap_us;
    let with_added = format!("ours + {added:.1}");
    let mut table = Table::new([
        "workload",
        "floor",
        "ours",
        "without merge",
        "KV read",
        "best peer",
        "speedup",
        &with_added,
        "speedup",
        "DeFT",
    ]);
    for row in &comparison.rows {
        table.row([
            row.workload.clone(),
            format!("{:.1}", row.floor_us),
            format!("{:.1}", row.ours_us),
            or_dash(row.partial_us, |us| format!("{us:.1}")),
            format!("{:.2}x", row.reads),
            format!("{:.1}", row.peer_us),
            format!("{:.2}x", row.speedup(0.0)),
            format!("{:.1}", row.ours_us + added),
            format!("{:.2}x", row.speedup(added)),
            or_dash(row.deft_us, |us| format!("{us:.0}")),
        ]);
    }
    let means = [0.0, added].map(|added| format!("{:.2}x", comparison.mean_speedup(added)));
    let [as_measured, with_added] = means;
    table.row([
        "geometric mean",
        "",
        "",
        "",
        "",
        "",
        &as_measured,
        "",
        &with_added,
        "",
    ]);
    table
}

/// The table of groupings, with those that the run has.
pub(super) fn groupings(comparison: &Comparison) -> String {
    groupings_table(comparison).markdown()
}

pub(super) fn groupings_table(comparison: &Comparison) -> Table {
    let mut names: Vec<&str> = Vec::new();
    for row in comparison.rows.iter().flat_map(|row| &row.by_grouping) {
        if !names.contains(&&*row.grouping) {
            names.push(&row.grouping);
        }
    }
    let mut table = Table::new([&["workload"], &names[..]].concat());
    for row in &comparison.rows {
        let cells = names.iter().map(|name| cell(row, name));
        table.row(std::iter::once(row.workload.clone()).chain(cells));
    }
    table
}

/// The time with a grouping, and how it compares with the one that the peers are held against.
fn cell(row: &Row, grouping: &str) -> String {
    or_dash(row.with(grouping), |with| {
        if grouping == GROUPING {
            format!("{:.1}", with.us)
        } else {
            format!("{:.1} ({:.2}x)", with.us, with.us / row.ours_us)
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::trees::example;

    #[test]
    fn a_block_is_replaced_and_the_rest_kept() {
        let page = "a\n<!-- report: x -->\nold\n<!-- report end -->\nb\n";
        let filled = fill(page, "x", "new\n").unwrap();
        assert_eq!(filled, page.replace("old", "new"));
        assert_eq!(fill(&filled, "x", "new\n").unwrap(), filled);
        assert_eq!(
            fill(page, "y", "").unwrap_err().to_string(),
            "no block `y` to fill"
        );
    }

    #[test]
    fn rows_that_are_slower_are_named_and_missing_times_are_dashes() {
        let c = example();
        let text = summary(&c);
        assert!(
            text.contains("2.00 times") && text.contains("no row is slower"),
            "{text}"
        );
        assert!(text.contains("slower: `a` at 0.71x"), "{text}");
        let rows = comparison(&c);
        assert!(
            rows.contains("| b | 5.0 | 20.0 | - | 2.00x | 80.0 | 4.00x | 24.0 | 3.33x | - |"),
            "{rows}"
        );
        let deft =
            "times for 1 of the rows: 4.00 times ours (geometric mean), 2.86 with those\n4.0 us";
        assert!(rows.contains(deft), "{rows}");
        let table = groupings(&c);
        assert!(table.contains("| workload | flatten | node |"), "{table}");
        assert!(
            table.contains("| a | 10.0 | - |") && table.contains("| b | 20.0 | 30.0 (1.50x) |")
        );
    }
}
