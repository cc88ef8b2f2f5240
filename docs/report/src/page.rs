//! The page: one file without requests. Charts are boxes that the browser lays out, so they fit any width.

use std::fmt::Write;

use crate::data::{Suite, Table, escape, number, or_dash, rounded, title};
use crate::figure::{COLOURS, Figure, PARTS, Scale};

/// A part of the page, as HTML so far.
pub(crate) struct Section {
    pub(crate) id: &'static str,
    heading: &'static str,
    pub(crate) html: String,
}

impl Section {
    pub(crate) fn new(id: &'static str, heading: &'static str) -> Self {
        let html = format!("<section id=\"{id}\">\n<h2>{}</h2>\n", escape(heading));
        Self { id, heading, html }
    }

    /// A paragraph, in HTML.
    pub(crate) fn says(mut self, html: &str) -> Self {
        let _ = writeln!(self.html, "<p>{html}</p>");
        self
    }

    pub(crate) fn shows(mut self, figure: &Figure) -> Self {
        let _ = writeln!(
            self.html,
            "<figure tabindex=\"0\">{}</figure>",
            figure.inline()
        );
        self
    }

    pub(crate) fn draws(mut self, chart: &Chart) -> Self {
        self.html += &chart.html();
        self
    }

    /// A table under the line `summary`.
    pub(crate) fn lists(mut self, summary: &str, table: &Table) -> Self {
        let (summary, table) = (escape(summary), table.html());
        let _ = writeln!(
            self.html,
            "<details><summary>{summary}</summary>\n{table}</details>"
        );
        self
    }

    /// Says where numbers are from.
    pub(crate) fn from(mut self, suite: &Suite) -> Self {
        let file = suite.file;
        let _ = write!(
            self.html,
            "<p class=\"origin\"><a href=\"../benchmarks/{file}\">{file}</a>"
        );
        for name in [
            "command",
            "device",
            "driver",
            "commit",
            "commit_date",
            "source",
            "method",
        ] {
            let value = suite.all[name].as_str().unwrap_or_default();
            if !value.is_empty() {
                let name = name.replace('_', " ");
                let _ = write!(self.html, "; {name}: <code>{}</code>", escape(value));
            }
        }
        self.html += "</p>\n";
        self
    }
}

/// Values of things side by side, a line each.
pub(crate) struct Chart {
    pub(crate) caption: &'static str,
    /// Bars from 0; dots on a logarithmic line otherwise.
    pub(crate) bars: bool,
    /// Class and meaning of each value of a line. The class `bound` is drawn as a line.
    pub(crate) key: Vec<(&'static str, String)>,
    pub(crate) lines: Vec<Line>,
}

/// A name, its values, and what stands at the right.
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) values: Vec<Option<f64>>,
    pub(crate) right: String,
}

impl Chart {
    fn html(&self) -> String {
        let values = self
            .lines
            .iter()
            .flat_map(|line| line.values.iter().flatten().copied());
        let (kind, range) = (if self.bars { "chart bars" } else { "chart" }, [0.0, 100.0]);
        let scale = match self.bars {
            true => Scale::linear(values.fold(0.0, f64::max), range),
            false => Scale::logarithmic(values, range),
        };
        let caption = escape(self.caption);
        let mut html = format!(
            "<figure class=\"{kind}\" role=\"group\" aria-label=\"{caption}\">\n<figcaption>{caption}</figcaption>\n<div class=\"key\">"
        );
        for (class, meaning) in &self.key {
            let _ = write!(
                html,
                "<span><i class=\"{class}\"></i>{}</span>",
                escape(meaning)
            );
        }
        html += "</div>\n";
        for line in &self.lines {
            let name = escape(&line.name);
            let _ = write!(
                html,
                "<div class=\"line\"><b>{name}</b><div class=\"track\">"
            );
            for ((class, meaning), value) in self.key.iter().zip(&line.values) {
                let Some(value) = value else { continue };
                let (at, says) = (scale.at(*value), format!("{meaning}: {}", rounded(*value)));
                let (class, place) = match (self.bars, *class) {
                    (_, "bound") => ("bound".to_owned(), "left"),
                    (true, class) => (class.to_owned(), "width"),
                    (false, class) => (format!("dot {class}"), "left"),
                };
                let says = escape(&says);
                let _ = write!(
                    html,
                    "<i class=\"{class}\" style=\"{place}:{at:.1}%\" title=\"{says}\"></i>"
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

/// All rows of a suite: the fields `field: heading; field: heading` of each, numbers rounded. A field without a
/// heading is its own.
pub(crate) fn listing(suite: &Suite, fields: &str) -> Table {
    let fields = fields
        .split("; ")
        .map(|item| item.split_once(": ").unwrap_or((item, item)));
    let (names, headings): (Vec<&str>, Vec<&str>) = fields.unzip();
    let mut table = Table::new(&headings.join(" | "));
    for row in &suite.rows {
        let cell = |name: &&str| match row.0[*name].as_str() {
            Some(text) => title(text).to_owned(),
            None => or_dash(row.number(name), rounded),
        };
        table.row(names.iter().map(cell).collect::<Vec<String>>());
    }
    table
}

/// The whole page: numbers that stand out, with what they are, and sections.
pub(crate) fn page(tiles: &[(String, String)], sections: &[Section]) -> String {
    let tile = |(number, what): &(String, String)| {
        let (number, what) = (escape(number), escape(what));
        format!("<div class=\"tile\"><b>{number}</b><span>{what}</span></div>\n")
    };
    let link = |section: &Section| {
        let heading = escape(section.heading);
        format!("<a href=\"#{}\">{heading}</a>\n", section.id)
    };
    let html = |section: &Section| section.html.clone() + "</section>\n";
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>DeFT in Rust: measurements</title>\n\
         <style>{COLOURS}{PARTS}\n{}</style>\n</head>\n<body>\n<header>\n<h1>DeFT in Rust: measurements</h1>\n\
         <p>Attention for LLM decoding over trees of sequences: a prefix that many queries share is read once, not once a \
         query. Everything here is drawn by <code>cargo xtask report</code> from the files in <code>docs/benchmarks</code>; \
         each section says which, and how they were made.</p>\n<div class=\"tiles\">\n{}</div>\n\
         <nav aria-label=\"Sections\">\n{}</nav>\n</header>\n<main>\n{}</main>\n<footer><p>Numbers are as measured, rounded \
         for reading.</p></footer>\n</body>\n</html>\n",
        include_str!("page.css"),
        tiles.iter().map(tile).collect::<String>(),
        sections.iter().map(link).collect::<String>(),
        sections.iter().map(html).collect::<String>(),
    )
}
