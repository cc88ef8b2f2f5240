//! Every tree under both roofs: the memory's rate and the tensor cores'.

use super::super::axis::Scale;
use super::super::figure::{Figure, MARGIN, Sign, Size};
use super::super::trees::{Comparison, Row};

/// GB/s at which a kernel that only streams pages reads.
pub(in super::super) const STREAM_GB_PER_S: f64 = 3_088.0;
/// TFLOP/s of a good dense 16-bit product.
pub(in super::super) const TFLOP_PER_S: f64 = 660.0;

const HEIGHT: f64 = 340.0;
/// Radius of a point.
const POINT: f64 = 4.5;
/// Least distance from a point's middle to its number's.
const LABEL: f64 = 12.0;

/// Draws `comparison`.
pub(in super::super) fn draw(comparison: &Comparison, size: Size) -> Figure {
    let mut figure = Figure::new(
        "roofline",
        "Roofline: achieved rate against the work that a byte of KV asks for",
        format!(
            "Both axes are logarithmic. Across: floating-point operations a byte of unique KV. Up: TFLOP/s. Two red lines \
             are the roofs of memory and tensor cores; {} numbered points are trees, each joined to the best peer of its \
             row. The table below has the numbers.",
            comparison.rows.len()
        ),
        size,
    );
    figure.legend(&[
        (Sign::Dot, "ours", "this library"),
        (Sign::Dot, "peer-ring", "best peer of the row"),
        (Sign::Line, "bound", "roofs: 3,088 GB/s, 660 TFLOP/s"),
    ]);
    figure.text("small", MARGIN, figure.top + 4.0, "TFLOP/s");
    let top = figure.top + 14.0;
    let bottom = top + HEIGHT;
    let xs = [MARGIN + 34.0, size.width() - MARGIN - 14.0];
    let intensities = comparison.rows.iter().map(Row::intensity);
    let x = Scale::decades(intensities, xs);
    let rates = comparison.rows.iter().map(|row| row.tflops(row.peer_us));
    let y = Scale::decades(rates.chain([TFLOP_PER_S * 1.2]), [bottom, top]);
    x.draw_x(&mut figure, [top, bottom]);
    y.draw_y(&mut figure, xs);
    let along = roofs(&mut figure, &x, &y);
    let place = |row: &Row, us: f64| [x.at(row.intensity()), y.at(row.tflops(us))];
    let rows = || comparison.rows.iter();
    let ours: Vec<[f64; 2]> = rows().map(|row| place(row, row.ours_us)).collect();
    let peers: Vec<[f64; 2]> = rows().map(|row| place(row, row.peer_us)).collect();
    for (&ours, &peer) in ours.iter().zip(&peers) {
        figure.line("link", peer, ours);
        figure.circle("peer-ring", peer, 3.5);
    }
    for &at in &ours {
        figure.circle("ours", at, POINT);
    }
    for (i, [x, y]) in label_places(&ours, &[peers, along].concat())
        .into_iter()
        .enumerate()
    {
        figure.text("strong middle", x, y + 4.0, &(i + 1).to_string());
    }
    figure.text(
        "small middle",
        (xs[0] + xs[1]) / 2.0,
        bottom + 32.0,
        "FLOP a byte of unique KV",
    );
    figure.top = bottom + 54.0;
    names(&mut figure, comparison);
    figure
}

/// Draws both roofs and returns points along them.
fn roofs(figure: &mut Figure, x: &Scale, y: &Scale) -> Vec<[f64; 2]> {
    let [low, high] = x.domain();
    let ridge = TFLOP_PER_S * 1e3 / STREAM_GB_PER_S;
    let at = |flop: f64| {
        let tflops = (flop * STREAM_GB_PER_S * 1e-3).min(TFLOP_PER_S);
        [x.at(flop), y.at(tflops)]
    };
    let from = low.max(y.domain()[0] * 1e3 / STREAM_GB_PER_S);
    figure.line("bound", at(from), at(ridge.min(high)));
    if ridge < high {
        figure.line("bound", at(ridge), at(high));
    }
    let steps = (0..=100).map(|i| from * (high / from).powf(f64::from(i) / 100.0));
    steps.map(at).collect()
}

/// Where the number of each of `points` has its middle: as near as it can be without lying upon a point, one of
/// `others`, or another number.
fn label_places(points: &[[f64; 2]], others: &[[f64; 2]]) -> Vec<[f64; 2]> {
    let mut places: Vec<[f64; 2]> = Vec::with_capacity(points.len());
    let marks: Vec<[f64; 2]> = [points, others].concat();
    let far = |a: [f64; 2], b: [f64; 2], [x, y]: [f64; 2]| {
        (a[0] - b[0]).abs() >= x || (a[1] - b[1]).abs() >= y
    };
    for &[x, y] in points {
        // Round and round, ever farther away; first to the upper left, where no line leaves the point.
        let turns = (0..120u32).map(|i| {
            let angle = f64::from(i) * 0.7 - 2.4;
            let distance = LABEL + f64::from(i) * 0.25;
            [x + distance * angle.cos(), y + distance * angle.sin()]
        });
        let free = |place: &[f64; 2]| {
            let from_numbers = places.iter().all(|&other| far(*place, other, [17.0, 12.0]));
            from_numbers && marks.iter().all(|&mark| far(*place, mark, [11.0, 9.0]))
        };
        let nearest = [x - LABEL, y - LABEL];
        let place = turns.into_iter().find(free).unwrap_or(nearest);
        places.push(place);
    }
    places
}

/// Numbers and names, in columns.
fn names(figure: &mut Figure, comparison: &Comparison) {
    let columns = if figure.size().is_narrow() { 1 } else { 3 };
    let rows = comparison.rows.len().div_ceil(columns);
    let width = (figure.width() - 2.0 * MARGIN) / columns as f64;
    for (i, row) in comparison.rows.iter().enumerate() {
        let x = MARGIN + width * (i / rows) as f64;
        let y = figure.top + 17.0 * (i % rows) as f64;
        let share = row.floor_us / row.ours_us * 100.0;
        figure.text("small end", x + 16.0, y, &(i + 1).to_string());
        figure.text("mono", x + 24.0, y, &row.workload);
        figure.text("small end", x + width - 20.0, y, &format!("{share:.0} %"));
    }
    figure.top += 17.0 * rows as f64 + 4.0;
    figure.note("percent: of the roof that is lower for the tree, reached with the whole time, launch and merge included");
}

#[cfg(test)]
mod tests {
    use super::super::super::trees;
    use super::super::check;
    use super::*;

    #[test]
    fn points_lie_below_the_roofs_and_their_numbers_not_upon_each_other() {
        let mut comparison = trees::example();
        // Both at the same place.
        comparison.rows[1].ours_us = comparison.rows[0].ours_us;
        for size in Size::BOTH {
            check(&draw(&comparison, size).inline());
        }
        let points = [[5.0, 5.0], [5.0, 5.0], [6.0, 5.0], [90.0, 5.0]];
        let places = label_places(&points, &[[90.0, 20.0]]);
        for (i, a) in places.iter().enumerate() {
            for b in places[..i].iter().chain(&points) {
                assert!((a[0] - b[0]).abs() > 8.0 || (a[1] - b[1]).abs() > 8.0);
            }
        }
    }
}
