//! The page: sections of words, pictures, tables, and where their numbers are from.

use super::figure::{Figure, Size};
use super::sources::Origin;
use super::table::{Table, escape};
use crate::style;

/// Where the raw files are, as seen from the page.
const BENCHMARKS: &str = "../benchmarks/";

/// A part of the page.
pub(super) struct Section {
    pub(super) id: &'static str,
    pub(super) heading: &'static str,
    /// Paragraphs, in HTML.
    pub(super) words: Vec<String>,
    /// Pictures at both widths.
    pub(super) pictures: Vec<[String; 2]>,
    /// Tables by the line that opens them.
    pub(super) tables: Vec<(String, Table)>,
    /// The files that the numbers are from.
    pub(super) origins: Vec<Origin>,
}

impl Section {
    pub(super) fn new(id: &'static str, heading: &'static str) -> Self {
        Self {
            id,
            heading,
            words: Vec::new(),
            pictures: Vec::new(),
            tables: Vec::new(),
            origins: Vec::new(),
        }
    }

    /// A paragraph, in HTML.
    pub(super) fn says(mut self, html: impl Into<String>) -> Self {
        self.words.push(html.into());
        self
    }

    /// A picture that `draw` draws at any width.
    pub(super) fn shows(mut self, draw: impl Fn(Size) -> Figure) -> Self {
        self.pictures
            .push(Size::BOTH.map(|size| draw(size).inline()));
        self
    }

    /// A table under the line `summary`, if it has rows.
    pub(super) fn lists(mut self, summary: impl Into<String>, table: Table) -> Self {
        if table.filled().is_some() {
            self.tables.push((summary.into(), table));
        }
        self
    }

    pub(super) fn from(mut self, origin: &Origin) -> Self {
        self.origins.push(origin.clone());
        self
    }

    fn html(&self) -> String {
        let words = self.words.iter().map(|words| format!("<p>{words}</p>\n"));
        let pictures = self.pictures.iter().map(|[wide, narrow]| {
            format!("<figure><div class=\"wide\">{wide}</div><div class=\"narrow\">{narrow}</div></figure>\n")
        });
        let tables = self.tables.iter().map(|(summary, table)| {
            format!(
                "<details><summary>{}</summary>\n{}</details>\n",
                escape(summary),
                table.html()
            )
        });
        let origins = self.origins.iter().map(origin);
        format!(
            "<section id=\"{}\">\n<h2>{}</h2>\n{}{}{}{}\n</section>\n",
            self.id,
            escape(self.heading),
            words.collect::<String>(),
            pictures.collect::<String>(),
            tables.collect::<String>(),
            origins.collect::<String>(),
        )
    }
}

fn origin(origin: &Origin) -> String {
    let facts = origin.facts().into_iter().map(|(name, value)| match name {
        "command" | "commit" => format!("; {name} <code>{}</code>", escape(value)),
        _ => format!("; {name}: {}", escape(value)),
    });
    let file = &origin.file;
    format!(
        "<p class=\"origin\"><a href=\"{BENCHMARKS}{file}\">{file}</a>{}</p>\n",
        facts.collect::<String>()
    )
}

/// A number that stands out, and what it is.
pub(super) struct Tile {
    pub(super) number: String,
    pub(super) what: String,
}

/// The whole page.
pub(super) fn page(tiles: &[Tile], sections: &[Section]) -> String {
    let tiles = tiles.iter().map(|tile| {
        format!(
            "<div class=\"tile\"><b>{}</b><span>{}</span></div>\n",
            escape(&tile.number),
            escape(&tile.what)
        )
    });
    let links = sections.iter().map(|section| {
        format!(
            "<a href=\"#{}\">{}</a>\n",
            section.id,
            escape(section.heading)
        )
    });
    let sections_html = sections.iter().map(Section::html);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n<title>DeFT in Rust: measurements</title>\n\
         <style>{}</style>\n</head>\n<body>\n<header>\n<h1>DeFT in Rust: measurements</h1>\n\
         <p>Attention for LLM decoding over trees of sequences: a prefix that many queries share is read once, not once a \
         query. Everything here is drawn by <code>cargo xtask report</code> from the files in <code>docs/benchmarks</code>; \
         each section says which, and how they were made.</p>\n<div class=\"tiles\">\n{}</div>\n<nav aria-label=\"Sections\">\n{}</nav>\n\
         </header>\n<main>\n{}</main>\n<footer><p>Drawn by <code>cargo xtask report</code>. Numbers are as measured, \
         rounded for reading.</p></footer>\n</body>\n</html>\n",
        style::page(),
        tiles.collect::<String>(),
        links.collect::<String>(),
        sections_html.collect::<String>(),
    )
}
