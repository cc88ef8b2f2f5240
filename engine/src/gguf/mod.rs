//! GGUF files: ggml's format for models, with metadata, tokenizer and weights in one file.
//!
//! Read as specified in ggml's `docs/gguf.md`. Nothing in a file is trusted: counts, lengths and offsets are
//! checked against the file's size before they are used.

mod error;
mod kinds;
mod model;
mod parse;
mod parts;
mod value;

use std::collections::HashMap;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::error::GgufError;
pub(crate) use self::value::required;
pub use self::value::{Metadata, Value};

use crate::config::RopeScaling;
use crate::weights::{Weights, WeightsError, stored};

/// A tensor as a file describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TensorInfo {
    /// Columns first.
    dims: Vec<u64>,
    /// ggml's number for its type.
    kind: u32,
    /// Of its file's first byte.
    offset: u64,
    /// Index of its file.
    file: usize,
}

/// What a file says before its data, or the files of a model together.
#[derive(Debug)]
pub(crate) struct Header {
    /// The first file's.
    metadata: Metadata,
    tensors: HashMap<String, TensorInfo>,
    /// Of each file.
    file_bytes: Vec<u64>,
}

/// A model from a GGUF file: its weights, and the metadata that make its tokenizer.
#[derive(Debug)]
pub struct Gguf {
    metadata: Metadata,
    weights: Weights,
}

impl Gguf {
    /// Reads the header of the file at `path`, and of the other files where a model is in several; weights are read
    /// when they are asked for.
    ///
    /// # Errors
    /// [`WeightsError`]: a file cannot be read, is no GGUF file, or holds no model that can be run.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let (mut header, storage) = read(path)?;
        let at = |error: GgufError| WeightsError::file(path, error);
        let mut files = vec![(path.to_owned(), storage)];
        let paths = parts::paths(path, &header.metadata).map_err(at)?;
        if !paths.is_empty() {
            files.clear();
            let mut all = Vec::new();
            for path in paths {
                let (header, storage) = read(&path)?;
                all.push(header);
                files.push((path, storage));
            }
            header = parts::join(all).map_err(at)?;
        }
        Self::assemble(path, header, files)
    }

    fn assemble(
        path: &Path,
        header: Header,
        files: Vec<(PathBuf, Box<dyn stored::Storage>)>,
    ) -> Result<Self, WeightsError> {
        let at = |error: GgufError| WeightsError::file(path, error);
        let (mut config, family) = model::config(&header).map_err(at)?;
        config.validate()?;
        model::set_rotation(&header.metadata, family, &mut config).map_err(at)?;
        model::check_keys(&header.metadata, family).map_err(at)?;
        config.validate()?;
        let places = model::places(&header, &config).map_err(at)?;
        let files = files.into_iter();
        let files: Vec<_> =
            files.map(|(path, storage)| stored::TensorFile::new(&path, storage)).collect();
        if let Some(place) = model::rope_divisors(&header, &config).map_err(at)? {
            let mut divisors = files[place.file].read_row(&place)?;
            if let RopeScaling::Divisors(more) = &config.rope_scaling {
                divisors.iter_mut().zip(more).for_each(|(divisor, more)| *divisor *= more);
            }
            config.rope_scaling = RopeScaling::Divisors(divisors);
            config.validate()?;
        }
        let source = stored::Stored {
            files,
            places,
            order: family.order,
            head_dim: config.head_dim as usize,
            norm_offset: 0.0,
        };
        Ok(Self { weights: Weights::of(config, Arc::new(source)), metadata: header.metadata })
    }

    /// The model with its first `layers` layers alone.
    ///
    /// # Errors
    /// [`WeightsError::Config`] for none, or more than there are.
    pub fn with_layers(self, layers: u32) -> Result<Self, WeightsError> {
        Ok(Self { weights: self.weights.with_layers(layers)?, metadata: self.metadata })
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

type Opened = (Header, Box<dyn stored::Storage>);

fn read(path: &Path) -> Result<Opened, WeightsError> {
    let (file, file_bytes) = stored::open(path)?;
    let mut reader = BufReader::new(file);
    let header = parse::parse(&mut reader, file_bytes);
    let header = header.map_err(|error| WeightsError::file(path, error))?;
    Ok((header, Box::new(reader.into_inner())))
}
