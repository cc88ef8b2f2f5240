//! GGUF files written here: what comes back of good ones, and the error that each that lies must get: by name, at once,
//! without memory for what the file does not hold.

#[path = "common/files.rs"]
#[allow(dead_code, reason = "other suites use the rest")]
mod files;

use deft_engine::{Gguf, LayerTensor, RopeScaling, Tensor, WeightsError};
use files::{Folder, GgufFile, counted, text, tiny_gguf, written};

/// A good file with one thing changed.
fn changed(change: impl FnOnce(&mut GgufFile)) -> Vec<u8> {
    let mut file = tiny_gguf();
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
    let version = |version: [u8; 4]| {
        let mut bytes = tiny_gguf().bytes();
        bytes[4..8].copy_from_slice(&version);
        bytes
    };
    let counts = |tensors: u64, entries: u64| {
        let mut bytes = tiny_gguf().bytes();
        bytes[8..16].copy_from_slice(&tensors.to_le_bytes());
        bytes[16..24].copy_from_slice(&entries.to_le_bytes());
        bytes
    };
    vec![
        ("empty", Vec::new(), "the magic number at byte 0 takes 4 bytes, 0 are left"),
        ("zip", b"PK\x03\x04more".to_vec(), "it starts with [80, 75, 3, 4] rather than \"GGUF\""),
        ("big-endian", version([0, 0, 0, 3]), "its version is 50331648"),
        ("old", version([1, 0, 0, 0]), "its version is 1"),
        ("tensors-without-end", counts(u64::MAX, 9), "a tensor's number of dimensions"),
        ("entries-without-end", counts(11, u64::MAX), "are left"),
        ("gigabytes-of-bytes", array_of(0, 8 << 30), "an array at byte"),
        ("gigabytes-of-texts", array_of(8, 1 << 30), "an array at byte"),
        ("gigabytes-of-doubles", array_of(12, u64::MAX), "takes 18446744073709551615 bytes"),
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
                let mut file = tiny_gguf().bytes();
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
            "tensor \"blk.0.attn_q.weight\" of the \"llama\" model is of type Q2_K; F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, \
             Q4_K, Q5_K, Q6_K, BF16 can be read",
        ),
        (
            "another-shape",
            tensor(3, &[8, 65], 0),
            "tensor \"blk.0.attn_k.weight\" is [8, 65], columns first; it must be [8, 64]",
        ),
        (
            "tensor-of-another-model",
            changed(|file| file.add("blk.0.attn_q.bias", &written(&[128]))),
            "tensor \"blk.0.attn_q.bias\" is not of a model",
        ),
        (
            "far-away",
            tiny_gguf().head(|index, offset| if index == 3 { u64::MAX } else { offset }),
            "do not end within the file's",
        ),
        (
            "tensors-that-share-bytes",
            [tiny_gguf().head(|_, _| 0), vec![0; 4128]].concat(),
            "bytes together or more, the file has",
        ),
        ("type-of-the-future", tensor(2, &[8, 128], 900), "is of type number 900"),
        ("broken-blocks", tensor(2, &[8, 128], 8), "tensor \"blk.0.attn_q.weight\" is [8, 128]"),
        ("alignment", number("general.alignment", 24), "it must be a power of two"),
        ("huge-alignment", number("general.alignment", 1 << 31), "do not end within the file's"),
        ("no-layers", number("llama.block_count", 0), "layers is 0; it must be between 1 and 4096"),
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
            "half-rotated",
            number("llama.rope.dimension_count", 32),
            "metadata \"llama.rope.dimension_count\" is 32; it must be 64",
        ),
        (
            "architecture-of-numbers",
            number("general.architecture", 1),
            "metadata \"general.architecture\" is 1; it must be a string",
        ),
        (
            "no-context",
            changed(|file| file.entries.retain(|(key, _)| key != "llama.context_length")),
            "metadata \"llama.context_length\" is missing",
        ),
        (
            "no-divisors",
            changed(|file| file.add("rope_freqs.weight", &counted(&[32], 0.0))),
            "rope_scaling is 0",
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
            "metadata \"general.architecture\" is \"mamba\"; it must be one of [\"llama\", \"qwen2\", \"qwen3\", \
             \"smollm3\", \"gemma\", \"gemma2\", \"gemma3\"]",
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
    let whole = folder.write("good.gguf", tiny_gguf().bytes());
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

fn opened(folder: &Folder, bytes: impl AsRef<[u8]>) -> Result<Gguf, WeightsError> {
    Gguf::open(&folder.write("model.gguf", bytes))
}

#[test]
fn every_prefix_of_a_file_is_refused() {
    let folder = Folder::new("prefixes");
    let file = tiny_gguf().bytes();
    let head = tiny_gguf().head(|_, offset| offset).len();
    for length in (0..head).chain((head..file.len()).step_by(101)) {
        assert!(opened(&folder, &file[..length]).is_err(), "{length}");
    }
}

#[test]
fn any_changed_byte_of_a_header_is_an_error_or_another_model() {
    let folder = Folder::new("changed-bytes");
    let file = tiny_gguf().bytes();
    for at in 0..tiny_gguf().head(|_, offset| offset).len() {
        for change in [0x01, 0x80, 0xff] {
            let mut changed = file.clone();
            changed[at] ^= change;
            // Neither panics nor takes memory for what the file does not hold.
            if let Ok(model) = opened(&folder, changed) {
                model.weights().config().validate().unwrap();
            }
        }
    }
}

fn rows(model: &Gguf, tensor: Tensor) -> Vec<f32> {
    let [rows, columns] = model.weights().shape(tensor);
    let mut out = vec![f32::NAN; rows * columns];
    model.weights().read_f32(tensor, 0..rows, &mut out).unwrap();
    out
}

#[test]
fn a_model_s_shape_and_weights_come_back() {
    let folder = Folder::new("shape");
    let mut file = tiny_gguf();
    let down = counted(&[8, 16], 0.0);
    file.tensors.retain(|tensor| tensor.0 != "blk.0.ffn_down.weight");
    file.add("blk.0.ffn_down.weight", &down);
    let model = opened(&folder, file.bytes()).unwrap();
    let config = model.weights().config();
    assert_eq!((config.layers, config.hidden, config.ffn), (1, 8, 16));
    assert_eq!((config.q_heads, config.kv_heads, config.head_dim), (2, 1, 64));
    assert_eq!((config.vocabulary, config.context), (5, 100));
    assert_eq!((config.rope_theta, config.tied_embeddings), (10_000.0, true));
    assert_eq!(rows(&model, Tensor::Layer(0, LayerTensor::Down)), down.values);
    file.add("output.weight", &counted(&[5, 8], 100.0));
    let model = opened(&folder, file.bytes()).unwrap();
    assert!(!model.weights().config().tied_embeddings);
    assert_eq!(rows(&model, Tensor::Head)[8], 108.0);
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
    let mut file = tiny_gguf();
    let written: Vec<Vec<f32>> = (0..128).map(|row| vec![row as f32; 8]).collect();
    for (name, height) in [("blk.0.attn_q.weight", 128), ("blk.0.attn_k.weight", 64)] {
        let of_name = |tensor: &&mut (String, Vec<u64>, u32, Vec<u8>)| tensor.0 == name;
        let tensor = file.tensors.iter_mut().find(of_name).unwrap();
        let values = paired(&written[..height], 64).into_iter().flatten();
        tensor.3 = values.flat_map(f32::to_le_bytes).collect();
    }
    let model = opened(&Folder::new("halves"), file.bytes()).unwrap();
    assert_eq!(rows(&model, Tensor::Layer(0, LayerTensor::Query)), written.concat());
    assert_eq!(rows(&model, Tensor::Layer(0, LayerTensor::Key)), written[..64].concat());
}

#[test]
fn rotary_divisors_and_factors_become_the_scaling() {
    let folder = Folder::new("scaling");
    let scaling = |file: &GgufFile| {
        let model = opened(&folder, file.bytes()).unwrap();
        model.weights().config().rope_scaling.clone()
    };
    let divisors = |times: f32| (0..32).map(|i| times * (1.0 + i as f32)).collect();
    let mut file = tiny_gguf();
    file.add("rope_freqs.weight", &counted(&[32], 1.0));
    assert_eq!(scaling(&file), RopeScaling::Divisors(divisors(1.0)));
    // Both count where both are there.
    file.set_f32("llama.rope.scaling.factor", 4.0);
    assert_eq!(scaling(&file), RopeScaling::Divisors(divisors(4.0)));
    // A factor without a type is linear.
    for key in ["llama.rope.scaling.factor", "llama.rope.scale_linear"] {
        let mut file = tiny_gguf();
        file.set_f32(key, 4.0);
        assert_eq!(scaling(&file), RopeScaling::Divisors(vec![4.0; 32]), "{key}");
        file.set_text("llama.rope.scaling.type", "linear");
        assert_eq!(scaling(&file), RopeScaling::Divisors(vec![4.0; 32]), "{key}");
        // It takes no memory for heads that cannot be.
        let mut wide = file.clone();
        wide.set_u32("llama.attention.key_length", u32::MAX);
        let error = opened(&folder, wide.bytes()).unwrap_err().to_string();
        assert_eq!(error, "head_dim is 4294967295; it must be 64, 80, 96, 112, 128, 192 or 256");
        file.set_text("llama.rope.scaling.type", "none");
        assert_eq!(scaling(&file), RopeScaling::None);
    }
}

#[test]
fn a_model_in_several_gguf_files_is_read_from_any_of_them() {
    let folder = Folder::new("split");
    let mut parts = [tiny_gguf(), GgufFile::default(), GgufFile::default()];
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
        weights.read_f32(Tensor::FinalNorm, 0..1, &mut out).unwrap();
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
