//! Timing steps as a search would run them: one after the other, the host ahead of the device where it can be.

use std::time::Instant;

use anyhow::{Context, Result};
use deft::NodeKey;
use deft::cuda::Event;
use deft_engine::TreeModel;
use deft_engine::cuda::instrument::{self, Timed};
use deft_engine::cuda::{Choice, CudaModel};

use super::Watchdog;
use super::tasks::{Draft, Task, Work};

/// Passes before those that are timed: as they are, captured, replayed.
const WARMUP: usize = 3;
/// Passes that are timed, with attention and without it.
const TIMED: usize = 10;
const TIMED_WITHOUT: usize = 6;
/// Prompts that are timed.
const TIMED_PROMPTS: usize = 3;

/// A mean step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Timing {
    /// From one step's begin to the next one's, on the wall clock.
    pub(super) step_ms: f64,
    /// The pass itself, by events around it.
    pub(super) pass_ms: f64,
    /// K and V that attention read, as issued, all layers.
    pub(super) kv_bytes: f64,
    /// Tokens that a step gives.
    pub(super) output_tokens: f64,
    /// Queries of a step.
    pub(super) queries: f64,
    /// The same pass without attention.
    pub(super) without_attention_ms: f64,
    /// The same pass of a rank that tells the others nothing and hears nothing.
    pub(super) without_ranks_ms: f64,
    /// A sum over ranks of a pass's states, by itself.
    pub(super) all_reduce_us: f64,
}

impl Timing {
    fn mean(all: &[Self]) -> Self {
        let of = |field: fn(&Self) -> f64| all.iter().map(field).sum::<f64>() / all.len() as f64;
        Self {
            step_ms: of(|t| t.step_ms),
            pass_ms: of(|t| t.pass_ms),
            kv_bytes: of(|t| t.kv_bytes),
            output_tokens: of(|t| t.output_tokens),
            queries: of(|t| t.queries),
            without_attention_ms: of(|t| t.without_attention_ms),
            without_ranks_ms: of(|t| t.without_ranks_ms),
            all_reduce_us: of(|t| t.all_reduce_us),
        }
    }
}

/// Events around each timed pass.
struct Clock {
    events: Vec<(Event, Event)>,
}

impl Clock {
    fn new(model: &CudaModel, passes: usize) -> Result<Self> {
        let device = model.stream().device();
        let pair = || Ok::<_, anyhow::Error>((Event::new(device)?, Event::new(device)?));
        let events = (0..passes).map(|_| pair()).collect::<Result<_>>()?;
        Ok(Self { events })
    }

    /// Mean milliseconds of a pass.
    fn pass_ms(&self) -> Result<f64> {
        let mut total = 0.0;
        for (begin, end) in &self.events {
            total += end.microseconds_since(begin)?;
        }
        Ok(total / 1e3 / self.events.len() as f64)
    }
}

/// Times a task; a task with several moments is their mean.
pub(super) fn time(model: &mut CudaModel, task: &Task, watchdog: &Watchdog) -> Result<Timing> {
    match &task.work {
        Work::Steps(moments) => {
            let mut timings = Vec::new();
            for (at, moment) in moments.iter().enumerate() {
                watchdog.now(&format!("{}, moment {at}", task.name));
                let (root, leaves) = moment.build(model)?;
                let timing = whole_and_parts(model, |model, timed, passes| {
                    steps(model, &leaves, timed, passes)
                })?;
                model.prune(root)?;
                timings.push(timing);
            }
            Ok(Timing::mean(&timings))
        }
        Work::Drafts(draft) => {
            watchdog.now(&task.name);
            let trunk = instrument::assume_prompt(model, task.prompt_tokens)?;
            let timing = whole_and_parts(model, |model, timed, passes| {
                drafts(model, trunk, draft, timed, passes)
            })?;
            model.prune(trunk)?;
            Ok(timing)
        }
        Work::Search(search, moment) => {
            watchdog.now(&task.name);
            let (root, leaves) = moment.build(model)?;
            let pass = whole_and_parts(model, |model, timed, passes| {
                steps(model, &leaves, timed, passes)
            })?;
            model.prune(root)?;
            let (step_ms, kv_bytes) = search.time(model, task.prompt_tokens)?;
            Ok(Timing { step_ms, kv_bytes, ..pass })
        }
        Work::Prompt => {
            watchdog.now("a prompt");
            whole_and_parts(model, |model, timed, _| prompts(model, task.prompt_tokens, timed))
        }
    }
}

