//! What a model of several ranks is asked for besides logits, and how little of it goes between ranks.

#[allow(dead_code, reason = "other suites use the rest")]
mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::tapped::Tapped;
use common::{tiny, tokens};
use deft_engine::ranked::Ranked;
use deft_engine::ranks::{Communicator, Kind, Message};
use deft_engine::select::{Select, Selected};
use deft_engine::{CpuModel, CpuOptions, DraftToken, LlamaConfig, TreeModel, Weights};

const LONG: Duration = Duration::from_secs(60);

/// The answers to `select`, of steps and of a draft.
fn answers(model: &mut dyn TreeModel, select: &[Select]) -> Vec<Selected> {
    let root = model.insert_prompt(&tokens(3, 20), &mut Vec::new()).unwrap();
    let leaves = model.fork(root, select.len()).unwrap();
    let next: Vec<u32> = (1..=select.len() as u32).collect();
    let mut all = model.step_select(&leaves, &next, select).unwrap();
    all.extend(model.step_select(&leaves, &next, select).unwrap());
    let draft: Vec<DraftToken> =
        next.iter().map(|&token| DraftToken { parent: None, token }).collect();
    let (_, verified) = model.verify_select(leaves[0], &draft, select).unwrap();
    model.accept(leaves[0], &[]).unwrap();
    all.extend(verified);
    all
}

#[test]
fn rankings_are_one_rank_s_and_bring_a_few_words_of_each_row_together() {
    // 97 entries and heads that no number of ranks divides.
    let config = LlamaConfig { q_heads: 8, ffn: 72, ..tiny(false) };
    let weights = Weights::synthetic(config, 11).unwrap();
    let options = || CpuOptions { capacity_bytes: 16 << 20, ..CpuOptions::default() };
    let vocabulary = weights.config().vocabulary as usize;
    let top = [1, 5, 3, vocabulary].map(|k| Select::Top { k });
    let mixed = [Select::Top { k: 4 }, Select::Of(vec![0, 96]), Select::Logits];
    let mut one = CpuModel::load(&weights, options(), |_, _| {}).unwrap();
    for (select, merged) in [(&top[..], true), (&top[..3], true), (&mixed[..], false)] {
        let expected = answers(&mut one, select);
        for ranks in [1, 2, 3, 4, 8] {
            let gathered = Arc::new(AtomicUsize::new(0));
            let (counter, weights) = (gathered.clone(), weights.clone());
            let load = move |inner: Box<dyn Communicator>| {
                let count = inner.rank() == 0;
                let gathered = if count { counter.clone() } else { Arc::default() };
                let tap = move |own: &Message| {
                    if own.kind == Kind::AllGather {
                        gathered.fetch_add(own.bytes.len(), Ordering::Relaxed);
                    }
                };
                let ranks = Box::new(Tapped { inner, tap });
                CpuModel::load_rank(&weights, options(), ranks, |_, _| {})
            };
            let mut model = Ranked::in_threads(ranks, LONG, load).unwrap();
            let root = model.insert_prompt(&tokens(3, 20), &mut Vec::new()).unwrap();
            model.prune(root).unwrap();
            let of_prompt = gathered.load(Ordering::Relaxed);
            let found = answers(&mut model, select);
            let bytes = gathered.load(Ordering::Relaxed) - of_prompt;
            for (found, expected) in found.iter().zip(&expected) {
                let (
                    Selected::Tokens { ids, log_probs },
                    Selected::Tokens { ids: right, log_probs: expected },
                ) = (found, expected)
                else {
                    continue;
                };
                assert_eq!(ids, right, "{ranks} ranks");
                let near = |(a, b): (&f64, &f64)| (a - b).abs() < 1e-4;
                assert!(log_probs.iter().zip(expected).all(near), "{log_probs:?} {expected:?}");
            }
            // The prompt is run again for its last token at least, whose logits come together.
            let words = |select: &Select| match select {
                Select::Top { k } => 12 + 8 * k,
                _ => 0,
            };
            let most = of_prompt + 3 * select.iter().map(words).sum::<usize>();
            assert!(!merged || bytes <= most, "{ranks} ranks: {bytes} of {most} bytes");
        }
    }
}
