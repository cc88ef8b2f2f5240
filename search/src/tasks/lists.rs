//! Lists with commas: digits in order, words with given initials.

use rand::RngExt;

use super::{Problem, Prospect, Task, complete_parts};
use crate::Ending;
use crate::sampler::leaf_stream;

/// Digits to be put in ascending order.
#[derive(Clone, Copy, Debug)]
pub struct DigitSort {
    /// Digits of a problem.
    pub digits: usize,
}

impl Default for DigitSort {
    /// Five digits.
    fn default() -> Self {
        Self { digits: 5 }
    }
}

impl Task for DigitSort {
    fn name(&self) -> &'static str {
        "digit-sort"
    }

    fn problem(&self, seed: u64) -> Box<dyn Problem> {
        let mut rng = leaf_stream(seed, &[0]);
        let mut digits = || (0..self.digits).map(|_| rng.random_range(0..10)).collect();
        let examples = [digits(), digits(), digits()];
        Box::new(Digits { examples, digits: digits() })
    }
}

struct Digits {
    examples: [Vec<u32>; 3],
    digits: Vec<u32>,
}

impl Problem for Digits {
    fn prompt(&self) -> String {
        let mut prompt = "Sort the digits from smallest to largest.\n\n".to_owned();
        for example in &self.examples {
            let (input, output) = (join(example), join(&sorted(example)));
            prompt += &format!("Input: {input}\nOutput: {output}\n\n");
        }
        prompt + &format!("Input: {}\nOutput:", join(&self.digits))
    }

    fn ending(&self) -> Ending {
        Ending::at(2 * self.digits.len() + 6).or_text("\n")
    }

    fn thought(&self) -> Ending {
        Ending::at(6).or_text(",").or_text("\n")
    }

    fn thoughts(&self) -> usize {
        self.digits.len()
    }

    fn extract(&self, text: &str) -> Option<String> {
        let parts = text.split(',').map(|part| part.trim().parse::<u32>());
        let numbers = parts.collect::<Result<Vec<u32>, _>>().ok()?;
        Some(join(&numbers))
    }

    fn is_right(&self, answer: &str) -> bool {
        answer == join(&sorted(&self.digits))
    }

    fn prospect(&self, text: &str) -> Prospect {
        let mut left = self.digits.clone();
        let mut largest = 0;
        for part in complete_parts(text, &[',']) {
            let digit = part.parse::<u32>().ok().filter(|&digit| digit >= largest);
            let place = digit.and_then(|digit| left.iter().position(|&have| have == digit));
            let Some(place) = place else {
                return Prospect::Dead;
            };
            largest = left.remove(place);
        }
        Prospect::Open
    }
}

fn sorted(digits: &[u32]) -> Vec<u32> {
    let mut digits = digits.to_vec();
    digits.sort_unstable();
    digits
}

fn join(numbers: &[u32]) -> String {
    let numbers: Vec<String> = numbers.iter().map(u32::to_string).collect();
    numbers.join(", ")
}

/// Different words whose initials are given letters.
///
/// A word is three or more lower-case letters with a vowel among them: there is no dictionary.
#[derive(Clone, Copy, Debug)]
pub struct Acrostic {
    /// Words of an answer.
    pub words: usize,
}

impl Default for Acrostic {
    /// Five words.
    fn default() -> Self {
        Self { words: 5 }
    }
}

impl Task for Acrostic {
    fn name(&self) -> &'static str {
        "acrostic"
    }

    fn problem(&self, seed: u64) -> Box<dyn Problem> {
        // Letters that many words begin with, and no example's in its order.
        const LETTERS: &[u8] = b"abcdefghilmnoprstw";
        let mut rng = leaf_stream(seed, &[1]);
        let letter = |_| char::from(LETTERS[rng.random_range(0..LETTERS.len())]);
        let letters = (0..self.words).map(letter).collect();
        Box::new(Initials { letters })
    }
}

struct Initials {
    letters: Vec<char>,
}

impl Problem for Initials {
    fn prompt(&self) -> String {
        let letters: Vec<String> = self.letters.iter().map(char::to_string).collect();
        let letters = letters.join(" ");
        format!(
            "For each letter write a word that starts with it. Use no word twice.\n\n\
             Letters: t r e e\nWords: table, river, eagle, east\n\n\
             Letters: b o o k s\nWords: bread, orange, open, king, summer\n\n\
             Letters: l a m p\nWords: lemon, apple, mother, paper\n\n\
             Letters: {letters}\nWords:"
        )
    }

    fn ending(&self) -> Ending {
        Ending::at(5 * self.letters.len() + 5).or_text("\n")
    }

    fn thought(&self) -> Ending {
        Ending::at(8).or_text(",").or_text("\n")
    }

    fn thoughts(&self) -> usize {
        self.letters.len()
    }

    fn extract(&self, text: &str) -> Option<String> {
        let words: Vec<&str> = text.split(',').map(str::trim).collect();
        let words = words.join(", ");
        (!words.is_empty()).then_some(words)
    }

    fn is_right(&self, answer: &str) -> bool {
        let words: Vec<&str> = answer.split(", ").collect();
        words.len() == self.letters.len() && follow(&words, &self.letters)
    }

    fn prospect(&self, text: &str) -> Prospect {
        if follow(&complete_parts(text, &[',']), &self.letters) {
            Prospect::Open
        } else {
            Prospect::Dead
        }
    }
}

/// Whether `words` are different words with the first of `letters` as initials.
fn follow(words: &[&str], letters: &[char]) -> bool {
    let is_word = |word: &str| {
        word.len() >= 3
            && word.bytes().all(|byte| byte.is_ascii_lowercase())
            && word.contains(['a', 'e', 'i', 'o', 'u', 'y'])
    };
    words.len() <= letters.len()
        && words
            .iter()
            .zip(letters)
            .all(|(word, &letter)| is_word(word) && word.starts_with(letter))
        && (1..words.len()).all(|index| !words[..index].contains(&words[index]))
}
