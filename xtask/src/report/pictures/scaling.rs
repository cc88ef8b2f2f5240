//! Time against the number of queries, the length of the context, and the number of trees.

use super::super::axis::Scale;
use super::super::figure::{Figure, MARGIN, Sign, Size};
use super::super::suites::Scaling;

const HEIGHT: f64 = 230.0;
/// What is varied, and the axis' name.
pub(in super::super) const PANELS: [(&str, &str); 3] = [
    ("queries", "queries"),
    ("context", "tokens of context"),
    ("trees", "trees"),
];

/// Draws `rows`, a panel for each thing that is varied.
pub(in super::super) fn draw(rows: &[Scaling], size: Size) -> Figure {
    let mut figure = Figure::new(
        "scaling",
        "Time against the number of queries, the context and the number of trees",
        "Curves on logarithmic axes, microseconds of one layer's attention against what is varied: Flatten, PerQuery, and \
         the bound of the hardware as a dashed line. The table below has the numbers."
            .to_owned(),
        size,
    );
    figure.legend(&[
        (Sign::Dot, "ours", "Flatten"),
        (
            Sign::Diamond,
            "deft",
            "PerQuery: a shared prefix is read once a query",
        ),
        (Sign::Line, "bound-dash", "bound of the hardware"),
    ]);
    let panels: Vec<_> = PANELS
        .into_iter()
        .filter(|(name, _)| rows.iter().any(|row| row.workload == *name))
        .collect();
    let times = rows.iter().flat_map(|row| [row.median_us, row.floor_us]);
    let times: Vec<f64> = times.filter(|us| *us > 0.0).collect();
    let columns = if size.is_narrow() {
        1
    } else {
        panels.len().max(1)
    };
    let width = (size.width() - MARGIN) / columns as f64;
    let first = figure.top;
    for (i, (name, axis)) in panels.iter().enumerate() {
        let (column, line) = (i % columns, i / columns);
        let left = width * column as f64;
        let top = first + 22.0 + (HEIGHT + 66.0) * line as f64;
        let bottom = top + HEIGHT;
        let xs = [left + MARGIN + 40.0, left + width - 12.0];
        let own: Vec<&Scaling> = rows.iter().filter(|row| row.workload == *name).collect();
        let x = Scale::octaves(own.iter().map(|row| f64::from(row.varied())), xs);
        let y = Scale::decades(times.iter().copied(), [bottom, top]);
        figure.text("small", left + MARGIN, top - 10.0, "us a layer");
        x.draw_x(&mut figure, [top, bottom]);
        y.draw_y(&mut figure, xs);
        curves(&mut figure, &own, &x, &y);
        figure.text("small middle", (xs[0] + xs[1]) / 2.0, bottom + 32.0, axis);
        figure.top = bottom + 46.0;
    }
    figure
}

fn curves(figure: &mut Figure, rows: &[&Scaling], x: &Scale, y: &Scale) {
    let curve = |grouping: &str, us: fn(&Scaling) -> f64| {
        let own = rows.iter().filter(|row| row.grouping == grouping);
        let mut points: Vec<[f64; 2]> = own
            .map(|row| [x.at(f64::from(row.varied())), y.at(us(row))])
            .collect();
        points.sort_by(|a, b| a[0].total_cmp(&b[0]));
        points
    };
    let mut line = |class: &str, points: &[[f64; 2]]| {
        let steps: Vec<String> = points
            .iter()
            .map(|[x, y]| format!("{x:.1} {y:.1}"))
            .collect();
        if !steps.is_empty() {
            figure.path(class, &format!("M{}", steps.join("L")));
        }
    };
    let (ours, each) = (
        curve("flatten", |row| row.median_us),
        curve("per-query", |row| row.median_us),
    );
    line("bound-dash", &curve("flatten", |row| row.floor_us));
    line("deft-line", &each);
    line("ours-line", &ours);
    for &at in &each {
        figure.sign(Sign::Diamond, "deft", at);
    }
    for &at in &ours {
        figure.circle("ours", at, 3.5);
    }
}

/// Rows for tests: all three panels.
#[cfg(test)]
pub(in super::super) fn example() -> Vec<Scaling> {
    let row = |workload: &str, grouping: &str, varied: u32, us: f64| Scaling {
        workload: workload.to_owned(),
        grouping: grouping.to_owned(),
        queries: varied,
        context: varied,
        trees: varied,
        median_us: us,
        floor_us: us / 2.0,
        bytes_unique: 1_000_000,
        bytes_issued: 3_000_000,
    };
    let mut rows = Vec::new();
    for (workload, _) in PANELS {
        for power in 0..13 {
            let varied = 1u32 << power;
            let us = 10.0 + f64::from(varied);
            rows.push(row(workload, "flatten", varied, us));
            rows.push(row(workload, "per-query", varied, 3.0 * us));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    #[test]
    fn there_is_a_panel_for_each_thing_that_was_varied() {
        for size in Size::BOTH {
            let mut rows = example();
            let all = draw(&rows, size).inline();
            check(&all);
            assert_eq!(all.matches("class=\"ours-line\"").count(), 3);
            rows.retain(|row| row.workload == "trees");
            let one = draw(&rows, size).inline();
            check(&one);
            assert_eq!(one.matches("class=\"ours-line\"").count(), 1);
        }
    }
}
