//! The 14 trees as pictures: times beside the peers', and rates under the roofs.

use crate::data::rounded;
use crate::figure::{Figure, MARGIN, Scale, WIDTH};
use crate::trees::{Comparison, Tree};

/// GB/s at which a kernel that only streams pages reads.
pub(crate) const STREAM_GB_PER_S: f64 = 3_088.0;
/// TFLOP/s of a good dense 16-bit product.
pub(crate) const TFLOP_PER_S: f64 = 660.0;

const BAR: f64 = 9.0;
/// Three bars, the gaps between them, and the gap to the next tree.
const ROW: f64 = 3.0 * (BAR + 1.0) + 10.0;
const ROOFLINE_HEIGHT: f64 = 340.0;

/// Bars of our time, the best peer's and DeFT's own, tree by tree, with the bound.
pub(crate) fn trees(comparison: &Comparison) -> Figure {
    let added = comparison.added_us;
    let description = format!(
        "Horizontal bars of microseconds for {} trees, with the bound as a red line in each. This library is {:.2} times \
         as fast as the best peer of each row (geometric mean), {:.2} times with the difference of the timing loops added \
         to its times.",
        comparison.rows.len(),
        comparison.mean_speedup(0.0),
        comparison.mean_speedup(added),
    );
    let title = "Attention of one layer: this library, the best of 22 peers, DeFT's own kernels";
    let mut figure = Figure::new("trees", title, &description);
    let with_added = format!("+ {added:.1} us, the loops' difference");
    figure.legend(
        MARGIN,
        [
            ("ours", "this library"),
            ("added", &with_added),
            ("peer", "best peer of the row"),
            ("deft", "DeFT's own kernels"),
            ("bound", "bound of the hardware"),
        ],
    );
    let right = WIDTH - MARGIN;
    figure.text(
        "small end",
        right,
        68.0,
        "times the best peer (with the difference)",
    );
    let top = 78.0;
    let bottom = top + ROW * comparison.rows.len() as f64;
    // DeFT's bars may be much longer: those that leave the plot end in an arrow.
    let longest = comparison
        .rows
        .iter()
        .map(|row| row.peer_us.max(row.us + added));
    let scale = Scale::linear(longest.fold(1.0, f64::max) * 1.02, [190.0, WIDTH - 150.0]);
    figure.draw_x(&scale, [top - 2.0, bottom]);
    for (i, tree) in comparison.rows.iter().enumerate() {
        let y = top + ROW * i as f64;
        let speedups = format!("{:.2}x ({:.2}x)", tree.speedup(0.0), tree.speedup(added));
        figure.text("mono end", 180.0, y + 21.0, &tree.workload);
        figure.text("strong end", right, y + 21.0, &speedups);
        bars(&mut figure, tree, y, added, &scale);
    }
    let note = "microseconds a layer and decode step, L2 cold; shorter is better";
    figure.text("small", MARGIN, bottom + 34.0, note);
    figure.top = bottom + 49.0;
    figure
}

fn bars(figure: &mut Figure, row: &Tree, y: f64, added: f64, scale: &Scale) {
    let (zero, end) = (scale.at(0.0), scale.domain()[1]);
    let bars = [
        ("ours", Some(row.us)),
        ("peer", Some(row.peer_us)),
        ("deft", row.deft_us),
    ];
    for (y, (class, us)) in (0..)
        .map(|bar| y + 4.0 + f64::from(bar) * (BAR + 1.0))
        .zip(bars)
    {
        let Some(us) = us else { continue };
        let mut to = scale.at(us.min(end));
        figure.rect(class, [zero, y], [to - zero, BAR]);
        if class == "ours" {
            let with_added = scale.at(us + added);
            figure.rect("added", [to, y], [with_added - to, BAR]);
            to = with_added;
        }
        if us > end {
            figure.path(class, &format!("M{to:.1} {y:.1}l7 4.5-7 4.5z"));
            to += 6.0;
        }
        figure.text("small", to + 5.0, y + 8.5, &rounded(us));
    }
    let bound = scale.at(row.floor_us);
    figure.line(
        "bound",
        [bound, y + 2.0],
        [bound, y + 2.0 + 3.0 * (BAR + 1.0)],
    );
}

