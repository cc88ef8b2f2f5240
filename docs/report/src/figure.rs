//! Pictures for README.md and docs: SVG of one width, light and dark.

use std::fmt::Write;

use crate::data::{escape, number};

pub(crate) const WIDTH: f64 = 860.0;
pub(crate) const MARGIN: f64 = 12.0;

/// Colours of pictures and page. Whoever reads on dark ground gets the second set.
pub(crate) const COLOURS: &str = "\
:root{--ground:#fff;--panel:#f6f8fa;--ink:#1f2328;--soft:#59636e;--grid:#d1d9e0;--ours:#0969da;--peer:#9aa4ae;\
--deft:#c2570c;--bound:#cf222e;--fixed:#b6bec7;--partial:#d4a72c;\
--q0:#a8ddd0;--q1:#6cc4c4;--q2:#3f9fcf;--q3:#3a72c0;--q4:#4a4aa8;--q5:#5b2a86;--q6:#3c1053}\
@media(prefers-color-scheme:dark){:root{--ground:#0d1117;--panel:#161b22;--ink:#e6edf3;--soft:#9198a1;\
--grid:#30363d;--ours:#4493f8;--peer:#7d8590;--deft:#f0883e;--bound:#ff7b72;--fixed:#4b535d;--partial:#e3b341;\
--q0:#1f5a54;--q1:#2b7d84;--q2:#3a9bc8;--q3:#6cb1f5;--q4:#a5b8ff;--q5:#d0b3ff;--q6:#ffd1f0}}";
/// Classes of a picture's parts.
pub(crate) const PARTS: &str = "\
.fig text{font:12px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:var(--ink)}\
.fig .title{font-size:15px;font-weight:600}.fig .strong{font-weight:600}.fig .small{font-size:11px;fill:var(--soft)}\
.fig .mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,monospace;font-size:11.5px}\
.fig .end{text-anchor:end}.fig .middle{text-anchor:middle}.fig .ground{fill:var(--ground)}\
.fig .grid{stroke:var(--grid)}.fig .link{stroke:var(--peer)}.fig .ours{fill:var(--ours)}\
.fig .added{fill:var(--ours);opacity:.4}.fig .peer{fill:var(--peer)}.fig .deft{fill:var(--deft)}\
.fig .fixed{fill:var(--fixed)}.fig .partial{fill:var(--partial)}.fig .bound{stroke:var(--bound);stroke-width:2}\
.fig .dash{stroke:var(--bound);stroke-width:1.5;stroke-dasharray:5 4}\
.fig .ring{stroke:var(--peer);stroke-width:1.5;fill:var(--ground)}\
.fig .q0{fill:var(--q0)}.fig .q1{fill:var(--q1)}.fig .q2{fill:var(--q2)}.fig .q3{fill:var(--q3)}\
.fig .q4{fill:var(--q4)}.fig .q5{fill:var(--q5)}.fig .q6{fill:var(--q6)}";

/// Least numbers of queries of the colours `q0` and on.
const SHADES: [u32; 7] = [1, 2, 4, 8, 16, 32, 64];

/// The class of something that `sharers` queries read.
pub(crate) fn shade(sharers: u32) -> String {
    let shade = SHADES.iter().rposition(|&from| from <= sharers);
    format!("q{}", shade.unwrap_or(0))
}

/// The classes of [`shade`] up to `most` sharers, and how many sharers each stands for.
pub(crate) fn shades(most: u32) -> Vec<(String, String)> {
    let used = SHADES.iter().enumerate().filter(|(_, from)| **from <= most);
    let range = |(i, &from): (usize, &u32)| {
        let to = SHADES.get(i + 1).map_or(most, |next| (next - 1).min(most));
        let alone = from == to;
        (
            shade(from),
            if alone {
                from.to_string()
            } else {
                format!("{from}–{to}")
            },
        )
    };
    used.map(range).collect()
}

/// A picture in the making.
pub(crate) struct Figure {
    head: String,
    body: String,
    /// Where the next thing may begin, from the top.
    pub(crate) top: f64,
}

impl Figure {
    /// An empty picture under its title; `name` tells it from others of a page, `description` says what is seen.
    pub(crate) fn new(name: &str, title: &str, description: &str) -> Self {
        let (title, description) = (escape(title), escape(description));
        let head = format!(
            " class=\"fig\" role=\"img\" aria-labelledby=\"{name}-title {name}-text\">\n<title id=\"{name}-title\">\
             {title}</title>\n<desc id=\"{name}-text\">{description}</desc>\n"
        );
        let mut figure = Self {
            head,
            body: String::new(),
            top: 42.0,
        };
        figure.text("title", MARGIN, 22.0, &title);
        figure
    }

    pub(crate) fn text(&mut self, class: &str, x: f64, y: f64, text: &str) {
        let text = escape(&text.replace("&amp;", "&"));
        let _ = writeln!(
            self.body,
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{text}</text>"
        );
    }

