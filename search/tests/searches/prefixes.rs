//! Searches one after the other on a model that keeps prompts of the past.

use deft_engine::{CpuModel, CpuOptions, LlamaConfig, TreeModel, Weights};
use deft_search::{BeamSearch, Ending, Outcome, TreeSearch};

use crate::mock::AsciiCodec;

/// Bytes of a page: K and V of 64 tokens, one layer, one head of 64 in f32.
const PAGE: u64 = 64 * 2 * 64 * 4;

fn model(pages: u64, kept: u64) -> CpuModel {
    let config = LlamaConfig {
        layers: 1,
        hidden: 64,
        ffn: 64,
        q_heads: 2,
        kv_heads: 1,
        head_dim: 64,
        vocabulary: AsciiCodec::VOCABULARY as u32,
        ..LlamaConfig::smollm2_135m()
    };
    let options = CpuOptions {
        capacity_bytes: pages * PAGE,
        prefix_bytes: kept * PAGE,
        ..CpuOptions::default()
    };
    let weights = Weights::synthetic(config, 5).unwrap();
    CpuModel::load(&weights, options, |_, _| {}).unwrap()
}

/// 150 tokens.
fn system() -> String {
    "You are a forest of tokens, and answer in leaves. ".repeat(3)
}

/// A search for an answer to `prompt`.
fn ask(model: &mut CpuModel, prompt: &str) -> Outcome {
    let prompt = AsciiCodec.encode(prompt);
    let mut beam = BeamSearch { width: 3, length_penalty: 1.0, ending: Ending::at(12) };
    let outcome = TreeSearch::new(model, &AsciiCodec).run(&prompt, &mut beam).unwrap();
    // It frees its nodes; those of prompts stay.
    let stats = model.prefix_stats();
    assert_eq!(model.forest().node_count(), stats.nodes);
    assert_eq!(model.forest().pool().live(), stats.pages);
    outcome
}

fn answers(outcome: &Outcome) -> Vec<&[u32]> {
    let answers = outcome.answers.iter();
    answers.map(|answer| &answer.tokens[..]).collect()
}

#[test]
fn a_second_question_after_one_prompt_runs_only_what_is_new() {
    let (mut keeps, mut forgets) = (model(200, 200), model(200, 0));
    // The system prompt is held; of a question that is asked again all but the last token.
    for (question, saved) in [("Why?", 0), ("How many are there?", 150), ("Why?", 153)] {
        let prompt = system() + question;
        let (kept, forgot) = (ask(&mut keeps, &prompt), ask(&mut forgets, &prompt));
        assert_eq!(kept.stats.prompt_tokens_saved, saved, "{question}");
        assert_eq!(forgot.stats.prompt_tokens_saved, 0);
        assert_eq!(answers(&kept), answers(&forgot), "{question}");
        assert!(kept.stats.peak_nodes > 0 && kept.stats.peak_pages > 0);
    }
}

#[test]
fn a_search_takes_the_pages_of_prompts_of_the_past_before_it_prunes_its_own() {
    // Room for a prompt and its search, but not for those of the past as well.
    let (mut small, mut large) = (model(12, 12), model(200, 0));
    for question in ["Why?", "And why not?", "Who asks?", "What is a leaf?"] {
        let prompt = format!("{question} {}", system());
        let (tight, roomy) = (ask(&mut small, &prompt), ask(&mut large, &prompt));
        assert_eq!(answers(&tight), answers(&roomy), "{question}");
        assert_eq!(tight.stats.pruned_for_pages, 0);
    }
    assert!(small.prefix_stats().evictions > 0);
}
