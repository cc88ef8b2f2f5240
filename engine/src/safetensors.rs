//! Models as a folder of safetensors files with a `config.json`, as transformers keeps them.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde_json::Value;

use crate::config::{LlamaConfig, RopeScaling};
use crate::weights::stored::{self, HeadOrder, Place, Stored, TensorFile};
use crate::weights::{Format, LayerTensor, Tensor, Weights, WeightsError};

/// Most bytes of a file's header, as the format's own library has it.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Opens the model in `folder`: `config.json` and all files that end in `.safetensors`.
///
/// # Errors
/// [`WeightsError`]: a file cannot be read or is broken, or it is no Llama model.
pub fn open(folder: &Path) -> Result<Weights, WeightsError> {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|error| WeightsError::io(&path, error))?;
    let config = config(&text).map_err(|what| WeightsError::file(&path, what))?;
    config.validate()?;
    let mut files = Vec::new();
    let mut all = HashMap::new();
    for path in data_files(folder)? {
        let (file, header) = TensorHeader::read(&path)?;
        for (name, info) in header.metadata.tensors() {
            let place = (files.len(), header.data_begin, info.clone());
            if all.insert(name.clone(), place).is_some() {
                let what = format!("tensor {name:?} is in another file too");
                return Err(WeightsError::file(&path, what));
            }
        }
        files.push(TensorFile::new(&path, Box::new(file)));
    }
    let places = Tensor::all(&config).map(|tensor| {
        let place = place(tensor, &config, &all);
        let place = place.map_err(|what| WeightsError::file(folder, what))?;
        Ok((tensor, place))
    });
    let source = Stored {
        files,
        places: places.collect::<Result<_, WeightsError>>()?,
        order: HeadOrder::Halves,
        head_dim: config.head_dim as usize,
    };
    Ok(Weights::of(config, Box::new(source)))
}

fn data_files(folder: &Path) -> Result<Vec<PathBuf>, WeightsError> {
    let entries = std::fs::read_dir(folder).map_err(|error| WeightsError::io(folder, error))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let is_data = |path: &PathBuf| path.extension().is_some_and(|end| end == "safetensors");
    let mut paths: Vec<_> = paths.filter(is_data).collect();
    paths.sort();
    Ok(paths)
}

struct TensorHeader {
    metadata: Metadata,
    data_begin: u64,
}

impl TensorHeader {
    /// Reads the header of a file; the data that it speaks of is the rest of the file.
    fn read(path: &Path) -> Result<(std::fs::File, Self), WeightsError> {
        let (mut file, file_bytes) = stored::open(path)?;
        let broken = |what: String| WeightsError::file(path, what);
        let io = |error| WeightsError::io(path, error);
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(io)?;
        let length = u64::from_le_bytes(length);
        let limit = MAX_HEADER_BYTES.min(file_bytes.saturating_sub(8));
        if length > limit {
            return Err(broken(format!(
                "its header is of {length} bytes; the limit is {limit}"
            )));
        }
        let mut text = vec![0; length as usize];
        file.read_exact(&mut text).map_err(io)?;
        let metadata: Metadata =
            serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
        let (data, left) = (metadata.data_len() as u64, file_bytes - 8 - length);
        if data != left {
            return Err(broken(format!(
                "its tensors take {data} bytes, {left} are there"
            )));
        }
        let data_begin = 8 + length;
        Ok((
            file,
            Self {
                metadata,
                data_begin,
            },
        ))
    }
}

type Found = HashMap<String, (usize, u64, TensorInfo)>;

/// Where a tensor is, if it is there and of the right shape.
fn place(tensor: Tensor, config: &LlamaConfig, all: &Found) -> Result<Place, String> {
    let name = name(tensor);
    let found = all.get(&name);
    let (file, begin, info) = found.ok_or_else(|| format!("tensor {name:?} is missing"))?;
    let [rows, columns] = tensor.shape(config);
    let expected = if is_vector(tensor) {
        vec![columns]
    } else {
        vec![rows, columns]
    };
    if info.shape != expected {
        return Err(format!(
            "tensor {name:?} is {:?}; it must be {expected:?}",
            info.shape
        ));
    }
    let format = match info.dtype {
        Dtype::F32 => Format::F32,
        Dtype::F16 => Format::F16,
        Dtype::BF16 => Format::Bf16,
        other => {
            return Err(format!(
                "tensor {name:?} is of {other:?}; F32, F16 and BF16 can be read"
            ));
        }
    };
    let (first, end) = info.data_offsets;
    let bytes = format.bytes((rows * columns) as u64);
    if end.checked_sub(first).map(|bytes| bytes as u64) != bytes {
        return Err(format!(
            "tensor {name:?} is at {first}..{end}, which is not its size"
        ));
    }
    Ok(Place {
        file: *file,
        offset: begin.saturating_add(first as u64),
        format,
        columns,
    })
}

fn is_vector(tensor: Tensor) -> bool {
    use LayerTensor::{AttentionNorm, FfnNorm};
    matches!(
        tensor,
        Tensor::FinalNorm | Tensor::Layer(_, AttentionNorm | FfnNorm)
    )
}

