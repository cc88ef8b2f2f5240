//! From files to files.

use std::fs;

use anyhow::{Context, Result};
use deft_workloads::StepWorkload;

use super::ampere::Ampere;
use super::figure::Size;
use super::laid_out::{LaidOut, STAR, TREE};
use super::page::page;
use super::pictures::{bars, roofline, schedule, tree};
use super::sources::{self, Origin, Suite};
use super::suites::{Cpu, Engine, Paper, Plan, Printed, Scaling};
use super::table::Table;
use super::trees::Comparison;
use super::{Args, paper, sections, text};
use crate::workspace;

/// Everything that is shown.
pub(crate) struct Data {
    pub(super) comparison: Comparison,
    pub(super) ampere: Ampere,
    /// A star, and a tree with more levels.
    pub(super) star: LaidOut,
    pub(super) tree: LaidOut,
    pub(super) printed: Numbers<Printed>,
    pub(super) scaling: Option<Suite<Scaling>>,
    pub(super) paper: Option<Suite<Paper>>,
    pub(super) engine: Option<Suite<Engine>>,
    pub(super) plan: Option<Suite<Plan>>,
    pub(super) cpu: Option<Suite<Cpu>>,
}

/// Numbers that are not rows.
pub(super) struct Numbers<T> {
    pub(super) origin: Origin,
    pub(super) rows: T,
}

impl Data {
    /// What docs/benchmarks has.
    fn read() -> Result<Self> {
        let workloads = StepWorkload::parse(&sources::read("workloads/trees.json")?)?;
        let benchmark = |name: &str| sources::read(&format!("docs/benchmarks/{name}"));
        let comparison = Comparison::new(
            &benchmark("h100-trees.json")?,
            &benchmark("peers-h100.json")?,
            &benchmark("h100-pytorch-replay.json")?,
            &workloads,
        )?;
        let laid_out = |name: &str| LaidOut::new(name, &workloads, &comparison.rows);
        let text = benchmark("paper-a100.json")?;
        Ok(Self {
            star: laid_out(STAR)?,
            tree: laid_out(TREE)?,
            printed: Numbers {
                origin: Origin::of("paper-a100.json", &text)?,
                rows: serde_json::from_str(&text).context("docs/benchmarks/paper-a100.json")?,
            },
            ampere: Ampere::new(&benchmark("h100-trees-sm80.json")?, &comparison)?,
            comparison,
            scaling: Suite::read("h100-scaling.json")?,
            paper: Suite::read("h100-paper.json")?,
            engine: Suite::read("h100-engine.json")?,
            plan: Suite::read("cpu-plan.json")?,
            cpu: Suite::read("cpu-ratios.json")?,
        })
    }
}

/// Runs the command.
pub(crate) fn run(_: &Args) -> Result<()> {
    for (path, text) in outputs()? {
        let path = workspace::root().join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)
                .with_context(|| format!("cannot make {}", folder.display()))?;
        }
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("wrote {}", workspace::shown(&path));
    }
    Ok(())
}

