//! A run looked at step by step, before anything is timed.

use std::ops::Range;

use anyhow::Result;
use deft::plan::{HeadShape, unique_kv_bytes};
use deft::tree::{TreeView, ViewScratch};
use deft_workloads::{PaperIo, PaperMethod};

use super::integral::samples;
use super::task::Run;
use crate::GroupingArg;

/// Bytes of an f16 element.
pub(super) const ELEMENT_BYTES: u32 = 2;

/// What a run is made of.
#[derive(Clone, Debug, Default)]
pub(crate) struct Survey {
    /// Steps in which something is asked.
    pub(crate) steps: u32,
    /// Spans of steps in which the tree keeps its shape, with those of each that are timed.
    pub(crate) spans: Vec<(Range<u32>, Vec<u32>)>,
    /// IO of one layer, all steps.
    pub(crate) io: RunIo,
    /// Pages of the run's pool.
    pub(crate) pages: u32,
    /// Most queries of a step.
    pub(crate) queries: u32,
}

/// Bytes of one layer over all steps of a run, by formula.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RunIo {
    per_query: PaperIo,
    node: PaperIo,
    flatten: PaperIo,
    medusa: PaperIo,
    /// K and V of every token, once a step, at the width of the KV heads.
    pub(crate) unique_kv: u64,
}

/// Who counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Method {
    Grouping(GroupingArg),
    Medusa,
}

impl RunIo {
    /// Adds a step.
    pub(crate) fn add(&mut self, view: &TreeView, heads: HeadShape) {
        for (method, sum) in [
            (PaperMethod::FlashDecoding, &mut self.per_query),
            (PaperMethod::DeftNode, &mut self.node),
            (PaperMethod::DeftFlatten, &mut self.flatten),
            (PaperMethod::Medusa, &mut self.medusa),
        ] {
            let step = PaperIo::of(view, method, heads, ELEMENT_BYTES);
            sum.kv += step.kv;
            sum.logits += step.logits;
            sum.mask += step.mask;
        }
        self.unique_kv += unique_kv_bytes(view, heads, ELEMENT_BYTES);
    }

    /// K and V, and what the paper calls partial results (logits and masks).
    pub(crate) fn of(&self, method: Method) -> (u64, u64) {
        let io = match method {
            Method::Grouping(GroupingArg::PerQuery) => &self.per_query,
            Method::Grouping(GroupingArg::Node | GroupingArg::NodeChunk) => &self.node,
            Method::Grouping(GroupingArg::Flatten) => &self.flatten,
            Method::Medusa => &self.medusa,
        };
        (io.kv, io.logits + io.mask)
    }
}

impl Survey {
    /// Replays `run`; of a span of equal shape, steps at most `stride` apart are to be timed.
    pub(crate) fn of(run: &Run, heads: HeadShape, stride: u32) -> Result<Self> {
        let mut replay = run.replay()?;
        let mut survey = Self { pages: replay.forest().pool().capacity(), ..Self::default() };
        let (mut scratch, mut view) = (ViewScratch::default(), TreeView::default());
        let mut shape = None;
        let mut begin = 0;
        while replay.advance()? {
            if shape.is_some_and(|shape| shape != replay.shape()) {
                survey.end_span(begin, stride);
                begin = survey.steps;
            }
            shape = Some(replay.shape());
            replay.forest().view_into(replay.queries(), &mut scratch, &mut view)?;
            survey.io.add(&view, heads);
            survey.queries = survey.queries.max(view.queries);
            survey.steps += 1;
        }
        survey.end_span(begin, stride);
        Ok(survey)
    }

    fn end_span(&mut self, begin: u32, stride: u32) {
        let span = begin..self.steps;
        self.spans.push((span.clone(), samples(span, stride)));
    }

