//! The CPU's model with a policy that drops tokens.

#[expect(dead_code, reason = "other suites compare with the definition")]
mod common;

use common::{tiny, tokens};
use deft::KvFormat;
use deft::retain::{Budget, Corm, Policy};
use deft_engine::{CpuModel, CpuOptions, LoadError, Retain, TreeModel, Weights};

fn model(retain: Option<Retain>) -> CpuModel {
    let weights = Weights::synthetic(tiny(false), 11).unwrap();
    let options = CpuOptions { capacity_bytes: 16 << 20, retain, ..CpuOptions::default() };
    CpuModel::load(&weights, options, |_, _| {}).unwrap()
}

fn retain(policy: &str, every: u32) -> Retain {
    Retain { policy: policy.parse().unwrap(), budget: Budget::Tokens(0), every }
}

/// Logits of a few steps on three branches of a prompt.
fn decode(model: &mut CpuModel) -> Vec<f32> {
    let mut logits = Vec::new();
    let root = model.insert_prompt(&tokens(1, 280), &mut logits).unwrap();
    let leaves = model.fork(root, 3).unwrap();
    let mut all = Vec::new();
    for step in 0..12 {
        model.step(&leaves, &[step, step + 1, step + 2], &mut logits).unwrap();
        all.extend_from_slice(&logits);
    }
    all
}

#[test]
fn a_window_of_everything_leaves_every_bit() {
    let all = decode(&mut model(None));
    let policy = Policy::Corm(Corm { window: u32::MAX, recent: 0 });
    let kept = Retain { policy, budget: Budget::Tokens(0), every: 1 };
    let mut model = model(Some(kept));
    assert!(decode(&mut model) == all);
    assert_eq!(model.maintained().unwrap().nodes, 0);
}

#[test]
fn steps_drop_what_is_minor_as_often_as_they_are_told_and_go_on() {
    let all = decode(&mut model(None));
    let mut sinks = model(Some(retain("sinks:4,64", 8)));
    let kept = decode(&mut sinks);
    let done = sinks.maintained().unwrap();
    assert!(done.nodes > 0 && done.pages > 0, "{done:?}");
    assert!(done.rows_after < done.rows_before / 2, "{done:?}");
    assert!(kept.iter().all(|logit| logit.is_finite()));
    assert!(kept != all);
    let root = sinks.forest().roots().next().unwrap();
    sinks.prune(root).unwrap();
    assert_eq!(sinks.forest().pool().live(), 0);
}

#[test]
fn nothing_is_dropped_unasked_where_no_interval_is_given() {
    let mut model = model(Some(retain("sinks:4,64", 0)));
    decode(&mut model);
    assert_eq!(model.maintained().unwrap().nodes, 0);
    assert_eq!(model.maintain().unwrap().nodes, 1);
}

#[test]
fn the_last_queries_of_a_prompt_are_counted_over_its_parts() {
    // A prompt runs in parts of 128 tokens; its last part has 4 here.
    let mut model = model(Some(retain("snapkv:20,1", 0)));
    let mut logits = Vec::new();
    let root = model.insert_prompt(&tokens(3, 260), &mut logits).unwrap();
    let chosen = model.compact(root, 0.5).unwrap().unwrap();
    let newest = 260 - 20;
    for head in &chosen.heads {
        assert_eq!(head.rows.len(), 128);
        let rows: Vec<u32> = head.sources.iter().map(|source| source.row).collect();
        assert!((newest..256).all(|row| rows.contains(&row)), "{rows:?}");
    }
}

#[test]
fn a_policy_with_a_format_is_refused_by_name() {
    let weights = Weights::synthetic(tiny(false), 11).unwrap();
    let options = CpuOptions {
        capacity_bytes: 16 << 20,
        kv: "fp8".parse::<KvFormat>().unwrap(),
        retain: Some(retain("corm:64", 16)),
        ..CpuOptions::default()
    };
    let error = CpuModel::load(&weights, options, |_, _| {}).unwrap_err();
    assert!(matches!(error, LoadError::Retain { .. }));
    let text = error.to_string();
    assert!(text.contains("corm:64,64") && text.contains("fp8"), "{text}");
}
