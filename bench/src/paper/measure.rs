//! A run timed at the steps that stand for all.

use anyhow::{Context, Result};
use deft::attention::AttentionParams;
use deft::plan::{Plan, Planner};
use deft::tree::TreeView;
use deft_tests::inputs::Inputs;
use deft_tests::oracle::{Oracle, sample};
use half::f16;
use kernels_gpu::abi::PAGE_TOKENS;

use super::integral::integrate;
use super::model::Model;
use super::survey::{ELEMENT_BYTES, Survey};
use super::task::{Replay, Run};
use crate::GroupingArg;
use crate::device::{Device, Runner};
use crate::gpu::Repeats;
use crate::problem::PageOrder;
use crate::progress::Progress;

/// Queries of a checked step that are compared with f64.
const CHECKED: u32 = 3;

/// A way to group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) grouping: GroupingArg,
    /// Pages of a node-chunk item.
    pub(crate) chunk_pages: Option<u32>,
}

/// One layer with one grouping, summed over all steps of all runs so far.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    pub(crate) attention_us: f64,
    pub(crate) kv_issued: f64,
    pub(crate) partial_issued: f64,
    pub(crate) max_rel_l2: f64,
    /// What a check found, if results were wrong.
    pub(crate) problem: Option<String>,
}

/// One column at one step: time and bytes.
type Known = [Vec<(u32, f64)>; 3];

/// A model's heads on a device, with K, V and queries that serve every step of every task: attention takes
/// as long whatever they are.
pub(crate) struct Bench<'g> {
    inputs: Inputs<f16>,
    order: PageOrder,
    runner: Runner<'g, f16>,
    repeats: Repeats,
}

impl<'g> Bench<'g> {
    /// With `pages` pages and `queries` queries, all random.
    pub(crate) fn new(
        device: &'g Device,
        model: Model,
        pages: u32,
        queries: u32,
        repeats: Repeats,
    ) -> Result<Self> {
        let params = AttentionParams::new(model.heads.head_dim);
        let filled = vec![PAGE_TOKENS; pages as usize];
        let inputs = Inputs::random(model.heads, params, &filled, queries, 2);
        Ok(Self {
            runner: device.runner_of(&inputs)?,
            order: PageOrder::new(pages),
            inputs,
            repeats,
        })
    }

    /// The kernels and what they take of a multiprocessor.
    pub(crate) fn kernels(&self) -> Result<Vec<String>> {
        self.runner.kernels()
    }

    /// Times `run` and adds to `tallies`, one a column. With `check`, its first, middle and last timed
    /// step are compared with f64; a column that is wrong there is not timed any more.
    pub(crate) fn measure(
        &mut self,
        run: &Run,
        survey: &Survey,
        columns: &[Column],
        check: bool,
        tallies: &mut [Tally],
        progress: &Progress,
    ) -> Result<()> {
        let mut replay = run.replay()?;
        let mut step = 0;
        let timed = survey.timed_steps();
        let checked = if check { sample(timed, 3) } else { Vec::new() };
        let mut place = 0;
        for (span, samples) in &survey.spans {
            let mut known: Vec<Known> = vec![Known::default(); columns.len()];
            for &sample in samples {
                while step <= sample {
                    replay.advance()?;
                    step += 1;
                }
                let check = checked.contains(&place);
                place += 1;
                self.measure_step(&replay, sample, columns, check, tallies, &mut known)
                    .with_context(|| format!("step {sample}"))?;
                columns.iter().for_each(|_| progress.step());
            }
            for (tally, known) in tallies.iter_mut().zip(&known) {
                let [us, kv, partial] = known;
                tally.attention_us += integrate(span.clone(), us);
                tally.kv_issued += integrate(span.clone(), kv);
                tally.partial_issued += integrate(span.clone(), partial);
            }
        }
        Ok(())
    }

    fn measure_step(
        &mut self,
        replay: &Replay<'_>,
        step: u32,
        columns: &[Column],
        check: bool,
        tallies: &mut [Tally],
        known: &mut [Known],
    ) -> Result<()> {
        let forest = replay.forest();
        let mut view = forest.view(replay.queries())?;
        self.order.apply(&mut view.pages);
        self.runner.set_lengths(forest.lengths())?;
        let oracle = check.then(|| {
            let queries = sample(view.queries, CHECKED);
            Oracle::new(&self.inputs, &view, &queries)
        });
        for ((column, tally), known) in columns.iter().zip(tallies).zip(known) {
            if tally.problem.is_some() {
                continue;
            }
            let what = format!("step {step}, {}", column.grouping.name());
            let plan = self.plan(column, &view)?;
            self.runner.load(&plan)?;
            if let Some(oracle) = &oracle {
                let verdict = oracle.judge(&self.runner.attend(&plan, &what)?);
                tally.max_rel_l2 = tally.max_rel_l2.max(verdict.max_rel_l2);
                if !verdict.passes() {
                    tally.problem = Some(format!("{what}: {verdict}"));
                    continue;
                }
            }
            let us = self.runner.time(&plan, self.repeats, &what)?.median;
            let heads = self.inputs.heads;
            let io = plan.issued_io(heads, ELEMENT_BYTES, forest.lengths(), true);
            let values = [us, io.kv as f64, (io.partial_written + io.partial_read) as f64];
            for (known, value) in known.iter_mut().zip(values) {
                known.push((step, value));
            }
        }
        Ok(())
    }

    fn plan(&self, column: &Column, view: &TreeView) -> Result<Plan> {
        let mut config = self.runner.plan_config(column.grouping.into());
        if let Some(pages) = column.chunk_pages {
            config.chunk_pages = pages;
        }
        Ok(Planner::new(config)?.plan(view)?)
    }
}
