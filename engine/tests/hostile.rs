//! A folder of files that lie, and the error that each must get: by name, at once, without memory for what the file
//! does not hold.

#[path = "common/files.rs"]
#[allow(dead_code, reason = "other suites use the rest")]
mod files;

use deft_engine::Gguf;
use files::{Folder, GgufFile, text, written};

/// One layer of 8 hidden dims, 2 query heads and 1 KV head of 64.
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

fn good() -> GgufFile {
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

/// A good file with one thing changed.
fn changed(change: impl FnOnce(&mut GgufFile)) -> Vec<u8> {
    let mut file = good();
    change(&mut file);
    file.bytes()
}

/// 500 bytes or so that ask for gigabytes.
fn array_of(kind: u32, length: u64) -> Vec<u8> {
    changed(|file| file.set("a", 9, &[&kind.to_le_bytes()[..], &length.to_le_bytes()].concat()))
}

fn gguf_files() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let tensor = |at: usize, dims: &[u64], kind: u32| {
        let dims = dims.to_vec();
        changed(move |file| {
            file.tensors[at].1 = dims;
            file.tensors[at].2 = kind;
        })
    };
    let text_of =
        |key: &'static str, value: &'static str| changed(move |file| file.set_text(key, value));
    let number = |key: &'static str, value: u32| changed(move |file| file.set_u32(key, value));
    let counts = |tensors: u64, entries: u64| {
        let mut bytes = good().bytes();
        bytes[8..16].copy_from_slice(&tensors.to_le_bytes());
        bytes[16..24].copy_from_slice(&entries.to_le_bytes());
        bytes
    };
    vec![
        ("empty", Vec::new(), "the magic number at byte 0 takes 4 bytes, 0 are left"),
        ("zip", b"PK\x03\x04more".to_vec(), "it starts with [80, 75, 3, 4] rather than \"GGUF\""),
        ("old", [b"GGUF".as_slice(), &1_u32.to_le_bytes()].concat(), "its version is 1"),
        ("tensors-without-end", counts(u64::MAX, 9), "a tensor's number of dimensions"),
        ("entries-without-end", counts(11, u64::MAX), "are left"),
        ("gigabytes-of-bytes", array_of(0, 8 << 30), "an array at byte"),
        ("gigabytes-of-texts", array_of(8, 1 << 30), "an array at byte"),
        ("gigabytes-of-doubles", array_of(12, u64::MAX), "an array at byte"),
        ("array-of-arrays", array_of(9, 1), "a metadata type at byte"),
        ("unknown-kind", changed(|file| file.set("a", 77, &[])), "a metadata type at byte"),
        (
            "long-text",
            changed(|file| file.set("a", 8, &u64::MAX.to_le_bytes())),
            "a metadata value at byte",
        ),
        (
            "long-name",
            {
                let mut file = good().bytes();
                let at = file.windows(10).position(|bytes| bytes == b"token_embd").unwrap();
                file[at - 8..at].copy_from_slice(&(1_u64 << 40).to_le_bytes());
                file
            },
            "a tensor's name at byte",
        ),
        (
            "not-utf8",
            changed(|file| {
                let mut bytes = text("xx");
                bytes[8..].fill(0xff);
                file.set("a", 8, &bytes);
            }),
            "is not UTF-8",
        ),
        (
            "key-twice",
            changed(|file| {
                let entry = file.entries[1].clone();
                file.entries.push(entry);
            }),
            "metadata \"llama.block_count\" occurs twice",
        ),
        (
            "tensor-twice",
            changed(|file| {
                let tensor = file.tensors[1].clone();
                file.tensors.push(tensor);
            }),
            "tensor \"blk.0.attn_norm.weight\" occurs twice",
        ),
        ("five-dims", tensor(0, &[8, 5, 1, 1, 1], 0), "a tensor's number of dimensions"),
        ("no-dims", tensor(0, &[], 0), "a tensor's number of dimensions"),
        ("huge-tensor", tensor(0, &[8, 1 << 40], 0), "vocabulary is 4294967295"),
        (
            "overflowing-tensor",
            tensor(2, &[u64::MAX, u64::MAX], 0),
            "tensor \"blk.0.attn_q.weight\" is [18446744073709551615",
        ),
        ("large-vocabulary", tensor(0, &[8, 1 << 23], 0), "do not end within the file's"),
        (
            "unknown-type",
            tensor(2, &[8, 128], 10),
            "tensor \"blk.0.attn_q.weight\" of the \"llama\" model is of type Q2_K",
        ),
        ("type-of-the-future", tensor(2, &[8, 128], 900), "is of type number 900"),
        ("broken-blocks", tensor(2, &[8, 128], 8), "tensor \"blk.0.attn_q.weight\" is [8, 128]"),
        ("alignment", number("general.alignment", 24), "it must be a power of two"),
        ("huge-alignment", number("general.alignment", 1 << 31), "do not end within the file's"),
        ("no-layers", number("llama.block_count", 0), "layers is 0"),
        ("many-layers", number("llama.block_count", u32::MAX), "layers is 4294967295"),
        (
            "layers-that-are-not",
            number("llama.block_count", 4096),
            "tensor \"blk.1.attn_norm.weight\" is missing",
        ),
        ("wide-heads", number("llama.attention.key_length", u32::MAX), "head_dim is 4294967295"),
        ("many-heads", number("llama.attention.head_count", u32::MAX), "q_heads is 4294967295"),
        ("no-heads", number("llama.attention.head_count", 0), "q_heads is 0"),
        ("wide", number("llama.embedding_length", u32::MAX), "hidden is 4294967295"),
        (
            "experts",
            number("llama.expert_count", 8),
            "metadata \"llama.expert_count\" is 8; it must be 0",
        ),
        (
            "unknown-key",
            number("llama.attention.sinks", 4),
            "metadata \"llama.attention.sinks\" is 4, and is not known",
        ),
        ("no-window", number("llama.attention.key_length_swa", 64), "and is not known"),
        (
            "nan-epsilon",
            changed(|file| file.set_f32("llama.attention.layer_norm_rms_epsilon", f32::NAN)),
            "rms_eps is NaN",
        ),
        (
            "negative-base",
            changed(|file| file.set_f32("llama.rope.freq_base", -1.0)),
            "rope_theta is -1",
        ),
        (
            "zero-factor",
            changed(|file| file.set_f32("llama.rope.scaling.factor", 0.0)),
            "rope_scaling is 0",
        ),
        (
            "longrope",
            text_of("llama.rope.scaling.type", "longrope"),
            "metadata \"llama.rope.scaling.type\" is \"longrope\"",
        ),
        (
            "linear-without-factor",
            text_of("llama.rope.scaling.type", "linear"),
            "metadata \"llama.rope.scaling.factor\" is missing",
        ),
        (
            "mamba",
            text_of("general.architecture", "mamba"),
            "metadata \"general.architecture\" is \"mamba\"; it must be one of [\"llama\"",
        ),
        (
            "of-another-family",
            text_of("general.architecture", "qwen2"),
            "metadata \"qwen2.embedding_length\" is missing",
        ),
        ("parts-without-end", number("split.count", u32::MAX), "the limit is 1024"),
        (
            "part-of-another-name",
            number("split.count", 3),
            "its name has to end in \"-00001-of-00003.gguf\"",
        ),
    ]
}

