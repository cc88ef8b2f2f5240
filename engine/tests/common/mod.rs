//! A small Llama, and the same by its definition.

#[allow(dead_code, reason = "other suites use the rest")]
pub(crate) mod definition;
#[allow(dead_code, reason = "other suites use the rest")]
mod files;
#[allow(dead_code, reason = "other suites use the rest")]
pub(crate) mod soak;
#[allow(dead_code, reason = "other suites use the rest")]
pub(crate) mod tapped;

use deft_engine::{LayerTensor, LlamaConfig, RopeScaling, Tensor, Weights};
use serde_json::json;

pub(crate) use self::definition::Definition;
use self::files::Written;

/// A small model with every feature: grouped queries, scaled rotary embedding, odd widths.
pub(crate) fn tiny(tied_embeddings: bool) -> LlamaConfig {
    LlamaConfig {
        layers: 2,
        hidden: 40,
        ffn: 56,
        q_heads: 6,
        kv_heads: 2,
        head_dim: 64,
        vocabulary: 97,
        context: 300,
        rms_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::Llama3 {
            factor: 4.0,
            low: 1.0,
            high: 4.0,
            original_context: 128,
        },
        tied_embeddings,
        variant: deft_engine::Variant::LLAMA,
    }
}

/// Tokens from a seed.
#[allow(dead_code, reason = "the soak draws its own")]
pub(crate) fn tokens(seed: u32, count: usize) -> Vec<u32> {
    let mut state = seed;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 16) % 97
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// The same model by its definition.
pub(crate) fn definition(weights: &Weights) -> Definition {
    let config = weights.config();
    let RopeScaling::Llama3 { factor, low, high, original_context } = config.rope_scaling else {
        panic!("the tiny model is scaled");
    };
    let mut definition = Definition::new(
        "llama",
        json!({
            "model_type": "llama", "hidden_size": config.hidden, "intermediate_size": config.ffn,
            "num_hidden_layers": config.layers, "num_attention_heads": config.q_heads,
            "num_key_value_heads": config.kv_heads, "head_dim": config.head_dim, "vocab_size": config.vocabulary,
            "rms_norm_eps": config.rms_eps, "rope_theta": config.rope_theta, "hidden_act": "silu",
            "tie_word_embeddings": config.tied_embeddings,
            "rope_scaling": {"rope_type": "llama3", "factor": factor, "low_freq_factor": low,
                "high_freq_factor": high, "original_max_position_embeddings": original_context}
        }),
    );
    const NAMES: [&str; 9] = [
        "input_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "post_attention_layernorm",
        "mlp.gate_proj",
        "mlp.up_proj",
        "mlp.down_proj",
    ];
    let mut read = |tensor, name: &str| {
        let [rows, columns] = weights.shape(tensor);
        let (shape, mut values) = (vec![rows, columns], vec![f32::NAN; rows * columns]);
        weights.read_f32(tensor, 0..rows, &mut values).unwrap();
        definition.insert(format!("{name}.weight"), Written { shape, values });
    };
    read(Tensor::Embedding, "model.embed_tokens");
    read(Tensor::FinalNorm, "model.norm");
    read(Tensor::Head, "lm_head");
    for layer in 0..config.layers {
        for (tensor, name) in LayerTensor::ALL.into_iter().zip(NAMES) {
            read(Tensor::Layer(layer, tensor), &format!("model.layers.{layer}.{name}"));
        }
    }
    definition
}

/// Asserts that rows of logits are those expected, each within 2e-5 of its largest entry.
pub(crate) fn assert_rows<'a>(found: &[f32], expected: impl IntoIterator<Item = &'a Vec<f64>>) {
    let expected: Vec<_> = expected.into_iter().collect();
    let width = expected[0].len();
    assert_eq!(found.len(), expected.len() * width);
    for (row, (found, expected)) in found.chunks(width).zip(expected).enumerate() {
        let largest = expected.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
        for (at, (&found, &expected)) in found.iter().zip(expected).enumerate() {
            let error = (f64::from(found) - expected).abs() / largest;
            assert!(error < 2e-5, "row {row}, token {at}: {found} is not {expected}, {error}");
        }
    }
}
