//! From logits to a token.

use deft_engine::Select;
use deft_engine::random::word;
use deft_engine::select::{draw, running};
pub use deft_engine::select::{log_sum_exp, most_likely};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use super::{Row, SearchError};

/// How a token is drawn.
///
/// Temperature first, then the `top_k` most likely tokens, then of those as few of the most likely as have
/// `top_p` of their probability together (nucleus sampling, arXiv 1904.09751).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampler {
    /// Logits are divided by it; 0 takes the most likely token.
    pub temperature: f32,
    /// Tokens to choose from; 0 for all.
    pub top_k: usize,
    /// Probability to choose from, above 0; 1 for all.
    pub top_p: f32,
}

impl Sampler {
    /// The most likely token; the first of equals.
    pub const GREEDY: Self = Self::at(0.0);

    /// All tokens, at `temperature`.
    pub const fn at(temperature: f32) -> Self {
        Self { temperature, top_k: 0, top_p: 1.0 }
    }

    /// # Errors
    /// [`SearchError::Argument`] for a temperature that is negative or not finite, or a `top_p` outside
    /// `0 < top_p <= 1`.
    pub fn check(&self) -> Result<(), SearchError> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(SearchError::Argument {
                name: "temperature",
                value: self.temperature.to_string(),
                limit: "0 or more, and finite",
            });
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(SearchError::Argument {
                name: "top_p",
                value: self.top_p.to_string(),
                limit: "above 0 and at most 1",
            });
        }
        Ok(())
    }

    /// What may be drawn from `logits`.
    ///
    /// # Errors
    /// [`SearchError::Argument`] for no logits, a NaN or no finite value among them, and as [`Sampler::check`].
    pub fn choices(&self, logits: &[f32]) -> Result<Choices, SearchError> {
        self.check()?;
        let row = Row::new(Select::Logits, deft_engine::Selected::Logits(logits.to_vec()));
        row.map(|row| self.weigh(&row)).ok_or_else(|| SearchError::Argument {
            name: "logits",
            value: format!("{} values without a largest one", logits.len()),
            limit: "numbers, at least one of them finite",
        })
    }

    /// Tokens to choose from, but for `top_p`; 0 for all.
    fn most(&self) -> usize {
        if self.temperature == 0.0 { 1 } else { self.top_k }
    }

    /// What a model of `vocabulary` tokens is to be asked for a draw at `at`.
    pub(crate) fn select(&self, at: f64, vocabulary: usize) -> Select {
        match self.most() {
            0 if self.top_p < 1.0 => Select::Logits,
            0 => Select::Draw { temperature: self.temperature, at: vec![at] },
            k => Select::Top { k: k.min(vocabulary) },
        }
    }

    /// As [`Sampler::choices`], of a sampler that was checked; the row has logits or as many of the most likely tokens
    /// as it takes.
    pub(crate) fn weigh(&self, row: &Row) -> Choices {
        let mut entries = row.top(self.most());
        let log_probs = entries.iter().map(|&(_, log_prob)| log_prob);
        let largest = log_probs.fold(f64::NEG_INFINITY, f64::max);
        let scale = if self.temperature == 0.0 { 1.0 } else { f64::from(self.temperature) };
        for (_, log_prob) in &mut entries {
            *log_prob = ((*log_prob - largest) / scale).exp();
        }
        if self.top_p < 1.0 {
            nucleus(&mut entries, f64::from(self.top_p));
        }
        let cumulative = running(entries.iter().map(|&(_, weight)| weight));
        Choices { tokens: entries.into_iter().map(|(token, _)| token).collect(), cumulative }
    }
}

/// Tokens and how likely each is drawn.
#[derive(Clone, Debug)]
pub struct Choices {
    tokens: Vec<u32>,
    /// Weights up to and including each token's.
    cumulative: Vec<f64>,
}

impl Choices {
    /// A token; takes one number from `rng`.
    pub fn draw(&self, rng: &mut impl rand::Rng) -> u32 {
        self.at(rng.random())
    }

    /// The token at `at`, from 0 to below 1.
    pub(crate) fn at(&self, at: f64) -> u32 {
        self.tokens[draw(&self.cumulative, at)]
    }

    /// Every token with its probability, in no particular order.
    pub fn probabilities(&self) -> impl Iterator<Item = (u32, f64)> + '_ {
        let total = *self.cumulative.last().expect("a vocabulary has a token");
        let mut before = 0.0;
        self.tokens.iter().zip(&self.cumulative).map(move |(&token, &sum)| {
            let weight = sum - before;
            before = sum;
            (token, weight / total)
        })
    }
}

/// Leaves the fewest of tokens with their weights, most likely first, that have `share` of the weight.
fn nucleus(entries: &mut Vec<(u32, f64)>, share: f64) {
    let total: f64 = entries.iter().map(|&(_, weight)| weight).sum();
    // Tokens below this weight have less than `1 - share` together, so the rest holds the nucleus; sorting
    // it is much less work than sorting a vocabulary.
    let floor = total * (1.0 - share) / entries.len() as f64;
    entries.retain(|&(_, weight)| weight >= floor);
    entries.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut sum = 0.0;
    let count = entries.iter().take_while(|&&(_, weight)| {
        let open = sum < share * total;
        sum += weight;
        open
    });
    let count = count.count().max(1);
    entries.truncate(count);
}

/// The random numbers of the leaf at `path`: they depend on nothing else, so the order of leaves in a batch
/// does not matter. `path` says which child to take at every level.
pub fn leaf_stream(seed: u64, path: &[u32]) -> ChaCha8Rng {
    let hash = path
        .iter()
        .fold(0x9e37_79b9_7f4a_7c15, |hash, &step| word(hash ^ (u64::from(step) + 1), 0));
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(hash);
    rng
}
