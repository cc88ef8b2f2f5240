//! Models by their definition in f64: transformers' names and fields, one path at a time, no cache.

use std::collections::HashMap;

use serde_json::Value;

use super::files::{Tensors, Written};

/// A model as transformers defines it: fields of its `config.json` with all defaults written out.
pub(crate) struct Definition {
    pub(crate) config: Value,
    pub(crate) tensors: Tensors,
    exact: HashMap<String, Vec<f64>>,
    /// Name of the architecture in GGUF files.
    pub(crate) gguf: &'static str,
}

impl Definition {
    pub(crate) fn new(gguf: &'static str, config: Value) -> Self {
        let (tensors, exact) = (Tensors::new(), HashMap::new());
        let mut this = Self { config, tensors, exact, gguf };
        let [hidden, ffn, vocabulary] =
            ["hidden_size", "intermediate_size", "vocab_size"].map(|key| this.size(key));
        let q = this.size("num_attention_heads") * this.size("head_dim");
        let kv = this.size("num_key_value_heads") * this.size("head_dim");
        let dim = this.size("head_dim");
        let mut add = |name: String, shape: &[usize]| this.add(name, shape);
        add("model.embed_tokens.weight".into(), &[vocabulary, hidden]);
        add("model.norm.weight".into(), &[hidden]);
        add("lm_head.weight".into(), &[vocabulary, hidden]);
        let kind = this.kind();
        let gemma = kind == "gemma2" || kind == "gemma3_text";
        for layer in 0..this.size("num_hidden_layers") {
            let mut add = |name: &str, shape: &[usize]| {
                this.add(format!("model.layers.{layer}.{name}"), shape)
            };
            for (name, rows) in [("q", q), ("k", kv), ("v", kv)] {
                add(&format!("self_attn.{name}_proj.weight"), &[rows, hidden]);
                if kind == "qwen2" {
                    add(&format!("self_attn.{name}_proj.bias"), &[rows]);
                }
            }
            add("self_attn.o_proj.weight", &[hidden, q]);
            for name in ["input_layernorm", "post_attention_layernorm"] {
                add(&format!("{name}.weight"), &[hidden]);
            }
            if kind == "qwen3" || kind == "gemma3_text" {
                for name in ["q_norm", "k_norm"] {
                    add(&format!("self_attn.{name}.weight"), &[dim]);
                }
            }
            if gemma {
                for name in ["pre_feedforward_layernorm", "post_feedforward_layernorm"] {
                    add(&format!("{name}.weight"), &[hidden]);
                }
            }
            add("mlp.gate_proj.weight", &[ffn, hidden]);
            add("mlp.up_proj.weight", &[ffn, hidden]);
            add("mlp.down_proj.weight", &[hidden, ffn]);
        }
        if this.config["tie_word_embeddings"] == true {
            this.tensors.remove("lm_head.weight");
        }
        this
    }

    pub(crate) fn size(&self, key: &str) -> usize {
        self.config[key].as_u64().unwrap() as usize
    }

    pub(crate) fn kind(&self) -> String {
        self.config["model_type"].as_str().unwrap().to_owned()
    }

    /// Random values: norms around what leaves a value as it is, matrices of variance `1 / columns`.
    fn add(&mut self, name: String, shape: &[usize]) {
        let mut state = name
            .bytes()
            .fold(7_u64, |state, byte| state.wrapping_mul(31).wrapping_add(byte.into()));
        let mut uniform = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let is_norm = name.contains("norm");
        let from_one = self.kind().starts_with("gemma");
        let scale = (3.0 / *shape.last().unwrap() as f32).sqrt();
        let value = |x: f32| match (is_norm, from_one) {
            (true, true) => 0.4 * x,
            (true, false) => 1.0 + 0.4 * x,
            (false, _) => scale * x,
        };
        let values = (0..shape.iter().product()).map(|_| value(uniform())).collect();
        let shape = shape.to_vec();
        self.insert(name, Written { shape, values });
    }

