//! What is asked of a pass, chosen on the device: little comes back of many logits.

use deft::cuda::DeviceBuffer;

use super::buffers::MAX_RANKED;
use super::forward::{Pass, Tail};
use super::ops::Pick;
use super::{CudaModel, CudaModelError};
use crate::ModelError;
use crate::select::{Select, Selected};

/// What ranks as many entries as any of `select` asks for, on one of several ranks or alone. Ranks bring all logits
/// together only for requests that need them; alone they are there in any case.
fn tail_of(select: &[Select], several: bool) -> Tail {
    let logits = !several || select.iter().any(|select| ranked(select).is_none());
    let most = select.iter().filter_map(ranked).max();
    most.map_or(Tail::Logits, |k| Tail::Ranked { k, logits })
}

/// Entries that the pass ranks for a request; longer rankings are made of the logits, on the host.
fn ranked(select: &Select) -> Option<u32> {
    match select {
        Select::Top { k } => u32::try_from(*k).ok().filter(|&k| k <= MAX_RANKED),
        _ => None,
    }
}

/// What rows are asked besides a ranking, as the kernel takes it.
#[derive(Debug, Default, PartialEq)]
struct Asks {
    /// `[blocks, 4]`.
    rows: Vec<u32>,
    asks: Vec<u32>,
}

impl Asks {
    fn of(select: &[Select]) -> Self {
        let mut all = Self::default();
        for (row, select) in (0..).zip(select) {
            let first = all.asks.len() as u32;
            let scale = match select {
                Select::Draw { temperature, at } => {
                    all.asks.extend(at.iter().map(|&at| below_one(at).to_bits()));
                    // No temperature is so high that it is 0, which is for tokens.
                    (1.0 / temperature).clamp(f32::MIN_POSITIVE, f32::MAX)
                }
                Select::Of(tokens) => {
                    all.asks.extend(tokens);
                    0.0
                }
                Select::Logits | Select::Top { .. } => continue,
            };
            let count = all.asks.len() as u32 - first;
            all.rows.extend([row, first, count, scale.to_bits()]);
        }
        all
    }
}

/// A number below 1 as an f32 that is below 1 too.
fn below_one(at: f64) -> f32 {
    (at as f32).min(1.0 - f32::EPSILON / 2.0)
}

impl CudaModel {
    /// The pass that [`CudaModel::answers`] needs.
    pub(super) fn ranking(&self, select: &[Select]) -> Pass {
        Pass::whole(tail_of(select, self.forward.ranks.is_some()))
    }

    /// Waits, and answers from what the last pass, [`CudaModel::ranking`]'s, left on the device.
    pub(super) fn answers(&mut self, select: &[Select]) -> Result<Vec<Selected>, ModelError> {
        self.settle()?;
        let (mut ids, mut log_probs) = (Vec::new(), Vec::new());
        let Pass { tail, .. } = self.ranking(select);
        let stride = match tail {
            Tail::Ranked { k, .. } => {
                self.read_ranking(k, &mut ids, &mut log_probs)?;
                k as usize
            }
            _ => 0,
        };
        let (picked, picked_log_probs) = self.pick(&Asks::of(select))?;
        let mut next = 0;
        let mut answers = Vec::with_capacity(select.len());
        for (row, select) in select.iter().enumerate() {
            let (ids, log_probs) = match select {
                Select::Top { k } if ranked(select).is_some() => {
                    let place = row * stride..row * stride + k;
                    (&ids[place.clone()], &log_probs[place])
                }
                Select::Draw { at: asks, .. } => taken(&picked, &picked_log_probs, &mut next, asks),
                Select::Of(asks) => taken(&picked, &picked_log_probs, &mut next, asks),
                Select::Logits | Select::Top { .. } => {
                    answers.push(select.answer(&self.read_row(row)?));
                    continue;
                }
            };
            let log_probs = log_probs.iter().copied().map(f64::from).collect();
            answers.push(Selected::Tokens { ids: ids.to_vec(), log_probs });
        }
        Ok(answers)
    }

    /// Logits of a row of the last pass.
    fn read_row(&self, row: usize) -> Result<Vec<f32>, ModelError> {
        let mut logits = vec![0.0; self.config().vocabulary as usize];
        let first = row * logits.len();
        self.forward.buffers.logits.read(first, &mut logits, self.stream())?;
        Ok(logits)
    }

