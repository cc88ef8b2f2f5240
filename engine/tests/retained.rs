//! The CPU's model with a policy that drops tokens.

#[expect(dead_code, reason = "other suites compare with the definition")]
mod common;

use std::path::PathBuf;

use common::{tiny, tokens};
use deft::KvFormat;
use deft::cache::LayerMap;
use deft::retain::{Budget, Corm, Policy};
use deft_engine::{
    AttentionRows, CpuModel, CpuOptions, LlamaConfig, LoadError, ModelError, Retain, TreeModel,
    Variant, Weights,
};
use safetensors::tensor::{Dtype, TensorView};

fn model(retain: Option<Retain>) -> CpuModel {
    load(tiny(false), retain).unwrap()
}

fn load(config: LlamaConfig, retain: Option<Retain>) -> Result<CpuModel, LoadError> {
    let weights = Weights::synthetic(config, 11).unwrap();
    let options = CpuOptions { capacity_bytes: 16 << 20, retain, ..CpuOptions::default() };
    CpuModel::load(&weights, options, |_, _| {})
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

/// As `tiny`, but with queries and keys of one length and attention that is flat: every key weighs the same.
fn flat() -> LlamaConfig {
    let variant = Variant { qk_norm: true, query_scale: Some(1e-4), ..Variant::LLAMA };
    LlamaConfig { variant, ..tiny(false) }
}

/// A file of weights for [`flat`] with which the first of `features` features of a query and a key have the product 1, as
/// their `exp(logit)` is: `gelu(x) + gelu(-x)` is `sqrt(2 / pi) x^2` for small `x`, so a sum over a row of such pairs is
/// its length; a large number goes through the second gelu as it is.
fn constant_features(name: &str, features: usize) -> PathBuf {
    let (step, length) = (0.05, 64.0);
    let shape = |name: &str, heads| match name {
        "w1" => vec![heads, 64, 128],
        "w2" => vec![heads, 128, features],
        "w3" => vec![heads, features, features],
        _ => vec![heads, features],
    };
    let pairs = |i: usize| match (i / 128 % 64, i % 128) {
        (row, column) if column / 2 == row => step * (1.0 - 2.0 * (column % 2) as f32),
        _ => 0.0,
    };
    let sum = std::f32::consts::FRAC_PI_2.sqrt() / (step * step);
    let mut tensors = Vec::new();
    for layer in 0..2 {
        for (map, tensor) in [
            ("phi", "w1"),
            ("phi", "w2"),
            ("psi", "w1"),
            ("psi", "w2"),
            ("psi", "w3"),
            ("psi", "s1"),
            ("psi", "s2"),
        ] {
            let shape = shape(tensor, if map == "phi" { 6 } else { 2 });
            let values = (0..shape.iter().product()).map(|i: usize| match tensor {
                "w1" => pairs(i),
                "w2" => f32::from(i.is_multiple_of(features)) * sum,
                "s1" => f32::from(i.is_multiple_of(features)) / (length * length),
                _ => 0.0,
            });
            let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
            tensors.push((format!("layers.{layer}.{map}.{tensor}"), shape, bytes));
        }
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name, TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
    });
    let path = std::env::temp_dir().join(format!("deft-less-{name}-{}", std::process::id()));
    safetensors::serialize_to_file(views, None, &path).unwrap();
    path
}

#[test]
fn residues_by_features_that_are_exact_bring_back_what_a_policy_drops() {
    let file = constant_features("exact", 2);
    let run = |policy: Option<&str>| {
        let mut model = load(flat(), policy.map(|policy| retain(policy, 4))).unwrap();
        let logits = decode(&mut model);
        let done = model.maintained().unwrap_or_default();
        assert_eq!(done.nodes > 0, policy.is_some());
        logits
    };
    let all = run(None);
    let off = |policy: &str| -> f32 {
        run(Some(policy)).iter().zip(&all).map(|(kept, all)| (kept - all).powi(2)).sum()
    };
    let dropped = off("sinks:4,64");
    let folded = off(&format!("less:{},sinks:4,64", file.display()));
    std::fs::remove_file(file).unwrap();
    assert!(folded < 1e-4 * dropped, "squares of {folded} with residues, {dropped} without");
}

