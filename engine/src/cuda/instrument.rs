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
    /// Events that are recorded right before and after the pass itself.
    pub events: Option<(&'e Event, &'e Event)>,
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
    let pass = Pass { tail: Tail::Choose(Choice::GREEDY.ranked), attention: timed.attention };
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
    let pass = Pass { tail: Tail::LogitsOfOne, attention: timed.attention };
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
    let logits = Pass { tail: Tail::Logits, attention: true };
    let outcome = model.run_part(root, tokens, logits, &mut recorder);
    let probes = recorder.probes;
    model.cache.prune(root)?;
    outcome.map(|_| probes)
}
