//! Tasks' checkers, and evaluations of models that are known.

use super::mock::{AsciiCodec, HashModel};
use super::{assert_empty, model};
use deft_search::tasks::{
    Acrostic, Checker, DigitSort, DistinctSum, Evaluation, GameOf24, Method, Problem, Prospect,
    Setting, Task, evaluate,
};
use deft_search::{Cancel, Candidate, Sampler, Scorer, TextCodec, Verdict};

fn is_right(problem: &dyn Problem, text: &str) -> bool {
    let text = problem.ending().trim(text).to_owned();
    let answer = problem.extract(&text);
    answer.is_some_and(|answer| problem.is_right(&answer))
}

/// What follows the last `before` in the prompt, up to the line's end.
fn question(prompt: &str, before: &str) -> String {
    let begin = prompt.rfind(before).unwrap() + before.len();
    prompt[begin..].lines().next().unwrap().to_owned()
}

fn numbers(text: &str) -> Vec<u32> {
    let words = text.split(|character: char| !character.is_ascii_digit());
    words.filter_map(|word| word.parse().ok()).collect()
}

#[test]
fn sorted_digits_are_right_and_nothing_else_is() {
    for seed in 0..50 {
        let problem = DigitSort::default().problem(seed);
        let digits = numbers(&question(&problem.prompt(), "Input:"));
        let mut sorted = digits.clone();
        sorted.sort_unstable();
        let text = |digits: &[u32]| {
            let digits: Vec<String> = digits.iter().map(u32::to_string).collect();
            format!(" {}\n\nInput: 4", digits.join(", "))
        };
        assert!(is_right(&*problem, &text(&sorted)));
        assert_eq!(is_right(&*problem, &text(&digits)), digits == sorted);
        assert!(!is_right(&*problem, &text(&sorted[1..])));
        assert!(!is_right(&*problem, " nothing\n") && !is_right(&*problem, ""));
        let prospect = |text: &str| problem.prospect(text);
        assert_eq!(prospect(&format!(" {}, {},", sorted[0], sorted[1])), Prospect::Open);
        assert_eq!(prospect(" 11,"), Prospect::Dead);
        if sorted[0] < sorted[4] {
            assert_eq!(prospect(&format!(" {}, {},", sorted[4], sorted[0])), Prospect::Dead);
        }
    }
}

#[test]
fn words_with_the_right_initials_are_right() {
    let letters = |problem: &dyn Problem| -> Vec<char> {
        let line = question(&problem.prompt(), "Letters:");
        line.chars().filter(|letter| letter.is_alphabetic()).collect()
    };
    let task = Acrostic { words: 3 };
    let consonants = |problem: &dyn Problem| !letters(problem).iter().any(|c| "aeiou".contains(*c));
    let mut problems = (0..).map(|seed| task.problem(seed));
    let problem = problems.find(|problem| consonants(&**problem)).unwrap();
    let [a, b, c] = letters(&*problem)[..] else {
        panic!("three letters were asked for");
    };
    let right = |text: String| is_right(&*problem, &text);
    assert!(right(format!(" {a}ora, {b}indy, {c}elo\n")));
    assert!(!right(format!(" {a}ora, {b}indy\n")));
    assert!(!right(format!(" {a}ora, {b}indy, {c}elo, door\n")));
    assert!(!right(format!(" z{a}ora, {b}indy, {c}elo\n")));
    assert!(!right(format!(" {a}ora, {b}indy, {c}e\n")));
    assert!(!right(format!(" {a}ora, {b}indy, {c}txk\n")));
    assert!(!right(format!(" {a}ora, {b}in dy, {c}elo\n")));
    assert_eq!(problem.prospect(&format!(" {a}ora, {b}in")), Prospect::Open);
    assert_eq!(problem.prospect(&format!(" {a}ora, x{b}in,")), Prospect::Dead);
    let twice = Acrostic { words: 40 }.problem(2);
    assert_eq!(twice.prospect(" same, same,"), Prospect::Dead);
}

