//! The Llama model in a GGUF file: its shape, and where each tensor is.

use std::collections::{HashMap, HashSet};

use super::value::{Metadata, required};
use super::{GgufError, Header, TensorInfo};
use crate::config::{LlamaConfig, RopeScaling};
use crate::weights::stored::Place;
use crate::weights::{LayerTensor, Tensor};

const EMBEDDING: &str = "token_embd.weight";
const HEAD: &str = "output.weight";
const ROPE_DIVISORS: &str = "rope_freqs.weight";

/// The shape of the model, to be validated; [`scaling`] is for a head dimension that was.
pub(super) fn config(header: &Header) -> Result<LlamaConfig, GgufError> {
    let metadata = &header.metadata;
    expect_text(metadata, "general.architecture", &["llama"], true)?;
    let number = |name: &str| {
        let key = format!("llama.{name}");
        required(metadata.u32(&key)?, &key)
    };
    let float = |name: &str| metadata.f64(&format!("llama.{name}"));
    let hidden = number("embedding_length")?;
    let q_heads = number("attention.head_count")?;
    let kv_heads = metadata.u32("llama.attention.head_count_kv")?;
    let key_length = metadata.u32("llama.attention.key_length")?;
    let head_dim = key_length.unwrap_or(hidden / q_heads.max(1));
    for key in ["llama.rope.dimension_count", "llama.attention.value_length"] {
        expect_number(metadata, key, head_dim)?;
    }
    expect_number(metadata, "llama.expert_count", 0)?;
    let epsilon = "llama.attention.layer_norm_rms_epsilon";
    let embedding = header.tensor(EMBEDDING)?;
    let rows = embedding.dims.get(1).copied().unwrap_or(0);
    Ok(LlamaConfig {
        layers: number("block_count")?,
        hidden,
        ffn: number("feed_forward_length")?,
        q_heads,
        kv_heads: kv_heads.unwrap_or(q_heads),
        head_dim,
        vocabulary: u32::try_from(rows).unwrap_or(u32::MAX),
        context: number("context_length")?,
        rms_eps: required(metadata.f64(epsilon)?, epsilon)? as f32,
        rope_theta: float("rope.freq_base")?.unwrap_or(10_000.0),
        rope_scaling: RopeScaling::None,
        tied_embeddings: !header.tensors.contains_key(HEAD),
    })
}

/// Of the rotary embedding, for heads of a dimension that is known to be one.
pub(super) fn scaling(metadata: &Metadata, head_dim: u32) -> Result<RopeScaling, GgufError> {
    let kind = "llama.rope.scaling.type";
    expect_text(metadata, kind, &["none", "linear"], false)?;
    if metadata.text(kind)? != Some("linear") {
        return Ok(RopeScaling::None);
    }
    let key = "llama.rope.scaling.factor";
    let factor = required(metadata.f64(key)?, key)? as f32;
    Ok(RopeScaling::Divisors(vec![factor; head_dim as usize / 2]))
}

fn expect_number(metadata: &Metadata, key: &str, expected: u32) -> Result<(), GgufError> {
    match metadata.u32(key)? {
        Some(found) if found != expected => Err(GgufError::Metadata {
            key: key.to_owned(),
            found: found.to_string(),
            expected: expected.to_string(),
        }),
        _ => Ok(()),
    }
}

fn expect_text(
    metadata: &Metadata,
    key: &str,
    expected: &[&str],
    needed: bool,
) -> Result<(), GgufError> {
    let found = metadata.text(key)?;
    let Some(found) = (if needed {
        Some(required(found, key)?)
    } else {
        found
    }) else {
        return Ok(());
    };
    if expected.contains(&found) {
        return Ok(());
    }
    Err(GgufError::Metadata {
        key: key.to_owned(),
        found: format!("{found:?}"),
        expected: format!("one of {expected:?}"),
    })
}

/// Where every tensor of the model is, each checked to be of the right shape and within the file.
pub(super) fn places(
    header: &Header,
    config: &LlamaConfig,
) -> Result<HashMap<Tensor, Place>, GgufError> {
    let mut places = HashMap::new();
    let mut bytes = 0u64;
    for tensor in Tensor::all(config) {
        let name = name(tensor);
        let place = header.place(&name, &tensor.shape(config))?;
        places.insert(tensor, place);
        // Each is within the file; tensors that share its bytes could still be many times as large.
        bytes = bytes.saturating_add(place_bytes(&place, tensor.shape(config)));
        if bytes > header.file_bytes {
            let file_bytes = header.file_bytes;
            return Err(GgufError::TooLarge { bytes, file_bytes });
        }
    }
    let mut known: HashSet<_> = places.keys().map(|&tensor| name(tensor)).collect();
    known.insert(ROPE_DIVISORS.to_owned());
    let mut unknown = header.tensors.keys();
    match unknown.find(|name| !known.contains(*name)) {
        Some(name) => Err(GgufError::UnknownTensor { name: name.clone() }),
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

fn name(tensor: Tensor) -> String {
    let (layer, tensor) = match tensor {
        Tensor::Embedding => return EMBEDDING.to_owned(),
        Tensor::FinalNorm => return "output_norm.weight".to_owned(),
        Tensor::Head => return HEAD.to_owned(),
        Tensor::Layer(layer, tensor) => (layer, tensor),
    };
    let name = match tensor {
        LayerTensor::AttentionNorm => "attn_norm",
        LayerTensor::Query => "attn_q",
        LayerTensor::Key => "attn_k",
        LayerTensor::Value => "attn_v",
        LayerTensor::Output => "attn_output",
        LayerTensor::FfnNorm => "ffn_norm",
        LayerTensor::Gate => "ffn_gate",
        LayerTensor::Up => "ffn_up",
        LayerTensor::Down => "ffn_down",
    };
    format!("blk.{layer}.{name}.weight")
}

impl Header {
    fn tensor(&self, name: &str) -> Result<&TensorInfo, GgufError> {
        let found = self.tensors.get(name);
        found.ok_or_else(|| GgufError::MissingTensor {
            name: name.to_owned(),
        })
    }

    /// Where the tensor of this name is, if it is of `[rows, columns]` and within the file.
    fn place(&self, name: &str, &[rows, columns]: &[usize; 2]) -> Result<Place, GgufError> {
        let info = self.tensor(name)?;
        let (rows, width) = (rows as u64, columns as u64);
        let expected = if rows == 1 {
            vec![width]
        } else {
            vec![width, rows]
        };
        let whole = info.format.bytes(width);
        let Some(row_bytes) = whole.filter(|_| info.dims == expected) else {
            return Err(GgufError::Shape {
                name: name.to_owned(),
                found: info.dims.clone(),
                expected,
            });
        };
        // Of a valid shape: far below overflow.
        let bytes = row_bytes * rows;
        let offset = self.data_begin.saturating_add(info.offset);
        if offset.saturating_add(bytes) > self.file_bytes {
            return Err(GgufError::OutOfFile {
                name: name.to_owned(),
                offset,
                bytes,
                file_bytes: self.file_bytes,
            });
        }
        Ok(Place {
            file: 0,
            offset,
            format: info.format,
            columns,
        })
    }
}
