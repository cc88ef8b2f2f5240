//! Every family of models from its files, against a definition in f64 that reads transformers' names and fields
//! itself and knows nothing of the engine's.

#[path = "common/definition.rs"]
mod definition;
#[path = "common/files.rs"]
#[allow(dead_code, reason = "other suites use the rest")]
mod files;

use definition::Definition;
use deft_engine::{CpuModel, CpuOptions, Gguf, TreeModel, Weights, safetensors};
use files::{Folder, GgufFile};
use serde_json::{Value, json};

/// Fields that all have.
fn base(kind: &str) -> Value {
    json!({
        "model_type": kind, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 4,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "vocab_size": 53,
        "max_position_embeddings": 90, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "tie_word_embeddings": false, "architectures": ["X"], "torch_dtype": "float32", "use_cache": true
    })
}

fn with(mut base: Value, more: Value) -> Value {
    for (key, value) in more.as_object().unwrap() {
        base[key] = value.clone();
    }
    base
}

fn families() -> Vec<(&'static str, Value)> {
    let gemma = json!({"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
        "tie_word_embeddings": true});
    vec![
        (
            "llama",
            with(base("llama"), json!({"rope_scaling": {"rope_type": "linear", "factor": 4.0}})),
        ),
        ("llama", with(base("mistral"), json!({"sliding_window": 64}))),
        (
            "qwen2",
            with(
                base("qwen2"),
                json!({"use_sliding_window": false, "sliding_window": 8,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}),
            ),
        ),
        ("qwen3", base("qwen3")),
        ("llama", with(base("llama"), json!({"head_dim": 80}))),
        ("qwen3", with(base("qwen3"), json!({"head_dim": 96}))),
        ("qwen2", with(base("qwen2"), json!({"head_dim": 112}))),
        ("gemma", with(with(base("gemma"), gemma.clone()), json!({"head_dim": 192}))),
        (
            "smollm3",
            with(
                base("smollm3"),
                json!({"no_rope_layers": [1, 1, 1, 0], "no_rope_layer_interval": 4,
            "tie_word_embeddings": true}),
            ),
        ),
        ("gemma", with(base("gemma"), gemma.clone())),
        (
            "gemma2",
            with(
                with(base("gemma2"), gemma.clone()),
                json!({"query_pre_attn_scalar": 64,
            "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0, "sliding_window": 80}),
            ),
        ),
        (
            "gemma2",
            with(
                with(base("gemma2"), gemma.clone()),
                json!({"query_pre_attn_scalar": 100,
            "attn_logit_softcapping": null, "final_logit_softcapping": null, "sliding_window": 80}),
            ),
        ),
        (
            "gemma3",
            with(
                with(base("gemma3_text"), gemma),
                json!({"query_pre_attn_scalar": 64, "sliding_window": 70,
            "num_hidden_layers": 7, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0,
            "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "layer_types": ["sliding_attention", "sliding_attention", "sliding_attention", "sliding_attention",
                "sliding_attention", "full_attention", "sliding_attention"]}),
            ),
        ),
    ]
}

/// The same model as a GGUF file, as llama.cpp's converter writes it.
impl Definition {
    fn gguf(&self) -> GgufFile {
        let mut file = GgufFile::default();
        file.set_text("general.architecture", self.gguf);
        let key = |name: &str| format!("{}.{name}", self.gguf);
        for (name, field) in [
            ("block_count", "num_hidden_layers"),
            ("embedding_length", "hidden_size"),
            ("feed_forward_length", "intermediate_size"),
            ("attention.head_count", "num_attention_heads"),
            ("attention.head_count_kv", "num_key_value_heads"),
            ("attention.key_length", "head_dim"),
            ("context_length", "max_position_embeddings"),
        ] {
            file.set_u32(&key(name), self.size(field) as u32);
        }
        file.set_f32(&key("attention.layer_norm_rms_epsilon"), 1e-5);
        let float = |value: &Value| value.as_f64().map(|value| value as f32);
        for (name, value) in [
            ("rope.freq_base", &self.config["rope_theta"]),
            ("rope.scaling.factor", &self.config["rope_scaling"]["factor"]),
            ("attn_logit_softcapping", &self.config["attn_logit_softcapping"]),
            ("final_logit_softcapping", &self.config["final_logit_softcapping"]),
        ] {
            if let Some(value) = float(value) {
                file.set_f32(&key(name), value);
            }
        }
        // Where it is linear files may leave it out.
        if self.config["rope_scaling"]["rope_type"] == "yarn" {
            file.set_text(&key("rope.scaling.type"), "yarn");
            file.set_u32(&key("rope.scaling.original_context_length"), 32);
        }
        if self.kind() != "qwen2"
            && let Some(window) = self.config["sliding_window"].as_u64()
        {
            file.set_u32(&key("attention.sliding_window"), window as u32);
        }
        for (name, tensor) in &self.tensors {
            let mut tensor = tensor.clone();
            if name.contains("norm") && self.gguf.starts_with("gemma") {
                tensor.values.iter_mut().for_each(|x| *x += 1.0);
            }
            let turned = name.contains("q_proj.weight") || name.contains("k_proj.weight");
            if turned && matches!(self.gguf, "llama" | "smollm3") {
                tensor.values =
                    in_pairs(&tensor.values, self.size("head_dim"), self.size("hidden_size"));
            }
            file.add(&self.gguf_name(name), &tensor);
        }
        file
    }

    fn gguf_name(&self, name: &str) -> String {
        let two = matches!(self.gguf, "gemma2" | "gemma3");
        let names = [
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("lm_head", "output"),
            ("model.layers.", "blk."),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("self_attn.q_norm", "attn_q_norm"),
            ("self_attn.k_norm", "attn_k_norm"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", if two { "post_attention_norm" } else { "ffn_norm" }),
            ("pre_feedforward_layernorm", "ffn_norm"),
            ("post_feedforward_layernorm", "post_ffw_norm"),
            ("mlp.", "ffn_"),
            ("_proj", ""),
        ];
        names.iter().fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
    }
}

/// Rows of a head in pairs instead of halves.
fn in_pairs(values: &[f32], head_dim: usize, columns: usize) -> Vec<f32> {
    let half = head_dim / 2;
    let heads = values.chunks(head_dim * columns);
    let rows = heads.flat_map(|head| {
        let row = move |at: usize| head[at * columns..][..columns].to_vec();
        (0..half).flat_map(move |pair| [row(pair), row(half + pair)])
    });
    rows.flatten().collect()
}

fn tokens(count: usize) -> Vec<u32> {
    (0..count as u32).map(|at| (at * at * 7 + at * 3 + 5) % 53).collect()
}

fn assert_near(found: &[f32], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(0.0_f64, |max, x| max.max(x.abs()));
    for (at, (&found, expected)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(found) - expected).abs() / largest;
        assert!(error < 5e-5, "{what}, token {at}: {found} is not {expected}, {error}");
    }
}

/// A prompt, a fork, a step and a draft of the model, each against the definition.
fn check(weights: &Weights, definition: &Definition, what: &str) {
    let options = CpuOptions { capacity_bytes: 16 << 20, ..CpuOptions::default() };
    let mut model = CpuModel::load(weights, options, |_, _| {}).unwrap();
    let mut logits = vec![f32::NAN; 5];
    let path = tokens(61);
    let expected = definition.logits(&path);
    let root = model.insert_prompt(&path[..59], &mut logits).unwrap();
    assert_near(&logits, &expected[58], what);
    let leaves = model.fork(root, 2).unwrap();
    for at in [59, 60] {
        logits.fill(f32::NAN);
        model.step(&leaves, &[9, path[at]], &mut logits).unwrap();
        assert_near(&logits[53..], &expected[at], what);
    }
    let other = [&path[..59], &[9, 9]].concat();
    assert_near(&logits[..53], &definition.logits(&other)[60], what);
}

#[test]
fn folders_and_files_of_every_family_compute_what_is_defined() {
    for (gguf, config) in families() {
        let definition = Definition::new(gguf, config);
        let kind = definition.kind();
        let folder = Folder::new(&format!("family-{kind}"));
        folder.write("config.json", definition.config.to_string());
        folder.write("model.safetensors", files::safetensors(&definition.tensors));
        let weights =
            safetensors::open(&folder.0).unwrap_or_else(|error| panic!("{kind}: {error}"));
        check(&weights, &definition, &format!("{kind}, safetensors"));
        if definition.config["query_pre_attn_scalar"] == 100 {
            // No key of a GGUF file says so.
            continue;
        }
        let path = folder.write("model.gguf", definition.gguf().bytes());
        let file = Gguf::open(&path).unwrap_or_else(|error| panic!("{kind}: {error}"));
        // Gemma's GGUF files hold what is added to 1 already, so their rounding differs.
        check(file.weights(), &definition, &format!("{kind}, GGUF"));
    }
}

#[test]
fn paths_beyond_a_sliding_window_are_refused_by_name() {
    let (gguf, config) = families().remove(1);
    let definition = Definition::new(gguf, config);
    let folder = Folder::new("window");
    let path = folder.write("model.gguf", definition.gguf().bytes());
    let file = Gguf::open(&path).unwrap();
    let mut model = CpuModel::load(file.weights(), CpuOptions::default(), |_, _| {}).unwrap();
    assert_eq!(model.context(), 64);
    let mut logits = Vec::new();
    let root = model.insert_prompt(&tokens(64), &mut logits).unwrap();
    let error = model.step(&[root], &[1], &mut logits).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a path of 65 tokens is longer than the model's sliding window of 64"
    );
    assert_eq!(model.forest().length(root).unwrap(), 64);
}
