//! What families of models do otherwise than Llama.

/// What a family of models does otherwise than Llama: [`Variant::LLAMA`] is nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Variant {
    /// Whether queries, keys and values have biases (Qwen2).
    pub qkv_bias: bool,
    /// Whether every head's query and key are normed before they turn (Qwen3, Gemma 3).
    pub qk_norm: bool,
    /// Whether what attention and the feed-forward part give is normed before it is added (Gemma 2 and 3).
    pub post_norms: bool,
    /// What the gate goes through.
    pub activation: Activation,
    /// What a token's first state is multiplied by; 1, or Gemma's `sqrt(hidden)`.
    pub embedding_scale: f32,
    /// What `q k` is multiplied by; `None`: `1 / sqrt(head_dim)`.
    pub query_scale: Option<f32>,
    /// `c` of `c tanh(x / c)`, which `q k` goes through after that (Gemma 2).
    pub attention_cap: Option<f32>,
    /// `c` of `c tanh(x / c)`, which logits go through (Gemma 2).
    pub logit_cap: Option<f32>,
    /// Tokens of the sliding window that some layers or all have. Longer paths are refused: up to there a window
    /// changes nothing.
    pub window: Option<u32>,
    /// How each layer's queries and keys turn; empty: all as the model's fields say.
    pub turns: Vec<Turn>,
    /// Base of the frequencies of layers that turn by themselves.
    pub local_rope_theta: f64,
}

/// The function of a gate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`.
    Silu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))` (arXiv 1606.08415).
    GeluTanh,
}

/// How a layer's queries and keys turn with their positions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// By the model's `rope_theta` and `rope_scaling`.
    Model,
    /// By `local_rope_theta`, without scaling (Gemma 3's layers with a window).
    Local,
    /// Not at all (one of four layers of SmolLM3).
    Not,
}

impl Variant {
    /// Nothing is otherwise.
    pub const LLAMA: Self = Self {
        qkv_bias: false,
        qk_norm: false,
        post_norms: false,
        activation: Activation::Silu,
        embedding_scale: 1.0,
        query_scale: None,
        attention_cap: None,
        logit_cap: None,
        window: None,
        turns: Vec::new(),
        local_rope_theta: 10_000.0,
    };

    /// How the layer of this index turns.
    pub fn turn(&self, layer: u32) -> Turn {
        *self.turns.get(layer as usize).unwrap_or(&Turn::Model)
    }

    /// What is otherwise than Llama, in words, for who can run nothing but Llama.
    pub fn differences(&self) -> Vec<&'static str> {
        let llama = Self::LLAMA;
        let all = [
            (self.qkv_bias, "biases of queries, keys and values"),
            (self.qk_norm, "norms of queries and keys"),
            (self.post_norms, "norms after attention and feed-forward part"),
            (self.activation != llama.activation, "a gate that is not SiLU"),
            (self.embedding_scale != 1.0, "scaled embeddings"),
            (self.query_scale.is_some(), "a scale of its own for attention"),
            (self.attention_cap.is_some(), "capped attention"),
            (self.logit_cap.is_some(), "capped logits"),
            (self.window.is_some(), "a sliding window"),
            (
                self.turns.iter().any(|&turn| turn != Turn::Model),
                "layers that turn otherwise or not",
            ),
        ];
        all.into_iter().filter(|&(is, _)| is).map(|(_, what)| what).collect()
    }
}
