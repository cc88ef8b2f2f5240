//! Sentences and tables with the numbers.

use anyhow::{Result, ensure};

use super::measurements::{Comparison, GROUPING, Row};

/// `page` with the block `name` replaced: what lies between the lines `<!-- chart: NAME -->` and
/// `<!-- chart end -->`.
pub(super) fn fill(page: &str, name: &str, block: &str) -> Result<String> {
    let (open, close) = (format!("<!-- chart: {name} -->\n"), "<!-- chart end -->");
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

/// The table of all rows.
pub(super) fn comparison(comparison: &Comparison) -> String {
    let added = comparison.handicap_us;
    let mut table = format!(
        "| workload | floor | ours | without merge | KV read | best peer | speedup | ours + {added:.1} | speedup |\n\
         |---|---|---|---|---|---|---|---|---|\n"
    );
    for row in &comparison.rows {
        let partial = row
            .partial_us
            .map_or("-".to_owned(), |us| format!("{us:.1}"));
        table += &format!(
            "| {} | {:.1} | {:.1} | {partial} | {:.2}x | {:.1} | {:.2}x | {:.1} | {:.2}x |\n",
            row.workload,
            row.floor_us,
            row.ours_us,
            row.reads,
            row.peer_us,
            row.speedup(0.0),
            row.ours_us + added,
            row.speedup(added),
        );
    }
    table += &format!(
        "| geometric mean | | | | | | {:.2}x | | {:.2}x |\n\nMeasured at commit `{}`.\n",
        comparison.mean_speedup(0.0),
        comparison.mean_speedup(added),
        comparison.commit,
    );
    table
}

/// The table of groupings, with those that the run has.
pub(super) fn groupings(comparison: &Comparison) -> String {
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in comparison.rows.iter().flat_map(|row| &row.by_grouping) {
        if !names.contains(&&**name) {
            names.push(name);
        }
    }
    let mut table = format!(
        "| workload | {} |\n|---|{}\n",
        names.join(" | "),
        "---|".repeat(names.len())
    );
    for row in &comparison.rows {
        let cells: Vec<String> = names.iter().map(|name| cell(row, name)).collect();
        table += &format!("| {} | {} |\n", row.workload, cells.join(" | "));
    }
    table
}

/// The time with a grouping, and how it compares with the one that the peers are held against.
fn cell(row: &Row, grouping: &str) -> String {
    match row.by_grouping.iter().find(|(name, _)| name == grouping) {
        None => "-".to_owned(),
        Some((_, us)) if grouping == GROUPING => format!("{us:.1}"),
        Some((_, us)) => format!("{us:.1} ({:.2}x)", us / row.ours_us),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::measurements::{OURS, PEERS, REPLAY};

    #[test]
    fn a_block_is_replaced_and_the_rest_kept() {
        let page = "a\n<!-- chart: x -->\nold\n<!-- chart end -->\nb\n";
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
        let c = Comparison::new(OURS, PEERS, REPLAY).unwrap();
        let text = summary(&c);
        assert!(
            text.contains("2.00 times") && text.contains("no row is slower"),
            "{text}"
        );
        assert!(text.contains("slower: `a` at 0.71x"), "{text}");
        let rows = comparison(&c);
        assert!(
            rows.contains("| b | 5.0 | 20.0 | - | 2.00x | 80.0 | 4.00x | 24.0 | 3.33x |"),
            "{rows}"
        );
        let table = groupings(&c);
        assert!(table.contains("| workload | flatten | node |"), "{table}");
        assert!(
            table.contains("| a | 10.0 | - |") && table.contains("| b | 20.0 | 30.0 (1.50x) |")
        );
    }
}
