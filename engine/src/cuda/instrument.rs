//! Instruments on a model: passes between events or without attention, trees that were never computed, every stage's
//! output. What is timed so means nothing as text: for benchmarks and tests alone.

use deft::NodeKey;
use deft::cuda::{Event, Stream};

use super::decode::{Choice, Decode};
use super::forward::{Pass, Tail};
use super::ops::FillRandom;
use super::probe::Recorder;
pub use super::probe::{Probe, Stage};
use super::{CudaModel, CudaModelError};
use crate::{DraftToken, ModelError};

/// How a pass is timed.
#[derive(Clone, Copy, Debug)]
pub struct Timed<'e> {
    /// Whether there is attention; without it all the rest is timed.
    pub attention: bool,
    /// Whether ranks tell each other anything; without it all the rest is timed.
    pub ranks: bool,
    /// Events that are recorded right before and after the pass itself.
    pub events: Option<(&'e Event, &'e Event)>,
}

impl<'e> Timed<'e> {
    /// All of a pass, without events.
    pub const PLAIN: Self = Self { attention: true, ranks: true, events: None };

    /// The same between events.
    #[must_use]
    pub fn between(self, events: Option<(&'e Event, &'e Event)>) -> Self {
        Self { events, ..self }
    }

    pub(super) fn pass(&self, tail: Tail) -> Pass {
        Pass { attention: self.attention, ranks: self.ranks, ..Pass::whole(tail) }
    }
}

/// As [`Decode::step`].
///
/// # Errors
/// As [`Decode::step`].
pub fn step(decode: &mut Decode<'_>, timed: Timed<'_>) -> Result<(), ModelError> {
    decode.step_timed(timed)
}

/// As [`TreeModel::verify`](crate::TreeModel::verify), but the device ranks: `ids` becomes `[draft]`, the most probable
/// token after each.
///
/// # Errors
/// As [`TreeModel::verify`](crate::TreeModel::verify).
pub fn verify(
    model: &mut CudaModel,
    trunk: NodeKey,
    draft: &[DraftToken],
    ids: &mut Vec<u32>,
    timed: Timed<'_>,
) -> Result<Vec<NodeKey>, ModelError> {
    model.set_sampling(Choice::GREEDY)?;
    let pass = timed.pass(Tail::Choose(Choice::GREEDY.ranked));
    let nodes = model.run_verify(trunk, draft, pass, timed.events)?;
    model.read_ranking(1, ids, &mut Vec::new())?;
    Ok(nodes)
}

/// Starts a tree whose root has `tokens` tokens, without running them: their K and V are what their pages hold.
///
/// # Errors
/// [`ModelError::Cache`].
pub fn assume_prompt(model: &mut CudaModel, tokens: u32) -> Result<NodeKey, ModelError> {
    let root = model.cache.insert_root()?;
    let grown = assume_tokens(model, root, tokens);
    if grown.is_err() {
        model.cache.prune(root)?;
    }
    grown.map(|()| root)
}

/// As [`TreeModel::insert_prompt`](crate::TreeModel::insert_prompt), without the logits and without waiting.
///
/// # Errors
/// As [`TreeModel::insert_prompt`](crate::TreeModel::insert_prompt).
pub fn prompt(
    model: &mut CudaModel,
    tokens: &[u32],
    timed: Timed<'_>,
) -> Result<NodeKey, ModelError> {
    let pass = timed.pass(Tail::LogitsOfOne);
    let stream = |model: &CudaModel, event: Option<&Event>| {
        event.map_or(Ok(()), |event| event.record(model.stream()))
    };
    stream(model, timed.events.map(|(begin, _)| begin))?;
    let root = model.run_prompt(tokens, pass)?;
    stream(model, timed.events.map(|(_, end)| end))?;
    Ok(root)
}

/// Adds `tokens` tokens to `leaf`, without running them.
///
/// # Errors
/// [`ModelError::Cache`].
pub fn assume_tokens(model: &mut CudaModel, leaf: NodeKey, tokens: u32) -> Result<(), ModelError> {
    Ok(model.cache.extend(&[leaf], tokens)?)
}

