//! What the page says, section by section. What was not measured has no section.

mod suites;
mod trees;

use super::Data;
use super::page::{Section, Tile};

/// Numbers for the head of the page.
pub(super) fn tiles(data: &Data) -> Vec<Tile> {
    let comparison = &data.comparison;
    let added = comparison.handicap_us;
    let (over_deft, rows) = comparison.mean_over_deft(added);
    let shares = comparison.rows.iter().map(|row| row.floor_us / row.ours_us);
    let best = shares.fold(0.0, f64::max);
    let less = comparison
        .rows
        .iter()
        .filter_map(trees::reduction)
        .fold(0.0, f64::max);
    vec![
        Tile {
            number: format!("{:.2}x", comparison.mean_speedup(added)),
            what: format!(
                "as fast as the best of 22 peers on each of {} trees (geometric mean, {added:.1} us added to ours for the timing loops' difference)",
                comparison.rows.len()
            ),
        },
        Tile {
            number: format!("{over_deft:.2}x"),
            what: format!("as fast as DeFT's own kernels ({rows} trees, the same way)"),
        },
        Tile {
            number: format!("{:.0} %", best * 100.0),
            what: "of the hardware's bound on the tree that comes closest to it".to_owned(),
        },
        Tile {
            number: format!("{less:.1} %"),
            what: "less is read than if every query reads its own path, on the tree where that saves most"
                .to_owned(),
        },
    ]
}

/// All that there are data for.
pub(super) fn sections(data: &Data) -> Vec<Section> {
    let mut sections = trees::sections(data);
    sections.extend(suites::sections(data));
    sections
}
