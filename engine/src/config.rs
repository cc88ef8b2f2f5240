//! The shape of a model: Llama's, and what other families do otherwise.

pub(crate) mod family;
mod variant;

use deft::RotaryTable;
use deft::abi::PAGE_TOKENS;
use deft::cache::{HEAD_DIMS, MAX_HEADS, PagePool};

pub use self::variant::{Activation, Turn, Variant};

/// Most elements of a row, entries of a vocabulary or tokens of a context: what fits 24 bits.
const MAX_WIDTH: u32 = 1 << 24;
/// Rows of weights are whole 16-byte chunks of 16-bit elements.
const WIDTH_MULTIPLE: u32 = 8;

/// The shape of a Llama-like model: pre-norm (RMSNorm), grouped-query attention with a rotary embedding, and
/// SwiGLU; `variant` says what is otherwise.
#[derive(Clone, Debug, PartialEq)]
pub struct LlamaConfig {
    /// Layers.
    pub layers: u32,
    /// Elements of a token's state between layers.
    pub hidden: u32,
    /// Elements within the feed-forward part.
    pub ffn: u32,
    /// Query heads of a layer; a multiple of `kv_heads`.
    pub q_heads: u32,
    /// KV heads of a layer.
    pub kv_heads: u32,
    /// Elements of a head's query, key and value: one of [`HEAD_DIMS`].
    pub head_dim: u32,
    /// Tokens that there are.
    pub vocabulary: u32,
    /// Most tokens from a root to a leaf.
    pub context: u32,
    /// What is added to the mean square before its root is taken.
    pub rms_eps: f32,
    /// Base of the rotary embedding's frequencies.
    pub rope_theta: f64,
    /// How those frequencies are changed for long contexts.
    pub rope_scaling: RopeScaling,
    /// Whether the head's weights are the embedding's.
    pub tied_embeddings: bool,
    /// What is otherwise than in Llama.
    pub variant: Variant,
}

/// How the frequencies of a rotary embedding are changed for long contexts.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Llama 3.1's: wavelengths above `original_context / low` are stretched by `factor`, those below
    /// `original_context / high` stay, between them it is interpolated.
    Llama3 {
        /// By how much long wavelengths are stretched; 1 or more.
        factor: f64,
        /// Turns within the original context below which a wavelength is long.
        low: f64,
        /// Turns within the original context above which a wavelength is short; above `low`.
        high: f64,
        /// Tokens that the model was first trained with.
        original_context: u32,
    },
    /// By what each frequency is divided, `[head_dim / 2]`: how GGUF files keep the above.
    Divisors(Vec<f32>),
}

/// A field of a [`LlamaConfig`] that is out of range.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field} is {value}; it must be {expected}")]
pub struct ConfigError {
    /// The field.
    pub field: &'static str,
    /// What it was.
    pub value: String,
    /// What it may be.
    pub expected: String,
}

impl LlamaConfig {
    /// SmolLM2-135M's.
    pub fn smollm2_135m() -> Self {
        Self {
            layers: 30,
            hidden: 576,
            ffn: 1536,
            q_heads: 9,
            kv_heads: 3,
            head_dim: 64,
            vocabulary: 49_152,
            context: 8192,
            rms_eps: 1e-5,
            rope_theta: 100_000.0,
            rope_scaling: RopeScaling::None,
            tied_embeddings: true,
            variant: Variant::LLAMA,
        }
    }

    /// Llama-3-8B's.
    pub fn llama3_8b() -> Self {
        Self {
            layers: 32,
            hidden: 4096,
            ffn: 14_336,
            q_heads: 32,
            kv_heads: 8,
            head_dim: 128,
            vocabulary: 128_256,
            context: 8192,
            rms_eps: 1e-5,
            rope_theta: 500_000.0,
            rope_scaling: RopeScaling::None,
            tied_embeddings: false,
            variant: Variant::LLAMA,
        }
    }

    /// Llama-3-70B's.
    pub fn llama3_70b() -> Self {
        Self { layers: 80, hidden: 8192, ffn: 28_672, q_heads: 64, ..Self::llama3_8b() }
    }

    /// Qwen3-8B's.
    pub fn qwen3_8b() -> Self {
        Self {
            layers: 36,
            ffn: 12_288,
            vocabulary: 151_936,
            context: 40_960,
            rms_eps: 1e-6,
            rope_theta: 1e6,
            variant: Variant { qk_norm: true, ..Variant::LLAMA },
            ..Self::llama3_8b()
        }
    }

