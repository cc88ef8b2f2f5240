//! Models as a folder of safetensors files with a `config.json`, as transformers keeps them.

mod config;
mod files;

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;
use std::sync::Arc;

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::config::LlamaConfig;
use crate::config::family::HeadOrder;
use crate::weights::stored::{self, Place, Stored, TensorFile};
use crate::weights::{Format, Tensor, Weights, WeightsError, names};

/// Most bytes of a file's header, as the format's own library has it.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Opens the model in `folder`: `config.json`, and the files that `model.safetensors.index.json` names, or else
/// `model.safetensors`, or else all that end in `.safetensors` and are no adapter's.
///
/// # Errors
/// [`WeightsError`]: a file is missing, cannot be read or is broken, or it is no model that can be run.
pub fn open(folder: &Path) -> Result<Weights, WeightsError> {
    let path = folder.join("config.json");
    let text = std::fs::read_to_string(&path).map_err(|error| WeightsError::io(&path, error))?;
    let (mut config, family) =
        config::shape(&text).map_err(|what| WeightsError::file(&path, what))?;
    config.validate()?;
    config::set_rotation(&text, family, &mut config)
        .map_err(|what| WeightsError::file(&path, what))?;
    config.validate()?;
    let mut files = Vec::new();
    let mut all = HashMap::new();
    for shard in files::of(folder)? {
        let path = folder.join(&shard.name);
        let (file, header) = TensorHeader::read(&path)?;
        for (name, info) in header.metadata.tensors() {
            if shard.tensors.as_ref().is_some_and(|tensors| !tensors.contains(&name)) {
                continue;
            }
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
    let places: HashMap<_, _> = places.collect::<Result<_, WeightsError>>()?;
    if let Some(name) = unknown(&config, &all) {
        let what =
            format!("tensor {name:?} is not of a {:?} model as it can be run here", family.hf);
        return Err(WeightsError::file(folder, what));
    }
    let source = Stored {
        files,
        places,
        order: HeadOrder::Halves,
        head_dim: config.head_dim as usize,
        norm_offset: if family.norms_from_one { 1.0 } else { 0.0 },
    };
    Ok(Weights::of(config, Arc::new(source)))
}

/// A tensor that the model does not have. A tied head may be there again, and frequencies that follow from the
/// shape.
fn unknown(config: &LlamaConfig, all: &Found) -> Option<String> {
    let known = Tensor::all(config).chain([Tensor::Head]);
    let known: std::collections::HashSet<String> =
        known.map(|tensor| names::hf(tensor, config)).collect();
    let is_known = |name: &String| known.contains(name) || name.ends_with(".rotary_emb.inv_freq");
    all.keys().find(|name| !is_known(name)).cloned()
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
            return Err(broken(format!("its header is of {length} bytes; the limit is {limit}")));
        }
        let mut text = vec![0; length as usize];
        file.read_exact(&mut text).map_err(io)?;
        let metadata: Metadata =
            serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
        let (data, left) = (metadata.data_len() as u64, file_bytes - 8 - length);
        if data != left {
            return Err(broken(format!("its tensors take {data} bytes, {left} are there")));
        }
        let data_begin = 8 + length;
        Ok((file, Self { metadata, data_begin }))
    }
}

type Found = HashMap<String, (usize, u64, TensorInfo)>;

/// Where a tensor is, if it is there and of the right shape.
fn place(tensor: Tensor, config: &LlamaConfig, all: &Found) -> Result<Place, String> {
    let name = names::hf(tensor, config);
    let found = all.get(&name);
    let (file, begin, info) = found.ok_or_else(|| format!("tensor {name:?} is missing"))?;
    let [rows, columns] = tensor.shape(config);
    let expected = if rows == 1 { vec![columns] } else { vec![rows, columns] };
    if info.shape != expected {
        return Err(format!("tensor {name:?} is {:?}; it must be {expected:?}", info.shape));
    }
    let format = match info.dtype {
        Dtype::F32 => Format::F32,
        Dtype::F16 => Format::F16,
        Dtype::BF16 => Format::Bf16,
        other => {
            return Err(format!("tensor {name:?} is of {other:?}; F32, F16 and BF16 can be read"));
        }
    };
    let (first, end) = info.data_offsets;
    let bytes = format.bytes((rows * columns) as u64);
    if end.checked_sub(first).map(|bytes| bytes as u64) != bytes {
        return Err(format!("tensor {name:?} is at {first}..{end}, which is not its size"));
    }
    Ok(Place { file: *file, offset: begin.saturating_add(first as u64), format, columns })
}

#[cfg(test)]
mod tests;