    /// The answers to `asks`, tokens and their log-probabilities.
    fn pick(&mut self, asks: &Asks) -> Result<(Vec<u32>, Vec<f32>), ModelError> {
        let count = asks.asks.len();
        if count == 0 {
            return Ok(Default::default());
        }
        let words = [&*asks.rows, &*asks.asks].concat();
        self.make_asked(words.len() + 2 * count)?;
        let buffer = self.forward.buffers.asked.as_ref().expect("it was just made");
        buffer.upload(0, &words, self.stream())?;
        let asked_at = buffer.pointer().offset(4 * asks.rows.len() as u64);
        let ids = asked_at.offset(4 * count as u64);
        let pick = Pick {
            logits: self.forward.buffers.logits.pointer(),
            rows: buffer.pointer(),
            asks: asked_at,
            ids,
            log_probs: ids.offset(4 * count as u64),
            blocks: asks.rows.len() as u32 / 4,
            vocab: self.config().vocabulary,
        };
        // SAFETY: the buffer has room for the records, the asks and their answers, and lives as long as the model; rows
        // are those of the last pass, tokens below the vocabulary (checked).
        unsafe { self.forward.ops.pick_tokens(&pick, self.stream().raw()) }?;
        let mut answers = vec![0; 2 * count];
        buffer.read(words.len(), &mut answers, self.stream())?;
        let log_probs = answers.split_off(count).into_iter().map(f32::from_bits).collect();
        Ok((answers, log_probs))
    }

    /// Sees to at least `words` words for asks and answers.
    fn make_asked(&mut self, words: usize) -> Result<(), CudaModelError> {
        let have = self.forward.buffers.asked.as_ref().map_or(0, DeviceBuffer::len);
        if have < words {
            let device = self.stream().device().clone();
            let words = words.next_power_of_two().max(1 << 12);
            // What used the old one is done: its answers were waited for.
            let buffer = DeviceBuffer::uninitialized(&device, "what rows are asked", words)?;
            self.forward.buffers.asked = Some(buffer);
        }
        Ok(())
    }
}

/// The next answers, one for each of `asks`.
fn taken<'a, T>(
    ids: &'a [u32],
    log_probs: &'a [f32],
    next: &mut usize,
    asks: &[T],
) -> (&'a [u32], &'a [f32]) {
    let place = *next..*next + asks.len();
    *next = place.end;
    (&ids[place.clone()], &log_probs[place])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_ranks_for_the_longest_ranking_that_the_device_makes() {
        let tail = |select: &[Select]| tail_of(select, false);
        let ranked = |k| Tail::Ranked { k, logits: true };
        assert_eq!(tail(&[Select::Logits, Select::Of(vec![1])]), Tail::Logits);
        assert_eq!(tail(&[Select::Top { k: 3 }, Select::Top { k: 64 }]), ranked(64));
        assert_eq!(tail(&[Select::Top { k: 65 }, Select::Top { k: 2 }]), ranked(2));
        assert_eq!(tail(&[Select::Top { k: usize::MAX }]), Tail::Logits);
    }

    #[test]
    fn ranks_bring_logits_together_only_for_requests_that_need_them() {
        let ranked = |k, logits| Tail::Ranked { k, logits };
        let (top, of) = (|k| Select::Top { k }, Select::Of(vec![1]));
        assert_eq!(tail_of(&[top(3), top(64)], true), ranked(64, false));
        assert_eq!(tail_of(&[top(3), of.clone()], true), ranked(3, true));
        assert_eq!(tail_of(&[top(65), top(2)], true), ranked(2, true));
        assert_eq!(tail_of(&[of], true), Tail::Logits);
    }

    #[test]
    fn asks_are_records_of_the_rows_that_have_some() {
        let draw = |temperature| Select::Draw { temperature, at: vec![0.5, 1.0 - 1e-12] };
        let select = [Select::Top { k: 1 }, Select::Of(vec![7]), Select::Logits, draw(f32::MAX)];
        let asks = Asks::of(&select);
        let scale = f32::MIN_POSITIVE.to_bits();
        assert_eq!(asks.rows, [1, 0, 1, 0, 3, 1, 2, scale]);
        let largest = (1.0 - f32::EPSILON / 2.0).to_bits();
        assert_eq!(asks.asks, [7, 0.5_f32.to_bits(), largest]);
        let Asks { rows, .. } = Asks::of(&[draw(f32::MIN_POSITIVE / 4.0)]);
        assert!(f32::from_bits(rows[3]).is_finite());
    }
}