    /// Qwen3-1.7B's.
    pub fn qwen3_1_7b() -> Self {
        Self {
            layers: 28,
            hidden: 2048,
            ffn: 6144,
            q_heads: 16,
            tied_embeddings: true,
            ..Self::qwen3_8b()
        }
    }

    /// Qwen3-0.6B's.
    pub fn qwen3_0_6b() -> Self {
        Self { hidden: 1024, ffn: 3072, ..Self::qwen3_1_7b() }
    }

    /// CodeLlama-7B's.
    pub fn codellama_7b() -> Self {
        Self {
            layers: 32,
            hidden: 4096,
            ffn: 11_008,
            q_heads: 32,
            kv_heads: 32,
            head_dim: 128,
            vocabulary: 32_016,
            context: 16_384,
            rms_eps: 1e-5,
            rope_theta: 1e6,
            rope_scaling: RopeScaling::None,
            tied_embeddings: false,
            variant: Variant::LLAMA,
        }
    }

    /// CodeLlama-34B's.
    pub fn codellama_34b() -> Self {
        Self {
            layers: 48,
            hidden: 8192,
            ffn: 22_016,
            q_heads: 64,
            kv_heads: 8,
            head_dim: 128,
            vocabulary: 32_000,
            ..Self::codellama_7b()
        }
    }