    /// Steps to be timed.
    pub(crate) fn timed_steps(&self) -> u32 {
        self.spans.iter().map(|(_, timed)| timed.len() as u32).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::super::cases::{Case, cases};
    use super::super::model::LLAMA3_8B;
    use super::super::task::{Reasoning, Task};
    use super::*;
    use rayon::prelude::*;

    /// Table 17 of the paper: `values[grouping]` of a task.
    fn printed(metric: &str, grouping: &str, case: &Case) -> Option<f64> {
        let text = include_str!("../../../docs/benchmarks/paper-a100.json");
        let paper: serde_json::Value = serde_json::from_str(text).unwrap();
        let tables = paper["tables"].as_array().unwrap();
        let table =
            tables.iter().find(|table| table["table"] == 17 && table["metric"] == metric).unwrap();
        let columns = table["columns"].as_array().unwrap();
        let at = columns.iter().position(|column| {
            let prompt = column["prompt_tokens"].as_u64();
            column["task"] == case.task.name().as_str()
                && column["model"] == case.model.name
                && prompt == case.prompt.map(u64::from)
        })?;
        let rows = table["rows"].as_array().unwrap();
        let row = rows.iter().find(|row| row["grouping"] == grouping)?;
        row["values"][at].as_f64()
    }

    fn surveys(case: &Case) -> Vec<Survey> {
        let runs = case.task.runs(case.prompt, case.runs).unwrap();
        let runs = runs.par_iter();
        runs.map(|run| Survey::of(run, case.model.heads, 64).unwrap()).collect()
    }

    /// Mean of the runs, all layers.
    fn terabytes(surveys: &[Survey], method: Method) -> (f64, f64) {
        let layers = f64::from(LLAMA3_8B.layers) * 1e-12 / surveys.len() as f64;
        let sums = surveys.iter().map(|survey| survey.io.of(method));
        let (kv, partial) = sums.fold((0, 0), |sum, io| (sum.0 + io.0, sum.1 + io.1));
        (kv as f64 * layers, partial as f64 * layers)
    }

    /// The paper prints two decimals, so small figures are less exact than a hundredth.
    fn assert_printed(what: &str, ours: f64, paper: f64) {
        assert!(
            (ours - paper).abs() <= (0.01 * paper).max(0.00501),
            "{what}: {ours:.4}, the paper has {paper}"
        );
    }

    #[test]
    fn few_shot_and_reasoning_io_is_that_of_the_papers_table_17() {
        let mut compared = 0;
        for case in cases(false) {
            let speculative = matches!(case.task, Task::Speculative { .. });
            let Some(per_query) = printed("kv_tb", "per-query", &case) else {
                continue;
            };
            if speculative {
                continue;
            }
            let surveys = surveys(&case);
            let name = case.task.name();
            let of = |grouping| terabytes(&surveys, Method::Grouping(grouping));
            let flatten = of(GroupingArg::Flatten);
            assert_printed(&name, of(GroupingArg::PerQuery).0, per_query);
            let paper = |metric| printed(metric, "flatten", &case).unwrap();
            assert_printed(&name, flatten.0, paper("kv_tb"));
            assert_printed(&name, flatten.1, paper("partial_tb"));
            let reduction = 100.0 * (1.0 - flatten.0 / of(GroupingArg::PerQuery).0);
            let printed_reduction = paper("kv_reduction_percent");
            assert!((reduction / printed_reduction - 1.0).abs() < 1e-3, "{name}");
            let medusa = printed("kv_tb", "medusa-io", &case).unwrap();
            assert_printed(&name, terabytes(&surveys, Method::Medusa).0, medusa);
            compared += 1;
        }
        assert_eq!(compared, 3 + Reasoning::ALL.len());
    }

    #[test]
    fn medusas_logits_are_the_papers() {
        for case in cases(false) {
            if matches!(case.task, Task::Speculative { .. }) {
                continue;
            }
            if let Some(paper) = printed("partial_tb", "medusa-io", &case) {
                let ours = terabytes(&surveys(&case), Method::Medusa).1;
                assert!((ours / paper - 1.0).abs() < 0.02, "{ours:.3}, printed {paper}");
            }
        }
    }

    #[test]
    fn spans_cover_all_steps_and_end_where_the_shape_changes() {
        let run = &Task::Reasoning(Reasoning::Keyword).runs(None, 1).unwrap()[0];
        let survey = Survey::of(run, LLAMA3_8B.heads, 8).unwrap();
        let mut end = 0;
        for (span, timed) in &survey.spans {
            assert_eq!(span.start, end);
            assert!(!timed.is_empty() && timed.iter().all(|step| span.contains(step)));
            end = span.end;
        }
        assert_eq!(end, survey.steps);
        assert!(survey.spans.len() > 6, "a tree of six levels changes shape");
        assert!(survey.timed_steps() < survey.steps);
        let star = &Task::FewShot { branches: 5 }.runs(Some(200), 1).unwrap()[0];
        let survey = Survey::of(star, LLAMA3_8B.heads, 50).unwrap();
        assert_eq!((survey.spans.len(), survey.timed_steps()), (1, 9));
    }
}
