//! Draws docs/report/index.html and docs/figures, and writes the numbers in README.md and docs anew, all from
//! docs/benchmarks: `cargo xtask report`.
//!
//! ```text
//! data: files --[trees, paper]--> blocks of README.md and docs
//!                \--[pictures, plans: figure]--> SVGs --[sections: page]--> docs/report/index.html
//! ```

mod data;
mod figure;
mod page;
mod paper;
mod pictures;
mod plans;
#[cfg(test)]
mod quotes;
mod sections;
mod trees;

use std::fs;

use anyhow::{Context, Result};

use data::{fill, read};
use paper::Paper;
use plans::LaidOut;
use trees::Comparison;

fn main() -> Result<()> {
    for (name, text) in outputs()? {
        fs::write(data::path(name), text).with_context(|| format!("cannot write {name}"))?;
        println!("wrote {name}");
    }
    Ok(())
}

/// Files, by their path in the repository, as they should be.
fn outputs() -> Result<Vec<(&'static str, String)>> {
    let comparison = Comparison::read()?;
    let paper = Paper::read()?;
    let star = LaidOut::new(plans::STAR, &comparison)?;
    let tree = LaidOut::new(plans::TREE, &comparison)?;
    let mut performance = read("docs/performance.md")?;
    for (name, block) in [
        ("comparison", comparison.comparison()),
        ("groupings", comparison.groupings().markdown()),
        ("sm_80", comparison.ampere_summary()),
    ] {
        performance = fill(&performance, name, &block)?;
    }
    let mut reproduction = read("docs/reproduction.md")?;
    for block in paper.blocks() {
        reproduction = fill(&reproduction, block.name, &block.table.markdown())?;
    }
    let sections = sections::sections(&comparison, [&star, &tree], &paper)?;
    let summary = comparison.summary();
    Ok(vec![
        ("README.md", fill(&read("README.md")?, "summary", &summary)?),
        ("docs/performance.md", performance),
        ("docs/reproduction.md", reproduction),
        (
            "docs/figures/trees.svg",
            pictures::trees(&comparison).file(),
        ),
        (
            "docs/figures/roofline.svg",
            pictures::roofline(&comparison).file(),
        ),
        ("docs/figures/schedule.svg", star.schedule().file()),
        ("docs/figures/tree.svg", tree.tree().file()),
        (
            "docs/report/index.html",
            page::page(&sections::tiles(&comparison), &sections),
        ),
    ])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_documentation_shows_the_measurements_that_are_committed() {
        for (name, text) in outputs().unwrap() {
            let committed = read(name).unwrap_or_default();
            assert!(committed == text, "{name}: run `cargo xtask report`");
        }
    }

    #[test]
    fn the_page_and_its_pictures_are_well_formed_ask_for_nothing_and_are_small() {
        for (name, text) in outputs().unwrap() {
            if name.ends_with(".svg") {
                roxmltree::Document::parse(&text).unwrap();
            }
        }
        let html = outputs().unwrap().pop().unwrap().1;
        assert!(html.len() < 400_000, "{} bytes", html.len());
        assert!(!html.contains("@import") && !html.contains("url("));
        let (_, body) = html.split_once("<body>").unwrap();
        let body = format!("<body>{}", body.split_once("</html>").unwrap().0);
        let document = roxmltree::Document::parse(&body).unwrap();
        let mut ids = BTreeSet::new();
        for node in document.descendants().filter(|node| node.is_element()) {
            let name = node.tag_name().name();
            assert!(
                !["script", "link", "img", "iframe", "image"].contains(&name),
                "{node:?}"
            );
            if let Some(id) = node.attribute("id") {
                assert!(ids.insert(id), "{id} is there twice");
            }
            if let Some(link) = node.attribute("href") {
                let place = data::path("docs/report").join(link);
                assert!(link.starts_with('#') || place.exists(), "{link}");
            }
        }
    }
}
