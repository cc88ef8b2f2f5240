//! The Game of 24 (as in arXiv 2305.10601): four numbers, three operations, 24.

use rand::RngExt;

use super::{Problem, Prospect, Task};
use crate::Ending;
use crate::sampler::leaf_stream;

/// Four numbers from which 24 is to be made, by `+ - * /` with whole results that are not negative.
///
/// An answer is three lines such as `13 - 9 = 4 (left: 4 4 10)`.
#[derive(Clone, Copy, Debug)]
pub struct GameOf24 {
    /// The largest number.
    pub largest: u32,
}

impl Default for GameOf24 {
    /// Numbers up to 13, as in the card game.
    fn default() -> Self {
        Self { largest: 13 }
    }
}

impl Task for GameOf24 {
    fn name(&self) -> &'static str {
        "game-of-24"
    }

    fn problem(&self, seed: u64) -> Box<dyn Problem> {
        const EXAMPLES: [[u32; 4]; 3] = [[4, 4, 6, 8], [2, 9, 10, 12], [4, 9, 10, 13]];
        let mut rng = leaf_stream(seed, &[3]);
        let numbers = loop {
            let mut numbers = [0; 4].map(|_: u32| rng.random_range(1..=self.largest.max(6)));
            numbers.sort_unstable();
            if !EXAMPLES.contains(&numbers) && is_solvable(&numbers) {
                break numbers.to_vec();
            }
        };
        Box::new(Cards { numbers })
    }
}

struct Cards {
    numbers: Vec<u32>,
}

impl Problem for Cards {
    fn prompt(&self) -> String {
        format!(
            "Use the four numbers and + - * / to make 24.\n\n\
             Input: 4 4 6 8\n4 + 8 = 12 (left: 4 6 12)\n6 - 4 = 2 (left: 2 12)\n\
             2 * 12 = 24 (left: 24)\n\n\
             Input: 2 9 10 12\n12 * 2 = 24 (left: 9 10 24)\n10 - 9 = 1 (left: 1 24)\n\
             24 * 1 = 24 (left: 24)\n\n\
             Input: 4 9 10 13\n13 - 9 = 4 (left: 4 4 10)\n10 - 4 = 6 (left: 4 6)\n\
             4 * 6 = 24 (left: 24)\n\n\
             Input: {}\n",
            show(&self.numbers)
        )
    }

    fn ending(&self) -> Ending {
        Ending::at(120).or_text("\n\n").or_text("Input")
    }

    fn thought(&self) -> Ending {
        Ending::at(40).or_text("\n")
    }

    fn thoughts(&self) -> usize {
        3
    }

    fn extract(&self, text: &str) -> Option<String> {
        let lines: Vec<&str> = text.trim().lines().map(str::trim).collect();
        (lines.len() == 3).then(|| lines.join("\n"))
    }

    fn is_right(&self, answer: &str) -> bool {
        play(&self.numbers, answer.lines()) == Some(vec![24])
    }

    fn prospect(&self, text: &str) -> Prospect {
        let complete = text.rfind('\n').map_or("", |end| &text[..end]);
        match play(&self.numbers, complete.lines()) {
            Some(left) if left == [24] => Prospect::Right,
            Some(left) if left.len() > 1 => Prospect::Open,
            _ => Prospect::Dead,
        }
    }
}

/// The numbers that are left after `lines`; `None` if one of them breaks the rules.
fn play<'a>(numbers: &[u32], lines: impl Iterator<Item = &'a str>) -> Option<Vec<u32>> {
    let mut left = numbers.to_vec();
    for line in lines {
        let (equation, rest) = line.trim().split_once(" (left: ")?;
        let parts: Vec<&str> = equation.split(' ').collect();
        let [a, operator, b, "=", result] = parts[..] else {
            return None;
        };
        let (a, b) = (a.parse().ok()?, b.parse().ok()?);
        left.remove(left.iter().position(|&have| have == a)?);
        left.remove(left.iter().position(|&have| have == b)?);
        let value = operate(a, operator, b).filter(|value| value.to_string() == result)?;
        left.push(value);
        left.sort_unstable();
        let told = rest.strip_suffix(')')?.split(' ').map(str::parse::<u32>);
        let mut told = told.collect::<Result<Vec<u32>, _>>().ok()?;
        told.sort_unstable();
        if told != left {
            return None;
        }
    }
    Some(left)
}

fn operate(a: u32, operator: &str, b: u32) -> Option<u32> {
    match operator {
        "+" => a.checked_add(b),
        "-" => a.checked_sub(b),
        "*" => a.checked_mul(b),
        "/" if b > 0 && a.is_multiple_of(b) => Some(a / b),
        _ => None,
    }
}

/// Whether 24 can be made of all the numbers.
fn is_solvable(numbers: &[u32]) -> bool {
    if numbers.len() == 1 {
        return numbers == [24];
    }
    let pairs = (0..numbers.len()).flat_map(|a| (0..numbers.len()).map(move |b| (a, b)));
    pairs.filter(|(a, b)| a != b).any(|(a, b)| {
        let others = (0..numbers.len()).filter(|&index| index != a && index != b);
        let others: Vec<u32> = others.map(|index| numbers[index]).collect();
        ["+", "-", "*", "/"].iter().any(|operator| {
            operate(numbers[a], operator, numbers[b]).is_some_and(|value| {
                let mut rest = others.clone();
                rest.push(value);
                is_solvable(&rest)
            })
        })
    })
}

fn show(numbers: &[u32]) -> String {
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    numbers.join(" ")
}
