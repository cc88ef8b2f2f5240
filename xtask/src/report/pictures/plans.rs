//! What planning takes on the host, by the size of the tree.

use super::super::axis::Scale;
use super::super::figure::{Figure, MARGIN, Sign, Size};
use super::super::suites::Plan;

const HEIGHT: f64 = 260.0;
/// A change of a tree that is drawn.
struct Curve {
    change: &'static str,
    grouping: Option<&'static str>,
    sign: Sign,
    class: &'static str,
    line: &'static str,
    name: &'static str,
}

const CURVES: [Curve; 3] = [
    Curve {
        change: "plan",
        grouping: Some("flatten"),
        sign: Sign::Dot,
        class: "ours",
        line: "ours-line",
        name: "plan from scratch, Flatten",
    },
    Curve {
        change: "view",
        grouping: None,
        sign: Sign::Diamond,
        class: "deft",
        line: "deft-line",
        name: "view of the forest",
    },
    Curve {
        change: "patch-1",
        grouping: Some("flatten"),
        sign: Sign::Triangle,
        class: "peer",
        line: "link",
        name: "patch: one leaf enters a page",
    },
];

/// Draws `rows`, the trees named `tree` of them.
pub(in super::super) fn draw(rows: &[Plan], tree: &str, size: Size) -> Figure {
    let mut figure = Figure::new(
        "plans",
        "Host time of planning",
        format!(
            "Curves on logarithmic axes, microseconds on one core against the nodes of a {tree}: making a plan from scratch, \
             making the view that it is made of, and patching a plan. The table below has the numbers."
        ),
        size,
    );
    let legend = CURVES.map(|curve| (curve.sign, curve.class, curve.name));
    figure.legend(&legend);
    figure.text("small", MARGIN, figure.top + 4.0, "us");
    let top = figure.top + 14.0;
    let bottom = top + HEIGHT;
    let xs = [MARGIN + 40.0, size.width() - MARGIN - 10.0];
    let own: Vec<&Plan> = rows.iter().filter(|row| row.tree == tree).collect();
    let x = Scale::decades(own.iter().map(|row| f64::from(row.nodes)), xs);
    let y = Scale::decades(own.iter().map(|row| row.median_us), [bottom, top]);
    x.draw_x(&mut figure, [top, bottom]);
    y.draw_y(&mut figure, xs);
    for curve in CURVES {
        let rows = own
            .iter()
            .filter(|row| row.change == curve.change && row.grouping.as_deref() == curve.grouping);
        let mut points: Vec<[f64; 2]> = rows
            .map(|row| [x.at(f64::from(row.nodes)), y.at(row.median_us)])
            .collect();
        points.sort_by(|a, b| a[0].total_cmp(&b[0]));
        let steps: Vec<String> = points
            .iter()
            .map(|[x, y]| format!("{x:.1} {y:.1}"))
            .collect();
        if !steps.is_empty() {
            figure.path(curve.line, &format!("M{}", steps.join("L")));
        }
        for at in points {
            figure.sign(curve.sign, curve.class, at);
        }
    }
    figure.text(
        "small middle",
        (xs[0] + xs[1]) / 2.0,
        bottom + 32.0,
        &format!("nodes ({tree})"),
    );
    figure.top = bottom + 46.0;
    figure
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    #[test]
    fn only_changes_that_were_measured_have_a_curve() {
        let row = |nodes, change: &str, grouping: Option<&str>, median_us| Plan {
            tree: "star".to_owned(),
            nodes,
            queries: nodes - 1,
            change: change.to_owned(),
            grouping: grouping.map(str::to_owned),
            median_us,
        };
        let rows = [
            row(17, "plan", Some("flatten"), 3.0),
            row(257, "plan", Some("flatten"), 30.0),
            row(17, "view", None, 1.0),
            row(257, "view", None, 6.0),
            row(257, "plan", Some("node"), 900.0),
        ];
        for size in Size::BOTH {
            let svg = draw(&rows, "star", size).inline();
            check(&svg);
            assert!(
                svg.contains("ours-line") && !svg.contains("class=\"link\""),
                "{svg}"
            );
        }
    }
}
