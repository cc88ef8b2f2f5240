//! Search methods against their definitions.

use std::collections::BTreeMap;

use super::mock::{AsciiCodec, HashModel};
use super::{Custom, beam, log_softmax, model, prompt, run, run_within, samples, thoughts, with};
use deft_search::sampler::leaf_stream;
use deft_search::{
    BeamSearch, BestOfN, Candidate, Choice, DiverseBatch, Ending, Finish, Limits, MeanLogProb,
    Sampler, SearchMethod, Speculative, Stop, TreeOfThoughts, TreeSearch, Verdict,
};

/// Tokens, log-probability, and whether an end token follows.
type Hypothesis = (Vec<u32>, f64, bool);

/// Beam search over paths: no tree, every row from scratch, every token of every beam a candidate.
fn brute_force_beam(
    model: &HashModel,
    width: usize,
    penalty: f64,
    length: usize,
) -> Vec<Hypothesis> {
    let normalised = |log_prob: f64, tokens: usize| log_prob / (tokens as f64).powf(penalty);
    let score = |one: &Hypothesis| normalised(one.1, one.0.len() + usize::from(one.2));
    let mut beams: Vec<Hypothesis> = vec![(Vec::new(), 0.0, false)];
    let mut done = Vec::<Hypothesis>::new();
    while !beams.is_empty() {
        let mut all = Vec::<Hypothesis>::new();
        for (tokens, log_prob, _) in &beams {
            let path: Vec<u32> = prompt().iter().chain(tokens).copied().collect();
            let row = log_softmax(&model.logits_after(&path));
            for (token, one) in row.into_iter().enumerate() {
                let mut tokens = tokens.clone();
                if token > 0 {
                    tokens.push(token as u32);
                }
                all.push((tokens, log_prob + one, token == 0));
            }
        }
        all.sort_by(|a, b| b.1.total_cmp(&a.1));
        beams.clear();
        for (place, one) in all.into_iter().take(2 * width).enumerate() {
            if one.2 || one.0.len() == length {
                done.extend((place < width).then_some(one));
            } else if beams.len() < width {
                beams.push(one);
            }
        }
        done.sort_by(|a, b| score(b).total_cmp(&score(a)));
        let best = beams.iter().map(|beam| normalised(beam.1, length));
        let best = best.fold(f64::NEG_INFINITY, f64::max);
        if done.len() >= width && best <= score(&done[width - 1]) {
            break;
        }
    }
    done.truncate(width);
    done
}

#[test]
fn beam_search_finds_what_beam_search_over_paths_finds() {
    for seed in 0..12 {
        for (width, penalty, length) in [(1, 1.0, 9), (2, 0.0, 20), (4, 1.0, 25), (7, 0.6, 12)] {
            // A likely end token, so that answers end at different lengths.
            let mut model = model(seed).with_bias(|_, logits| logits[0] += 2.5);
            let want = brute_force_beam(&model, width, penalty, length);
            let ending = Ending::at(length);
            let mut beam = BeamSearch { width, length_penalty: penalty, ending };
            let got = run(&mut model, &mut beam).unwrap().answers;
            assert_eq!(got.len(), want.len());
            for (got, (tokens, log_prob, ended)) in got.iter().zip(want) {
                assert_eq!(got.tokens, tokens, "seed {seed}, width {width}");
                assert!((got.log_prob - log_prob).abs() < 1e-9);
                assert_eq!(got.finish == Finish::EndToken, ended);
            }
        }
    }
}

#[test]
fn beams_in_a_draft_find_what_beams_as_nodes_find() {
    for seed in 0..10 {
        for (width, penalty, length) in [(2, 0.0, 30), (8, 1.0, 40), (33, 0.6, 12), (150, 1.0, 6)] {
            for tokens in [u64::MAX, 1, 7 + 31 * seed] {
                let search = |drafts| {
                    let mut model = with(|config| {
                        (config.seed, config.drafts, config.pages) = (seed, drafts, 4096);
                    })
                    .with_bias(|_, logits| logits[0] += 2.5);
                    let mut ending = Ending::at(length);
                    if seed % 3 == 0 {
                        ending = ending.or_text("e");
                    }
                    let mut beam = BeamSearch { width, length_penalty: penalty, ending };
                    let limits = Limits { tokens, ..Limits::default() };
                    run_within(limits, &mut model, &mut beam).unwrap()
                };
                let (draft, nodes) = (search(true), search(false));
                let context = format!("seed {seed}, width {width}, {tokens} tokens");
                assert_eq!(draft.answers, nodes.answers, "{context}");
                assert_eq!(draft.stop, nodes.stop, "{context}");
                assert_eq!(draft.stats.steps, nodes.stats.steps, "{context}");
                assert_eq!(draft.stats.tokens, nodes.stats.tokens, "{context}");
            }
        }
    }
}