    pub(crate) fn rect(&mut self, class: &str, [x, y]: [f64; 2], [width, height]: [f64; 2]) {
        let place =
            format!("x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"");
        let _ = writeln!(self.body, "<rect class=\"{class}\" {place}/>");
    }

    pub(crate) fn path(&mut self, class: &str, line: &str) {
        let _ = writeln!(self.body, "<path class=\"{class}\" d=\"{line}\"/>");
    }

    pub(crate) fn line(&mut self, class: &str, [x, y]: [f64; 2], [to_x, to_y]: [f64; 2]) {
        self.path(class, &format!("M{x:.1} {y:.1}L{to_x:.1} {to_y:.1}"));
    }

    pub(crate) fn circle(&mut self, class: &str, [x, y]: [f64; 2]) {
        let _ = writeln!(
            self.body,
            "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4.5\"/>"
        );
    }

    /// Colours and what they mean, on one line from `x`; returns where it ends. A class of lines gets a stroke.
    pub(crate) fn legend<'a>(
        &mut self,
        mut x: f64,
        items: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> f64 {
        let y = self.top + 4.0;
        for (class, text) in items {
            match class {
                "" => x -= 20.0,
                "bound" | "dash" => self.line(class, [x + 6.0, y - 11.0], [x + 6.0, y + 2.0]),
                _ => self.rect(class, [x, y - 9.0], [12.0, 10.0]),
            }
            self.text("", x + 20.0, y, text);
            // About the width of a letter; no browser is asked.
            x += 36.0 + 6.3 * text.chars().count() as f64;
        }
        x
    }

    /// Vertical grid lines of `scale` from `top` to `bottom`, and the ticks' names under them.
    pub(crate) fn draw_x(&mut self, scale: &Scale, [top, bottom]: [f64; 2]) {
        for tick in scale.ticks() {
            let x = scale.at(tick);
            self.line("grid", [x, top], [x, bottom]);
            self.text("small middle", x, bottom + 15.0, &number(tick));
        }
    }

    /// Horizontal ones from `left` to `right`, and names to their left.
    pub(crate) fn draw_y(&mut self, scale: &Scale, [left, right]: [f64; 2]) {
        for tick in scale.ticks() {
            let y = scale.at(tick);
            self.line("grid", [left, y], [right, y]);
            self.text("small end", left - 6.0, y + 4.0, &number(tick));
        }
    }

    /// The picture down to [`Figure::top`], for a page that has the style.
    pub(crate) fn inline(&self) -> String {
        self.document("", "")
    }

    /// The picture as a file.
    pub(crate) fn file(&self) -> String {
        let style = format!("<style>{COLOURS}{PARTS}</style>\n");
        self.document(" xmlns=\"http://www.w3.org/2000/svg\"", &style) + "\n"
    }

    fn document(&self, xmlns: &str, style: &str) -> String {
        let Self { head, body, top } = self;
        let height = top.ceil();
        format!(
            "<svg{xmlns} viewBox=\"0 0 {WIDTH} {height}\"{head}{style}<rect class=\"ground\" width=\"{WIDTH}\" \
             height=\"{height}\" rx=\"8\"/>\n{body}</svg>"
        )
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
        Self {
            logarithmic: false,
            domain: [0.0, end.max(f64::MIN_POSITIVE)],
            range,
        }
    }

    /// Over all of `values` above 0, rounded outwards to 1, 2 or 5 times a power of ten.
    pub(crate) fn logarithmic(values: impl IntoIterator<Item = f64>, range: [f64; 2]) -> Self {
        let values = values.into_iter().filter(|value| *value > 0.0);
        let ends = values.fold([f64::INFINITY, 0.0f64], |[a, b], value| {
            [a.min(value), b.max(value)]
        });
        let [low, high] = if ends[1] > 0.0 { ends } else { [1.0, 10.0] };
        let low = steps().rfind(|step| *step <= low).unwrap_or(low);
        let high = steps().find(|step| *step >= high).unwrap_or(high);
        let domain = if low < high {
            [low, high]
        } else {
            [low, 2.0 * high]
        };
        Self {
            logarithmic: true,
            domain,
            range,
        }
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
            return (0..=(high / step) as u32)
                .map(|i| f64::from(i) * step)
                .collect();
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

    #[test]
    fn shades_cover_every_number_of_sharers_once() {
        let ranges: Vec<String> = shades(20).into_iter().map(|(_, range)| range).collect();
        assert_eq!(ranges, ["1", "2–3", "4–7", "8–15", "16–20"]);
        assert_eq!([7, 8, 900].map(shade), ["q2", "q3", "q6"]);
    }

    #[test]
    fn every_colour_has_a_dark_variant_and_is_used() {
        let (light, dark) = COLOURS.split_once("@media").unwrap();
        let names = |text: &'static str| -> Vec<&str> {
            text.split("--")
                .skip(1)
                .filter_map(|part| Some(part.split_once(':')?.0))
                .collect()
        };
        assert_eq!(names(light), names(dark));
        let used = [PARTS, include_str!("page.css")].concat();
        for name in names(light) {
            assert!(used.contains(&format!("var(--{name})")), "{name}");
        }
    }
}
