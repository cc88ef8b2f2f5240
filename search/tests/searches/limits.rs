//! Limits, and ending in any way.

use std::panic::{AssertUnwindSafe, catch_unwind};

use deft_search::{Cancel, Event, Finish, Limits, SearchError, Stop, TreeSearch};

use super::mock::AsciiCodec;
use super::{assert_empty, at_most, beam, model, prompt, run, run_within, samples, with};

#[test]
fn the_token_limit_is_used_up_exactly_and_never_passed() {
    for tokens in [1, 2, 3, 17, 100, 101] {
        let mut model = model(3);
        let outcome = run_within(at_most(tokens), &mut model, &mut samples(6, 1000)).unwrap();
        assert_eq!((outcome.stats.tokens, outcome.stop), (tokens, Stop::Budget));
        assert!(outcome.answers.iter().all(|answer| answer.tokens.len() <= tokens as usize));
        let mut beam = beam(5, 1000);
        let outcome = run_within(at_most(tokens), &mut model, &mut beam).unwrap();
        assert!(outcome.stats.tokens <= tokens);
    }
}

#[test]
fn no_more_nodes_are_held_than_allowed() {
    for nodes in [1, 2, 3, 5, 9] {
        let mut model = model(4);
        let mut beam = beam(4, 30);
        let limits = Limits { nodes, ..Limits::default() };
        let outcome = run_within(limits, &mut model, &mut beam).unwrap();
        // Merging a chain holds one node more for a moment.
        assert!(outcome.stats.peak_nodes <= nodes, "{} of {nodes}", outcome.stats.peak_nodes);
    }
}

#[test]
fn searches_in_small_pools_end_with_an_answer_or_say_that_pages_are_missing() {
    for pages in 1..12 {
        let mut model = with(|config| config.pages = pages);
        let result = run(&mut model, &mut samples(8, 100));
        match result {
            Ok(outcome) => assert!(outcome.answers.iter().any(|a| a.finish != Finish::Interrupted)),
            Err(error) => {
                assert!(matches!(error, SearchError::OutOfPages { .. }), "{error}");
                assert!(pages <= 2, "{pages} pages hold a prompt and 100 tokens");
            }
        }
    }
}

#[test]
fn beams_in_small_pools_end_with_answers_or_say_that_pages_are_missing() {
    for pages in 1..9 {
        let mut model = with(|config| config.pages = pages);
        match run(&mut model, &mut beam(100, 70)) {
            Ok(outcome) => {
                assert!(pages > 1);
                assert!(outcome.answers.iter().any(|a| a.finish != Finish::Interrupted));
                let pruned = outcome.stats.pruned_for_pages;
                assert!(pruned > 0 || pages > 3, "{pages} pages");
            }
            Err(error) => {
                assert!(matches!(error, SearchError::OutOfPages { .. }), "{error}");
                assert!(pages <= 3, "{pages} pages hold a prompt and beams: {error}");
            }
        }
        assert_empty(&model);
    }
}

#[test]
fn a_row_without_a_softmax_ends_a_beam_search() {
    let length = prompt().len();
    for drafts in [true, false] {
        let mut model = with(|config| config.drafts = drafts).with_bias(move |path, logits| {
            if path.len() > length + 5 {
                logits[3] = f32::NAN;
            }
        });
        let error = run(&mut model, &mut beam(3, 50)).unwrap_err();
        assert!(matches!(error, SearchError::Logits { .. }), "{error}");
    }
}

#[test]
fn a_prompt_that_does_not_fit_is_an_error_that_changes_nothing() {
    let mut model = with(|config| config.pages = 1);
    let long = vec![5; 65];
    let result = TreeSearch::new(&mut model, &AsciiCodec).run(&long, &mut samples(1, 1));
    assert!(result.unwrap_err().to_string().contains("out of pages: 2 wanted"));
    assert_empty(&model);
    let mut model = with(|config| config.context = 64);
    let result = TreeSearch::new(&mut model, &AsciiCodec).run(&long, &mut samples(1, 1));
    assert!(result.unwrap_err().to_string().contains("context of 64"));
    assert_empty(&model);
}

#[test]
fn an_answer_is_as_long_as_the_context_allows() {
    let context = prompt().len() + 10;
    let mut model = with(|config| config.context = context)
        .with_bias(|_, logits| logits[0] = f32::NEG_INFINITY);
    let outcome = run(&mut model, &mut samples(3, 1000)).unwrap();
    for answer in &outcome.answers {
        // The last token is chosen, not run.
        assert_eq!((answer.tokens.len(), answer.finish), (11, Finish::Length));
    }
    let mut beam = beam(3, 1000);
    let outcome = run(&mut model, &mut beam).unwrap();
    assert!(outcome.answers.iter().all(|answer| answer.tokens.len() == 11));
}

#[test]
fn a_cancelled_search_stops_before_its_next_step_with_what_it_has() {
    let mut model = model(5);
    let cancel = Cancel::new();
    let from_observer = cancel.clone();
    let mut steps = 0;
    let mut observer = |event: &Event<'_>| {
        if matches!(event, Event::Stepped { .. }) {
            steps += 1;
            if steps == 9 {
                from_observer.cancel();
            }
        }
    };
    let outcome = TreeSearch::new(&mut model, &AsciiCodec)
        .observer(&mut observer)
        .cancel(cancel)
        .run(&prompt(), &mut samples(4, 1000))
        .unwrap();
    assert_eq!((outcome.stop, outcome.stats.steps), (Stop::Cancelled, 9));
    assert!(outcome.answers.iter().any(|answer| answer.tokens.len() == 9));
    assert_empty(&model);
}

#[test]
fn a_search_that_dies_of_a_panic_frees_its_nodes() {
    for deadly in [1, 2, 30, 100] {
        let mut model = model(6);
        let mut events = 0;
        let mut observer = |_: &Event<'_>| {
            events += 1;
            assert!(events < deadly, "the observer dies");
        };
        let search = TreeSearch::new(&mut model, &AsciiCodec).observer(&mut observer);
        let mut method = samples(4, 50);
        let died = catch_unwind(AssertUnwindSafe(|| search.run(&prompt(), &mut method)));
        assert!(died.is_err());
        assert_empty(&model);
    }
}

#[test]
fn a_model_that_fails_ends_the_search_and_frees_its_nodes() {
    let length = prompt().len();
    let mut model = model(0).with_bias(move |path, logits| {
        if path.len() > length + 5 {
            logits[3] = f32::NAN;
        }
    });
    let error = run(&mut model, &mut samples(3, 50)).unwrap_err();
    assert!(matches!(error, SearchError::Logits { .. }), "{error}");
}
