//! A picture: title, description and parts, at one of two widths.

use svg::Document;
use svg::Node;
use svg::node::element::{Circle, Description, Group, Line, Path, Rectangle, Style, Text, Title};

use crate::style;

/// How wide a picture is, in units of about a pixel where it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Size {
    /// For a desk, and for the documentation.
    Wide,
    /// For a phone.
    Narrow,
}

impl Size {
    pub(super) const BOTH: [Self; 2] = [Self::Wide, Self::Narrow];

    pub(super) fn width(self) -> f64 {
        match self {
            Self::Wide => 860.0,
            Self::Narrow => 360.0,
        }
    }

    pub(super) fn is_narrow(self) -> bool {
        self == Self::Narrow
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Wide => "wide",
            Self::Narrow => "narrow",
        }
    }
}

/// Room at a picture's edges.
pub(super) const MARGIN: f64 = 12.0;
/// How wide a title's letters are, against those of other text.
pub(super) const TITLE: f64 = 1.42;
/// From one line of text to the next.
const LINE: f64 = 18.0;

/// A sign of the legend.
#[derive(Clone, Copy, Debug)]
pub(super) enum Sign {
    /// None: words alone.
    None,
    /// A filled box.
    Box,
    /// A dot.
    Dot,
    /// A diamond.
    Diamond,
    /// A triangle.
    Triangle,
    /// A horizontal line.
    Line,
    /// A vertical line.
    Tick,
}

/// A picture in the making.
pub(super) struct Figure {
    name: String,
    title: String,
    description: String,
    size: Size,
    body: Group,
    /// Where the next thing may begin, from the top.
    pub(super) top: f64,
}

impl Figure {
    /// An empty picture under its title. `description` says in words what is seen.
    ///
    /// `name` tells it from the page's other pictures.
    pub(super) fn new(name: &str, title: &str, description: String, size: Size) -> Self {
        let mut figure = Self {
            name: name.to_owned(),
            title: title.to_owned(),
            description,
            size,
            body: Group::new(),
            top: 22.0,
        };
        for line in wrap(title, size.width() - 2.0 * MARGIN, TITLE) {
            figure.text("title", MARGIN, figure.top, &line);
            figure.top += 20.0;
        }
        figure
    }

    pub(super) fn size(&self) -> Size {
        self.size
    }

    pub(super) fn width(&self) -> f64 {
        self.size.width()
    }

    /// Signs and what they mean, as many a line as fit.
    pub(super) fn legend(&mut self, items: &[(Sign, &str, &str)]) {
        let (mut x, mut y) = (MARGIN, self.top + 4.0);
        for &(sign, class, text) in items {
            let indent = if matches!(sign, Sign::None) {
                0.0
            } else {
                20.0
            };
            let width = indent + style::text_width(text) + 16.0;
            if x > MARGIN && x + width - 16.0 > self.width() - MARGIN {
                (x, y) = (MARGIN, y + LINE);
            }
            self.sign(sign, class, [x + 6.0, y - 4.0]);
            self.text("", x + indent, y, text);
            x += width;
        }
        self.top = y + LINE;
    }

    /// One line of small print, wrapped.
    pub(super) fn note(&mut self, text: &str) {
        for line in wrap(text, self.width() - 2.0 * MARGIN, 0.93) {
            self.text("small", MARGIN, self.top, &line);
            self.top += 15.0;
        }
    }

    /// A sign around `at`.
    pub(super) fn sign(&mut self, sign: Sign, class: &str, [x, y]: [f64; 2]) {
        match sign {
            Sign::None => {}
            Sign::Box => self.rect(class, [x - 6.0, y - 5.0], [12.0, 10.0]),
            Sign::Dot => self.circle(class, [x, y], 4.5),
            Sign::Diamond => self.path(class, &format!("M{} {}l5 5-5 5-5-5z", n(x), n(y - 5.0))),
            Sign::Triangle => self.path(class, &format!("M{} {}l5 9h-10z", n(x), n(y - 5.0))),
            Sign::Line => self.line(class, [x - 8.0, y], [x + 8.0, y]),
            Sign::Tick => self.line(class, [x, y - 7.0], [x, y + 7.0]),
        }
    }

