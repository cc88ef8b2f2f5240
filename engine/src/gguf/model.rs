//! The model in GGUF files: its shape, and where each tensor is.

use std::collections::{HashMap, HashSet};

use super::value::{Metadata, required};
use super::{GgufError, Header, TensorInfo, kinds};
use crate::config::family::{FAMILIES, Family, yarn_divisors, yarn_scale};
use crate::config::{LlamaConfig, RopeScaling};
use crate::weights::stored::Place;
use crate::weights::{Tensor, names};

const ARCHITECTURE: &str = "general.architecture";
const ROPE_DIVISORS: &str = "rope_freqs.weight";
/// Layers of Gemma's 27B, which scales attention by `hidden / q_heads`; no key says so.
const GEMMA_27B: [(&str, u32); 2] = [("gemma2", 46), ("gemma3", 62)];

/// Keys of an architecture that are read.
const KNOWN: [&str; 27] = [
    "block_count",
    "embedding_length",
    "feed_forward_length",
    "context_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "attention.sliding_window",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scale_linear",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "expert_count",
    // These change nothing here.
    "expert_used_count",
    "rope.scaling.finetuned",
    "vocab_size",
    "tensor_data_layout",
];

/// A key of the model's architecture.
fn key(family: &Family, name: &str) -> String {
    format!("{}.{name}", family.gguf)
}

/// The shape of the model, to be validated; [`set_rotation`] is for a head dimension that was.
pub(super) fn config(header: &Header) -> Result<(LlamaConfig, &'static Family), GgufError> {
    let metadata = &header.metadata;
    let architecture = required(metadata.text(ARCHITECTURE)?, ARCHITECTURE)?;
    let family = FAMILIES.iter().find(|family| family.gguf == architecture);
    let Some(family) = family else {
        let mut known: Vec<_> = FAMILIES.iter().map(|family| family.gguf).collect();
        known.dedup();
        return Err(GgufError::Metadata {
            key: ARCHITECTURE.to_owned(),
            found: format!("{architecture:?}"),
            expected: format!("one of {known:?}"),
        });
    };
    let number = |name: &str| {
        let key = key(family, name);
        required(metadata.u32(&key)?, &key)
    };
    let maybe = |name: &str| metadata.u32(&key(family, name));
    let float = |name: &str| metadata.f64(&key(family, name));
    let hidden = number("embedding_length")?;
    let q_heads = number("attention.head_count")?;
    let head_dim = maybe("attention.key_length")?.unwrap_or(hidden / q_heads.max(1));
    for (name, expected) in [
        ("rope.dimension_count", head_dim),
        ("attention.value_length", head_dim),
        ("expert_count", 0),
    ] {
        expect(metadata, &key(family, name), expected)?;
    }
    let epsilon = key(family, "attention.layer_norm_rms_epsilon");
    let embedding = header.tensor(&names::gguf(Tensor::Embedding))?;
    let rows = embedding.dims.get(1).copied().unwrap_or(0);
    let mut variant = family.variant(hidden);
    variant.window = maybe("attention.sliding_window")?.filter(|&tokens| tokens > 0);
    // As transformers has it where a file says nothing.
    let cap = |name: &str, usual: Option<f64>| -> Result<Option<f32>, GgufError> {
        Ok(float(name)?.or(usual).map(|cap| cap as f32).filter(|&cap| cap != 0.0))
    };
    variant.attention_cap = cap("attn_logit_softcapping", family.default.attention_cap)?;
    variant.logit_cap = cap("final_logit_softcapping", family.default.logit_cap)?;
    let layers = number("block_count")?;
    if GEMMA_27B.contains(&(family.gguf, layers)) {
        let scalar = f64::from(hidden) / f64::from(q_heads.max(1));
        variant.query_scale = Some(scalar.powf(-0.5) as f32);
    }
    let config = LlamaConfig {
        layers,
        hidden,
        ffn: number("feed_forward_length")?,
        q_heads,
        kv_heads: maybe("attention.head_count_kv")?.unwrap_or(q_heads),
        head_dim,
        vocabulary: u32::try_from(rows).unwrap_or(u32::MAX),
        context: number("context_length")?,
        rms_eps: required(metadata.f64(&epsilon)?, &epsilon)? as f32,
        rope_theta: float("rope.freq_base")?.unwrap_or(10_000.0),
        rope_scaling: RopeScaling::None,
        tied_embeddings: !header.tensors.contains_key(&names::gguf(Tensor::Head)),
        variant,
    };
    Ok((config, family))
}

