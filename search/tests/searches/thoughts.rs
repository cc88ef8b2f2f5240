//! Tree of thoughts: which states go on.

use super::mock::AsciiCodec;
use super::{assert_empty, model, prompt, run, thoughts};
use deft_search::{
    Candidate, Event, MeanLogProb, PruneReason, TreeOfThoughts, TreeSearch, Verdict,
};

/// Counts lower-case vowels.
fn vowels(text: &str) -> f64 {
    text.chars().filter(|character| "aeiou".contains(*character)).count() as f64
}

#[test]
fn tree_of_thoughts_keeps_the_best_states_of_every_level() {
    let scorer = |candidate: &Candidate<'_>| {
        assert!(!candidate.complete, "no end token is likely");
        Verdict::Score(vowels(candidate.text))
    };
    let mut model = model(1).with_bias(|_, logits| logits[0] = -100.0);
    let (mut level, mut levels) = (Vec::new(), 0);
    let mut observer = |event: &Event<'_>| match event {
        Event::Scored { branch, score } => level.push((*branch, *score)),
        Event::Forked { .. } | Event::Token { .. } if !level.is_empty() => {
            assert!((3..=12).contains(&level.len()), "{} states", level.len());
            (level, levels) = (Vec::new(), levels + 1);
        }
        Event::Pruned { branch, reason: PruneReason::Lost } => {
            let (_, score) = level.iter().find(|(id, _)| id == branch).unwrap();
            let better = level.iter().filter(|(_, other)| other >= score);
            assert!(better.count() > 3, "one of the best 3 was pruned");
        }
        _ => {}
    };
    let outcome = TreeSearch::new(&mut model, &AsciiCodec)
        .observer(&mut observer)
        .run(&prompt(), &mut thoughts(&scorer))
        .unwrap();
    assert_empty(&model);
    assert_eq!((levels, outcome.answers.len()), (4, 3));
    for answer in &outcome.answers {
        assert_eq!(answer.score, vowels(&answer.text));
        assert!((5..=30).contains(&answer.tokens.len()));
    }
    assert!(outcome.answers.is_sorted_by(|a, b| a.score >= b.score));
    // The same number of thoughts without selection finds less.
    let mut greedy = thoughts(&MeanLogProb);
    let other = run(&mut model, &mut greedy).unwrap();
    assert!(vowels(&other.answers[0].text) < outcome.answers[0].score);
}

#[test]
fn tree_of_thoughts_ends_with_the_state_that_is_right_and_drops_dead_ones() {
    let scorer = |candidate: &Candidate<'_>| {
        if candidate.text.contains('q') {
            Verdict::Dead
        } else if vowels(candidate.text) >= 3.0 {
            Verdict::Solved
        } else {
            Verdict::Score(vowels(candidate.text))
        }
    };
    let mut method = TreeOfThoughts { depth: 50, thoughts: 8, ..thoughts(&scorer) };
    let outcome = run(&mut model(3), &mut method).unwrap();
    let best = &outcome.answers[0];
    assert!(best.solved && vowels(&best.text) >= 3.0 && !best.text.contains('q'));
    let dead = |_: &Candidate<'_>| Verdict::Dead;
    let outcome = run(&mut model(3), &mut thoughts(&dead)).unwrap();
    assert!(outcome.answers.iter().all(|answer| answer.score == f64::NEG_INFINITY));
}

#[test]
fn rounds_go_on_until_an_answer_is_right() {
    let scorer = |candidate: &Candidate<'_>| match vowels(candidate.text) >= 3.0 {
        true => Verdict::Solved,
        false => Verdict::Score(0.0),
    };
    let method = |rounds| TreeOfThoughts { depth: 1, thoughts: 2, rounds, ..thoughts(&scorer) };
    let one = run(&mut model(3), &mut method(1)).unwrap();
    assert!(!one.answers[0].solved);
    let many = run(&mut model(3), &mut method(1000)).unwrap();
    assert!(many.answers[0].solved && vowels(&many.answers[0].text) >= 3.0);
    // What the first round found is there, and it ended with the first right answer.
    assert!(one.answers.iter().all(|answer| many.answers.contains(answer)));
    assert_eq!(many.answers.iter().filter(|answer| answer.solved).count(), 1);
}