    /// Whether every field is in its range.
    ///
    /// # Errors
    /// [`ConfigError`], naming the field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        within("layers", self.layers, MAX_HEADS)?;
        width("hidden", self.hidden)?;
        width("ffn", self.ffn)?;
        within("kv_heads", self.kv_heads, MAX_HEADS)?;
        within("q_heads", self.q_heads, MAX_HEADS)?;
        if !self.q_heads.is_multiple_of(self.kv_heads) {
            let expected = format!("a multiple of kv_heads, {}", self.kv_heads);
            return Err(error("q_heads", self.q_heads, expected));
        }
        if !HEAD_DIMS.contains(&self.head_dim) {
            let expected = "64, 80, 96, 112, 128, 192 or 256";
            return Err(error("head_dim", self.head_dim, expected));
        }
        within("vocabulary", self.vocabulary, MAX_WIDTH)?;
        within("context", self.context, MAX_WIDTH)?;
        positive("rms_eps", f64::from(self.rms_eps))?;
        positive("rope_theta", self.rope_theta)?;
        self.validate_scaling()?;
        self.validate_variant()
    }

    fn validate_scaling(&self) -> Result<(), ConfigError> {
        match &self.rope_scaling {
            RopeScaling::None => Ok(()),
            &RopeScaling::Llama3 { factor, low, high, original_context } => {
                if !(factor.is_finite() && factor >= 1.0) {
                    return Err(error("rope_scaling.factor", factor, "1 or more"));
                }
                positive("rope_scaling.low", low)?;
                if !(high.is_finite() && high > low) {
                    let expected = format!("above rope_scaling.low, {low}");
                    return Err(error("rope_scaling.high", high, expected));
                }
                within("rope_scaling.original_context", original_context, MAX_WIDTH)
            }
            RopeScaling::Divisors(divisors) => {
                if divisors.len() != self.head_dim as usize / 2 {
                    let value = format!("{} divisors", divisors.len());
                    let expected = format!("head_dim / 2, {}", self.head_dim / 2);
                    return Err(error("rope_scaling", value, expected));
                }
                let mut all = divisors.iter();
                all.try_for_each(|&divisor| positive("rope_scaling", f64::from(divisor)))
            }
        }
    }

    fn validate_variant(&self) -> Result<(), ConfigError> {
        let variant = &self.variant;
        let floats = [
            ("embedding_scale", Some(variant.embedding_scale)),
            ("query_scale", variant.query_scale),
            ("attention_cap", variant.attention_cap),
            ("logit_cap", variant.logit_cap),
        ];
        for (field, value) in floats {
            positive(field, value.map_or(1.0, f64::from))?;
        }
        positive("local_rope_theta", variant.local_rope_theta)?;
        within("window", variant.window.unwrap_or(1), u32::MAX)?;
        let turns = variant.turns.len();
        if turns > 0 && turns < self.layers as usize {
            let value = format!("of {turns} layers");
            return Err(error("turns", value, format!("of none, or of {} at least", self.layers)));
        }
        Ok(())
    }

    /// Elements of a token's queries, all heads: `q_heads x head_dim`.
    pub fn q_width(&self) -> u32 {
        self.q_heads * self.head_dim
    }

    /// Elements of a token's keys, or values, all heads: `kv_heads x head_dim`.
    pub fn kv_width(&self) -> u32 {
        self.kv_heads * self.head_dim
    }

    /// Positions that a path may have whose tokens lie in `pool`: no more than its pages hold, whatever context a file
    /// names.
    pub(crate) fn positions(&self, pool: &PagePool) -> u32 {
        self.context.min(pool.capacity().saturating_mul(PAGE_TOKENS))
    }

    /// Angles of the first position after 0, `[head_dim / 2]`: `theta^(-2 i / head_dim)` (RoFormer, arXiv
    /// 2104.09864, section 3.2.2), scaled.
    ///
    /// # Errors
    /// [`ConfigError`] for a shape that [`LlamaConfig::validate`] refuses.
    pub fn rope_frequencies(&self) -> Result<Vec<f64>, ConfigError> {
        self.validate()?;
        let half = self.head_dim / 2;
        let frequencies = (0..half).map(|i| {
            let plain = self.rope_theta.powf(-f64::from(i) / f64::from(half));
            match &self.rope_scaling {
                RopeScaling::None => plain,
                RopeScaling::Divisors(divisors) => plain / f64::from(divisors[i as usize]),
                &RopeScaling::Llama3 { factor, low, high, original_context } => {
                    let turns = f64::from(original_context) * plain / std::f64::consts::TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    plain * (kept + (1.0 - kept) / factor)
                }
            }
        });
        Ok(frequencies.collect())
    }

    /// Cosines and sines of the first `positions` positions for layers that turn as the model, in this crate's order
    /// of dims: dim `d` turns with dim `d + head_dim / 2`.
    ///
    /// # Errors
    /// [`ConfigError`] for a shape that [`LlamaConfig::validate`] refuses.
    pub fn rotary_table(&self, positions: u32) -> Result<RotaryTable, ConfigError> {
        self.rotary_table_of(self.head_dim, positions)
    }

    /// The same for heads of `head_dim`, as large or larger, whose further dims do not turn: both halves of a head have some.
    pub(crate) fn rotary_table_of(
        &self,
        head_dim: u32,
        positions: u32,
    ) -> Result<RotaryTable, ConfigError> {
        let mut frequencies = self.rope_frequencies()?;
        frequencies.resize(head_dim as usize / 2, 0.0);
        let table = RotaryTable::from_frequencies(&frequencies, positions);
        table.map_err(|problem| error("head_dim", self.head_dim, problem.to_string()))
    }

    /// As [`LlamaConfig::rotary_table`], for the layers that turn by `local_rope_theta`.
    ///
    /// # Errors
    /// [`ConfigError`] for a shape that [`LlamaConfig::validate`] refuses.
    pub fn local_rotary_table(&self, positions: u32) -> Result<RotaryTable, ConfigError> {
        let local = Self {
            rope_theta: self.variant.local_rope_theta,
            rope_scaling: RopeScaling::None,
            ..self.clone()
        };
        local.rotary_table(positions)
    }

    /// Elements of all weights, a tied head's once.
    pub fn parameters(&self) -> u64 {
        let [hidden, ffn, q, kv, vocabulary, head] = [
            self.hidden,
            self.ffn,
            self.q_width(),
            self.kv_width(),
            self.vocabulary,
            self.head_dim,
        ]
        .map(u64::from);
        let layer = 2 * hidden + 2 * hidden * (q + kv) + 3 * hidden * ffn;
        let more = [
            (self.variant.qkv_bias, q + 2 * kv),
            (self.variant.qk_norm, 2 * head),
            (self.variant.post_norms, 2 * hidden),
        ];
        let more: u64 = more.iter().filter(|(is, _)| *is).map(|(_, count)| count).sum();
        let ends = if self.tied_embeddings { 1 } else { 2 } * vocabulary * hidden + hidden;
        u64::from(self.layers) * (layer + more) + ends
    }
}

fn error(
    field: &'static str,
    value: impl std::fmt::Display,
    expected: impl Into<String>,
) -> ConfigError {
    ConfigError { field, value: value.to_string(), expected: expected.into() }
}

fn within(field: &'static str, value: u32, max: u32) -> Result<(), ConfigError> {
    if value == 0 || value > max {
        return Err(error(field, value, format!("between 1 and {max}")));
    }
    Ok(())
}

fn width(field: &'static str, value: u32) -> Result<(), ConfigError> {
    within(field, value, MAX_WIDTH)?;
    if !value.is_multiple_of(WIDTH_MULTIPLE) {
        return Err(error(field, value, format!("a multiple of {WIDTH_MULTIPLE}")));
    }
    Ok(())
}

fn positive(field: &'static str, value: f64) -> Result<(), ConfigError> {
    if !(value.is_finite() && value > 0.0) {
        return Err(error(field, value, "positive and finite"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