/// Files, by their path in the repository, as they should be.
fn outputs() -> Result<Vec<(&'static str, String)>> {
    let data = Data::read()?;
    let comparison = &data.comparison;
    let readme = text::fill(
        &sources::read("README.md")?,
        "summary",
        &text::summary(comparison),
    )?;
    let performance = sources::read("docs/performance.md")?;
    let performance = text::fill(&performance, "comparison", &text::comparison(comparison))?;
    let performance = text::fill(&performance, "groupings", &text::groupings(comparison))?;
    let performance = text::fill(&performance, "sm_80", &data.ampere.summary())?;
    let mut outputs = vec![
        ("README.md", readme),
        ("docs/performance.md", performance),
        (
            "docs/figures/trees.svg",
            bars::draw(comparison, Size::Wide).file(),
        ),
        (
            "docs/figures/roofline.svg",
            roofline::draw(comparison, Size::Wide).file(),
        ),
        (
            "docs/figures/schedule.svg",
            schedule::draw(&data.star, Size::Wide).file(),
        ),
        (
            "docs/figures/tree.svg",
            tree::draw(&data.tree, Size::Wide).file(),
        ),
        (
            "docs/report/index.html",
            page(&sections::tiles(&data), &sections::sections(&data)),
        ),
    ];
    let path = "docs/reproduction.md";
    let mut reproduction = sources::read(path)?;
    let ours = data.paper.as_ref().map_or(&[][..], |suite| &suite.rows);
    for block in paper::blocks(&data.printed.rows, ours) {
        let table = block.table.filled().map_or(String::new(), Table::markdown);
        reproduction = text::fill(&reproduction, block.name, &table)?;
    }
    outputs.push((path, reproduction));
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use super::super::pictures::check;
    use super::super::pictures::{engine, scaling};
    use super::*;

    #[test]
    fn the_documentation_shows_the_measurements_that_are_committed() {
        for (path, text) in outputs().unwrap() {
            let committed = sources::read(path).unwrap_or_default();
            assert!(committed == text, "{path}: run `cargo xtask report`");
        }
    }

    /// All sections, those of suites with few rows of their own.
    fn everything() -> Data {
        fn suite<T>(rows: Vec<T>) -> Option<Suite<T>> {
            let origin = Origin {
                file: "f.json".to_owned(),
                command: Some("deft-bench <suite>".to_owned()),
                ..Origin::default()
            };
            Some(Suite { origin, rows })
        }
        let plan = r#"[{"tree": "star", "nodes": 17, "queries": 16, "change": "view", "grouping": null, "median_us": 2},
            {"tree": "star", "nodes": 257, "queries": 256, "change": "view", "grouping": null, "median_us": 9}]"#;
        let cpu = r#"[{"workload": "w", "grouping": "flatten", "ratio_to_per_query": 2.5}]"#;
        Data {
            scaling: suite(scaling::example()),
            paper: suite(paper::example().1),
            engine: suite(engine::example()),
            plan: suite(serde_json::from_str(plan).unwrap()),
            cpu: suite(serde_json::from_str(cpu).unwrap()),
            ..Data::read().unwrap()
        }
    }

    #[test]
    fn a_suite_that_was_not_run_has_no_section() {
        let ids = |data: &Data| -> Vec<&str> {
            sections::sections(data)
                .iter()
                .map(|section| section.id)
                .collect()
        };
        let mut data = everything();
        let all = [
            "trees", "roofline", "io", "schedule", "tree", "scaling", "paper", "engine",
            "planning", "cpu",
        ];
        assert_eq!(ids(&data), all);
        (data.scaling, data.engine) = (None, None);
        let fewer = [
            "trees", "roofline", "io", "schedule", "tree", "paper", "planning", "cpu",
        ];
        assert_eq!(ids(&data), fewer);
    }

    #[test]
    fn a_prompt_that_the_paper_lacks_is_in_the_table_alone() {
        let mut data = everything();
        let suite = data.paper.as_mut().unwrap();
        let longer: Vec<Paper> = suite.rows.clone();
        suite.rows.extend(longer.into_iter().map(|row| Paper {
            prompt_tokens: Some(20_000),
            ..row
        }));
        let sections = sections::sections(&data);
        let paper = sections.iter().find(|section| section.id == "paper");
        let paper = paper.unwrap();
        for picture in paper.pictures.iter().flatten() {
            let shown = ["few-shot-50 4k", "few-shot-50 20k"].map(|name| picture.contains(name));
            assert_eq!(shown, [true, false]);
        }
        let (_, rows) = paper.tables.last().unwrap();
        assert!(rows.html().contains("<td>few-shot-50 20k</td>"));
    }

    #[test]
    fn the_page_is_well_formed_asks_for_nothing_and_is_small() {
        let data = everything();
        let html = page(&sections::tiles(&data), &sections::sections(&data));
        let body = html
            .split_once("<body>")
            .unwrap()
            .1
            .split_once("</body>")
            .unwrap()
            .0;
        let document = format!("<body>{body}</body>");
        let document = roxmltree::Document::parse(&document).unwrap();
        let mut ids: Vec<&str> = document
            .descendants()
            .filter_map(|node| node.attribute("id"))
            .collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all, "an id is there twice");
        for node in document.descendants().filter(|node| node.is_element()) {
            assert!(
                !["script", "link", "img", "iframe", "image"].contains(&node.tag_name().name()),
                "{node:?}"
            );
            if let Some(link) = node.attribute("href") {
                assert!(link.starts_with('#') || link.starts_with("../"), "{link}");
            }
        }
        assert!(!html.contains("@import") && !html.contains("url("));
        assert!(html.contains("deft-bench &lt;suite&gt;"));
        let committed = sources::read("docs/report/index.html").unwrap();
        for html in [html, committed] {
            assert!(html.len() < 400_000, "{} bytes", html.len());
        }
    }

    #[test]
    fn no_picture_of_the_page_has_words_upon_words_or_beyond_its_edges() {
        for data in [everything(), Data::read().unwrap()] {
            for section in sections::sections(&data) {
                for picture in section.pictures.iter().flatten() {
                    check(picture);
                }
            }
        }
    }
}