#[test]
fn different_terms_that_add_up_are_right() {
    for seed in 0..20 {
        let problem = DistinctSum::default().problem(seed);
        let prompt = problem.prompt();
        let total = numbers(prompt.lines().last().unwrap())[0];
        // Examples in the prompt are right by the same rules, and give nothing away.
        for line in prompt.lines().filter(|line| line.contains('+')) {
            let all = numbers(line);
            assert_eq!(all[1..].iter().sum::<u32>(), all[0], "{line}");
            assert_ne!(all[0], total);
        }
        let right = |text: String| is_right(&*problem, &text);
        assert!(right(format!(" 1 + 2 + {}\n", total - 3)) == (total - 3 > 2));
        assert!(!right(format!(" 1 + 1 + {}\n", total - 2)));
        assert!(!right(format!(" 1 + {}\n", total - 1)));
        assert!(!right(format!(" 0 + 1 + {}\n", total - 1)));
        assert!(!right(format!(" 1 + 2 + {}\n", total - 2)));
        assert_eq!(problem.prospect(" 1 + 2 +"), Prospect::Open);
        for dead in [" 2 + 2 +", " 99 +", " a +", " 1 + 2 + 3 +"] {
            assert_eq!(problem.prospect(dead), Prospect::Dead, "{dead}");
        }
    }
}

#[test]
fn three_lines_that_lead_to_24_are_right() {
    // Find the problem of 1 2 3 4: (1 + 3) * 2 * ... by trying seeds.
    let is_it = |problem: &dyn Problem| question(&problem.prompt(), "Input:") == " 1 2 3 4";
    let task = GameOf24 { largest: 6 };
    let problem = (0..).map(|seed| task.problem(seed)).find(|problem| is_it(&**problem)).unwrap();
    let right = "1 * 2 = 2 (left: 2 3 4)\n2 * 3 = 6 (left: 4 6)\n4 * 6 = 24 (left: 24)\n";
    assert!(is_right(&*problem, &format!("{right}\nInput: 3")));
    assert_eq!(problem.prospect(right), Prospect::Right);
    let beginnings = right.match_indices('\n').map(|(end, _)| &right[..=end]).take(2);
    for beginning in beginnings {
        assert_eq!(problem.prospect(beginning), Prospect::Open);
    }
    for (from, to) in
        [("1 * 2", "5 * 2"), ("= 2 (", "= 3 ("), ("left: 4 6", "left: 6 6"), ("*", "x")]
    {
        let wrong = right.replacen(from, to, 1);
        assert!(!is_right(&*problem, &wrong), "{wrong}");
        assert_eq!(problem.prospect(&wrong), Prospect::Dead, "{wrong}");
    }
    let short = "1 + 2 = 3 (left: 3 3 4)\n";
    assert!(!is_right(&*problem, short));
    let not_24 = "1 * 2 = 2 (left: 2 3 4)\n2 * 3 = 6 (left: 4 6)\n4 + 6 = 10 (left: 10)\n";
    assert_eq!(problem.prospect(not_24), Prospect::Dead);
}

#[test]
fn the_checker_judges_whole_answers_and_beginnings() {
    let problem = DistinctSum::default().problem(0);
    let total = numbers(problem.prompt().lines().last().unwrap())[0];
    let right = format!(" 1 + 2 + {}", total - 3);
    let judge = |text: &str, complete| {
        let (tokens, log_prob) = (&[1, 2][..], -3.0);
        Checker(&*problem).score(&Candidate { text, tokens, log_prob, complete })
    };
    assert_eq!(judge(&right, true), Verdict::Solved);
    assert_eq!(judge(&format!("{right}\n"), false), Verdict::Solved);
    assert_eq!(judge(" 1 + 2\n", false), Verdict::Dead);
    assert_eq!(judge(" 1 +", false), Verdict::Score(-1.5));
    assert_eq!(judge(" 1 + 1 +", false), Verdict::Dead);
}

/// Sorts two digits, but believes with probability 0.6 that each is the next larger one.
fn misled() -> HashModel {
    let model = model(0);
    model.with_bias(|path, logits| {
        let text = AsciiCodec.decode(path);
        let Some((question, answer)) = text.rsplit_once("Output:") else {
            return;
        };
        let mut digits = numbers(question.rsplit_once("Input:").unwrap().1);
        digits.sort_unstable();
        let answers = [0, 1].map(|more| format!(" {}, {}\n", digits[0] + more, digits[1] + more));
        logits.fill(-100.0);
        for (answer_text, p) in answers.iter().zip([0.4f32, 0.6]) {
            let next = answer_text.get(answer.len()..=answer.len());
            let token = AsciiCodec.encode(next.unwrap_or("\n"))[0] as usize;
            // Where both go on alike the probabilities add up.
            logits[token] = (logits[token].exp() + p).ln();
        }
    })
}

/// Problems whose largest digit is below 9, so that the wrong answers have as many characters.
struct SmallDigits;

