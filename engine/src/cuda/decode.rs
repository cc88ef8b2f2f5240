//! Decoding whose tokens stay on the device: steps are enqueued one after the other, nobody waits.

use deft::NodeKey;
use kernels_gpu::random::settings;

use super::buffers::MAX_RANKED;
use super::forward::Tail;
use super::instrument::Timed;
use super::{CudaModel, CudaModelError};
use crate::{ModelError, Traffic};

/// Chosen tokens of a row that the device keeps.
pub(super) const HISTORY: u32 = 256;

/// How each row's next token is chosen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Choice {
    /// Entries that are ranked, 1 to [`MAX_RANKED`]; the first is the token.
    pub ranked: u32,
    /// 0 for the most probable tokens, else samples of the softmax of `logits / temperature`.
    pub temperature: f32,
    /// Of the samples. The noise of a leaf is that of its index among the leaves.
    pub seed: u64,
}

impl Choice {
    /// The most probable token.
    pub const GREEDY: Self = Self { ranked: 1, temperature: 0.0, seed: 0 };

    pub(super) fn check(&self, vocabulary: u32) -> Result<(), CudaModelError> {
        let most = MAX_RANKED.min(vocabulary);
        if self.ranked == 0 || self.ranked > most {
            return Err(CudaModelError::Option {
                option: "ranked",
                value: self.ranked.to_string(),
                expected: format!("between 1 and {most}"),
            });
        }
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(CudaModelError::Option {
                option: "temperature",
                value: self.temperature.to_string(),
                expected: "a finite number from 0 up".to_owned(),
            });
        }
        Ok(())
    }
}

/// Leaves that decode on the device.
///
/// [`Decode::step`] enqueues a step and returns: the host plans the next while the device is at it. The tokens that
/// were chosen are read by [`Decode::tokens`], which waits.
#[derive(Debug)]
pub struct Decode<'m> {
    model: &'m mut CudaModel,
    leaves: Vec<NodeKey>,
    choice: Choice,
    /// Inputs that the device does not have yet.
    first: Option<Vec<u32>>,
    /// Steps whose tokens are still on the device alone.
    unread: u32,
    /// Position of each leaf's last token.
    positions: Vec<u64>,
    /// What was read: of each leaf.
    chosen: Vec<Vec<u32>>,
}

impl CudaModel {
    /// Begins to decode `leaves`, which get `tokens[i]` first.
    ///
    /// # Errors
    /// [`ModelError`], as [`TreeModel::step`](crate::TreeModel::step).
    pub fn decode(
        &mut self,
        leaves: &[NodeKey],
        tokens: &[u32],
        choice: Choice,
    ) -> Result<Decode<'_>, ModelError> {
        choice.check(self.config().vocabulary)?;
        self.check_pass(leaves.len(), tokens)?;
        let mut positions = Vec::with_capacity(leaves.len());
        for &leaf in leaves {
            positions.push(self.tokens_of(leaf)?);
        }
        self.set_sampling(choice)?;
        Ok(Decode {
            leaves: leaves.to_vec(),
            choice,
            first: Some(tokens.to_vec()),
            unread: 0,
            positions,
            chosen: vec![Vec::new(); leaves.len()],
            model: self,
        })
    }
}

impl CudaModel {
    /// Makes passes from now on draw as `choice` says.
    pub(super) fn set_sampling(&self, choice: Choice) -> Result<(), ModelError> {
        let words = settings(choice.seed, choice.temperature);
        let buffer = &self.forward.buffers.sampling;
        Ok(buffer.upload(0, &words, self.stream())?)
    }
}

