//! Bytes on a logarithmic line, a row for each workload: what there is, what is read, what would be.

use super::super::axis::Scale;
use super::super::figure::{Figure, MARGIN, Sign, Size};

const ROW: f64 = 24.0;
/// Height of a name above its row.
const NAME: f64 = 16.0;

/// A kind of mark.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Mark {
    pub(in super::super) sign: Sign,
    pub(in super::super) class: &'static str,
    pub(in super::super) label: &'static str,
}

/// One workload: its name, a value for each kind of mark, and what is written at the right.
#[derive(Clone, Debug)]
pub(in super::super) struct Line {
    pub(in super::super) name: String,
    pub(in super::super) values: Vec<Option<f64>>,
    pub(in super::super) right: String,
}

/// What the picture says around its marks.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Words<'a> {
    pub(in super::super) name: &'static str,
    pub(in super::super) title: &'a str,
    pub(in super::super) description: &'a str,
    /// Name and unit of the axis.
    pub(in super::super) axis: &'a str,
    /// What the column at the right is.
    pub(in super::super) right: &'a str,
}

/// Draws `lines`, whose values are marked by `marks`.
pub(in super::super) fn draw(
    words: Words<'_>,
    marks: &[Mark],
    lines: &[Line],
    size: Size,
) -> Figure {
    let mut figure = Figure::new(words.name, words.title, words.description.to_owned(), size);
    let legend: Vec<_> = marks
        .iter()
        .map(|mark| (mark.sign, mark.class, mark.label))
        .collect();
    figure.legend(&legend);
    figure.text("small end", size.width() - MARGIN, figure.top, words.right);
    let narrow = size.is_narrow();
    let top = figure.top + 10.0;
    let row = if narrow { ROW + NAME } else { ROW };
    let bottom = top + row * lines.len() as f64;
    let range = if narrow {
        [MARGIN + 14.0, size.width() - MARGIN - 14.0]
    } else {
        [200.0, size.width() - 90.0]
    };
    let values = lines
        .iter()
        .flat_map(|line| line.values.iter().flatten().copied());
    let scale = Scale::decades(values, range);
    scale.draw_x(&mut figure, [top, bottom]);
    for (i, line) in lines.iter().enumerate() {
        let y = top + row * i as f64;
        let (text, middle) = if narrow {
            (y + 13.0, y + NAME + ROW / 2.0)
        } else {
            (y + ROW / 2.0 + 4.0, y + ROW / 2.0)
        };
        let (class, x) = if narrow {
            ("mono", MARGIN)
        } else {
            ("mono end", range[0] - 18.0)
        };
        figure.text(class, x, text, &line.name);
        figure.text("strong end", size.width() - MARGIN, text, &line.right);
        marks_of(&mut figure, line, marks, &scale, middle);
    }
    figure.text(
        "small middle",
        (range[0] + range[1]) / 2.0,
        bottom + 32.0,
        words.axis,
    );
    figure.top = bottom + 44.0;
    figure
}

fn marks_of(figure: &mut Figure, line: &Line, marks: &[Mark], scale: &Scale, y: f64) {
    let places = line
        .values
        .iter()
        .map(|value| value.filter(|v| *v > 0.0).map(|v| scale.at(v)));
    let places: Vec<Option<f64>> = places.collect();
    let known = || places.iter().flatten().copied();
    let (low, high) = (
        known().fold(f64::INFINITY, f64::min),
        known().fold(0.0, f64::max),
    );
    if low < high {
        figure.line("link", [low, y], [high, y]);
    }
    for (mark, place) in marks.iter().zip(&places) {
        if let Some(x) = place {
            figure.sign(mark.sign, mark.class, [*x, y]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    #[test]
    fn a_value_that_is_missing_has_no_mark() {
        let words = Words {
            name: "io",
            title: "Bytes",
            description: "d",
            axis: "MB",
            right: "less",
        };
        let mark = |class| Mark {
            sign: Sign::Dot,
            class,
            label: "a mark",
        };
        let lines = [(Some(3.0), None), (Some(2.0), Some(700.0))].map(|(a, b)| Line {
            name: "some_workload".to_owned(),
            values: vec![a, b],
            right: "50.0 %".to_owned(),
        });
        for size in Size::BOTH {
            let svg = draw(words, &[mark("ours"), mark("deft")], &lines, size).inline();
            check(&svg);
            // One of each is the legend's.
            assert_eq!(
                (
                    svg.matches("\"ours\"").count(),
                    svg.matches("\"deft\"").count()
                ),
                (3, 2)
            );
        }
    }
}
