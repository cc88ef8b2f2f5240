//! A timeline as an SVG: a bar a node, from left to right.

use svg::Document;
use svg::node::element::{Description, Group, Path, Rectangle, Style, Text, Title};

use super::legend;
use super::report::grouped;
use super::timeline::{Axis, Row, Span, Timeline};
use crate::style;

const WIDTH: f64 = 1000.0;
pub(super) const LEFT: f64 = 64.0;
const RIGHT: f64 = 24.0;
/// Title, subtitle and two lines of legend are above the bars; ticks and the axis' name below.
const TOP: f64 = 112.0;
const BOTTOM: f64 = 56.0;
/// Height of all bars together, as far as a bar's own limits allow.
const BARS: f64 = 900.0;
const ROW: std::ops::RangeInclusive<f64> = 4.0..=20.0;
/// Least height of a row that has its number written beside it.
const LABELLED: f64 = 8.5;
/// What this picture has besides the others' parts.
const STYLE: &str = "\
.fig .number{font-size:8px}.fig .idle{fill:var(--fixed)}.fig .gone{stroke:var(--bound);stroke-width:1.5;fill:none}\
.fig .open{fill:var(--soft)}.fig .sampled{fill:var(--deft)}";

/// What is written above the bars.
#[derive(Clone, Debug)]
pub(crate) struct Caption {
    pub(crate) title: String,
    pub(crate) subtitle: String,
    /// Steps that attention was run on, from 0.
    pub(crate) sampled: Vec<u32>,
}

/// Draws `timeline`.
pub(crate) fn draw(timeline: &Timeline, caption: &Caption) -> String {
    let frame = Frame::of(timeline);
    let unit = frame.unit();
    let text = format!(
        "Each bar is a node of the tree, from its first {unit} to its last; darker (on dark ground, \
         lighter) colours mean that more queries share it. {}",
        caption.subtitle
    );
    let document = Document::new()
        .set("viewBox", (0.0, 0.0, WIDTH, frame.height()))
        .set("class", "fig")
        .set("role", "img")
        .set("aria-labelledby", "title description")
        .add(Title::new(caption.title.as_str()).set("id", "title"))
        .add(
            Description::new()
                .set("id", "description")
                .add(svg::node::Text::new(text)),
        )
        .add(Style::new(style::picture() + STYLE))
        .add(rectangle("ground", (0.0, 0.0), (WIDTH, frame.height())))
        .add(label(LEFT, 26.0, &caption.title, "title"))
        .add(label(LEFT, 46.0, &caption.subtitle, ""))
        .add(legend::legend(timeline, caption))
        .add(frame.axes(timeline))
        .add(frame.links(timeline));
    let rows = timeline.rows.iter().enumerate();
    let bars = rows.fold(Group::new(), |group, (at, row)| {
        group.add(frame.row(at, row, timeline))
    });
    let samples = caption
        .sampled
        .iter()
        .filter(|_| timeline.axis == Axis::Steps);
    let samples = samples.fold(Group::new(), |group, &step| {
        group.add(sample(frame.x(f64::from(step) + 0.5), frame.bottom()))
    });
    document.add(bars).add(samples).to_string() + "\n"
}

/// Where everything goes.
struct Frame {
    axis: Axis,
    end: f64,
    row: f64,
    rows: usize,
}

impl Frame {
    fn of(timeline: &Timeline) -> Self {
        let rows = timeline.rows.len().max(1);
        Self {
            axis: timeline.axis,
            end: f64::from(timeline.end.max(1)),
            row: (BARS / rows as f64).clamp(*ROW.start(), *ROW.end()),
            rows,
        }
    }

    fn x(&self, at: f64) -> f64 {
        round(LEFT + at / self.end * (WIDTH - LEFT - RIGHT))
    }

    fn y(&self, row: usize) -> f64 {
        round(TOP + (row as f64 + 0.5) * self.row)
    }

    fn bottom(&self) -> f64 {
        TOP + self.rows as f64 * self.row
    }

    fn height(&self) -> f64 {
        (self.bottom() + BOTTOM).ceil()
    }