fn name(tensor: Tensor) -> String {
    let (layer, tensor) = match tensor {
        Tensor::Embedding => return "model.embed_tokens.weight".to_owned(),
        Tensor::FinalNorm => return "model.norm.weight".to_owned(),
        Tensor::Head => return "lm_head.weight".to_owned(),
        Tensor::Layer(layer, tensor) => (layer, tensor),
    };
    let name = match tensor {
        LayerTensor::AttentionNorm => "input_layernorm",
        LayerTensor::Query => "self_attn.q_proj",
        LayerTensor::Key => "self_attn.k_proj",
        LayerTensor::Value => "self_attn.v_proj",
        LayerTensor::Output => "self_attn.o_proj",
        LayerTensor::FfnNorm => "post_attention_layernorm",
        LayerTensor::Gate => "mlp.gate_proj",
        LayerTensor::Up => "mlp.up_proj",
        LayerTensor::Down => "mlp.down_proj",
    };
    format!("model.layers.{layer}.{name}.weight")
}

/// The shape of the model that `config.json` describes, to be validated.
fn config(text: &str) -> Result<LlamaConfig, String> {
    let json: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if json["model_type"] != "llama" {
        return Err(format!(
            "model_type is {}; it must be \"llama\"",
            json["model_type"]
        ));
    }
    for key in ["attention_bias", "mlp_bias"] {
        if json[key] == true {
            return Err(format!("{key} is true; models with biases cannot be run"));
        }
    }
    let hidden = integer(&json, "hidden_size")?;
    let q_heads = integer(&json, "num_attention_heads")?;
    let (rope_theta, rope_scaling) = rope(&json)?;
    let or = |key: &str, default: u32| match &json[key] {
        Value::Null => Ok(default),
        _ => integer(&json, key),
    };
    Ok(LlamaConfig {
        layers: integer(&json, "num_hidden_layers")?,
        hidden,
        ffn: integer(&json, "intermediate_size")?,
        q_heads,
        kv_heads: or("num_key_value_heads", q_heads)?,
        head_dim: or("head_dim", hidden / q_heads.max(1))?,
        vocabulary: integer(&json, "vocab_size")?,
        context: integer(&json, "max_position_embeddings")?,
        rms_eps: number(&json, "rms_norm_eps")? as f32,
        rope_theta,
        rope_scaling,
        tied_embeddings: json["tie_word_embeddings"] == true,
    })
}

/// Base and scaling of the rotary embedding: from `rope_parameters`, which has both, or as transformers
/// wrote them before its version 5, from `rope_theta` and `rope_scaling`.
fn rope(json: &Value) -> Result<(f64, RopeScaling), String> {
    let (new, old) = (&json["rope_parameters"], &json["rope_scaling"]);
    for part in [json, new].map(|json| &json["partial_rotary_factor"]) {
        if !part.is_null() && part.as_f64() != Some(1.0) {
            return Err(format!("partial_rotary_factor is {part}; it must be 1"));
        }
    }
    if new.is_null() {
        let theta = match &json["rope_theta"] {
            Value::Null => 10_000.0,
            _ => number(json, "rope_theta")?,
        };
        return Ok((theta, scaling(old, "rope_scaling")?));
    }
    if !old.is_null() {
        return Err("rope_parameters and rope_scaling are both there; one is needed".to_owned());
    }
    let holder = if new["rope_theta"].is_null() {
        json
    } else {
        new
    };
    let theta = number(holder, "rope_theta")
        .map_err(|what| format!("{what} beside or in rope_parameters"))?;
    Ok((theta, scaling(new, "rope_parameters")?))
}

fn scaling(json: &Value, name: &str) -> Result<RopeScaling, String> {
    if json.is_null() {
        return Ok(RopeScaling::None);
    }
    let kind = if json["rope_type"].is_null() {
        &json["type"]
    } else {
        &json["rope_type"]
    };
    match kind.as_str() {
        Some("default") => Ok(RopeScaling::None),
        None if kind.is_null() && json["factor"].is_null() => Ok(RopeScaling::None),
        Some("llama3") => Ok(RopeScaling::Llama3 {
            factor: number(json, "factor")?,
            low: number(json, "low_freq_factor")?,
            high: number(json, "high_freq_factor")?,
            original_context: integer(json, "original_max_position_embeddings")?,
        }),
        _ => Err(format!(
            "{name} is of type {kind}; \"llama3\" and \"default\" are known"
        )),
    }
}

fn integer(json: &Value, key: &str) -> Result<u32, String> {
    let value = json[key]
        .as_u64()
        .and_then(|value| u32::try_from(value).ok());
    value.ok_or_else(|| format!("{key} is {}; it must be an integer of 32 bits", json[key]))
}

fn number(json: &Value, key: &str) -> Result<f64, String> {
    let value = json[key].as_f64();
    value.ok_or_else(|| format!("{key} is {}; it must be a number", json[key]))
}

#[cfg(test)]
mod tests;