    pub(super) fn text(&mut self, class: &str, x: f64, y: f64, text: &str) {
        let text = Text::new(text).set("x", n(x)).set("y", n(y));
        self.body.append(if class.is_empty() {
            text
        } else {
            text.set("class", class)
        });
    }

    pub(super) fn rect(&mut self, class: &str, [x, y]: [f64; 2], [width, height]: [f64; 2]) {
        let rect = Rectangle::new()
            .set("class", class)
            .set("x", n(x))
            .set("y", n(y));
        self.body
            .append(rect.set("width", n(width)).set("height", n(height)));
    }

    pub(super) fn line(&mut self, class: &str, [x1, y1]: [f64; 2], [x2, y2]: [f64; 2]) {
        let line = Line::new()
            .set("class", class)
            .set("x1", n(x1))
            .set("y1", n(y1));
        self.body.append(line.set("x2", n(x2)).set("y2", n(y2)));
    }

    pub(super) fn circle(&mut self, class: &str, [x, y]: [f64; 2], radius: f64) {
        let circle = Circle::new()
            .set("class", class)
            .set("cx", n(x))
            .set("cy", n(y));
        self.body.append(circle.set("r", n(radius)));
    }

    pub(super) fn path(&mut self, class: &str, line: &str) {
        self.body
            .append(Path::new().set("class", class).set("d", line));
    }

    /// The picture for a page that has the style, down to [`Figure::top`].
    pub(super) fn inline(self) -> String {
        self.document(None).to_string()
    }

    /// The picture as a file.
    pub(super) fn file(self) -> String {
        self.document(Some(style::picture())).to_string() + "\n"
    }

    fn document(self, style: Option<String>) -> Document {
        let (width, height) = (self.width(), self.top.ceil());
        let id = |what: &str| format!("{}-{}-{what}", self.name, self.size.name());
        let mut document = Document::new()
            .set("viewBox", format!("0 0 {width} {height}"))
            .set("class", "fig")
            .set("role", "img")
            .set("aria-labelledby", format!("{} {}", id("title"), id("text")))
            .add(Title::new(self.title.as_str()).set("id", id("title")))
            .add(
                Description::new()
                    .set("id", id("text"))
                    .add(svg::node::Text::new(self.description)),
            );
        if let Some(style) = style {
            document = document.add(Style::new(style));
        }
        let ground = Rectangle::new()
            .set("class", "ground")
            .set("width", width)
            .set("height", height);
        document.add(ground.set("rx", 8)).add(self.body)
    }
}

/// `text` in lines of at most `width`, its letters `scale` times as wide as those of ordinary text.
fn wrap(text: &str, width: f64, scale: f64) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if style::text_width(&format!("{line} {word}")) * scale <= width => {
                *line += " ";
                *line += word;
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// To a tenth: more would not be seen.
pub(super) fn n(x: f64) -> f64 {
    let rounded = (x * 10.0).round() / 10.0;
    // Not "-0".
    if rounded == 0.0 { 0.0 } else { rounded }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_title_takes_more_lines_and_loses_no_word() {
        let lines = wrap("one two three four", 80.0, 1.0);
        assert_eq!(lines, ["one two", "three four"]);
    }

    #[test]
    fn a_legend_that_is_too_long_for_a_line_takes_another() {
        let items = [(Sign::Box, "ours", "a name of some length"); 4];
        let mut wide = Figure::new("x", "t", String::new(), Size::Wide);
        let mut narrow = Figure::new("x", "t", String::new(), Size::Narrow);
        wide.legend(&items);
        narrow.legend(&items);
        assert_eq!(narrow.top - wide.top, LINE);
    }

    #[test]
    fn a_picture_is_well_formed_named_and_escaped() {
        let mut figure = Figure::new("x", "a < b", "c & d".to_owned(), Size::Wide);
        figure.note("\"e\" > f");
        let text = figure.file();
        let document = roxmltree::Document::parse(&text).unwrap();
        let root = document.root_element();
        assert_eq!(root.attribute("role"), Some("img"));
        let ids = root.attribute("aria-labelledby").unwrap();
        for (id, said) in ids.split(' ').zip(["a < b", "c & d"]) {
            let node = document
                .descendants()
                .find(|node| node.attribute("id") == Some(id));
            assert_eq!(node.unwrap().text().unwrap().trim(), said);
        }
    }
}