#[test]
fn gguf_files_that_lie_are_refused_by_name() {
    let folder = Folder::new("hostile-gguf");
    let whole = folder.write("good.gguf", good().bytes());
    Gguf::open(&whole).unwrap();
    let mut wrong = Vec::new();
    for (name, bytes, expected) in gguf_files() {
        let path = folder.write(&format!("{name}.gguf"), &bytes);
        let error =
            Gguf::open(&path).map_or_else(|error| error.to_string(), |_| "it was taken".to_owned());
        if !error.contains(expected) {
            wrong.push(format!("{name}: {error}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_model_in_several_gguf_files_is_read_from_any_of_them() {
    let folder = Folder::new("split");
    let mut parts = [good(), GgufFile::default(), GgufFile::default()];
    let tensors: Vec<_> = parts[0].tensors.drain(..).collect();
    for (at, tensor) in tensors.into_iter().enumerate() {
        parts[at % 3].tensors.push(tensor);
    }
    let path = |number: usize| folder.0.join(format!("model-{number:05}-of-00003.gguf"));
    for (at, part) in parts.iter_mut().enumerate() {
        part.set("split.no", 2, &(at as u16).to_le_bytes());
        part.set("split.count", 2, &3_u16.to_le_bytes());
        folder.write(&files::name(&path(at + 1)), part.bytes());
    }
    for number in 1..=3 {
        let gguf = Gguf::open(&path(number)).unwrap();
        assert_eq!(gguf.metadata().text("general.architecture").unwrap(), Some("llama"));
        let mut out = [0.0; 8];
        let weights = gguf.weights();
        weights.read_f32(deft_engine::Tensor::FinalNorm, 0..1, &mut out).unwrap();
        assert_eq!(out, [0.5; 8]);
    }
    std::fs::remove_file(path(2)).unwrap();
    let error = Gguf::open(&path(1)).unwrap_err().to_string();
    assert!(
        error.contains("it is part 1 of a model in 3 files; ")
            && error.contains("model-00002-of-00003.gguf is missing"),
        "{error}"
    );
    std::fs::copy(path(1), path(2)).unwrap();
    let error = Gguf::open(&path(3)).unwrap_err().to_string();
    assert!(error.contains("occurs twice"), "{error}");
}