/// How queries and keys turn, for layers and heads of numbers that are known to be some.
pub(super) fn set_rotation(
    metadata: &Metadata,
    family: &Family,
    config: &mut LlamaConfig,
) -> Result<(), GgufError> {
    family.set_layers(config);
    let float = |name: &str| metadata.f64(&key(family, name));
    if let Some(theta) = float("rope.freq_base_swa")? {
        config.variant.local_rope_theta = theta;
    }
    let factor = "rope.scaling.factor";
    let given = match float(factor)? {
        Some(given) => Some(given),
        None => float("rope.scale_linear")?,
    };
    let kind = key(family, "rope.scaling.type");
    config.rope_scaling = match (metadata.text(&kind)?, given) {
        (Some("none"), _) | (None, None) => RopeScaling::None,
        // A file that says nothing means linear.
        (Some("linear") | None, given) => {
            let factor = required(given, &key(family, factor))? as f32;
            RopeScaling::Divisors(vec![factor; config.head_dim as usize / 2])
        }
        (Some("yarn"), given) => {
            let factor = required(given, &key(family, factor))?;
            let original = "rope.scaling.original_context_length";
            let original = float(original)?.unwrap_or_else(|| f64::from(config.context));
            let beta = [
                float("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                float("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
            ];
            // ggml multiplies its own factor by what the file says.
            let more = float("rope.scaling.attn_factor")?.unwrap_or(1.0);
            let usual =
                config.variant.query_scale.map_or(f64::from(config.head_dim).powf(-0.5), f64::from);
            config.variant.query_scale =
                Some((usual * yarn_scale(factor, None) * more.powi(2)) as f32);
            let theta = config.rope_theta;
            RopeScaling::Divisors(yarn_divisors(config.head_dim, theta, factor, original, beta))
        }
        (Some(other), _) => {
            return Err(GgufError::Metadata {
                key: kind,
                found: format!("{other:?}"),
                expected: "one of [\"none\", \"linear\", \"yarn\"]".to_owned(),
            });
        }
    };
    Ok(())
}

/// Whether all keys of the architecture are known.
pub(super) fn check_keys(metadata: &Metadata, family: &Family) -> Result<(), GgufError> {
    let begin = key(family, "");
    let mut keys = metadata.0.iter();
    let unknown = keys.find(|(key, _)| {
        let name = key.strip_prefix(&begin);
        name.is_some_and(|name| !KNOWN.contains(&name))
    });
    match unknown {
        Some((key, value)) => {
            Err(GgufError::UnknownKey { key: key.clone(), found: value.describe() })
        }
        None => Ok(()),
    }
}

fn expect(metadata: &Metadata, key: &str, expected: u32) -> Result<(), GgufError> {
    match metadata.u32(key)? {
        Some(found) if found != expected => Err(GgufError::Metadata {
            key: key.to_owned(),
            found: found.to_string(),
            expected: expected.to_string(),
        }),
        _ => Ok(()),
    }
}

/// Where every tensor of the model is, each checked to be of the right shape and within its file.
pub(super) fn places(
    header: &Header,
    config: &LlamaConfig,
) -> Result<HashMap<Tensor, Place>, GgufError> {
    let mut places = HashMap::new();
    let (mut bytes, file_bytes) = (0u64, header.file_bytes.iter().sum());
    for tensor in Tensor::all(config) {
        let place = header.place(&names::gguf(tensor), &tensor.shape(config))?;
        places.insert(tensor, place);
        // Each is within its file; tensors that share its bytes could still be many times as large.
        bytes = bytes.saturating_add(place_bytes(&place, tensor.shape(config)));
        if bytes > file_bytes {
            return Err(GgufError::TooLarge { bytes, file_bytes });
        }
    }
    let mut known: HashSet<_> = places.keys().map(|&tensor| names::gguf(tensor)).collect();
    known.insert(ROPE_DIVISORS.to_owned());
    let mut unknown = header.tensors.keys();
    match unknown.find(|name| !known.contains(*name)) {
        Some(name) => Err(GgufError::UnknownTensor {
            name: name.clone(),
            architecture: header.architecture(),
        }),
        None => Ok(places),
    }
}

/// Bytes of a tensor of a valid shape.
fn place_bytes(place: &Place, [rows, columns]: [usize; 2]) -> u64 {
    let row = place.format.bytes(columns as u64);
    row.expect("the place is of this shape") * rows as u64
}

/// Where the divisors of the rotary frequencies are, `[head_dim / 2]`, if the model has any.
pub(super) fn rope_divisors(
    header: &Header,
    config: &LlamaConfig,
) -> Result<Option<Place>, GgufError> {
    if !header.tensors.contains_key(ROPE_DIVISORS) {
        return Ok(None);
    }
    let shape = [1, config.head_dim as usize / 2];
    header.place(ROPE_DIVISORS, &shape).map(Some)
}

impl Header {
    fn architecture(&self) -> String {
        let named = self.metadata.text(ARCHITECTURE);
        named.ok().flatten().unwrap_or_default().to_owned()
    }

    fn tensor(&self, name: &str) -> Result<&TensorInfo, GgufError> {
        let found = self.tensors.get(name);
        found.ok_or_else(|| GgufError::MissingTensor { name: name.to_owned() })
    }

    /// Where the tensor of this name is, if it is of `[rows, columns]` and within the file.
    fn place(&self, name: &str, &[rows, columns]: &[usize; 2]) -> Result<Place, GgufError> {
        let info = self.tensor(name)?;
        let (rows, width) = (rows as u64, columns as u64);
        let expected = if rows == 1 { vec![width] } else { vec![width, rows] };
        let format = kinds::format(info.kind).ok_or_else(|| GgufError::Type {
            name: name.to_owned(),
            architecture: self.architecture(),
            kind: kinds::name(info.kind),
            readable: kinds::readable(),
        })?;
        let whole = format.bytes(width);
        let Some(row_bytes) = whole.filter(|_| info.dims == expected) else {
            return Err(GgufError::Shape {
                name: name.to_owned(),
                found: info.dims.clone(),
                expected,
            });
        };
        // Of a valid shape: far below overflow.
        let bytes = row_bytes * rows;
        let (offset, file_bytes) = (info.offset, self.file_bytes[info.file]);
        if offset.saturating_add(bytes) > file_bytes {
            return Err(GgufError::OutOfFile { name: name.to_owned(), offset, bytes, file_bytes });
        }
        Ok(Place { file: info.file, offset, format, columns })
    }
}
