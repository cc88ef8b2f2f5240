//! Speculative decoding against decoding a token at a time.

use super::mock::AsciiCodec;
use super::{assert_empty, at_most, model, prompt, run, run_within, with};
use deft_engine::DraftToken;
use deft_search::{Drafter, Ending, Finish, PromptLookup, Sampler, Speculative, Stop, TreeSearch};

fn speculative(drafter: &mut dyn Drafter, sampler: Sampler, tokens: usize) -> Speculative<'_> {
    Speculative { drafter: Some(drafter), sampler, ending: Ending::at(tokens), seed: 5 }
}

fn plain(sampler: Sampler, tokens: usize) -> Speculative<'static> {
    Speculative { drafter: None, sampler, ending: Ending::at(tokens), seed: 5 }
}

#[test]
fn a_hundred_models_say_the_same_with_drafts_and_without_in_fewer_steps() {
    let (mut steps, mut plain_steps) = (0, 0);
    for seed in 0..100 {
        // Logits that depend on two tokens of nine, so that text repeats itself after a while; on all of
        // them, so that it does not, for every fifth model.
        let memory = if seed % 5 == 0 { usize::MAX } else { 2 };
        let vocabulary = if seed % 5 == 0 { 97 } else { 9 };
        let mut model = with(|config| {
            (config.seed, config.memory, config.vocabulary) = (seed, memory, vocabulary)
        });
        let prompt: Vec<u32> = (0..40).map(|token| 1 + token * token % 8).collect();
        let sampler = if seed % 3 == 0 { Sampler::at(0.3) } else { Sampler::GREEDY };
        let mut search = |method: &mut Speculative<'_>| {
            let outcome = TreeSearch::new(&mut model, &AsciiCodec).run(&prompt, method).unwrap();
            assert_empty(&model);
            outcome
        };
        let want = search(&mut plain(sampler, 120));
        let mut drafter = PromptLookup::default();
        let got = search(&mut speculative(&mut drafter, sampler, 120));
        let (got_answer, want_answer) = (&got.answers[0], &want.answers[0]);
        assert_eq!(got_answer.tokens, want_answer.tokens, "model {seed}");
        assert_eq!(got_answer.finish, want_answer.finish);
        assert!((got_answer.log_prob - want_answer.log_prob).abs() < 1e-9);
        assert!(got.stats.steps <= want.stats.steps);
        if memory == 2 && sampler == Sampler::GREEDY && want_answer.tokens.len() == 120 {
            assert!(3 * got.stats.steps < 2 * want.stats.steps, "model {seed}: {:?}", got.stats);
        }
        steps += got.stats.steps;
        plain_steps += want.stats.steps;
    }
    assert!(3 * steps < 2 * plain_steps, "{steps} steps, {plain_steps} without drafts");
}

/// Knows the answer, and hides it among wrong branches.
struct Oracle {
    answer: Vec<u32>,
    prompt: usize,
}

impl Drafter for Oracle {
    fn draft(&mut self, context: &[u32], limit: usize) -> Vec<DraftToken> {
        let rest = &self.answer[context.len() - self.prompt..];
        let mut draft = Vec::new();
        let mut parent = None;
        for &token in rest.iter().take(7) {
            for wrong in [token % 96 + 1, (token + 7) % 96 + 1] {
                draft.push(DraftToken { parent, token: wrong });
            }
            draft.push(DraftToken { parent, token });
            parent = Some(draft.len() as u32 - 1);
        }
        draft.truncate(limit);
        draft
    }
}

#[test]
fn right_drafts_are_accepted_whole_from_among_wrong_ones() {
    let mut model = model(0).with_bias(|_, logits| logits[0] = -100.0);
    let want = run(&mut model, &mut plain(Sampler::GREEDY, 81)).unwrap();
    let answer = want.answers[0].tokens.clone();
    let mut drafter = Oracle { answer: answer.clone(), prompt: prompt().len() };
    let got = run(&mut model, &mut speculative(&mut drafter, Sampler::GREEDY, 81)).unwrap();
    assert_eq!(got.answers[0].tokens, answer);
    // 80 tokens are run, 8 a pass.
    assert_eq!((want.stats.steps, got.stats.steps), (80, 10));
    assert_eq!(got.stats.peak_pages, 2 + 1);
}

