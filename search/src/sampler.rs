//! From logits to a token.

use deft_engine::random::word;
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

use super::SearchError;

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
        let choices = self.weigh(logits);
        // The largest weighs 1, if there is a largest.
        if choices.cumulative.last().is_some_and(|sum| sum.is_finite()) {
            return Ok(choices);
        }
        Err(SearchError::Argument {
            name: "logits",
            value: format!("{} values without a largest one", logits.len()),
            limit: "numbers, at least one of them finite",
        })
    }

    /// As [`Sampler::choices`], of a row and a sampler that were checked.
    pub(crate) fn weigh(&self, logits: &[f32]) -> Choices {
        let k = if self.temperature == 0.0 { 1 } else { self.top_k };
        let mut tokens =
            if k > 0 { most_likely(logits, k) } else { (0..logits.len() as u32).collect() };
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let scale = if self.temperature == 0.0 { 1.0 } else { f64::from(self.temperature) };
        let weight = |token: u32| {
            let below = f64::from(logits[token as usize]) - f64::from(largest);
            (below / scale).exp()
        };
        if self.top_p < 1.0 {
            tokens = nucleus(tokens, logits, f64::from(self.top_p), weight);
        }
        let mut sum = 0.0;
        let cumulative = tokens.iter().map(|&token| {
            sum += weight(token);
            sum
        });
        Choices { cumulative: cumulative.collect(), tokens }
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
        let total = *self.cumulative.last().expect("a vocabulary has a token");
        let at = rng.random::<f64>() * total;
        let index = self.cumulative.partition_point(|&sum| sum <= at);
        // The product may round up to the total: then the last token with any weight.
        let last = self.cumulative.partition_point(|&sum| sum < total);
        self.tokens[index.min(last)]
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

/// The `k` most likely tokens, most likely first; the lower of equal ones first.
pub fn most_likely(logits: &[f32], k: usize) -> Vec<u32> {
    let order = |a: &u32, b: &u32| {
        let (x, y) = (logits[*a as usize], logits[*b as usize]);
        y.total_cmp(&x).then(a.cmp(b))
    };
    if k == 1 {
        let best = (0..logits.len() as u32).min_by(order);
        return best.into_iter().collect();
    }
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    if k < tokens.len() {
        tokens.select_nth_unstable_by(k, order);
        tokens.truncate(k);
    }
    tokens.sort_unstable_by(order);
    tokens
}

/// The fewest of `tokens`, most likely first, that have `share` of their weight.
fn nucleus(
    mut tokens: Vec<u32>,
    logits: &[f32],
    share: f64,
    weight: impl Fn(u32) -> f64,
) -> Vec<u32> {
    let total: f64 = tokens.iter().map(|&token| weight(token)).sum();
    // Tokens below this weight have less than `1 - share` together, so the rest holds the nucleus; sorting
    // it is much less work than sorting a vocabulary.
    let floor = total * (1.0 - share) / tokens.len() as f64;
    tokens.retain(|&token| weight(token) >= floor);
    tokens.sort_unstable_by(|a, b| {
        let (x, y) = (logits[*a as usize], logits[*b as usize]);
        y.total_cmp(&x).then(a.cmp(b))
    });
    let mut sum = 0.0;
    let count = tokens.iter().take_while(|&&token| {
        let open = sum < share * total;
        sum += weight(token);
        open
    });
    let count = count.count().max(1);
    tokens.truncate(count);
    tokens
}

/// `ln(sum(exp(logits)))`, in f64 and without overflow; not finite if the logits hold NaN or no finite
/// value. `log_softmax(x)[i] = x[i] - log_sum_exp(x)`.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let largest = f64::from(largest);
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum();
    largest + sum.ln()
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