    pub(crate) fn insert(&mut self, name: String, tensor: Written) {
        let exact = tensor.values.iter().map(|&x| f64::from(x)).collect();
        self.exact.insert(name.clone(), exact);
        self.tensors.insert(name, tensor);
    }

    fn tensor(&self, name: &str) -> &[f64] {
        self.exact.get(name).unwrap_or_else(|| panic!("{name}"))
    }
}

/// The forward pass by its definition: dense, causal, one path.
impl Definition {
    pub(crate) fn logits(&self, path: &[u32]) -> Vec<Vec<f64>> {
        let hidden = self.size("hidden_size");
        let gemma = self.kind().starts_with("gemma");
        let embedding = self.tensor("model.embed_tokens.weight");
        let row = |token: u32| &embedding[token as usize * hidden..][..hidden];
        let scale = if gemma { (hidden as f64).sqrt() } else { 1.0 };
        let mut states: Vec<Vec<f64>> =
            path.iter().map(|&t| row(t).iter().map(|x| x * scale).collect()).collect();
        for layer in 0..self.size("num_hidden_layers") {
            let of = |name: &str| self.tensor(&format!("model.layers.{layer}.{name}.weight"));
            let normed: Vec<_> =
                states.iter().map(|x| self.norm(x, of("input_layernorm"))).collect();
            let attended = self.attention(layer, &normed);
            let two = self.kind() == "gemma2" || self.kind() == "gemma3_text";
            for (state, mut attended) in states.iter_mut().zip(attended) {
                if two {
                    attended = self.norm(&attended, of("post_attention_layernorm"));
                }
                add(state, &attended);
                let before =
                    if two { "pre_feedforward_layernorm" } else { "post_attention_layernorm" };
                let normed = self.norm(state, of(before));
                let gate = apply(of("mlp.gate_proj"), &normed);
                let up = apply(of("mlp.up_proj"), &normed);
                let inner: Vec<f64> = gate.iter().zip(up).map(|(&g, u)| self.act(g) * u).collect();
                let mut out = apply(of("mlp.down_proj"), &inner);
                if two {
                    out = self.norm(&out, of("post_feedforward_layernorm"));
                }
                add(state, &out);
            }
        }
        let head = match self.config["tie_word_embeddings"] == true {
            true => embedding,
            false => self.tensor("lm_head.weight"),
        };
        let cap = self.config["final_logit_softcapping"].as_f64();
        let logits = |x: &Vec<f64>| {
            let logits = apply(head, &self.norm(x, self.tensor("model.norm.weight")));
            let capped = logits.into_iter().map(|x| cap.map_or(x, |cap| cap * (x / cap).tanh()));
            capped.collect::<Vec<_>>()
        };
        states.iter().map(logits).collect()
    }

    fn attention(&self, layer: usize, normed: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let dim = self.size("head_dim");
        let group = self.size("num_attention_heads") / self.size("num_key_value_heads");
        let part = |name: &str| -> Vec<Vec<f64>> {
            let begin = format!("model.layers.{layer}.self_attn.{name}");
            let matrix = self.tensor(&format!("{begin}_proj.weight"));
            let rows = normed.iter().enumerate().map(|(position, x)| {
                let mut y = apply(matrix, x);
                if self.kind() == "qwen2" {
                    add(&mut y, self.tensor(&format!("{begin}_proj.bias")));
                }
                if name == "v" {
                    return y;
                }
                if self.tensors.contains_key(&format!("{begin}_norm.weight")) {
                    let gain = self.tensor(&format!("{begin}_norm.weight"));
                    y = y.chunks(dim).flat_map(|head| self.norm(head, gain)).collect();
                }
                y.chunks(dim).flat_map(|head| self.turn(layer, position, head)).collect()
            });
            rows.collect()
        };
        let (q, k, v) = (part("q"), part("k"), part("v"));
        let output = self.tensor(&format!("model.layers.{layer}.self_attn.o_proj.weight"));
        let scalar = self.config["query_pre_attn_scalar"].as_f64().unwrap_or(dim as f64);
        let cap = self.config["attn_logit_softcapping"].as_f64();
        let rows = (0..normed.len()).map(|at| {
            let heads = q[at].chunks(dim).enumerate().flat_map(|(head, q)| {
                let of = head / group * dim..(head / group + 1) * dim;
                let scores = (0..=at).map(|other| {
                    let score = dot(q, &k[other][of.clone()]) / scalar.sqrt();
                    cap.map_or(score, |cap| cap * (score / cap).tanh()).exp()
                });
                let scores: Vec<f64> = scores.collect();
                let sum: f64 = scores.iter().sum();
                let value = |d: usize| {
                    (0..=at).map(|other| scores[other] * v[other][of.start + d]).sum::<f64>() / sum
                };
                (0..dim).map(value).collect::<Vec<_>>()
            });
            apply(output, &heads.collect::<Vec<_>>())
        });
        rows.collect()
    }