#[test]
fn drafts_fit_the_tokens_and_pages_that_are_left() {
    let mut model = with(|config| config.pages = 2).with_bias(|_, logits| logits[0] = -100.0);
    let want = run(&mut model, &mut plain(Sampler::GREEDY, 80)).unwrap();
    let answer = want.answers[0].tokens.clone();
    let mut drafter = Oracle { answer: answer.clone(), prompt: prompt().len() };
    let got = run(&mut model, &mut speculative(&mut drafter, Sampler::GREEDY, 80)).unwrap();
    assert_eq!(got.answers[0].tokens, answer);
    for tokens in [1, 5, 30] {
        let got = run_within(
            at_most(tokens),
            &mut model,
            &mut speculative(&mut drafter, Sampler::GREEDY, 80),
        )
        .unwrap();
        assert_eq!((got.stats.tokens, got.stop), (tokens, Stop::Budget));
        let found = &got.answers[0];
        assert_eq!(found.finish, Finish::Interrupted);
        assert_eq!(found.tokens, answer[..found.tokens.len()]);
        assert!(!found.tokens.is_empty());
    }
}

#[test]
fn a_stop_text_within_a_draft_ends_the_answer_there() {
    let mut model = model(0).with_bias(|_, logits| logits[0] = -100.0);
    let answer = run(&mut model, &mut plain(Sampler::GREEDY, 40)).unwrap().answers.remove(0);
    let stop = &answer.text[13..15];
    let begin = answer.text.find(stop).unwrap();
    let mut drafter = Oracle { answer: answer.tokens.clone(), prompt: prompt().len() };
    let mut method = speculative(&mut drafter, Sampler::GREEDY, 40);
    method.ending = Ending::at(40).or_text(stop);
    let got = run(&mut model, &mut method).unwrap().answers.remove(0);
    assert_eq!((got.text.as_str(), got.finish), (&answer.text[..begin], Finish::StopText));
    assert_eq!(got.tokens.len(), begin + 2);
}

#[test]
fn prompt_lookup_drafts_a_tree_of_what_followed_before() {
    let node = |parent, token| DraftToken { parent, token };
    //            "a b c", "a b d": two ways to go on after "a b", the newer one first
    let context = [1, 2, 3, 9, 1, 2, 4, 8, 1, 2];
    let mut lookup = PromptLookup { longest_match: 2, depth: 2, nodes: 5 };
    let draft = lookup.draft(&context, 100);
    assert_eq!(draft[..4], [node(None, 4), node(Some(0), 8), node(None, 3), node(Some(2), 9)]);
    assert_eq!(lookup.draft(&context, 3), draft[..3]);
    assert!(lookup.draft(&[1, 2, 3], 100).is_empty());
    assert!(lookup.draft(&[], 100).is_empty());
    let repeated = lookup.draft(&[7; 20], 100);
    assert_eq!(repeated, [node(None, 7), node(Some(0), 7)]);
}

/// Always gives the same draft.
struct Fixed(Vec<DraftToken>);

impl Drafter for Fixed {
    fn draft(&mut self, _: &[u32], _: usize) -> Vec<DraftToken> {
        self.0.clone()
    }
}

#[test]
fn a_draft_whose_parent_does_not_precede_it_ends_the_search_with_its_name() {
    let mut model = model(0).with_bias(|_, logits| logits[0] = -100.0);
    for parent in [0, 3, u32::MAX] {
        let mut drafter = Fixed(vec![DraftToken { parent: Some(parent), token: 5 }]);
        let mut method = speculative(&mut drafter, Sampler::GREEDY, 10);
        let error = run(&mut model, &mut method).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("parent of a draft is {parent} for guess 0; it must be a guess before it")
        );
    }
}
