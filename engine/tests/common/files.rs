//! Model files written here: tensors by the names that transformers gives them, as safetensors or GGUF.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A tensor: `[rows, columns]`, or `[columns]` with one row.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// A tensor of this shape, all 0.5.
pub(crate) fn written(shape: &[usize]) -> Written {
    Written { shape: shape.to_vec(), values: vec![0.5; shape.iter().product()] }
}

/// A tensor whose element `i` is `first + i`.
pub(crate) fn counted(shape: &[usize], first: f32) -> Written {
    let values = (0..shape.iter().product()).map(|i: usize| first + i as f32).collect();
    Written { shape: shape.to_vec(), values }
}

pub(crate) type Tensors = BTreeMap<String, Written>;

/// A folder that goes away with its value.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("deft-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A safetensors file, in F32.
pub(crate) fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, tensor) in tensors {
        let begin = data.len();
        data.extend(tensor.values.iter().flat_map(|x| x.to_le_bytes()));
        let info = serde_json::json!({
            "dtype": "F32", "shape": tensor.shape, "data_offsets": [begin, data.len()]
        });
        header.insert(name.clone(), info);
    }
    let header = Value::Object(header).to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

/// What a GGUF file is made of; its types are ggml's numbers.
#[derive(Clone, Default)]
pub(crate) struct GgufFile {
    pub(crate) entries: Vec<(String, Vec<u8>)>,
    /// Name, dimensions (columns first), type, bytes.
    pub(crate) tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

impl GgufFile {
    pub(crate) fn set(&mut self, key: &str, kind: u32, bytes: &[u8]) {
        self.entries.retain(|(other, _)| other != key);
        let value = [&kind.to_le_bytes(), bytes].concat();
        self.entries.push((key.to_owned(), value));
    }

    pub(crate) fn set_text(&mut self, key: &str, value: &str) {
        self.set(key, 8, &text(value));
    }

    pub(crate) fn set_u32(&mut self, key: &str, value: u32) {
        self.set(key, 4, &value.to_le_bytes());
    }

    pub(crate) fn set_f32(&mut self, key: &str, value: f32) {
        self.set(key, 6, &value.to_le_bytes());
    }

    pub(crate) fn set_texts(&mut self, key: &str, values: &[&str]) {
        let mut bytes = [&8_u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        bytes.extend(values.iter().flat_map(|value| text(value)));
        self.set(key, 9, &bytes);
    }

    pub(crate) fn add(&mut self, name: &str, tensor: &Written) {
        let dims = tensor.shape.iter().rev().map(|&size| size as u64).collect();
        let bytes = tensor.values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensors.push((name.to_owned(), dims, 0, bytes));
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.head(|_, offset| offset);
        for (.., data) in &self.tensors {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(data);
        }
        bytes
    }

    /// What is before the data; `offsets` says where it claims that a tensor is, of its number and its place.
    pub(crate) fn head(&self, offsets: impl Fn(usize, u64) -> u64) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            bytes.extend(text(key));
            bytes.extend(value);
        }
        let mut offset = 0;
        for (index, (name, dims, kind, data)) in self.tensors.iter().enumerate() {
            bytes.extend(text(name));
            bytes.extend((dims.len() as u32).to_le_bytes());
            bytes.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend(offsets(index, offset).to_le_bytes());
            offset += data.len().next_multiple_of(32) as u64;
        }
        bytes
    }
}

/// Tensors of one layer of 8 hidden dims, 2 query heads and 1 KV head of 64.
const SHAPES: [(&str, &[usize]); 11] = [
    ("token_embd", &[5, 8]),
    ("blk.0.attn_norm", &[8]),
    ("blk.0.attn_q", &[128, 8]),
    ("blk.0.attn_k", &[64, 8]),
    ("blk.0.attn_v", &[64, 8]),
    ("blk.0.attn_output", &[8, 128]),
    ("blk.0.ffn_norm", &[8]),
    ("blk.0.ffn_gate", &[16, 8]),
    ("blk.0.ffn_up", &[16, 8]),
    ("blk.0.ffn_down", &[8, 16]),
    ("output_norm", &[8]),
];

/// A model of these.
pub(crate) fn tiny_gguf() -> GgufFile {
    let mut file = GgufFile::default();
    file.set_text("general.architecture", "llama");
    for (key, number) in [
        ("block_count", 1),
        ("embedding_length", 8),
        ("feed_forward_length", 16),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 64),
        ("context_length", 100),
    ] {
        file.set_u32(&format!("llama.{key}"), number);
    }
    file.set_f32("llama.attention.layer_norm_rms_epsilon", 1e-5);
    for (name, shape) in SHAPES {
        file.add(&format!("{name}.weight"), &written(shape));
    }
    file
}

/// The same as transformers names them.
pub(crate) fn tiny_tensors() -> Tensors {
    let mut all = Tensors::new();
    let mut add = |name: &str, shape: &[usize]| all.insert(name.to_owned(), written(shape));
    add("model.embed_tokens.weight", &[5, 8]);
    add("model.norm.weight", &[8]);
    for (name, shape) in [
        ("self_attn.q_proj", &[128, 8][..]),
        ("self_attn.k_proj", &[64, 8]),
        ("self_attn.v_proj", &[64, 8]),
        ("self_attn.o_proj", &[8, 128]),
        ("mlp.gate_proj", &[16, 8]),
        ("mlp.up_proj", &[16, 8]),
        ("mlp.down_proj", &[8, 16]),
        ("input_layernorm", &[8]),
        ("post_attention_layernorm", &[8]),
    ] {
        add(&format!("model.layers.0.{name}.weight"), shape);
    }
    all
}

/// Their `config.json`.
pub(crate) fn tiny_config() -> serde_json::Value {
    serde_json::json!({"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64,
        "num_hidden_layers": 1, "intermediate_size": 16, "vocab_size": 5, "max_position_embeddings": 100,
        "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "hidden_act": "silu"})
}

/// The tensors in two files.
pub(crate) fn tiny_halves() -> [Vec<u8>; 2] {
    let all = tiny_tensors().into_iter().enumerate();
    let (first, second): (Vec<_>, Vec<_>) = all.partition(|(at, _)| at % 2 == 0);
    [first, second].map(|half| safetensors(&half.into_iter().map(|(_, tensor)| tensor).collect()))
}

/// Which of the two has which.
pub(crate) fn tiny_index() -> Vec<u8> {
    let names = tiny_tensors().into_keys().enumerate();
    let map: serde_json::Map<_, _> = names
        .map(|(at, name)| {
            (name, serde_json::json!(if at % 2 == 0 { "a.safetensors" } else { "b.safetensors" }))
        })
        .collect();
    serde_json::json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string().into_bytes()
}

/// Every file of a folder's, for messages.
pub(crate) fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}