#[test]
fn beams_in_a_draft_hold_few_pages() {
    // The best of many beams have most of those that follow: old tokens are those of few.
    let mut model = with(|config| config.pages = 4096);
    let outcome = run(&mut model, &mut beam(64, 100)).unwrap();
    assert_eq!(outcome.stats.steps, 99);
    assert!(outcome.stats.peak_pages < 40, "{} pages", outcome.stats.peak_pages);
    assert!(outcome.stats.moved > 0, "nothing was moved together");
}

#[test]
fn a_beam_of_one_is_greedy_decoding() {
    for seed in 0..5 {
        let mut model = model(seed);
        let ending = Ending::at(30);
        let mut beam = BeamSearch { width: 1, length_penalty: 0.0, ending: ending.clone() };
        let one = run(&mut model, &mut beam).unwrap();
        let greedy = run(&mut model, &mut Speculative::greedy(ending)).unwrap();
        assert_eq!(one.answers[0].tokens, greedy.answers[0].tokens);
        assert_eq!(one.stats.tokens, greedy.stats.tokens);
        assert_eq!(one.stats.peak_nodes, 1);
    }
}

/// Sampling a token at a time from whole rows.
fn sampled(model: &HashModel, sampler: Sampler, seed: u64, index: u32, length: usize) -> Vec<u32> {
    let mut rng = leaf_stream(seed, &[index]);
    let mut path = prompt();
    for _ in 0..length {
        let token = sampler.choices(&model.logits_after(&path)).unwrap().draw(&mut rng);
        if token == 0 {
            break;
        }
        path.push(token);
    }
    path.split_off(prompt().len())
}

#[test]
fn samples_are_those_of_sampling_alone_whatever_else_is_in_the_batch() {
    let sampler = Sampler { temperature: 0.5, top_k: 10, top_p: 0.9 };
    for width in [1, 3, 8] {
        let mut model = model(11).with_bias(|_, logits| logits[0] += 1.0);
        let mut method = BestOfN { width, sampler, seed: 3, ..samples(8, 20) };
        let mut got: Vec<Vec<u32>> =
            run(&mut model, &mut method).unwrap().answers.into_iter().map(|a| a.tokens).collect();
        let mut want: Vec<Vec<u32>> =
            (0..8).map(|index| sampled(&model, sampler, 3, index, 20)).collect();
        got.sort();
        want.sort();
        assert_eq!(got, want, "width {width}");
    }
}

#[test]
fn samples_that_agree_are_run_once() {
    let method =
        |n, temperature| BestOfN { sampler: Sampler::at(temperature), seed: 1, ..samples(n, 30) };
    let mut model = model(2).with_bias(|_, logits| logits[0] = -100.0);
    let one = run(&mut model, &mut method(1, 0.0)).unwrap();
    let ten = run(&mut model, &mut method(10, 0.0)).unwrap();
    assert_eq!(one.stats.tokens, 29);
    assert_eq!((ten.stats.tokens, ten.stats.peak_nodes), (29, 1));
    assert_eq!(ten.answers.len(), 10);
    let apart = run(&mut model, &mut method(10, 1.0)).unwrap();
    assert!(apart.stats.tokens > 200);
    assert!(apart.stats.traffic.read < apart.stats.traffic.per_query / 2);
}

#[test]
fn each_continuation_of_a_batch_has_its_own_sampler_and_place() {
    let samplers = [0.0, 1.0, 0.5, 1.0].map(Sampler::at);
    let mut method = DiverseBatch { samplers: samplers.to_vec(), ending: Ending::at(15), seed: 4 };
    let mut model = model(5);
    let answers = run(&mut model, &mut method).unwrap().answers;
    for (index, sampler) in samplers.into_iter().enumerate() {
        let want = sampled(&model, sampler, 4, index as u32, 15);
        assert_eq!(answers[index].tokens, want);
    }
    assert_ne!(answers[1].tokens, answers[3].tokens);
}

/// Answers "1" to "3" of one character, "2" in two of three cases or so, then a line feed.
fn voter() -> HashModel {
    let length = prompt().len();
    model(0).with_bias(move |path, logits| {
        logits.fill(-100.0);
        let code = |text: &str| AsciiCodec.encode(text)[0] as usize;
        match path.len() - length {
            0 => {
                [("1", 0.2f32), ("2", 0.6), ("3", 0.2)].map(|(text, p)| logits[code(text)] = p.ln())
            }
            1 => [("\n", 0.0f32); 3].map(|(text, p)| logits[code(text)] = p),
            _ => unreachable!("the stop text ends an answer"),
        };
    })
}

