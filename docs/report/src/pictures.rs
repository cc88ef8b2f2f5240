//! The 14 trees as SVG: the blocks of docs/figures/trees.svg and roofline.svg. Titles, legends, and the roofline's axes
//! and roofs are the files' own.

use std::fmt::Write;

use crate::chart::Scale;
use crate::data::{number, rounded};
use crate::trees::{Comparison, Tree};

/// GB/s at which a kernel that only streams pages reads.
pub(crate) const STREAM_GB_PER_S: f64 = 3_088.0;
/// TFLOP/s of a good dense 16-bit product.
pub(crate) const TFLOP_PER_S: f64 = 660.0;

/// Three bars of 9, the gaps between them, and the gap to the next tree.
const ROW: f64 = 40.0;

/// Bars of our time, the best peer's and DeFT's own, tree by tree, with the bound.
pub(crate) fn bars(comparison: &Comparison) -> String {
    let (added, rows) = (comparison.added_us, &comparison.rows);
    // DeFT's bars may be much longer: those that leave the plot end in an arrow.
    let longest = rows.iter().map(|row| row.peer_us.max(row.us + added));
    let scale = Scale::linear(longest.fold(1.0, f64::max) * 1.02, [190.0, 710.0]);
    let (top, bottom) = (78.0, 78.0 + ROW * rows.len() as f64);
    let mut svg = String::new();
    for tick in scale.ticks() {
        let x = scale.at(tick);
        let _ = writeln!(svg, "<path class=\"grid\" d=\"M{x:.1} {top}V{bottom}\"/>");
        text(&mut svg, "small middle", [x, bottom + 15.0], &number(tick));
    }
    for (i, row) in rows.iter().enumerate() {
        let y = top + ROW * i as f64;
        let speedups = format!("{:.2}x ({:.2}x)", row.speedup(0.0), row.speedup(added));
        text(&mut svg, "mono end", [180.0, y + 21.0], &row.workload);
        text(&mut svg, "strong end", [848.0, y + 21.0], &speedups);
        let bars = [("ours", Some(row.us)), ("peer", Some(row.peer_us)), ("deft", row.deft_us)];
        for (y, (class, us)) in [4.0, 14.0, 24.0].into_iter().zip(bars) {
            let Some(us) = us else { continue };
            let y = top + ROW * i as f64 + y;
            let mut to = bar(&mut svg, class, y, [0.0, us], &scale);
            if class == "ours" {
                to = bar(&mut svg, "added", y, [us, us + added], &scale);
            }
            text(&mut svg, "small", [to + 5.0, y + 8.5], &rounded(us));
        }
        let x = scale.at(row.floor_us);
        let _ = writeln!(svg, "<path class=\"bound\" d=\"M{x:.1} {:.1}v30\"/>", y + 2.0);
    }
    svg
}

/// A bar of the values `from` to `to`; returns where it ends.
fn bar(svg: &mut String, class: &str, y: f64, [from, to]: [f64; 2], scale: &Scale) -> f64 {
    let end = scale.domain()[1];
    let [left, right] = [from, to.min(end)].map(|us| scale.at(us));
    let width = right - left;
    let _ = writeln!(
        svg,
        "<rect class=\"{class}\" x=\"{left:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"9\"/>"
    );
    if to <= end {
        return right;
    }
    let _ = writeln!(svg, "<path class=\"{class}\" d=\"M{right:.1} {y:.1}l7 4.5-7 4.5z\"/>");
    right + 6.0
}

/// Every tree as a numbered point joined to the best peer of its row, and the list of them.
pub(crate) fn roofline(comparison: &Comparison) -> String {
    let x = Scale::logarithmic([2.0, 1000.0], [46.0, 834.0]);
    let y = Scale::logarithmic([10.0, 1000.0], [418.0, 78.0]);
    let place = |row: &Tree, us| [x.at(row.intensity()), y.at(row.tflops(us))];
    let rows = &comparison.rows;
    let ours: Vec<[f64; 2]> = rows.iter().map(|row| place(row, row.us)).collect();
    let mut svg = String::new();
    for (row, [x, y]) in rows.iter().zip(&ours) {
        let [_, peer] = place(row, row.peer_us);
        let _ = writeln!(
            svg,
            "<path class=\"link\" d=\"M{x:.1} {peer:.1}V{y:.1}\"/>\n\
             <circle class=\"ring\" cx=\"{x:.1}\" cy=\"{peer:.1}\" r=\"4.5\"/>"
        );
    }
    let lines = rows.len().div_ceil(3);
    for (i, (row, &[x, y])) in rows.iter().zip(&ours).enumerate() {
        let _ = writeln!(svg, "<circle class=\"ours\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>");
        // At the left, unless another point is there.
        let is_taken =
            ours.iter().any(|at| (1.0..24.0).contains(&(x - at[0])) && (y - at[1]).abs() < 14.0);
        let (side, at) = if is_taken { ("strong", x + 8.0) } else { ("strong end", x - 8.0) };
        text(&mut svg, side, [at, y + 4.0], &(i + 1).to_string());
        let (left, y) = (12.0 + 278.7 * (i / lines) as f64, 472.0 + 17.0 * (i % lines) as f64);
        let share = format!("{:.0} %", row.floor_us / row.us * 100.0);
        text(&mut svg, "small end", [left + 16.0, y], &(i + 1).to_string());
        text(&mut svg, "mono", [left + 24.0, y], &row.workload);
        text(&mut svg, "small end", [left + 258.7, y], &share);
    }
    svg
}

fn text(svg: &mut String, class: &str, [x, y]: [f64; 2], text: &str) {
    let _ = writeln!(svg, "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_long_as_the_times_and_what_leaves_the_plot_ends_in_an_arrow() {
        let mut comparison = Comparison::read().unwrap();
        comparison.rows.truncate(1);
        let row = &mut comparison.rows[0];
        (row.us, row.peer_us, row.deft_us) = (10.0, 40.0, Some(4_000.0));
        let svg = format!("<svg>{}</svg>", bars(&comparison));
        let document = roxmltree::Document::parse(&svg).unwrap();
        let width = |class| -> f64 {
            let mut nodes = document.descendants();
            let bar = nodes.find(|node| node.attribute("class") == Some(class));
            bar.unwrap().attribute("width").unwrap().parse().unwrap()
        };
        assert!((width("peer") / width("ours") - 4.0).abs() < 0.01);
        assert!(svg.contains("4,000") && svg.contains("<path class=\"deft\""));
    }

    #[test]
    fn the_rooflines_axes_hold_every_point() {
        for row in Comparison::read().unwrap().rows {
            let rates = [row.us, row.peer_us].map(|us| row.tflops(us));
            let held = rates.iter().all(|rate| (10.0..=1000.0).contains(rate));
            assert!(held && (2.0..=1000.0).contains(&row.intensity()), "{}", row.workload);
        }
    }
}
