//! Numbers that add up.

use rand::RngExt;

use super::{Problem, Prospect, Task, complete_parts};
use crate::sampler::leaf_stream;
use crate::{Ending, SearchError};

/// A number to be written as a sum of different positive numbers.
#[derive(Clone, Copy, Debug)]
pub struct DistinctSum {
    terms: usize,
}

impl DistinctSum {
    /// With `terms` numbers to add.
    ///
    /// # Errors
    /// [`SearchError::Argument`] unless they are 1 to 64: without any there is one sum only.
    pub fn new(terms: usize) -> Result<Self, SearchError> {
        if (1..=64).contains(&terms) {
            return Ok(Self { terms });
        }
        Err(SearchError::Argument { name: "terms", value: terms.to_string(), limit: "1 to 64" })
    }
}

impl Default for DistinctSum {
    /// Three numbers.
    fn default() -> Self {
        Self { terms: 3 }
    }
}

impl Task for DistinctSum {
    fn name(&self) -> &'static str {
        "distinct-sum"
    }

    fn problem(&self, seed: u64) -> Box<dyn Problem> {
        let mut rng = leaf_stream(seed, &[2]);
        let smallest = (self.terms * (self.terms + 1) / 2) as u32;
        let mut draw = || {
            let mut terms = Vec::<u32>::new();
            while terms.len() < self.terms {
                let term = rng.random_range(1..=10 + smallest);
                if !terms.contains(&term) {
                    terms.push(term);
                }
            }
            terms
        };
        let examples = [draw(), draw(), draw(), draw()];
        // Not a number of which an example is the solution.
        let total = loop {
            let total = draw().iter().sum();
            if examples.iter().all(|terms| terms.iter().sum::<u32>() != total) {
                break total;
            }
        };
        let terms = self.terms;
        Box::new(Total { total, terms, examples })
    }
}

struct Total {
    total: u32,
    terms: usize,
    examples: [Vec<u32>; 4],
}

impl Problem for Total {
    fn prompt(&self) -> String {
        let terms = self.terms;
        let mut prompt = format!("Write each number as a sum of {terms} different numbers.\n\n");
        for example in &self.examples {
            prompt += &format!("{} = {}\n", example.iter().sum::<u32>(), join(example));
        }
        prompt + &format!("{} =", self.total)
    }

    fn ending(&self) -> Ending {
        Ending::at(5 * self.terms + 4).or_text("\n")
    }

    fn thought(&self) -> Ending {
        Ending::at(7).or_text("+").or_text("\n")
    }

    fn thoughts(&self) -> usize {
        self.terms
    }

    fn extract(&self, text: &str) -> Option<String> {
        let parts = text.split('+').map(|part| part.trim().parse::<u32>());
        let numbers = parts.collect::<Result<Vec<u32>, _>>().ok()?;
        Some(join(&numbers))
    }

    fn is_right(&self, answer: &str) -> bool {
        let Some(terms) = parse(&answer.split('+').map(str::trim).collect::<Vec<_>>()) else {
            return false;
        };
        terms.len() == self.terms && terms.iter().sum::<u64>() == u64::from(self.total)
    }

    fn prospect(&self, text: &str) -> Prospect {
        let Some(terms) = parse(&complete_parts(text, &['+'])) else {
            return Prospect::Dead;
        };
        let below = terms.iter().sum::<u64>() < u64::from(self.total);
        if below && terms.len() < self.terms { Prospect::Open } else { Prospect::Dead }
    }
}

/// The numbers, if they are different and positive.
fn parse(parts: &[&str]) -> Option<Vec<u64>> {
    let numbers = parts.iter().map(|part| part.parse::<u32>().ok().map(u64::from));
    let numbers = numbers.collect::<Option<Vec<u64>>>()?;
    let distinct = (0..numbers.len()).all(|index| !numbers[..index].contains(&numbers[index]));
    (distinct && !numbers.contains(&0)).then_some(numbers)
}

fn join(numbers: &[u32]) -> String {
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    numbers.join(" + ")
}
