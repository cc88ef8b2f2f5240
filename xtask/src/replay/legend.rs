//! What the colours and signs of a picture mean.

use svg::node::element::Group;

use super::picture::{Caption, LEFT, arrow, cross, label, path, rectangle, sample};
use super::timeline::{Axis, Timeline};
use crate::style;

/// Two lines, of what occurs in `timeline` only.
pub(crate) fn legend(timeline: &Timeline, caption: &Caption) -> Group {
    let most = timeline.most_queries();
    let mut line = Line::new(68.0);
    line.word("queries that share a node:");
    for (shade, range) in style::shades(most) {
        line.item(|x, y| rectangle(&shade, (x, y - 9.0), (20.0, 9.0)), &range);
    }
    let spans = || timeline.rows.iter().flat_map(|row| &row.spans);
    if spans().any(|span| span.queries == 0) {
        line.item(
            |x, y| rectangle("idle", (x, y - 6.0), (20.0, 4.0)),
            "none, but kept",
        );
    }
    let first = line.group;
    let mut line = Line::new(90.0);
    let drafts = timeline.rows.iter().any(|row| row.draft);
    let (thick, thin) = match timeline.axis {
        _ if drafts => ("accepted", "read, not accepted"),
        Axis::Steps => ("grows and asks", "read by those below"),
        Axis::Tokens => ("asks", "read by those below"),
    };
    line.item(|x, y| rectangle("open", (x, y - 9.0), (20.0, 9.0)), thick);
    line.item(|x, y| rectangle("open", (x, y - 6.0), (20.0, 4.0)), thin);
    line.item(
        |x, y| path("link", format!("M{} {}v-11", x + 10.0, y + 1.0)),
        "branches",
    );
    if timeline.rows.iter().any(|row| row.pruned.is_some()) {
        line.item(|x, y| cross(x + 10.0, y - 4.0, 10.0), "pruned");
    }
    if timeline.axis == Axis::Steps {
        line.item(|x, y| arrow(x + 8.0, y - 4.0, 12.0), "there at the end");
        if !caption.sampled.is_empty() {
            line.item(
                |x, y| sample(x + 10.0, y - 8.0),
                "attention run and checked",
            );
        }
    }
    Group::new().add(first).add(line.group)
}

/// Things beside one another.
struct Line {
    group: Group,
    x: f64,
    y: f64,
}

impl Line {
    fn new(y: f64) -> Self {
        Self {
            group: Group::new(),
            x: LEFT,
            y,
        }
    }

    fn word(&mut self, text: &str) {
        let group = std::mem::take(&mut self.group);
        self.group = group.add(label(self.x, self.y, text, ""));
        self.x += style::text_width(text) + 14.0;
    }

    /// A sign of at most 20 units, and what it means.
    fn item<N: Into<Box<dyn svg::Node>>>(&mut self, sign: impl Fn(f64, f64) -> N, text: &str) {
        let group = std::mem::take(&mut self.group);
        self.group = group.add(sign(self.x, self.y));
        self.x += 26.0;
        self.word(text);
    }
}