    /// A head at its position, by transformers' `rotate_half` and its frequencies.
    fn turn(&self, layer: usize, position: usize, head: &[f64]) -> Vec<f64> {
        let turns = &self.config["no_rope_layers"][layer];
        if *turns == 0 {
            return head.to_vec();
        }
        let half = head.len() / 2;
        let local = self.config["layer_types"][layer] == "sliding_attention";
        let scaling = &self.config["rope_scaling"];
        let key = if local { "rope_local_base_freq" } else { "rope_theta" };
        let theta = self.config[key].as_f64().unwrap();
        let factor = scaling["factor"].as_f64().unwrap_or(1.0);
        let mut scale = 1.0;
        let angle = |pair: usize| {
            let plain = theta.powf(-(pair as f64) / half as f64);
            let frequency = match scaling["rope_type"].as_str() {
                Some("linear") if !local => plain / factor,
                Some("llama3") => {
                    let [low, high, original] =
                        ["low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
                            .map(|key| scaling[key].as_f64().unwrap());
                    let wavelength = 2.0 * std::f64::consts::PI / plain;
                    let smooth = (original / wavelength - low) / (high - low);
                    let smooth = smooth.clamp(0.0, 1.0);
                    (1.0 - smooth) * plain / factor + smooth * plain
                }
                Some("yarn") => {
                    let original = scaling["original_max_position_embeddings"].as_f64().unwrap();
                    let at = |turns: f64| {
                        let wavelengths = original / (turns * 2.0 * std::f64::consts::PI);
                        2.0 * half as f64 * wavelengths.ln() / (2.0 * theta.ln())
                    };
                    let (low, high) =
                        (at(32.0).floor().max(0.0), at(1.0).ceil().min(2.0 * half as f64 - 1.0));
                    let ramp = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    plain / factor * ramp + plain * (1.0 - ramp)
                }
                _ => plain,
            };
            position as f64 * frequency
        };
        if scaling["rope_type"] == "yarn" {
            scale = 0.1 * factor.ln() + 1.0;
        }
        let turned = (0..2 * half).map(|d| {
            let other = if d < half { -head[d + half] } else { head[d - half] };
            scale * (head[d] * angle(d % half).cos() + other * angle(d % half).sin())
        });
        turned.collect()
    }

    fn norm(&self, x: &[f64], gain: &[f64]) -> Vec<f64> {
        let mean = x.iter().map(|x| x * x).sum::<f64>() / x.len() as f64;
        let root = (mean + self.config["rms_norm_eps"].as_f64().unwrap()).sqrt();
        let one = if self.kind().starts_with("gemma") { 1.0 } else { 0.0 };
        x.iter().zip(gain).map(|(x, gain)| x / root * (one + gain)).collect()
    }

    fn act(&self, x: f64) -> f64 {
        match self.config["hidden_act"].as_str() {
            Some("silu") => x / (1.0 + (-x).exp()),
            _ => {
                0.5 * x
                    * (1.0
                        + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
            }
        }
    }
}

fn apply(matrix: &[f64], x: &[f64]) -> Vec<f64> {
    matrix.chunks(x.len()).map(|row| dot(row, x)).collect()
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}
