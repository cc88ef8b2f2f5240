//! What a pass is asked about the token that comes next, and the answers' definition, over logits on the CPU.
//!
//! All log-probabilities are natural logarithms of the softmax of the logits. A row that has none (a NaN, an infinity,
//! or nothing above -inf) answers with NaN.

use std::cmp::Ordering;

use crate::ModelError;

/// What is asked about the token after a row.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Select {
    /// All logits.
    Logits,
    /// The most probable tokens, most probable first and the lower id first where they are equal; NaNs come last.
    Top {
        /// So many, from 1 to the vocabulary.
        k: usize,
    },
    /// Tokens drawn from the softmax of `logits / temperature`, one for each number.
    Draw {
        /// Above 0, and finite.
        temperature: f32,
        /// From 0 to below 1: the token is the first at which the probabilities of it and of all lower ids are more
        /// than this together.
        at: Vec<f64>,
    },
    /// These tokens.
    Of(Vec<u32>),
}

/// The answer to a [`Select`].
#[derive(Clone, Debug, PartialEq)]
pub enum Selected {
    /// `[vocabulary]`.
    Logits(Vec<f32>),
    /// As many as were asked for, in the order of [`Select`].
    Tokens {
        /// The tokens.
        ids: Vec<u32>,
        /// Their log-probabilities, without the temperature.
        log_probs: Vec<f64>,
    },
}

impl Select {
    /// Whether a model of `vocabulary` tokens can answer.
    ///
    /// # Errors
    /// [`ModelError::Option`], [`ModelError::Token`].
    pub fn check(&self, vocabulary: usize) -> Result<(), ModelError> {
        let refused = |option, value: String, expected: String| {
            Err(ModelError::Option { option, value, expected })
        };
        match self {
            Self::Logits => Ok(()),
            Self::Top { k } if (1..=vocabulary).contains(k) => Ok(()),
            Self::Top { k } => refused("k", k.to_string(), format!("between 1 and {vocabulary}")),
            Self::Draw { temperature, .. } if !(*temperature > 0.0 && temperature.is_finite()) => {
                refused("temperature", temperature.to_string(), "above 0 and finite".to_owned())
            }
            Self::Draw { at, .. } => match at.iter().find(|at| !(0.0..1.0).contains(*at)) {
                Some(at) => refused("at", at.to_string(), "from 0 to below 1".to_owned()),
                None => Ok(()),
            },
            Self::Of(tokens) => match tokens.iter().find(|&&token| token as usize >= vocabulary) {
                Some(&token) => Err(ModelError::Token { token, vocabulary }),
                None => Ok(()),
            },
        }
    }

    /// The answer, from a row of logits.
    pub fn answer(&self, logits: &[f32]) -> Selected {
        let ids = match self {
            Self::Logits => return Selected::Logits(logits.to_vec()),
            Self::Top { k } => most_likely(logits, *k),
            Self::Draw { temperature, at } => drawn(logits, *temperature, at),
            Self::Of(tokens) => tokens.clone(),
        };
        let log_sum = log_sum_exp(logits);
        let defined = log_sum.is_finite();
        let log_prob = |&id: &u32| match defined {
            true => f64::from(logits[id as usize]) - log_sum,
            false => f64::NAN,
        };
        let log_probs = ids.iter().map(log_prob).collect();
        Selected::Tokens { ids, log_probs }
    }
}

/// Whether there is a request a row, each of which a model of `vocabulary` tokens can answer.
pub(crate) fn check(select: &[Select], rows: usize, vocabulary: usize) -> Result<(), ModelError> {
    if select.len() != rows {
        return Err(ModelError::Selects { rows, selects: select.len() });
    }
    select.iter().try_for_each(|select| select.check(vocabulary))
}

/// The answers to requests that were checked, from `[rows, vocabulary]`.
pub(crate) fn answers(select: &[Select], logits: &[f32], vocabulary: usize) -> Vec<Selected> {
    let rows = logits.chunks_exact(vocabulary);
    select.iter().zip(rows).map(|(select, row)| select.answer(row)).collect()
}