    fn unit(&self) -> &'static str {
        match self.axis {
            Axis::Steps => "decode step",
            Axis::Tokens => "token",
        }
    }

    fn axes(&self, timeline: &Timeline) -> Group {
        let bottom = self.bottom();
        let mut group = Group::new();
        let step = tick_step(timeline.end);
        for tick in (0..=timeline.end).step_by(step as usize) {
            let x = self.x(f64::from(tick));
            let line = format!("M{x} {TOP}V{bottom}");
            group = group.add(path("grid", line)).add(label(
                x,
                bottom + 24.0,
                &grouped(tick.into()),
                "middle",
            ));
        }
        let name = match self.axis {
            Axis::Steps => "decode step",
            Axis::Tokens => "position in the context (tokens)",
        };
        let (middle, left) = (TOP + (bottom - TOP) / 2.0, 16.0);
        let upright = format!("rotate(-90 {left} {middle})");
        group
            .add(label(
                (LEFT + WIDTH - RIGHT) / 2.0,
                bottom + 44.0,
                name,
                "middle",
            ))
            .add(label(left, middle, "node, depth first", "middle").set("transform", upright))
    }

    /// From each node down to its children, where they begin.
    fn links(&self, timeline: &Timeline) -> Path {
        let mut line = String::new();
        for (at, row) in timeline.rows.iter().enumerate() {
            if let (Some(parent), Some(begin)) = (row.parent, row.begin()) {
                let x = self.x(begin.into());
                line += &format!("M{x} {}V{}", self.y(parent), self.y(at));
            }
        }
        path("link", line)
    }

    fn row(&self, at: usize, row: &Row, timeline: &Timeline) -> Group {
        let y = self.y(at);
        let mut group = Group::new().add(Title::new(self.tooltip(row)));
        if self.row >= LABELLED || row.parent.is_none() {
            group = group.add(label(
                LEFT - 8.0,
                y + 3.0,
                &row.node.to_string(),
                "number end",
            ));
        }
        for (class, thick, from, to) in bars(row) {
            let (x, end) = (self.x(from.into()), self.x(to.into()));
            let height = self.thickness(thick);
            let place = (x, y - height / 2.0);
            group = group.add(rectangle(&class, place, (end - x, height)));
        }
        let alive = row.end() == Some(timeline.end) && timeline.axis == Axis::Steps && !row.draft;
        match (row.pruned, row.end()) {
            (Some(pruned), _) => group.add(cross(self.x(pruned.into()), y, self.row)),
            (None, Some(end)) if alive => group.add(arrow(self.x(end.into()), y, self.row)),
            _ => group,
        }
    }

    fn thickness(&self, thick: bool) -> f64 {
        round((self.row * if thick { 0.75 } else { 0.3 }).min(12.0))
    }

    fn tooltip(&self, row: &Row) -> String {
        let most = row.spans.iter().map(|span| span.queries).max();
        let mut text = format!("node {}", row.node);
        if let (Some(begin), Some(end)) = (row.begin(), row.end()) {
            let last = end.max(begin + 1);
            let unit = self.unit();
            text += &format!(
                ": {unit} {} to {}",
                grouped(u64::from(begin) + 1),
                grouped(last.into())
            );
        }
        text += &format!(", most queries {}", most.unwrap_or(0));
        if row.pruned.is_some() {
            text += ", pruned";
        }
        text
    }
}

/// Class, whether it is thick, beginning and end of each bar; neighbours that look the same are one.
fn bars(row: &Row) -> Vec<(String, bool, u32, u32)> {
    let mut bars: Vec<(String, bool, u32, u32)> = Vec::new();
    for span in &row.spans {
        let class = shade(span);
        let thick = if row.draft { span.accepted } else { span.asks };
        match bars.last_mut() {
            Some((of, was, _, to)) if *to == span.from && *of == class && *was == thick => {
                *to = span.to;
            }
            _ => bars.push((class, thick, span.from, span.to)),
        }
    }
    bars
}

fn shade(span: &Span) -> String {
    match span.queries {
        0 => "idle".to_owned(),
        queries => style::shade(queries),
    }
}

pub(super) fn label(x: f64, y: f64, text: &str, class: &str) -> Text {
    let text = Text::new(text).set("x", round(x)).set("y", round(y));
    if class.is_empty() {
        text
    } else {
        text.set("class", class)
    }
}