#[test]
fn residues_of_no_features_and_of_no_rows_leave_every_bit() {
    let file = constant_features("none", 0);
    let less = |policy: &str| retain(&format!("less:{},{policy}", file.display()), 4);
    let run = |retain: Option<Retain>| decode(&mut load(flat(), retain).unwrap());
    assert!(run(Some(less("sinks:4,64"))) == run(Some(retain("sinks:4,64", 4))));
    std::fs::remove_file(&file).unwrap();
    let file = constant_features("none", 1);
    let less = |policy: &str| retain(&format!("less:{},{policy}", file.display()), 1);
    assert!(run(Some(less("corm:4294967295,0"))) == run(None));
    std::fs::remove_file(file).unwrap();
}

#[test]
fn weights_of_less_that_do_not_fit_are_named_and_layers_do_not_share_with_them() {
    let file = constant_features("other", 1);
    let less = || Some(retain(&format!("less:{},corm:64", file.display()), 1));
    let mut model = load(flat(), less()).unwrap();
    let map = LayerMap::new(&[0, 0]).unwrap();
    let error = model.set_layer_map(Some(map)).unwrap_err();
    assert!(matches!(error, ModelError::Option { .. }), "{error}");
    let error = load(LlamaConfig { layers: 3, ..flat() }, less()).unwrap_err().to_string();
    assert!(error.contains("layers.2.phi.w1") && error.contains("deft-less-other"), "{error}");
    let error = load(LlamaConfig { kv_heads: 3, ..flat() }, less()).unwrap_err().to_string();
    assert!(error.contains("layers.0.psi.w1") && error.contains("[3, 64, 128]"), "{error}");
    std::fs::remove_file(&file).unwrap();
    let error = load(flat(), less()).unwrap_err().to_string();
    assert!(error.contains("deft-less-other"), "{error}");
}

#[test]
fn a_policy_sees_the_attention_that_a_texts_rows_have() {
    let mut model = model(Some(retain("h2o:16", 0)));
    let text = tokens(5, 200);
    let root = model.insert_prompt(&text, &mut Vec::new()).unwrap();
    let chosen = model.compact(root, 0.25).unwrap().unwrap();
    let layers = model.attention_rows(&text).unwrap();
    assert_eq!(model.forest().roots().collect::<Vec<_>>(), [root]);
    for (head, of) in chosen.heads.iter().enumerate() {
        let sums = probabilities(&layers[head / 2], head % 2, text.len());
        let kept = |row: usize| of.sources.iter().any(|source| source.row as usize == row);
        let (kept, dropped): (Vec<_>, Vec<_>) = (0..200 - 16).partition(|&row| kept(row));
        assert_eq!((kept.len(), dropped.len()), (40, 144));
        let least = kept.iter().map(|&row| sums[row]).fold(f64::INFINITY, f64::min);
        let most = dropped.iter().map(|&row| sums[row]).fold(0.0, f64::max);
        assert!(least > most - 1e-4, "head {head}: {least} is kept, {most} is not");
    }
}

/// What all queries gave each token, by the definition.
fn probabilities(rows: &AttentionRows, kv_head: usize, tokens: usize) -> Vec<f64> {
    let mut sums = vec![0.0; tokens];
    let key = |token: usize| &rows.k[(token * 2 + kv_head) * 64..][..64];
    for query in 0..tokens * 3 {
        let (token, q_head) = (query / 3, kv_head * 3 + query % 3);
        let q = &rows.q[(token * 6 + q_head) * 64..][..64];
        let dot = |k: &[f32]| q.iter().zip(k).map(|(q, k)| f64::from(q * k)).sum::<f64>() / 8.0;
        let weights: Vec<f64> = (0..=token).map(|at| dot(key(at)).exp()).collect();
        let sum: f64 = weights.iter().sum();
        sums.iter_mut().zip(weights).for_each(|(total, weight)| *total += weight / sum);
    }
    sums
}