#[test]
fn self_consistency_takes_the_answer_most_often_given() {
    let extract = |text: &str| Some(text.trim().to_owned()).filter(|text| text != "3");
    let (ending, choice) = (Ending::at(5).or_text("\n"), Choice::Majority(&extract));
    let mut method = BestOfN { width: 20, ending, seed: 9, choice, ..samples(50, 5) };
    let answers = run(&mut voter(), &mut method).unwrap().answers;
    assert_eq!(answers.len(), 50);
    let mut counts = BTreeMap::<&str, usize>::new();
    for answer in &answers {
        *counts.entry(&answer.text).or_default() += 1;
    }
    assert!(counts["2"] > counts["1"] && counts["1"] > 0 && counts["3"] > 0);
    assert_eq!((answers[0].text.as_str(), answers[0].finish), ("2", Finish::StopText));
    let votes = (counts["1"] + counts["2"]) as f64;
    assert_eq!(answers[0].score, counts["2"] as f64 / votes);
    // What has no vote is last.
    let last = &answers[50 - counts["3"]..];
    assert!(last.iter().all(|answer| answer.text == "3" && answer.score == 0.0));
}

#[test]
fn best_of_n_ends_with_the_first_answer_that_is_right() {
    let is_three = |candidate: &Candidate<'_>| match (candidate.complete, candidate.text) {
        (true, "3") => Verdict::Solved,
        _ => Verdict::Dead,
    };
    let (ending, choice) = (Ending::at(5).or_text("\n"), Choice::Scorer(&is_three));
    let mut method = BestOfN { width: 2, ending, seed: 1, choice, ..samples(1000, 5) };
    let outcome = run(&mut voter(), &mut method).unwrap();
    assert_eq!(outcome.answers[0].text, "3");
    assert!(outcome.answers[0].solved && outcome.answers.len() < 100);
    assert_eq!(outcome.stop, Stop::Finished);
}

#[test]
fn the_same_seed_gives_the_same_outcome_and_another_another() {
    let with_seed = |seed: u64, model_seed: u64| {
        let mut best = BestOfN { width: 4, seed, ..samples(6, 12) };
        let mut tree = TreeOfThoughts { seed, ..thoughts(&MeanLogProb) };
        let methods: [&mut dyn SearchMethod; 2] = [&mut best, &mut tree];
        methods.map(|method| run(&mut model(model_seed), method).unwrap().answers)
    };
    assert_eq!(with_seed(1, 0), with_seed(1, 0));
    for other in [with_seed(2, 0), with_seed(1, 1)] {
        assert_ne!(with_seed(1, 0)[0], other[0]);
        assert_ne!(with_seed(1, 0)[1], other[1]);
    }
}

#[test]
fn every_method_lives_with_few_pages_few_tokens_and_few_nodes() {
    for pages in [2, 3, 5] {
        for (tokens, nodes) in [(7, 100), (200, 2), (200, 6)] {
            let mut model = with(|config| config.pages = pages);
            let mut beam = beam(4, 40);
            let mut tree = thoughts(&MeanLogProb);
            let methods: [&mut dyn SearchMethod; 2] = [&mut beam, &mut tree];
            for method in methods {
                let outcome = run_within(Limits { tokens, nodes }, &mut model, method).unwrap();
                assert!(outcome.stats.tokens <= tokens && outcome.stats.peak_pages <= pages);
                assert!(!outcome.answers.is_empty());
            }
        }
    }
}

#[test]
fn parameters_of_0_are_named() {
    let mut model = model(0);
    let mut message =
        |method: &mut dyn SearchMethod| run(&mut model, method).unwrap_err().to_string();
    let mut beam = beam(0, 4);
    assert_eq!(message(&mut beam), "width is 0; it must be at least 1");
    let mut beam = BeamSearch { width: 1, length_penalty: -1.0, ending: Ending::at(4) };
    assert!(message(&mut beam).starts_with("length_penalty is -1"));
    let mut tree = TreeOfThoughts { keep: 0, ..thoughts(&MeanLogProb) };
    assert_eq!(message(&mut tree), "keep is 0; it must be at least 1");
    let mut none = Custom(|tree: &mut deft_search::SearchTree<'_>| {
        tree.follow(tree.root(), &[], &mut |_| None).map(|_| ())
    });
    assert_eq!(message(&mut none), "draft tokens is 0; it must be at least 1");
}

#[test]
fn more_beams_than_any_tree_has_are_as_many_as_there_are() {
    let mut model = with(|config| config.vocabulary = 5);
    let mut beam = beam(usize::MAX, 2);
    let outcome = TreeSearch::new(&mut model, &AsciiCodec).run(&[1, 2, 3], &mut beam).unwrap();
    // One that ends at once, and four tokens with five after each.
    assert_eq!(outcome.answers.len(), 1 + 4 * 5);
}
