//! Files made here: good ones, and hostile ones.

use std::io::Cursor;
use std::path::Path;

use super::*;
use crate::weights::{LayerTensor, Tensor};

/// Writes a GGUF file.
#[derive(Clone, Default)]
struct Builder {
    entries: Vec<(String, Vec<u8>)>,
    tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

/// A value's type and bytes.
fn value(kind: u32, bytes: &[u8]) -> Vec<u8> {
    [&kind.to_le_bytes(), bytes].concat()
}

impl Builder {
    fn set(&mut self, key: &str, value: Vec<u8>) {
        self.entries.retain(|(other, _)| other != key);
        self.entries.push((key.to_owned(), value));
    }

    fn set_u32(&mut self, key: &str, number: u32) {
        self.set(key, value(4, &number.to_le_bytes()));
    }

    /// Adds an F32 tensor whose element `i` is `first + i`.
    fn add(&mut self, name: &str, dims: &[u64], first: f32) {
        let count: u64 = dims.iter().product();
        let values = (0..count).flat_map(|i| (first + i as f32).to_le_bytes());
        let (name, dims) = (name.to_owned(), dims.to_vec());
        self.tensors.push((name, dims, 0, values.collect()));
    }

    fn header(&self, offsets: impl Fn(usize, u64) -> u64) -> Vec<u8> {
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

    fn file_with(&self, offsets: impl Fn(usize, u64) -> u64) -> Vec<u8> {
        let mut bytes = self.header(offsets);
        for (.., data) in &self.tensors {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(data);
        }
        bytes
    }

    fn file(&self) -> Vec<u8> {
        self.file_with(|_, offset| offset)
    }
}

/// One layer of 8 hidden dims, 2 query heads and 1 KV head of 64.
fn tiny() -> Builder {
    let mut file = Builder::default();
    file.set("general.architecture", value(8, &text("llama")));
    for (key, number) in [
        ("llama.block_count", 1),
        ("llama.embedding_length", 8),
        ("llama.feed_forward_length", 16),
        ("llama.attention.head_count", 2),
        ("llama.attention.head_count_kv", 1),
        ("llama.attention.key_length", 64),
        ("llama.context_length", 100),
    ] {
        file.set_u32(key, number);
    }
    let epsilon = "llama.attention.layer_norm_rms_epsilon";
    file.set(epsilon, value(6, &1e-5_f32.to_le_bytes()));
    for (name, dims) in [
        ("token_embd", &[8, 5][..]),
        ("blk.0.attn_norm", &[8]),
        ("blk.0.attn_q", &[8, 128]),
        ("blk.0.attn_k", &[8, 64]),
        ("blk.0.attn_v", &[8, 64]),
        ("blk.0.attn_output", &[128, 8]),
        ("blk.0.ffn_norm", &[8]),
        ("blk.0.ffn_gate", &[8, 16]),
        ("blk.0.ffn_up", &[8, 16]),
        ("blk.0.ffn_down", &[16, 8]),
        ("output_norm", &[8]),
    ] {
        file.add(&format!("{name}.weight"), dims, 0.0);
    }
    file
}

fn open(bytes: Vec<u8>) -> Result<Gguf, WeightsError> {
    let path = Path::new("model.gguf");
    let mut cursor = Cursor::new(bytes);
    let length = cursor.get_ref().len() as u64;
    let header = parse::parse(&mut cursor, length);
    let header = header.map_err(|error| WeightsError::file(path, error))?;
    Gguf::assemble(path, header, vec![(path.to_owned(), Box::new(cursor))])
}

fn refused(bytes: Vec<u8>) -> String {
    let error = open(bytes).unwrap_err().to_string();
    let named = error.strip_prefix("model.gguf: ");
    named.unwrap_or(&error).to_owned()
}

fn rows(model: &Gguf, tensor: LayerTensor) -> Vec<f32> {
    let tensor = Tensor::Layer(0, tensor);
    let [rows, columns] = model.weights().shape(tensor);
    let mut out = vec![f32::NAN; rows * columns];
    let read = model.weights().read_f32(tensor, 0..rows, &mut out);
    read.unwrap();
    out
}

#[test]
fn a_model_s_shape_and_weights_come_back() {
    let model = open(tiny().file()).unwrap();
    let config = model.weights().config();
    assert_eq!((config.layers, config.hidden, config.ffn), (1, 8, 16));
    assert_eq!((config.q_heads, config.kv_heads, config.head_dim), (2, 1, 64));
    assert_eq!((config.vocabulary, config.context), (5, 100));
    assert_eq!((config.rope_theta, config.tied_embeddings), (10_000.0, true));
    let down = rows(&model, LayerTensor::Down);
    assert!(down.iter().enumerate().all(|(i, &x)| x == i as f32));
}

/// How the format's writers reorder a head's rows: `[2, half]` becomes `[half, 2]`.
fn paired(rows: &[Vec<f32>], head_dim: usize) -> Vec<Vec<f32>> {
    let half = head_dim / 2;
    let heads = rows.chunks(head_dim);
    heads
        .flat_map(|head| (0..half).flat_map(move |i| [head[i].clone(), head[half + i].clone()]))
        .collect()
}

#[test]
fn queries_and_keys_come_back_in_halves() {
    let mut file = tiny();
    let written: Vec<Vec<f32>> = (0..128).map(|row| vec![row as f32; 8]).collect();
    for (name, height) in [("blk.0.attn_q.weight", 128), ("blk.0.attn_k.weight", 64)] {
        let of_name = |tensor: &&mut (String, Vec<u64>, u32, Vec<u8>)| tensor.0 == name;
        let tensor = file.tensors.iter_mut().find(of_name).unwrap();
        let values = paired(&written[..height], 64).into_iter().flatten();
        tensor.3 = values.flat_map(f32::to_le_bytes).collect();
    }
    let model = open(file.file()).unwrap();
    assert_eq!(rows(&model, LayerTensor::Query), written.concat());
    assert_eq!(rows(&model, LayerTensor::Key), written[..64].concat());
}

#[test]
fn rotary_divisors_become_the_scaling() {
    let mut file = tiny();
    file.add("rope_freqs.weight", &[32], 1.0);
    let model = open(file.file()).unwrap();
    let divisors = (0..32).map(|i| 1.0 + i as f32).collect();
    let scaling = &model.weights().config().rope_scaling;
    assert_eq!(*scaling, RopeScaling::Divisors(divisors));
    // Both count where both are there.
    file.set("llama.rope.scaling.factor", value(6, &4_f32.to_le_bytes()));
    let divisors = (0..32).map(|i| 4.0 * (1.0 + i as f32)).collect();
    let model = open(file.file()).unwrap();
    let scaling = &model.weights().config().rope_scaling;
    assert_eq!(*scaling, RopeScaling::Divisors(divisors));
    let mut file = tiny();
    file.add("rope_freqs.weight", &[32], 0.0);
    assert!(refused(file.file()).starts_with("rope_scaling is 0"));
}

#[test]
fn an_untied_head_is_seen() {
    let mut file = tiny();
    file.add("output.weight", &[8, 5], 100.0);
    let model = open(file.file()).unwrap();
    let mut out = [0.0; 8];
    model.weights().read_f32(Tensor::Head, 1..2, &mut out).unwrap();
    assert_eq!(out[0], 108.0);
}

#[test]
fn every_prefix_of_a_file_is_refused() {
    let file = tiny().file();
    for length in 0..file.len() {
        let error = open(file[..length].to_vec()).unwrap_err();
        assert!(!error.to_string().is_empty(), "{length}");
    }
}

#[test]
fn any_changed_byte_of_a_header_is_an_error_or_another_model() {
    let file = tiny().file();
    let header = tiny().header(|_, offset| offset).len();
    for at in 0..header {
        for change in [0x01, 0x80, 0xff] {
            let mut changed = file.clone();
            changed[at] ^= change;
            // Neither panics nor takes memory for what the file does not hold.
            if let Ok(model) = open(changed) {
                model.weights().config().validate().unwrap();
            }
        }
    }
}

#[test]
fn files_of_another_kind_are_named() {
    assert!(refused(b"PK\x03\x04more".to_vec()).starts_with("it starts with [80, 75, 3, 4]"));
    let mut file = tiny().file();
    file[4..8].copy_from_slice(&3_u32.to_be_bytes());
    assert!(refused(file).starts_with("its version is 50331648"));
    let mut file = tiny();
    file.set("general.architecture", value(8, &text("mamba")));
    assert_eq!(
        refused(file.file()),
        "metadata \"general.architecture\" is \"mamba\"; it must be one of [\"llama\", \"qwen2\", \"qwen3\", \
         \"smollm3\", \"gemma\", \"gemma2\", \"gemma3\"]"
    );
}

#[test]
fn counts_beyond_the_file_are_refused_before_memory_is_taken() {
    let mut file = tiny().file();
    file[16..24].fill(0xff);
    assert!(refused(file).contains("are left"));
    let endless = |kind: u32| {
        let mut file = tiny();
        let array = [&kind.to_le_bytes()[..], &u64::MAX.to_le_bytes()].concat();
        file.set("a", value(9, &array));
        refused(file.file())
    };
    assert!(endless(0).contains("takes 18446744073709551615 bytes"));
    assert!(endless(8).contains("takes 18446744073709551615 bytes"));
    assert!(endless(9).contains("a metadata type"), "an array of arrays");
    let mut file = tiny();
    file.set("a", value(8, &u64::MAX.to_le_bytes()));
    assert!(refused(file.file()).starts_with("a metadata value at byte"));
}

#[test]
fn metadata_out_of_range_is_named() {
    let changed = |key: &str, number: u32| {
        let mut file = tiny();
        file.set_u32(key, number);
        refused(file.file())
    };
    assert_eq!(changed("llama.block_count", 0), "layers is 0; it must be between 1 and 4096");
    assert_eq!(changed("llama.block_count", 2), "tensor \"blk.1.attn_norm.weight\" is missing");
    assert_eq!(
        changed("llama.rope.dimension_count", 32),
        "metadata \"llama.rope.dimension_count\" is 32; it must be 64"
    );
    assert_eq!(
        changed("general.alignment", 24),
        "metadata \"general.alignment\" is 24; it must be a power of two"
    );
    assert!(changed("llama.attention.head_count", 0).starts_with("q_heads is 0"));
    assert_eq!(
        changed("general.architecture", 1),
        "metadata \"general.architecture\" is 1; it must be a string"
    );
    let mut file = tiny();
    file.entries.retain(|(key, _)| key != "llama.context_length");
    assert_eq!(refused(file.file()), "metadata \"llama.context_length\" is missing");
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let mut file = tiny();
    file.tensors[3].1 = vec![8, 65];
    assert_eq!(
        refused(file.file()),
        "tensor \"blk.0.attn_k.weight\" is [8, 65], columns first; it must be [8, 64]"
    );
    let mut file = tiny();
    file.add("blk.0.attn_q.bias", &[128], 0.0);
    assert!(refused(file.file()).starts_with("tensor \"blk.0.attn_q.bias\" is not of a model"));
    let mut file = tiny();
    file.tensors[3].2 = 11;
    assert_eq!(
        refused(file.file()),
        "tensor \"blk.0.attn_k.weight\" of the \"llama\" model is of type Q3_K; F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, \
         Q8_0, Q4_K, Q5_K, Q6_K, BF16 can be read"
    );
    let mut file = tiny();
    file.tensors[3].2 = 8;
    assert!(refused(file.file()).contains("[8, 64]"), "8 columns are no block of 32");
    let far = tiny().file_with(|index, offset| if index == 3 { u64::MAX } else { offset });
    assert!(refused(far).contains("do not end within the file's"));
    let mut file = tiny();
    file.add("output_norm.weight", &[8], 0.0);
    assert_eq!(refused(file.file()), "tensor \"output_norm.weight\" occurs twice");
}

#[test]
fn rotary_scaling_takes_no_memory_for_heads_that_cannot_be() {
    let mut file = tiny();
    file.set("llama.rope.scaling.type", value(8, &text("linear")));
    file.set("llama.rope.scaling.factor", value(6, &4_f32.to_le_bytes()));
    let model = open(file.file()).unwrap();
    let scaling = &model.weights().config().rope_scaling;
    assert_eq!(*scaling, RopeScaling::Divisors(vec![4.0; 32]));
    file.set_u32("llama.attention.key_length", u32::MAX);
    assert_eq!(refused(file.file()), "head_dim is 4294967295; it must be 64, 128 or 256");
}

#[test]
fn tensors_that_share_bytes_are_no_more_than_the_file() {
    let mut bytes = tiny().header(|_, _| 0);
    bytes.resize(bytes.len().next_multiple_of(32) + 4096, 0);
    let message = refused(bytes);
    assert!(message.starts_with("the tensors take "), "{message}");
    assert!(message.contains("bytes together or more, the file has"));
}

#[test]
fn a_scaling_factor_without_a_type_is_linear() {
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
        let mut file = tiny();
        file.set(key, value(6, &4_f32.to_le_bytes()));
        let model = open(file.file()).unwrap();
        let scaling = &model.weights().config().rope_scaling;
        assert_eq!(*scaling, RopeScaling::Divisors(vec![4.0; 32]), "{key}");
        file.set("llama.rope.scaling.type", value(8, &text("none")));
        let model = open(file.file()).unwrap();
        assert_eq!(model.weights().config().rope_scaling, RopeScaling::None);
    }
}