/// Times whole passes, and the same without attention and without other ranks. `run` runs so many passes.
fn whole_and_parts(
    model: &mut CudaModel,
    mut run: impl FnMut(&mut CudaModel, Timed<'_>, usize) -> Result<Timing>,
) -> Result<Timing> {
    let mut timing = run(model, Timed::PLAIN, TIMED)?;
    let without = Timed { attention: false, ..Timed::PLAIN };
    timing.without_attention_ms = run(model, without, TIMED_WITHOUT)?.pass_ms;
    timing.without_ranks_ms = timing.pass_ms;
    if model.weights().shard().ranks() > 1 {
        let without = Timed { ranks: false, ..Timed::PLAIN };
        timing.without_ranks_ms = run(model, without, TIMED_WITHOUT)?.pass_ms;
        let most = model.options().max_rows.max(1);
        let rows = (timing.queries as u32).clamp(1, most);
        timing.all_reduce_us = instrument::time_all_reduce(model, rows, 2 * model.config().layers)?;
    }
    Ok(timing)
}

fn steps(
    model: &mut CudaModel,
    leaves: &[NodeKey],
    how: Timed<'_>,
    timed: usize,
) -> Result<Timing> {
    let clock = Clock::new(model, timed)?;
    let mut decode = model.decode(leaves, &vec![1; leaves.len()], Choice::GREEDY)?;
    for _ in 0..WARMUP {
        instrument::step(&mut decode, how)?;
        decode.synchronize()?;
    }
    let before = decode.traffic();
    let begin = Instant::now();
    for (first, last) in &clock.events {
        instrument::step(&mut decode, how.between(Some((first, last))))?;
    }
    decode.synchronize()?;
    let wall_ms = begin.elapsed().as_secs_f64() * 1e3;
    Ok(Timing {
        step_ms: wall_ms / timed as f64,
        pass_ms: clock.pass_ms()?,
        kv_bytes: (decode.traffic().read - before.read) as f64 / timed as f64,
        output_tokens: leaves.len() as f64,
        queries: leaves.len() as f64,
        ..Timing::default()
    })
}

fn drafts(
    model: &mut CudaModel,
    trunk: NodeKey,
    draft: &Draft,
    how: Timed<'_>,
    timed: usize,
) -> Result<Timing> {
    let clock = Clock::new(model, timed)?;
    let mut ids = Vec::new();
    let mut steps = draft.steps.iter().cycle();
    let mut round = |model: &mut CudaModel, events| -> Result<usize> {
        let step = steps.next().context("there is no draft")?;
        let timed = how.between(events);
        let keys = instrument::verify(model, trunk, &step.tokens, &mut ids, timed)?;
        let path: Vec<NodeKey> = step.accepted.iter().map(|&node| keys[node]).collect();
        model.accept(trunk, &path)?;
        Ok(path.len())
    };
    for _ in 0..WARMUP {
        round(model, None)?;
    }
    model.synchronize()?;
    let before = model.traffic();
    let begin = Instant::now();
    let mut tokens = 0;
    for (first, last) in &clock.events {
        tokens += round(model, Some((first, last)))?;
    }
    model.synchronize()?;
    let wall_ms = begin.elapsed().as_secs_f64() * 1e3;
    Ok(Timing {
        step_ms: wall_ms / timed as f64,
        pass_ms: clock.pass_ms()?,
        kv_bytes: (model.traffic().read - before.read) as f64 / timed as f64,
        output_tokens: tokens as f64 / timed as f64,
        queries: draft.steps[0].tokens.len() as f64,
        ..Timing::default()
    })
}

/// Whole prompts one after the other, each part of one at a time.
fn prompts(model: &mut CudaModel, tokens: u32, how: Timed<'_>) -> Result<Timing> {
    let vocabulary = model.vocabulary() as u32;
    let prompt: Vec<u32> = (0..tokens).map(|at| at * 7 % vocabulary).collect();
    let clock = Clock::new(model, TIMED_PROMPTS)?;
    let run = |model: &mut CudaModel, events| -> Result<()> {
        let root = instrument::prompt(model, &prompt, how.between(events))?;
        model.synchronize()?;
        model.prune(root)?;
        Ok(())
    };
    run(model, None)?;
    let before = model.traffic();
    let begin = Instant::now();
    for (first, last) in &clock.events {
        run(model, Some((first, last)))?;
    }
    let wall_ms = begin.elapsed().as_secs_f64() * 1e3;
    Ok(Timing {
        step_ms: wall_ms / TIMED_PROMPTS as f64,
        pass_ms: clock.pass_ms()?,
        kv_bytes: (model.traffic().read - before.read) as f64 / TIMED_PROMPTS as f64,
        output_tokens: f64::from(tokens),
        queries: f64::from(tokens),
        ..Timing::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_s_timing_is_the_mean_of_its_moments() {
        let of = |x: f64| Timing {
            step_ms: x,
            pass_ms: 2.0 * x,
            kv_bytes: 3.0 * x,
            output_tokens: 4.0 * x,
            queries: 5.0 * x,
            without_attention_ms: 6.0 * x,
            without_ranks_ms: 7.0 * x,
            all_reduce_us: 8.0 * x,
        };
        assert_eq!(Timing::mean(&[of(1.0), of(3.0)]), of(2.0));
    }
}