impl Task for SmallDigits {
    fn name(&self) -> &'static str {
        "small digits"
    }

    fn problem(&self, seed: u64) -> Box<dyn Problem> {
        let task = DigitSort { digits: 2 };
        let fits = |problem: &dyn Problem| {
            numbers(&question(&problem.prompt(), "Input:")).iter().all(|&digit| digit < 9)
        };
        let seeds = (0..).map(|step| seed + 1000 * step);
        seeds.map(|seed| task.problem(seed)).find(|problem| fits(&**problem)).unwrap()
    }
}

fn evaluated(method: Method, tokens: u64) -> Evaluation {
    evaluated_with(misled(), method, tokens)
}

fn evaluated_with(mut model: HashModel, method: Method, tokens: u64) -> Evaluation {
    let setting = Setting {
        problems: 0..8,
        tokens,
        sampler: Sampler::at(1.0),
        seed: 1,
        cancel: Cancel::new(),
    };
    let mut calls = 0;
    let mut progress = |so_far: &Evaluation| {
        calls += 1;
        assert_eq!(so_far.problems, calls);
    };
    let found = evaluate(&mut model, &AsciiCodec, &SmallDigits, (method, &setting), &mut progress);
    assert_empty(&model);
    let found = found.unwrap();
    assert!(calls == 8 && found.tokens <= 8 * tokens && found.steps > 0);
    found
}

#[test]
fn search_with_a_checker_finds_what_greedy_decoding_of_a_misled_model_misses() {
    // The right answer has probability 0.16, the likeliest, a wrong one, 0.36.
    let greedy = evaluated(Method::Greedy, 400);
    assert_eq!((greedy.right, greedy.covered, greedy.accuracy()), (0, 0, 0.0));
    let majority = evaluated(Method::Majority { width: 8 }, 400);
    assert_eq!((majority.right, majority.covered), (0, 8));
    let checked = evaluated(Method::Checked { width: 8 }, 400);
    assert_eq!((checked.right, checked.accuracy()), (8, 1.0));
    assert!(checked.tokens < majority.tokens, "it ends with the first right answer");
    let beam = evaluated(Method::Beam { width: 4 }, 400);
    assert_eq!((beam.right, beam.covered), (0, 8));
    let thoughts = evaluated(Method::Thoughts { thoughts: 8, keep: 4 }, 400);
    assert_eq!(thoughts.right, 8);
    assert!(checked.read < checked.per_query);
}

#[test]
fn few_tokens_find_less() {
    let checked = |tokens| evaluated(Method::Checked { width: 1 }, tokens);
    let (few, more, many) = (checked(5), checked(20), checked(400));
    assert!(few.right <= more.right && more.right < many.right);
}

/// Sorts two digits, but does not stop there.
fn talkative() -> HashModel {
    model(0).with_bias(|path, logits| {
        let text = AsciiCodec.decode(path);
        let Some((question, answer)) = text.rsplit_once("Output:") else {
            return;
        };
        let mut digits = numbers(question.rsplit_once("Input:").unwrap().1);
        digits.sort_unstable();
        let whole = format!(" {}, {}, 9\n", digits[0], digits[1]);
        let next = whole.get(answer.len()..=answer.len()).unwrap_or("\n");
        logits.fill(-100.0);
        logits[AsciiCodec.encode(next)[0] as usize] = 0.0;
    })
}

#[test]
fn what_a_model_would_go_on_with_is_no_answer() {
    // The limit falls on each of its characters, one of which ends what would be right.
    for tokens in 3..12 {
        let found = evaluated_with(talkative(), Method::Greedy, tokens);
        assert_eq!((found.right, found.covered), (0, 0), "{tokens}");
    }
}

#[test]
fn a_cancelled_evaluation_counts_no_half_problem() {
    let cancel = Cancel::new();
    let setting = Setting {
        problems: 0..8,
        tokens: 100,
        sampler: Sampler::at(1.0),
        seed: 1,
        cancel: cancel.clone(),
    };
    let mut model = misled();
    let mut progress = |so_far: &Evaluation| {
        if so_far.problems == 3 {
            cancel.cancel();
        }
    };
    let method = (Method::Greedy, &setting);
    let found = evaluate(&mut model, &AsciiCodec, &SmallDigits, method, &mut progress).unwrap();
    assert_eq!(found.problems, 3);
    assert_empty(&model);
}

#[test]
fn a_sum_of_no_numbers_is_refused() {
    let error = DistinctSum::new(0).unwrap_err();
    assert_eq!(error.to_string(), "terms is 0; it must be 1 to 64");
    assert!(DistinctSum::new(usize::MAX).is_err());
    for terms in [1, 2, 64] {
        let problem = DistinctSum::new(terms).unwrap().problem(3);
        assert_eq!(problem.thoughts(), terms);
    }
}