impl Decode<'_> {
    /// Enqueues a step: each leaf grows by the token chosen for it last.
    ///
    /// # Errors
    /// [`ModelError`]; then no leaf has grown.
    pub fn step(&mut self) -> Result<(), ModelError> {
        self.step_timed(Timed::PLAIN)
    }

    pub(super) fn step_timed(&mut self, timed: Timed<'_>) -> Result<(), ModelError> {
        if self.unread == HISTORY {
            self.read()?;
        }
        self.model.grow(&self.leaves)?;
        let pass = timed.pass(Tail::Choose(self.choice.ranked));
        let first = self.first.as_deref();
        let run = self.model.run(first, pass, timed.events);
        self.model.or_shrink(&self.leaves, run)?;
        self.first = None;
        self.unread += 1;
        for position in &mut self.positions {
            *position += 1;
        }
        Ok(())
    }

    /// Waits, and says which tokens were chosen: `[leaves][steps]`. Those of the last step are in no leaf yet.
    ///
    /// # Errors
    /// [`ModelError`]: a failed device.
    pub fn tokens(&mut self) -> Result<&[Vec<u32>], ModelError> {
        self.read()?;
        Ok(&self.chosen)
    }

    /// Waits, and writes the last step's ranking: `ids` and `log_probs` become `[leaves, ranked]`, the
    /// probabilities those of temperature 1.
    ///
    /// # Errors
    /// [`ModelError`]: a failed device.
    pub fn ranking(
        &mut self,
        ids: &mut Vec<u32>,
        log_probs: &mut Vec<f32>,
    ) -> Result<(), ModelError> {
        self.model.read_ranking(self.choice.ranked, ids, log_probs)
    }

    /// What attention has read since the model was made.
    pub fn traffic(&self) -> Traffic {
        self.model.traffic
    }

    /// Waits until the device is through.
    ///
    /// # Errors
    /// [`ModelError`]: a failed device.
    pub fn synchronize(&self) -> Result<(), ModelError> {
        Ok(self.model.synchronize()?)
    }

    fn read(&mut self) -> Result<(), ModelError> {
        if self.unread == 0 {
            return Ok(());
        }
        let mut history = vec![0; self.leaves.len() * HISTORY as usize];
        self.model.read_history(&mut history)?;
        for (leaf, kept) in history.chunks(HISTORY as usize).enumerate() {
            let last = self.positions[leaf];
            self.chosen[leaf].extend(newest(kept, last, self.unread));
        }
        self.unread = 0;
        Ok(())
    }
}

/// The newest `count` entries of a ring in which the token of position `p` is at `p % ring.len()`, oldest first; the
/// newest is of position `last`.
fn newest(ring: &[u32], last: u64, count: u32) -> impl Iterator<Item = u32> + '_ {
    let positions = last + 1 - u64::from(count)..=last;
    positions.map(|position| ring[(position % ring.len() as u64) as usize])
}

#[cfg(test)]
mod tests {
    use super::{Choice, newest};

    #[test]
    fn a_choice_that_no_kernel_takes_is_refused_before_anything_grows() {
        let check = |ranked, temperature| {
            let seed = 0;
            let choice = Choice { ranked, temperature, seed };
            choice.check(40).map_err(|error| error.to_string())
        };
        assert_eq!(check(1, 0.0), Ok(()));
        assert_eq!(check(40, 2.5), Ok(()));
        for temperature in [-1.0, f32::NAN, f32::INFINITY] {
            assert_eq!(
                check(1, temperature),
                Err(format!("temperature is {temperature}; it must be a finite number from 0 up"))
            );
        }
        let ranked = "ranked is 41; it must be between 1 and 40";
        assert_eq!(check(41, 0.0), Err(ranked.to_owned()));
    }

    #[test]
    fn the_newest_tokens_are_read_round_the_ring_s_end() {
        let ring: Vec<u32> =
            (0..8).map(|column| if column < 3 { 8 + column } else { column }).collect();
        assert_eq!(newest(&ring, 10, 4).collect::<Vec<_>>(), [7, 8, 9, 10]);
        assert_eq!(newest(&ring, 10, 8).collect::<Vec<_>>(), [3, 4, 5, 6, 7, 8, 9, 10]);
        assert_eq!(newest(&ring, 3, 1).collect::<Vec<_>>(), [3]);
    }
}
