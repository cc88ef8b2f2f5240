//! Values of things side by side, as boxes that a browser lays out, so that they fit any width.

use std::fmt::Write;

use crate::data::{escape, number, rounded};

/// A line for each thing: bars, or dots on a logarithmic scale, and a marker.
pub(crate) struct Chart<'a> {
    pub(crate) caption: &'a str,
    /// Bars from 0; dots on a logarithmic line otherwise.
    pub(crate) bars: bool,
    /// Classes and meanings of a line's values: `class: meaning; class: meaning`. The class `bound` is the marker.
    pub(crate) key: &'a str,
    pub(crate) lines: Vec<Line>,
}

/// A name, its values, and what stands at the right.
pub(crate) struct Line {
    name: String,
    values: Vec<Option<f64>>,
    right: String,
}

impl Line {
    pub(crate) fn new(
        name: impl Into<String>,
        values: impl Into<Vec<Option<f64>>>,
        right: impl Into<String>,
    ) -> Self {
        let (name, values, right) = (name.into(), values.into(), right.into());
        Self { name, values, right }
    }
}

impl Chart<'_> {
    pub(crate) fn html(&self) -> String {
        let lines = self.lines.iter();
        let values = lines.flat_map(|line| line.values.iter().flatten().copied());
        let (kind, range) = (if self.bars { "chart bars" } else { "chart" }, [0.0, 100.0]);
        let scale = match self.bars {
            true => Scale::linear(values.fold(0.0, f64::max), range),
            false => Scale::logarithmic(values, range),
        };
        let caption = escape(self.caption);
        let mut html = format!(
            "<figure class=\"{kind}\" role=\"group\" aria-label=\"{caption}\">\n<figcaption>{caption}</figcaption>\n\
             <div class=\"key\">"
        );
        let key = escape(self.key);
        let key: Vec<_> = key.split("; ").filter_map(|item| item.split_once(": ")).collect();
        for (class, meaning) in &key {
            html += &format!("<span><i class=\"{class}\"></i>{meaning}</span>");
        }
        html += "</div>\n";
        for line in &self.lines {
            let name = escape(&line.name);
            let _ = write!(html, "<div class=\"line\"><b>{name}</b><div class=\"track\">");
            for ((class, meaning), value) in key.iter().zip(&line.values) {
                let Some(value) = *value else { continue };
                let (dot, place) = match (self.bars, *class) {
                    (_, "bound") => ("", "left"),
                    (true, _) => ("", "width"),
                    (false, _) => ("dot ", "left"),
                };
                let (at, value) = (scale.at(value), rounded(value));
                let _ = write!(
                    html,
                    "<i class=\"{dot}{class}\" style=\"{place}:{at:.1}%\" title=\"{meaning}: {value}\"></i>"
                );
            }
            let _ = writeln!(html, "</div><em>{}</em></div>", escape(&line.right));
        }
        html += "<div class=\"line axis\"><b></b><div class=\"track\">";
        for tick in scale.ticks() {
            let (at, tick) = (scale.at(tick), number(tick));
            let _ = write!(html, "<u style=\"left:{at:.1}%\">{tick}</u>");
        }
        html + "</div><em></em></div>\n</figure>\n"
    }
}

/// From values to places, linear or logarithmic.
#[derive(Clone, Copy)]
pub(crate) struct Scale {
    logarithmic: bool,
    domain: [f64; 2],
    range: [f64; 2],
}

impl Scale {
    /// From 0 to `end`.
    pub(crate) fn linear(end: f64, range: [f64; 2]) -> Self {
        Self { logarithmic: false, domain: [0.0, end.max(f64::MIN_POSITIVE)], range }
    }

    /// Over all of `values` above 0, rounded outwards to 1, 2 or 5 times a power of ten.
    pub(crate) fn logarithmic(values: impl IntoIterator<Item = f64>, range: [f64; 2]) -> Self {
        let values = values.into_iter().filter(|value| *value > 0.0);
        let ends =
            values.fold([f64::INFINITY, 0.0f64], |[a, b], value| [a.min(value), b.max(value)]);
        let [low, high] = if ends[1] > 0.0 { ends } else { [1.0, 10.0] };
        let low = steps().rfind(|step| *step <= low).unwrap_or(low);
        let high = steps().find(|step| *step >= high).unwrap_or(high);
        let domain = if low < high { [low, high] } else { [low, 2.0 * high] };
        Self { logarithmic: true, domain, range }
    }

    pub(crate) fn domain(&self) -> [f64; 2] {
        self.domain
    }

    pub(crate) fn at(&self, value: f64) -> f64 {
        let [low, high] = self.domain;
        let part = match self.logarithmic {
            true => (value / low).ln() / (high / low).ln(),
            false => (value - low) / (high - low),
        };
        self.range[0] + part * (self.range[1] - self.range[0])
    }

    /// Round numbers, about eight; of a logarithmic scale powers of ten, and between those 2 and 5 if there is room.
    pub(crate) fn ticks(&self) -> Vec<f64> {
        let [low, high] = self.domain;
        if !self.logarithmic {
            let step = steps().find(|step| high / step <= 8.0).unwrap_or(high);
            return (0..=(high / step) as u32).map(|i| f64::from(i) * step).collect();
        }
        let few = high / low <= 500.0;
        let is_shown = |tick: &f64| few || (tick.log10() - tick.log10().round()).abs() < 1e-9;
        let within = steps().filter(|tick| (low * 0.999..=high * 1.001).contains(tick));
        within.filter(is_shown).collect()
    }
}

/// 1, 2 and 5 times powers of ten.
fn steps() -> impl DoubleEndedIterator<Item = f64> {
    (-6..12).flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_hold_all_values_and_have_round_ticks() {
        let scale = Scale::linear(151.0, [0.0, 302.0]);
        assert_eq!((scale.ticks()[1], scale.at(151.0)), (20.0, 302.0));
        let scale = Scale::logarithmic([3.0, 0.0, 720.0], [0.0, 100.0]);
        assert_eq!(scale.domain(), [2.0, 1000.0]);
        assert!((scale.at(1000.0) - 100.0).abs() < 1e-9);
        assert_eq!(
            Scale::logarithmic([1.0, 5000.0], [0.0, 1.0]).ticks(),
            [1.0, 10.0, 100.0, 1000.0]
        );
    }
}
