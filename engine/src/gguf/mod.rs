//! GGUF files: ggml's format for models, with metadata, tokenizer and weights in one file.
//!
//! Read as specified in ggml's `docs/gguf.md`. Nothing in a file is trusted: counts, lengths and offsets are
//! checked against the file's size before they are used.

mod error;
mod model;
mod parse;
mod value;

use std::collections::HashMap;
use std::io::BufReader;
use std::path::Path;

pub use self::error::GgufError;
pub(crate) use self::value::required;
pub use self::value::{Metadata, Value};

use crate::config::RopeScaling;
use crate::weights::{Format, Weights, WeightsError, stored};

/// A tensor as a file describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorInfo {
    /// Columns first.
    dims: Vec<u64>,
    format: Format,
    /// From the begin of the data on.
    offset: u64,
}

/// What a file says before its data.
#[derive(Debug)]
pub(crate) struct Header {
    metadata: Metadata,
    tensors: HashMap<String, TensorInfo>,
    /// Offset of the data.
    data_begin: u64,
    file_bytes: u64,
}

/// A model from a GGUF file: its weights, and the metadata that make its tokenizer.
#[derive(Debug)]
pub struct Gguf {
    metadata: Metadata,
    weights: Weights,
}

impl Gguf {
    /// Reads the header of the file at `path`; weights are read when they are asked for.
    ///
    /// # Errors
    /// [`WeightsError`]: the file cannot be read, is no GGUF file, or holds no Llama model.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let (file, file_bytes) = stored::open(path)?;
        let mut reader = BufReader::new(file);
        let at = |error: GgufError| WeightsError::file(path, error);
        let header = parse::parse(&mut reader, file_bytes).map_err(at)?;
        Self::assemble(path, header, Box::new(reader.into_inner()))
    }

    fn assemble(
        path: &Path,
        header: Header,
        storage: Box<dyn stored::Storage>,
    ) -> Result<Self, WeightsError> {
        let at = |error: GgufError| WeightsError::file(path, error);
        let mut config = model::config(&header).map_err(at)?;
        config.validate()?;
        config.rope_scaling = model::scaling(&header.metadata, config.head_dim).map_err(at)?;
        config.validate()?;
        let places = model::places(&header, &config).map_err(at)?;
        let file = stored::TensorFile::new(path, storage);
        if let Some(place) = model::rope_divisors(&header, &config).map_err(at)? {
            let divisors = file.read_row(&place)?;
            config.rope_scaling = RopeScaling::Divisors(divisors);
            config.validate()?;
        }
        let source = stored::Stored {
            files: vec![file],
            places,
            order: stored::HeadOrder::Pairs,
            head_dim: config.head_dim as usize,
        };
        Ok(Self {
            weights: Weights::of(config, Box::new(source)),
            metadata: header.metadata,
        })
    }

    /// The model with its first `layers` layers alone.
    ///
    /// # Errors
    /// [`WeightsError::Config`] for none, or more than there are.
    pub fn with_layers(self, layers: u32) -> Result<Self, WeightsError> {
        Ok(Self {
            weights: self.weights.with_layers(layers)?,
            metadata: self.metadata,
        })
    }

    /// All metadata.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The weights.
    pub fn weights(&self) -> &Weights {
        &self.weights
    }
}

#[cfg(test)]
mod tests;