/// Every tree under both roofs: the memory's rate and the tensor cores'.
pub(crate) fn roofline(comparison: &Comparison) -> Figure {
    let rows = &comparison.rows;
    let description = format!(
        "Both axes are logarithmic. Across: floating-point operations a byte of unique KV. Up: TFLOP/s. Two red lines are \
         the roofs of memory and tensor cores; {} numbered points are trees, each joined to the best peer of its row.",
        rows.len()
    );
    let title = "Roofline: achieved rate against the work that a byte of KV asks for";
    let mut figure = Figure::new("roofline", title, &description);
    let roofs = "roofs: 3,088 GB/s, 660 TFLOP/s";
    figure.legend(
        MARGIN,
        [
            ("ours", "this library"),
            ("ring", "best peer of the row"),
            ("bound", roofs),
        ],
    );
    figure.text("small", MARGIN, 68.0, "TFLOP/s");
    let (top, bottom) = (78.0, 78.0 + ROOFLINE_HEIGHT);
    let xs = [MARGIN + 34.0, WIDTH - MARGIN - 14.0];
    let x = Scale::logarithmic(rows.iter().map(Tree::intensity), xs);
    let rates = rows.iter().map(|row| row.tflops(row.peer_us));
    let y = Scale::logarithmic(rates.chain([TFLOP_PER_S * 1.2]), [bottom, top]);
    figure.draw_x(&x, [top, bottom]);
    figure.draw_y(&y, xs);
    let ([low, high], ridge) = (x.domain(), TFLOP_PER_S * 1e3 / STREAM_GB_PER_S);
    let roof = |flop: f64| {
        let tflops = (flop * STREAM_GB_PER_S * 1e-3).min(TFLOP_PER_S);
        [x.at(flop), y.at(tflops)]
    };
    let from = low.max(y.domain()[0] * 1e3 / STREAM_GB_PER_S);
    figure.line("bound", roof(from), roof(ridge.min(high)));
    figure.line("bound", roof(ridge.min(high)), roof(high));
    let place = |row: &Tree, us: f64| [x.at(row.intensity()), y.at(row.tflops(us))];
    let ours: Vec<[f64; 2]> = rows.iter().map(|row| place(row, row.us)).collect();
    let mut taken = ours.clone();
    for (row, &ours) in rows.iter().zip(&ours) {
        let peer = place(row, row.peer_us);
        figure.line("link", peer, ours);
        figure.circle("ring", peer);
        taken.push(peer);
    }
    let along = (0..=100).map(|i| roof(from * (high / from).powf(f64::from(i) / 100.0)));
    taken.extend(along);
    for (i, &at) in ours.iter().enumerate() {
        figure.circle("ours", at);
        let [x, y] = label_place(at, &taken);
        figure.text("strong middle", x, y + 4.0, &(i + 1).to_string());
        taken.push([x, y]);
    }
    let middle = (xs[0] + xs[1]) / 2.0;
    figure.text(
        "small middle",
        middle,
        bottom + 32.0,
        "FLOP a byte of unique KV",
    );
    let (lines, column) = (rows.len().div_ceil(3), (WIDTH - 2.0 * MARGIN) / 3.0);
    for (i, row) in rows.iter().enumerate() {
        let x = MARGIN + column * (i / lines) as f64;
        let y = bottom + 54.0 + 17.0 * (i % lines) as f64;
        let share = format!("{:.0} %", row.floor_us / row.us * 100.0);
        figure.text("small end", x + 16.0, y, &(i + 1).to_string());
        figure.text("mono", x + 24.0, y, &row.workload);
        figure.text("small end", x + column - 20.0, y, &share);
    }
    figure.top = bottom + 62.0 + 17.0 * lines as f64;
    let note = "percent: of the roof that is lower for the tree, reached with the whole time, launch and merge included";
    figure.text("small", MARGIN, figure.top, note);
    figure.top += 15.0;
    figure
}

/// Where the number of a point at `[x, y]` has its middle: as near as it can be without lying upon one of `taken`.
fn label_place([x, y]: [f64; 2], taken: &[[f64; 2]]) -> [f64; 2] {
    // Round and round, ever farther away; first to the upper left, where no line leaves the point.
    let mut turns = (0..120u32).map(|i| {
        let (angle, distance) = (f64::from(i) * 0.7 - 2.4, 12.0 + f64::from(i) * 0.25);
        [x + distance * angle.cos(), y + distance * angle.sin()]
    });
    let far = |a: f64, b: f64, least: f64| (a - b).abs() >= least;
    let is_free = |at: &[f64; 2]| {
        taken
            .iter()
            .all(|t| far(at[0], t[0], 14.0) || far(at[1], t[1], 11.0))
    };
    turns.find(is_free).unwrap_or([x - 12.0, y - 12.0])
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
        let svg = trees(&comparison).file();
        let document = roxmltree::Document::parse(&svg).unwrap();
        let width = |class| -> f64 {
            let mut bars = document
                .descendants()
                .filter(|node| node.attribute("class") == Some(class));
            // The first is the legend's.
            bars.nth(1)
                .unwrap()
                .attribute("width")
                .unwrap()
                .parse()
                .unwrap()
        };
        assert!((width("peer") / width("ours") - 4.0).abs() < 0.01);
        assert!(svg.contains("4,000") && svg.contains("<path class=\"deft\""));
    }

    #[test]
    fn numbers_do_not_lie_upon_points_or_each_other() {
        let mut taken = vec![[5.0, 5.0], [6.0, 5.0], [90.0, 5.0]];
        for point in taken.clone() {
            let place = label_place(point, &taken);
            for other in &taken {
                assert!((place[0] - other[0]).abs() > 8.0 || (place[1] - other[1]).abs() > 8.0);
            }
            taken.push(place);
        }
    }
}