pub(super) fn rectangle(class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) -> Rectangle {
    Rectangle::new()
        .set("class", class)
        .set("x", round(x))
        .set("y", round(y))
        .set("width", round(width))
        .set("height", round(height))
}

pub(super) fn path(class: &str, line: String) -> Path {
    Path::new().set("class", class).set("d", line)
}

/// The sign for a node that is pruned.
pub(super) fn cross(x: f64, y: f64, row: f64) -> Path {
    let half = round((row * 0.4).min(4.0));
    let (left, right, up, down) = (
        round(x - half),
        round(x + half),
        round(y - half),
        round(y + half),
    );
    path(
        "gone",
        format!("M{left} {up}L{right} {down}M{left} {down}L{right} {up}"),
    )
}

/// The sign for a node that is there at the end.
pub(super) fn arrow(x: f64, y: f64, row: f64) -> Path {
    let half = round((row * 0.4).min(5.0));
    path(
        "open",
        format!(
            "M{} {}l{} {half}l-{} {half}z",
            x + 1.0,
            round(y - half),
            half * 1.6,
            half * 1.6
        ),
    )
}

/// The sign for a sampled step, below the bars.
pub(super) fn sample(x: f64, y: f64) -> Path {
    path("sampled", format!("M{x} {y}l3 7h-6z"))
}

/// So that an axis has five to ten ticks.
fn tick_step(end: u32) -> u32 {
    let steps = (0..).flat_map(|power| [1u64, 2, 5].map(|digit| digit * 10u64.pow(power)));
    let fits = |step: &u64| u64::from(end) / step <= 10;
    steps
        .into_iter()
        .find(fits)
        .map_or(u32::MAX, |step| step as u32)
}

/// To a tenth: more would not be seen.
fn round(x: f64) -> f64 {
    (x * 10.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::super::timeline::tests::small_run;
    use super::*;

    fn caption() -> Caption {
        Caption {
            title: "a <run> & \"more\"".to_owned(),
            subtitle: "few tokens".to_owned(),
            sampled: vec![0, 5],
        }
    }

    #[test]
    fn the_picture_is_well_formed_and_says_what_it_shows() {
        let text = draw(&Timeline::of(&small_run()), &caption());
        let document = roxmltree::Document::parse(&text).unwrap();
        let root = document.root_element();
        assert_eq!(root.tag_name().name(), "svg");
        assert_eq!(root.attribute("role"), Some("img"));
        let title = root
            .children()
            .find(|node| node.has_tag_name(("http://www.w3.org/2000/svg", "title")));
        assert_eq!(title.unwrap().text().unwrap().trim(), "a <run> & \"more\"");
        let of_class = |class: &str| {
            let nodes = document.descendants();
            nodes
                .filter(|node| node.attribute("class") == Some(class))
                .count()
        };
        // One in the legend, and: two pruned nodes; two sampled steps; ends of the nodes that are left.
        assert_eq!((of_class("gone"), of_class("sampled")), (1 + 2, 1 + 2));
        assert!(
            document
                .descendants()
                .any(|node| node.text()
                    == Some("node 4: decode step 4 to 5, most queries 1, pruned"))
        );
    }

    #[test]
    fn nothing_is_drawn_outside_the_picture() {
        let text = draw(&Timeline::of(&small_run()), &caption());
        let document = roxmltree::Document::parse(&text).unwrap();
        let height = Frame::of(&Timeline::of(&small_run())).height();
        for node in document.descendants() {
            let number = |name| {
                node.attribute(name)
                    .map_or(0.0, |text| text.parse::<f64>().unwrap())
            };
            assert!(number("x") + number("width") <= WIDTH, "{node:?}");
            assert!(number("y") + number("height") <= height, "{node:?}");
        }
    }

    #[test]
    fn axes_have_five_to_ten_ticks() {
        for (end, step) in [
            (1, 1),
            (9, 1),
            (10, 1),
            (11, 2),
            (401, 50),
            (2375, 500),
            (7398, 1000),
        ] {
            assert_eq!(tick_step(end), step, "{end}");
        }
    }
}
