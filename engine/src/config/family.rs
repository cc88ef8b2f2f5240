//! The families of models that files may hold, one row each.

use super::{Activation, LlamaConfig, Turn, Variant};

/// How the dims of a head's query and key are ordered in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeadOrder {
    /// Dim `d` turns with dim `d + head_dim / 2`, as in this crate.
    Halves,
    /// Dim `2 i` turns with dim `2 i + 1`.
    Pairs,
}

/// A family of models, and what its files leave unsaid.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Family {
    /// `model_type` of a `config.json`.
    pub(crate) hf: &'static str,
    /// `general.architecture` of a GGUF file; where two families share it the first is taken.
    pub(crate) gguf: &'static str,
    /// How a GGUF file has the dims of queries and keys.
    pub(crate) order: HeadOrder,
    /// Norms of a safetensors file are what is added to 1.
    pub(crate) norms_from_one: bool,
    pub(crate) qkv_bias: bool,
    pub(crate) qk_norm: bool,
    pub(crate) post_norms: bool,
    pub(crate) activation: Activation,
    /// First states are multiplied by `sqrt(hidden)`.
    pub(crate) scaled_embedding: bool,
    /// Of `n` layers, in turn, the last attends to everything, the others to a window.
    pub(crate) full_every: Option<u32>,
    /// Of `n` layers, in turn, the last does not turn.
    pub(crate) still_every: Option<u32>,
    /// Base of the frequencies of layers with a window, where it is another.
    pub(crate) local_theta: Option<f64>,
    /// As transformers has them where a `config.json` says nothing.
    pub(crate) default: Defaults,
}

/// Fields that transformers leaves out of a `config.json` where they are these.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Defaults {
    pub(crate) head_dim: Option<u32>,
    pub(crate) rope_theta: f64,
    pub(crate) tied: bool,
    pub(crate) window: Option<u32>,
    pub(crate) query_scalar: Option<f64>,
    pub(crate) attention_cap: Option<f64>,
    pub(crate) logit_cap: Option<f64>,
}

const LLAMA: Family = Family {
    hf: "llama",
    gguf: "llama",
    order: HeadOrder::Pairs,
    norms_from_one: false,
    qkv_bias: false,
    qk_norm: false,
    post_norms: false,
    activation: Activation::Silu,
    scaled_embedding: false,
    full_every: None,
    still_every: None,
    local_theta: None,
    default: Defaults {
        head_dim: None,
        rope_theta: 10_000.0,
        tied: false,
        window: None,
        query_scalar: None,
        attention_cap: None,
        logit_cap: None,
    },
};

const QWEN2: Family =
    Family { hf: "qwen2", gguf: "qwen2", order: HeadOrder::Halves, qkv_bias: true, ..LLAMA };

const GEMMA: Family = Family {
    hf: "gemma",
    gguf: "gemma",
    order: HeadOrder::Halves,
    norms_from_one: true,
    activation: Activation::GeluTanh,
    scaled_embedding: true,
    default: Defaults { head_dim: Some(256), tied: true, ..LLAMA.default },
    ..LLAMA
};

pub(crate) const FAMILIES: [Family; 8] = [
    LLAMA,
    Family { hf: "mistral", default: Defaults { window: Some(4096), ..LLAMA.default }, ..LLAMA },
    QWEN2,
    Family {
        hf: "qwen3",
        gguf: "qwen3",
        qkv_bias: false,
        qk_norm: true,
        default: Defaults { head_dim: Some(128), ..LLAMA.default },
        ..QWEN2
    },
    Family {
        hf: "smollm3",
        gguf: "smollm3",
        still_every: Some(4),
        default: Defaults { rope_theta: 2_000_000.0, tied: true, ..LLAMA.default },
        ..LLAMA
    },
    GEMMA,
    Family {
        hf: "gemma2",
        gguf: "gemma2",
        post_norms: true,
        full_every: Some(2),
        default: Defaults {
            window: Some(4096),
            query_scalar: Some(256.0),
            attention_cap: Some(50.0),
            logit_cap: Some(30.0),
            ..GEMMA.default
        },
        ..GEMMA
    },
    Family {
        hf: "gemma3_text",
        gguf: "gemma3",
        post_norms: true,
        qk_norm: true,
        full_every: Some(6),
        local_theta: Some(10_000.0),
        default: Defaults {
            window: Some(4096),
            query_scalar: Some(256.0),
            rope_theta: 1_000_000.0,
            ..GEMMA.default
        },
        ..GEMMA
    },
];

impl Family {
    /// What models of it have in common, for layers of this many elements a token.
    pub(crate) fn variant(&self, hidden: u32) -> Variant {
        Variant {
            qkv_bias: self.qkv_bias,
            qk_norm: self.qk_norm,
            post_norms: self.post_norms,
            activation: self.activation,
            embedding_scale: if self.scaled_embedding { (hidden as f32).sqrt() } else { 1.0 },
            ..Variant::LLAMA
        }
    }

    /// Sets what follows from the number of layers, where a file does not list them, and drops a window that hides
    /// nothing.
    pub(crate) fn set_layers(&self, config: &mut LlamaConfig) {
        let is_last = |every: Option<u32>, layer: u32| {
            every.is_some_and(|every| (layer + 1).is_multiple_of(every))
        };
        let turn = |layer| match (self.local_theta, self.full_every) {
            _ if is_last(self.still_every, layer) => Turn::Not,
            (Some(_), Some(_)) if !is_last(self.full_every, layer) => Turn::Local,
            _ => Turn::Model,
        };
        config.variant.turns = (0..config.layers).map(turn).collect();
        let context = config.context;
        config.variant.window = config.variant.window.filter(|&tokens| tokens < context);
        if let Some(theta) = self.local_theta {
            config.variant.local_rope_theta = theta;
        }
    }
}

/// Divisors of the frequencies by YaRN (arXiv 2309.00071, as in transformers and ggml): long wavelengths are
/// stretched by `factor`, short ones stay. Attention is to be multiplied by [`yarn_scale`].
pub(crate) fn yarn_divisors(
    head_dim: u32,
    theta: f64,
    factor: f64,
    original: f64,
    [fast, slow]: [f64; 2],
) -> Vec<f32> {
    let dims = f64::from(head_dim);
    let dim_of =
        |turns: f64| dims * (original / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
    let low = dim_of(fast).floor().max(0.0);
    let high = dim_of(slow).ceil().min(dims - 1.0);
    let width = if high == low { 0.001 } else { high - low };
    let divisor = |pair: u32| {
        let stretched = ((f64::from(pair) - low) / width).clamp(0.0, 1.0);
        (1.0 / (stretched / factor + 1.0 - stretched)) as f32
    };
    (0..head_dim / 2).map(divisor).collect()
}

/// What `q k` is multiplied by beside `1 / sqrt(head_dim)` under YaRN: queries and keys each by this one's root.
pub(crate) fn yarn_scale(factor: f64, given: Option<f64>) -> f64 {
    let usual = if factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
    given.unwrap_or(usual).powi(2)
}