/// Fills all pages with random values, for prompts that are assumed.
///
/// # Errors
/// [`ModelError`]: a failed device; [`ModelError::Option`] where not all pages have memory.
pub fn randomize_pages(model: &mut CudaModel, seed: u64) -> Result<(), ModelError> {
    if let Some(initial) = model.options.kv_initial {
        return Err(CudaModelError::Option {
            option: "kv_initial",
            value: initial.to_string(),
            expected: "left out: random pages need memory".to_owned(),
        }
        .into());
    }
    let (pool, stream) = (model.gpu().cache().pool(), model.stream());
    let fill = FillRandom { out: pool.pointer(), count: pool.len() as u64, seed, scale: 1.0 };
    // SAFETY: the pool has `count` elements, and all that reads them is enqueued on the same stream.
    unsafe { model.forward.ops.fill_random(&fill, stream.raw()) }?;
    Ok(stream.synchronize()?)
}

/// Mean microseconds of the sum over ranks of what they add to `rows` rows, `count` of them one after the other in a graph, as a
/// pass has them; 0 where there is one rank.
///
/// # Errors
/// [`ModelError`]: a failed device, more rows than the model was made for.
pub fn time_all_reduce(model: &CudaModel, rows: u32, count: u32) -> Result<f64, ModelError> {
    let max_rows = model.options().max_rows;
    if rows > max_rows {
        let rows = rows as usize;
        return Err(CudaModelError::Rows { rows, max_rows }.into());
    }
    let Some(ranks) = &model.forward.ranks else { return Ok(0.0) };
    let stream = model.stream();
    let (x, states) = (model.forward.buffers.x.pointer(), (rows, model.config().hidden));
    let all = |stream: &Stream| -> Result<(), CudaModelError> {
        for _ in 0..count {
            // SAFETY: there are so many rows; the stream is the model's. Whatever is there takes as long.
            unsafe { ranks.sum(x, states, stream.raw()) }?;
        }
        Ok(())
    };
    all(stream)?;
    model.settle()?;
    let mut graph = stream.capture(all)?;
    let (begin, end) = (Event::new(stream.device())?, Event::new(stream.device())?);
    const REPLAYS: u32 = 5;
    // The first replay brings ranks in step.
    for replay in 0..=REPLAYS {
        if replay == 1 {
            begin.record(stream)?;
        }
        // SAFETY: as above.
        unsafe { graph.launch(stream) }?;
    }
    end.record(stream)?;
    model.settle()?;
    Ok(end.microseconds_since(&begin)? / f64::from(REPLAYS * count))
}

/// Runs `tokens` as a tree of their own, at most `prefill_rows` of them, and gives every stage's output on the way.
/// The tree is gone afterwards.
///
/// # Errors
/// As [`TreeModel::insert_prompt`](crate::TreeModel::insert_prompt).
pub fn probe(model: &mut CudaModel, tokens: &[u32]) -> Result<Vec<Probe>, ModelError> {
    model.check_tokens(tokens)?;
    let most = model.options().prefill_rows.min(model.options().max_rows);
    if tokens.is_empty() || tokens.len() > most as usize {
        let (rows, max_rows) = (tokens.len(), most);
        return Err(CudaModelError::Rows { rows, max_rows }.into());
    }
    let root = model.cache.insert_root()?;
    // SAFETY: the stream is the model's and outlives the value.
    let stream = unsafe { Stream::borrow_raw(model.stream().device(), model.stream().raw()) };
    let mut recorder = Recorder { stream: &stream, dtype: model.dtype(), probes: Vec::new() };
    let logits = Pass::whole(Tail::Logits);
    let outcome = model.run_part(root, tokens, logits, &mut recorder);
    let probes = recorder.probes;
    model.cache.prune(root)?;
    outcome.map(|_| probes)
}