/// The `k` most likely tokens, most likely first; the lower of equal ones first, and NaNs last.
pub fn most_likely(logits: &[f32], k: usize) -> Vec<u32> {
    let order = |&a: &u32, &b: &u32| before((logits[a as usize], a), (logits[b as usize], b));
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

/// How entries, each a logit and its id, are ranked.
pub(crate) fn before((x, a): (f32, u32), (y, b): (f32, u32)) -> Ordering {
    let numbers = y.partial_cmp(&x);
    numbers.unwrap_or_else(|| x.is_nan().cmp(&y.is_nan())).then(a.cmp(&b))
}

/// `ln(sum(exp(logits)))`, in f64 and without overflow; not finite if the logits hold NaN or no finite
/// value. `log_softmax(x)[i] = x[i] - log_sum_exp(x)`.
pub fn log_sum_exp(logits: &[f32]) -> f64 {
    let largest = f64::from(largest(logits));
    let sum: f64 = logits.iter().map(|&x| (f64::from(x) - largest).exp()).sum();
    largest + sum.ln()
}

/// Weights up to and including each of `weights`, of which [`draw`] takes one.
pub fn running(weights: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut sum = 0.0;
    let sums = weights.map(|weight| {
        sum += weight;
        sum
    });
    sums.collect()
}

/// The first index at which `running` is more than `at` of its last, and never one without weight.
pub fn draw(running: &[f64], at: f64) -> usize {
    let total = running[running.len() - 1];
    let index = running.partition_point(|&sum| sum <= at * total);
    // The product may round up to the total: then the last one with any weight.
    index.min(running.partition_point(|&sum| sum < total))
}

fn drawn(logits: &[f32], temperature: f32, at: &[f64]) -> Vec<u32> {
    let (largest, scale) = (f64::from(largest(logits)), f64::from(temperature));
    let weights = logits.iter().map(|&x| ((f64::from(x) - largest) / scale).exp());
    let running = running(weights);
    // Where nothing is defined: some token.
    let last = logits.len() - 1;
    at.iter().map(|&at| draw(&running, at).min(last) as u32).collect()
}

fn largest(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_no_row_can_answer_are_named() {
        let refused = |select: Select| select.check(10).unwrap_err().to_string();
        assert_eq!(refused(Select::Top { k: 11 }), "k is 11; it must be between 1 and 10");
        assert_eq!(refused(Select::Top { k: 0 }), "k is 0; it must be between 1 and 10");
        let draw = |temperature, at| Select::Draw { temperature, at: vec![0.5, at] };
        assert_eq!(refused(draw(0.0, 0.0)), "temperature is 0; it must be above 0 and finite");
        assert_eq!(refused(draw(1.0, 1.0)), "at is 1; it must be from 0 to below 1");
        assert!(refused(draw(1.0, f64::NAN)).starts_with("at is NaN"));
        assert!(refused(Select::Of(vec![9, 10])).contains("token 10"));
        for select in [Select::Logits, Select::Top { k: 10 }, draw(0.1, 0.999), Select::Of(vec![])]
        {
            select.check(10).unwrap();
        }
        let error = check(&[Select::Logits], 2, 10).unwrap_err().to_string();
        assert_eq!(error, "1 requests for 2 rows: one a row is needed");
    }

    #[test]
    fn a_draw_is_the_first_token_whose_running_probability_is_more() {
        let logits = [f32::NEG_INFINITY, 0.0, 3.0_f32.ln(), f32::NEG_INFINITY];
        let select = |temperature, at: &[f64]| match (Select::Draw { temperature, at: at.to_vec() })
            .answer(&logits)
        {
            Selected::Tokens { ids, log_probs } => (ids, log_probs),
            Selected::Logits(_) => unreachable!("tokens were asked for"),
        };
        let (ids, log_probs) = select(1.0, &[0.0, 0.24, 0.26, 1.0 - f64::EPSILON / 2.0]);
        assert_eq!(ids, [1, 1, 2, 2]);
        assert!((log_probs[1] - 0.25f64.ln()).abs() < 1e-7);
        // Half the temperature: 1 to 9.
        assert_eq!(select(0.5, &[0.099, 0.101]).0, [1, 2]);
    }

    #[test]
    fn rankings_have_nan_last_and_equals_by_id() {
        let logits = [0.0, f32::NAN, -0.0, 1.0, f32::NEG_INFINITY];
        assert_eq!(most_likely(&logits, 5), [3, 0, 2, 4, 1]);
        let answer = Select::Top { k: 2 }.answer(&logits);
        let Selected::Tokens { ids, log_probs } = answer else { unreachable!() };
        assert_eq!(ids, [3, 0]);
        assert!(log_probs.iter().all(|x| x.is_nan()));
    }

    #[test]
    fn a_row_without_a_softmax_draws_some_token_of_no_probability() {
        for row in [vec![f32::NAN, 1.0], vec![f32::NEG_INFINITY; 2], vec![f32::INFINITY, 0.0]] {
            let draw = Select::Draw { temperature: 1.0, at: vec![0.3] };
            let Selected::Tokens { ids, log_probs } = draw.answer(&row) else { unreachable!() };
            assert!(ids[0] < 2 && log_probs[0].is_nan(), "{row:?}: {ids:?} {log_probs:?}");
        }
    }
}
