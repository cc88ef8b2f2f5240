//! Weights in files.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::format::Format;
use super::{LayerTensor, Source, Tensor, WeightsError};
use crate::config::family::HeadOrder;

/// What tensors are read from; a file, or memory in tests.
pub(crate) trait Storage: Read + Seek + Send + std::fmt::Debug {}
impl<T: Read + Seek + Send + std::fmt::Debug> Storage for T {}

/// A file with tensors in it.
#[derive(Debug)]
pub(crate) struct TensorFile {
    path: PathBuf,
    storage: Mutex<Box<dyn Storage>>,
}

impl TensorFile {
    pub(crate) fn new(path: &Path, storage: Box<dyn Storage>) -> Self {
        Self { path: path.to_owned(), storage: Mutex::new(storage) }
    }

    /// The tensor at `place`, of one row.
    pub(crate) fn read_row(&self, place: &Place) -> Result<Vec<f32>, WeightsError> {
        let mut bytes = vec![0; place.row_bytes()];
        self.read_rows(place, 0, &mut bytes)?;
        let mut out = vec![0.0; place.columns];
        place.format.dequantize(&bytes, &mut out);
        Ok(out)
    }

    /// As many rows from `first` on as `out` takes, as they are stored.
    fn read_rows(&self, place: &Place, first: usize, out: &mut [u8]) -> Result<(), WeightsError> {
        self.read_at(place.offset + (first * place.row_bytes()) as u64, out)
    }

    /// Fills `out` from byte `offset` on.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> Result<(), WeightsError> {
        // A reader that panicked has left nothing behind but a position, which is set anew.
        let mut storage = self.storage.lock().unwrap_or_else(PoisonError::into_inner);
        let read = storage.seek(SeekFrom::Start(offset)).and_then(|_| storage.read_exact(out));
        read.map_err(|error| WeightsError::io(&self.path, error))
    }
}

/// Opens a file; its size.
pub(crate) fn open(path: &Path) -> Result<(File, u64), WeightsError> {
    let open = || -> io::Result<(File, u64)> {
        let file = File::open(path)?;
        let length = file.metadata()?.len();
        Ok((file, length))
    };
    open().map_err(|error| WeightsError::io(path, error))
}

/// Where a tensor lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Index of the file.
    pub(crate) file: usize,
    /// First byte within the file.
    pub(crate) offset: u64,
    pub(crate) format: Format,
    pub(crate) columns: usize,
}

impl Place {
    fn row_bytes(&self) -> usize {
        self.columns / self.format.block_elements() * self.format.block_bytes()
    }
}

/// A model's tensors in files. Every place has been checked against its file's size.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) files: Vec<TensorFile>,
    pub(crate) places: HashMap<Tensor, Place>,
    pub(crate) order: HeadOrder,
    pub(crate) head_dim: usize,
    /// What is added to the weights of norms.
    pub(crate) norm_offset: f32,
}

impl Stored {
    /// The row of the file that is row `row` of a tensor of queries or keys.
    fn row_in_pairs(&self, row: usize) -> usize {
        let (head, dim, half) = (row / self.head_dim, row % self.head_dim, self.head_dim / 2);
        head * self.head_dim + 2 * (dim % half) + dim / half
    }
}

impl Source for Stored {
    fn read(
        &self,
        tensor: Tensor,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), WeightsError> {
        let place = self.places[&tensor];
        let mut bytes = vec![0; rows.len() * place.row_bytes()];
        self.read_stored(tensor, rows, &mut bytes)?;
        place.format.dequantize(&bytes, out);
        if tensor.is_norm() {
            out.iter_mut().for_each(|gain| *gain += self.norm_offset);
        }
        Ok(())
    }

    fn format(&self, tensor: Tensor) -> Format {
        self.places[&tensor].format
    }

    fn read_stored(
        &self,
        tensor: Tensor,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), WeightsError> {
        let place = self.places[&tensor];
        let file = &self.files[place.file];
        let turned = matches!(tensor, Tensor::Layer(_, LayerTensor::Query | LayerTensor::Key));
        if !turned || self.order == HeadOrder::Halves {
            return file.read_rows(&place, rows.start, out);
        }
        for (row, out) in rows.zip(out.chunks_exact_mut(place.row_bytes())) {
            file.read_rows(&place, self.row_in_pairs(row), out)?;
        }
        Ok(())
    }
}
