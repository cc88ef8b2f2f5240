//! Writes the measurements of docs/benchmarks into the pages that show them: `cargo xtask report`.
//!
//! A page is written by hand but for its blocks, which lie between `<!-- report: NAME -->` and `<!-- report end -->`.
//!
//! ```text
//! files --[data]--> rows --[trees, paper, sections, tokens: chart, pictures]--> blocks --[pages]--> README.md, docs
//! ```

mod chart;
mod data;
mod paper;
mod pictures;
#[cfg(test)]
mod quotes;
mod sections;
mod tokens;
mod trees;

use std::fs;

use anyhow::{Context, Result, ensure};

use data::{fill, opening, read};
use paper::Paper;
use tokens::Tokens;
use trees::Comparison;

/// A block's name, and what it has to hold.
type Block = (&'static str, String);

/// The pages that have blocks.
const PAGES: [&str; 6] = [
    "README.md",
    "docs/performance.md",
    "docs/reproduction.md",
    "docs/figures/trees.svg",
    "docs/figures/roofline.svg",
    "docs/report/index.html",
];

fn main() -> Result<()> {
    for (name, text) in pages()? {
        fs::write(data::path(name), text).with_context(|| format!("cannot write {name}"))?;
        println!("wrote {name}");
    }
    Ok(())
}

/// The pages, by their path in the repository, as they should be.
fn pages() -> Result<Vec<(&'static str, String)>> {
    let comparison = Comparison::read()?;
    let paper = Paper::read()?;
    let mut blocks = comparison.blocks();
    blocks.extend(paper.blocks());
    blocks.push(("bars", pictures::bars(&comparison)));
    blocks.push(("roofline", pictures::roofline(&comparison)));
    blocks.extend(sections::blocks(&comparison, &paper)?);
    blocks.extend(Tokens::read()?.blocks()?);
    let page = |name| Ok((name, fill(&read(name)?, &blocks).context(name)?));
    let pages: Vec<(&str, String)> = PAGES.into_iter().map(page).collect::<Result<_>>()?;
    for (name, _) in &blocks {
        let is_shown = pages.iter().any(|(_, text)| text.contains(&opening(name)));
        ensure!(is_shown, "no page has the block `{name}`");
    }
    Ok(pages)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_documentation_shows_the_measurements_that_are_committed() {
        for (name, text) in pages().unwrap() {
            let committed = read(name).unwrap();
            assert!(committed == text, "{name}: run `cargo xtask report`");
        }
    }

    #[test]
    fn the_page_and_its_pictures_are_well_formed_ask_for_nothing_and_are_small() {
        for (name, text) in pages().unwrap() {
            if name.ends_with(".svg") {
                roxmltree::Document::parse(&text).unwrap();
            }
        }
        let html = pages().unwrap().pop().unwrap().1;
        assert!(html.len() < 400_000, "{} bytes", html.len());
        assert!(!html.contains("@import") && !html.contains("url("));
        let (_, body) = html.split_once("<body>").unwrap();
        let body = format!("<body>{}", body.split_once("</html>").unwrap().0);
        let document = roxmltree::Document::parse(&body).unwrap();
        let mut ids = BTreeSet::new();
        for node in document.descendants().filter(|node| node.is_element()) {
            let name = node.tag_name().name();
            let asks = ["script", "link", "img", "iframe", "image"].contains(&name);
            assert!(!asks, "{node:?}");
            if let Some(id) = node.attribute("id") {
                assert!(ids.insert(id), "{id} is there twice");
            }
            if let Some(link) = node.attribute("href") {
                let place = data::path("docs/report").join(link);
                assert!(link.starts_with('#') || place.exists(), "{link}");
            }
        }
    }

    #[test]
    fn every_colour_of_page_and_pictures_has_a_dark_variant_and_is_used() {
        for name in &PAGES[3..] {
            let text = read(name).unwrap();
            let (_, style) = text.split_once("<style>").unwrap();
            let (light, dark) = style.split_once("@media(prefers").unwrap();
            let (dark, used) = dark.split_once("}}").unwrap();
            let names = |text: &str| -> Vec<String> {
                let parts = text.split("--").skip(1);
                parts.filter_map(|part| Some(part.split_once(':')?.0.to_owned())).collect()
            };
            assert_eq!(names(light), names(dark), "{name}");
            for colour in names(light) {
                assert!(used.contains(&format!("var(--{colour})")), "{name}: {colour}");
            }
        }
    }
}
