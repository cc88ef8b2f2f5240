//! The bar chart.

use std::fmt::Write;

use super::measurements::{Comparison, Row};

const WIDTH: f64 = 900.0;
/// Where bars begin and where the longest ends.
const PLOT: [f64; 2] = [190.0, 690.0];
/// Right edges of the two columns of speedups.
const COLUMNS: [f64; 2] = [796.0, 884.0];
const TOP: f64 = 92.0;
const ROW: f64 = 34.0;
const BAR: f64 = 11.0;
const TICK_US: f64 = 25.0;

/// Colours follow the reader's setting.
const STYLE: &str = "\
.page{fill:#fff}text{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#1f2328}\
.title{font-size:15px;font-weight:600}.small{font-size:11px;fill:#59636e}.end{text-anchor:end}\
.middle{text-anchor:middle}.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}\
.strong{font-weight:600}.ours{fill:#0a69da}.added{fill:#0a69da;opacity:.35}.peer{fill:#a4adb6}\
.floor{stroke:#d1242f;stroke-width:2}.grid{stroke:#d1d9e0;stroke-width:1}\
@media(prefers-color-scheme:dark){.page{fill:#0d1117}text{fill:#e6edf3}.small{fill:#9198a1}.ours,.added{fill:#4493f8}\
.peer{fill:#6e7681}.floor{stroke:#ff7b72}.grid{stroke:#30363d}}";

/// A bar chart of `comparison`.
pub(super) fn draw(comparison: &Comparison) -> String {
    let added = comparison.handicap_us;
    let bottom = TOP + ROW * comparison.rows.len() as f64;
    let longest = comparison
        .rows
        .iter()
        .map(|row| row.peer_us.max(row.ours_us + added));
    let axis = Axis {
        per_us: (PLOT[1] - PLOT[0]) / longest.fold(1.0, f64::max),
    };
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {}\" role=\"img\" \
         aria-label=\"Microseconds a layer on {} trees: this library, the best of its peers, and the least that \
         memory and tensor cores allow\">\n<style>{STYLE}</style>\n<rect class=\"page\" width=\"100%\" height=\"100%\" rx=\"8\"/>\n",
        bottom + 46.0,
        comparison.rows.len(),
    );
    head(&mut svg, added);
    let mut us = 0.0;
    while us * axis.per_us <= PLOT[1] - PLOT[0] {
        let x = axis.x(us);
        line(&mut svg, "grid", [x, TOP - 4.0], [x, bottom]);
        text(&mut svg, "small middle", x, bottom + 15.0, &format!("{us}"));
        us += TICK_US;
    }
    text(
        &mut svg,
        "small",
        PLOT[0],
        bottom + 34.0,
        "microseconds a layer and decode step, one H100, L2 cold; shorter is better",
    );
    for (i, row) in comparison.rows.iter().enumerate() {
        bars(&mut svg, row, TOP + ROW * i as f64, added, axis);
    }
    let _ = writeln!(svg, "</svg>");
    svg
}

#[derive(Clone, Copy)]
struct Axis {
    per_us: f64,
}

impl Axis {
    fn x(self, us: f64) -> f64 {
        PLOT[0] + us * self.per_us
    }
}

/// Title, legend and column heads.
fn head(svg: &mut String, added: f64) {
    text(
        svg,
        "title",
        16.0,
        24.0,
        "Tree attention: this library and the best of 22 peers",
    );
    let y = 52.0;
    let mut x = 16.0;
    let added = format!("this library + {added:.1} us, the loops' difference");
    for (class, label, width) in [
        ("ours", "this library", 104.0),
        ("added", &*added, 292.0),
        ("peer", "best peer", 92.0),
    ] {
        rect(svg, class, [x, y - 10.0], [12.0, 11.0]);
        text(svg, "", x + 18.0, y, label);
        x += width;
    }
    line(svg, "floor", [x + 6.0, y - 11.0], [x + 6.0, y + 2.0]);
    text(svg, "", x + 14.0, y, "hardware floor");
    text(svg, "small end", COLUMNS[0], 62.0, "speedup,");
    text(svg, "small end", COLUMNS[0], 76.0, "as measured");
    text(svg, "small end", COLUMNS[1], 62.0, "with the");
    text(svg, "small end", COLUMNS[1], 76.0, "difference");
}

/// One workload.
fn bars(svg: &mut String, row: &Row, y: f64, added: f64, axis: Axis) {
    let (first, second) = (y + 4.0, y + 5.0 + BAR);
    text(svg, "mono end", PLOT[0] - 10.0, second + 4.0, &row.workload);
    let width = |us: f64| us * axis.per_us;
    rect(svg, "ours", [axis.x(0.0), first], [width(row.ours_us), BAR]);
    rect(
        svg,
        "added",
        [axis.x(row.ours_us), first],
        [width(added), BAR],
    );
    rect(
        svg,
        "peer",
        [axis.x(0.0), second],
        [width(row.peer_us), BAR],
    );
    let floor = axis.x(row.floor_us);
    line(svg, "floor", [floor, y + 2.0], [floor, second + BAR + 2.0]);
    let label = |us: f64| format!("{us:.1}");
    text(
        svg,
        "small",
        axis.x(row.ours_us + added) + 5.0,
        first + 9.5,
        &label(row.ours_us),
    );
    text(
        svg,
        "small",
        axis.x(row.peer_us) + 5.0,
        second + 9.5,
        &label(row.peer_us),
    );
    let speedup = |added: f64| format!("{:.2}x", row.speedup(added));
    text(svg, "strong end", COLUMNS[0], second + 4.0, &speedup(0.0));
    text(svg, "end", COLUMNS[1], second + 4.0, &speedup(added));
}

fn text(svg: &mut String, class: &str, x: f64, y: f64, text: &str) {
    let _ = writeln!(
        svg,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>"
    );
}

fn rect(svg: &mut String, class: &str, [x, y]: [f64; 2], [width, height]: [f64; 2]) {
    let _ = writeln!(
        svg,
        "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
    );
}

fn line(svg: &mut String, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
    let _ = writeln!(
        svg,
        "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chart::measurements::{OURS, PEERS, REPLAY};

    #[test]
    fn bars_are_as_long_as_the_times() {
        let svg = draw(&Comparison::new(OURS, PEERS, REPLAY).unwrap());
        // 80 us, the longest, take the whole plot: 500 units.
        assert!(
            svg.contains("class=\"peer\" x=\"190.0\"") && svg.contains("width=\"500.0\""),
            "{svg}"
        );
        assert!(
            svg.contains("class=\"ours\" x=\"190.0\" y=\"130.0\" width=\"125.0\""),
            "{svg}"
        );
        assert!(
            svg.contains("class=\"added\" x=\"315.0\" y=\"130.0\" width=\"25.0\""),
            "{svg}"
        );
        assert_eq!(svg.matches("<rect").count(), 1 + 3 + 2 * 3);
    }
}
