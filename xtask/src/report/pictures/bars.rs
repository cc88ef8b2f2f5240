//! Our times beside the best peer's, DeFT's own and the bound, tree by tree.

use super::super::axis::{Scale, rounded};
use super::super::figure::{Figure, MARGIN, Sign, Size};
use super::super::trees::{Comparison, Row};

const BAR: f64 = 9.0;
/// Three bars, the gaps between them, and the gap to the next tree.
const ROW: f64 = 3.0 * (BAR + 1.0) + 10.0;
/// Height of a tree's name where it is above its bars.
const NAME: f64 = 16.0;

/// Draws `comparison`.
pub(in super::super) fn draw(comparison: &Comparison, size: Size) -> Figure {
    let added = comparison.handicap_us;
    let mut figure = Figure::new(
        "trees",
        "Attention of one layer: this library, the best of 22 peers, DeFT's own kernels",
        format!(
            "Horizontal bars of microseconds for {} trees, with the bound as a red line in each. This library is {:.2} \
             times as fast as the best peer of each row (geometric mean), {:.2} times with the difference of the \
             timing loops added to its times.",
            comparison.rows.len(),
            comparison.mean_speedup(0.0),
            comparison.mean_speedup(added),
        ),
        size,
    );
    let with_added = format!("+ {added:.1} us, the timing loops' difference");
    figure.legend(&[
        (Sign::Box, "ours", "this library"),
        (Sign::Box, "added", &with_added),
        (Sign::Box, "peer", "best peer of the row"),
        (Sign::Box, "deft", "DeFT's own kernels"),
        (Sign::Tick, "bound", "bound of the hardware"),
    ]);
    let narrow = size.is_narrow();
    if !narrow {
        figure.text(
            "small end",
            figure.width() - MARGIN,
            figure.top + 2.0,
            "times the best peer (with the difference)",
        );
    }
    let top = figure.top + 12.0;
    let row = if narrow { ROW + NAME } else { ROW };
    let bottom = top + row * comparison.rows.len() as f64;
    let range = if narrow {
        [MARGIN, size.width() - 44.0]
    } else {
        [190.0, size.width() - 150.0]
    };
    // DeFT's bars may be much longer: those that leave the plot end in an arrow.
    let longest = comparison
        .rows
        .iter()
        .map(|row| row.peer_us.max(row.ours_us + added));
    let scale = Scale::linear(longest.fold(1.0, f64::max) * 1.02, range);
    scale.draw_x(&mut figure, [top - 2.0, bottom]);
    for (i, tree) in comparison.rows.iter().enumerate() {
        let y = top + row * i as f64;
        let speedups = format!("{:.2}x ({:.2}x)", tree.speedup(0.0), tree.speedup(added));
        let right = figure.width() - MARGIN;
        if narrow {
            figure.text("mono", MARGIN, y + 12.0, &tree.workload);
            figure.text("strong end", right, y + 12.0, &speedups);
            group(&mut figure, tree, y + NAME, added, &scale);
        } else {
            figure.text("mono end", range[0] - 10.0, y + 21.0, &tree.workload);
            figure.text("strong end", right, y + 21.0, &speedups);
            group(&mut figure, tree, y, added, &scale);
        }
    }
    figure.top = bottom + 34.0;
    figure.note("microseconds a layer and decode step, L2 cold; shorter is better");
    if narrow {
        figure.note(
            "right: times as fast as the best peer (in brackets with the loops' difference added)",
        );
    }
    figure
}

/// The bars of one tree.
fn group(figure: &mut Figure, row: &Row, y: f64, added: f64, scale: &Scale) {
    let zero = scale.at(0.0);
    let [_, end] = scale.domain();
    let places = [0, 1, 2].map(|bar| y + 4.0 + f64::from(bar) * (BAR + 1.0));
    let ours = scale.at(row.ours_us);
    figure.rect("ours", [zero, places[0]], [ours - zero, BAR]);
    figure.rect(
        "added",
        [ours, places[0]],
        [scale.at(row.ours_us + added) - ours, BAR],
    );
    figure.text(
        "small",
        scale.at(row.ours_us + added) + 5.0,
        places[0] + 8.5,
        &rounded(row.ours_us),
    );
    figure.rect(
        "peer",
        [zero, places[1]],
        [scale.at(row.peer_us) - zero, BAR],
    );
    figure.text(
        "small",
        scale.at(row.peer_us) + 5.0,
        places[1] + 8.5,
        &rounded(row.peer_us),
    );
    if let Some(deft) = row.deft_us {
        let to = scale.at(deft.min(end));
        figure.rect("deft", [zero, places[2]], [to - zero, BAR]);
        let mut label = to + 5.0;
        if deft > end {
            let y = places[2];
            figure.path(
                "deft",
                &format!("M{to:.1} {y:.1}l7 {}-7 {}z", BAR / 2.0, BAR / 2.0),
            );
            label += 6.0;
        }
        figure.text("small", label, places[2] + 8.5, &rounded(deft));
    }
    let bound = scale.at(row.floor_us);
    figure.line("bound", [bound, y + 2.0], [bound, places[2] + BAR + 2.0]);
}

#[cfg(test)]
mod tests {
    use super::super::super::trees;
    use super::super::check;
    use super::*;

    #[test]
    fn bars_are_as_long_as_the_times() {
        let comparison = trees::example();
        let svg = draw(&comparison, Size::Wide).inline();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let lengths = |class: &str| -> Vec<f64> {
            let bars = document
                .descendants()
                .filter(|node| node.attribute("class") == Some(class));
            // The first is the legend's.
            bars.skip(1)
                .map(|bar| bar.attribute("width").unwrap().parse().unwrap())
                .collect()
        };
        let (ours, peer, deft) = (lengths("ours"), lengths("peer"), lengths("deft"));
        assert!((peer[1] / ours[1] - 4.0).abs() < 0.01 && (peer[0] / ours[0] - 1.0).abs() < 0.01);
        assert!((deft[0] / ours[0] - 4.0).abs() < 0.01 && deft.len() == 1);
    }

    #[test]
    fn what_is_longer_than_the_plot_ends_in_an_arrow_and_says_how_long_it_is() {
        let mut comparison = trees::example();
        comparison.rows[0].deft_us = Some(4_000.0);
        for size in Size::BOTH {
            let svg = draw(&comparison, size).inline();
            check(&svg);
            assert!(
                svg.contains("4,000") && svg.contains("<path class=\"deft\""),
                "{svg}"
            );
        }
    }
}
