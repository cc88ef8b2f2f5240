//! Pages of formats, rewritten in the host's memory: for backends whose memory is elsewhere.
//!
//! Pages are fetched a layer at a time, coded or decoded by the definition of [`crate::format`], and put back. A node is
//! sealed once, so that is what it costs once.

use std::collections::BTreeMap;
use std::ops::Range;

use half::{bf16, f16};
use kernels_gpu::abi::PAGE_TOKENS;

use super::cpu::{formats, unpack};
use super::{BackendError, Channels, PagedTokens, on_host};
use crate::cache::{CacheShape, DType, ElementsMut, HostPages, KvElement, PageId, SLAB_PAGES};
use crate::format::KvFormat;

/// Memory that pages lie in: of each layer `[page][kv_head][page elements]`.
pub trait PageMemory {
    /// The cache's dimensions.
    fn shape(&self) -> &CacheShape;

    /// Reads bytes of a layer from byte `offset` on.
    ///
    /// # Errors
    /// The device's own.
    fn read(&self, layer: u32, offset: usize, bytes: &mut [u8]) -> Result<(), BackendError>;

    /// Writes bytes of a layer from byte `offset` on.
    ///
    /// # Errors
    /// The device's own.
    fn write(&mut self, layer: u32, offset: usize, bytes: &[u8]) -> Result<(), BackendError>;
}

/// Runs `$function::<T>` for the memory's element type.
macro_rules! typed {
    ($memory:ident, $function:ident($($argument:expr),*)) => {
        match $memory.shape().dtype {
            DType::Bf16 => $function::<bf16>($memory, $($argument),*),
            DType::F16 => $function::<f16>($memory, $($argument),*),
            DType::F32 => $function::<f32>($memory, $($argument),*),
        }
    };
}

/// As [`Backend::encode`](super::Backend::encode), of formats that fit.
///
/// # Errors
/// [`BackendError::Unstorable`], those of the memory, and want of the host's.
pub fn encode(
    memory: &mut dyn PageMemory,
    format: KvFormat,
    from: &[PageId],
    to: &[PageId],
    channels: Channels<'_>,
) -> Result<(), BackendError> {
    typed!(memory, encode_typed(format, from, to, channels))
}

/// As [`Backend::decode`](super::Backend::decode), of formats that fit.
///
/// # Errors
/// Those of the memory, and want of the host's.
pub fn decode(
    memory: &mut dyn PageMemory,
    format: KvFormat,
    from: &[PageId],
    to: &[PageId],
) -> Result<(), BackendError> {
    typed!(memory, decode_typed(format, from, to))
}

/// As [`Backend::export_part`](super::Backend::export_part), of formats that fit.
///
/// # Errors
/// [`BackendError::NotOnHost`] for rows on a device, those of the memory, and want of the host's.
pub fn export(
    memory: &dyn PageMemory,
    format: KvFormat,
    tokens: Range<usize>,
    paged: PagedTokens<'_>,
    foreign: [ElementsMut<'_>; 2],
) -> Result<(), BackendError> {
    typed!(memory, export_typed(format, tokens, paged, foreign))
}

/// As [`Backend::read_cells`](super::Backend::read_cells), of cells that are there.
///
/// # Errors
/// Those of the memory.
pub fn read_cells(
    memory: &dyn PageMemory,
    layer: u32,
    cells: &[u32],
    rows: [&mut [f32]; 2],
) -> Result<(), BackendError> {
    match memory.shape().dtype {
        DType::Bf16 => read_cells_typed::<bf16>(memory, layer, cells, rows),
        DType::F16 => read_cells_typed::<f16>(memory, layer, cells, rows),
        DType::F32 => read_cells_typed::<f32>(memory, layer, cells, rows),
    }
}

fn read_cells_typed<T: KvElement>(
    memory: &dyn PageMemory,
    layer: u32,
    cells: &[u32],
    rows: [&mut [f32]; 2],
) -> Result<(), BackendError> {
    let head_dim = memory.shape().head_dim;
    let mut elements = vec![T::default(); memory.shape().page().half_elements()];
    let bytes = size_of_val(&elements[..]);
    for (half, rows) in rows.into_iter().enumerate() {
        for (&cell, rows) in cells.iter().zip(rows.chunks_exact_mut(elements.len())) {
            let offset = (2 * cell as usize + half) * bytes;
            memory.read(layer, offset, bytemuck::cast_slice_mut(&mut elements))?;
            unpack(&elements, head_dim, rows);
        }
    }
    Ok(())
}

fn encode_typed<T: KvElement>(
    memory: &mut dyn PageMemory,
    format: KvFormat,
    from: &[PageId],
    to: &[PageId],
    channels: Channels<'_>,
) -> Result<(), BackendError> {
    let shape = *memory.shape();
    // A page whose channels are kept is fetched behind those that are made.
    let model = match channels {
        Channels::Of(page) => vec![page],
        Channels::Scored(_) => Vec::new(),
    };
    let (mut stage, native, coded) =
        Stage::<T>::new(&shape, format, from.len(), to.len() + model.len())?;
    for layer in 0..shape.layers {
        stage.fetch(memory, layer, KvFormat::Native, from, &native)?;
        stage.fetch(memory, layer, format, &model, &coded[to.len()..])?;
        let channels = match channels {
            Channels::Of(_) => Channels::Of(coded[to.len()]),
            Channels::Scored(weights) => {
                let row = shape.row_elements();
                Channels::Scored(weights.chunks_exact(row).nth(layer as usize).unwrap_or_default())
            }
        };
        let made = formats::encode(&mut stage.pages, format, &native, &coded[..to.len()], channels);
        made.map_err(|error| match error {
            BackendError::Unstorable { index, kv_head, source, .. } => {
                BackendError::Unstorable { index, layer, kv_head, source }
            }
            other => other,
        })?;
        stage.put_back(memory, layer, format, to, &coded)?;
    }
    Ok(())
}

fn decode_typed<T: KvElement>(
    memory: &mut dyn PageMemory,
    format: KvFormat,
    from: &[PageId],
    to: &[PageId],
) -> Result<(), BackendError> {
    let shape = *memory.shape();
    let (mut stage, native, coded) = Stage::<T>::new(&shape, format, to.len(), from.len())?;
    for layer in 0..shape.layers {
        stage.fetch(memory, layer, format, from, &coded)?;
        formats::decode(&mut stage.pages, format, &coded, &native);
        stage.put_back(memory, layer, KvFormat::Native, to, &native)?;
    }
    Ok(())
}

fn export_typed<T: KvElement>(
    memory: &dyn PageMemory,
    format: KvFormat,
    tokens: Range<usize>,
    paged: PagedTokens<'_>,
    [k, v]: [ElementsMut<'_>; 2],
) -> Result<(), BackendError> {
    let (k, v) = (on_host("k", k.into_typed::<T>())?, on_host("v", v.into_typed::<T>())?);
    let mut pages: Vec<PageId> =
        paged.places[tokens.clone()].iter().map(|place| place / PAGE_TOKENS).collect();
    pages.sort_unstable();
    pages.dedup();
    let (natives, codes) =
        if format == KvFormat::Native { (pages.len(), 0) } else { (0, pages.len()) };
    let (mut stage, native, coded) = Stage::<T>::new(memory.shape(), format, natives, codes)?;
    let here = if format == KvFormat::Native { native } else { coded };
    stage.fetch(memory, paged.layer, format, &pages, &here)?;
    let staged: BTreeMap<PageId, PageId> = pages.into_iter().zip(here).collect();
    let mut places = vec![0; paged.places.len()];
    for token in tokens.clone() {
        let place = paged.places[token];
        places[token] = staged[&(place / PAGE_TOKENS)] * PAGE_TOKENS + place % PAGE_TOKENS;
    }
    let paged = PagedTokens { layer: 0, places: &places, ..paged };
    formats::export(&stage.pages, format, tokens, paged, [k, v]);
    Ok(())
}

/// Pages of one layer in the host's memory.
struct Stage<T> {
    pages: HostPages<T>,
}

impl<T: KvElement> Stage<T> {
    /// Room for so many native pages and pages of `format`, and their ids there.
    fn new(
        of: &CacheShape,
        format: KvFormat,
        native: usize,
        coded: usize,
    ) -> Result<(Self, Vec<PageId>, Vec<PageId>), BackendError> {
        let per_slab = format.pages_per_slab(of.page());
        let first = (native as u32).div_ceil(SLAB_PAGES);
        let slabs = (coded as u32).div_ceil(per_slab);
        let pages = ((first + slabs) * SLAB_PAGES).max(1);
        let pages = HostPages::new(CacheShape { layers: 1, pages, ..*of })?;
        let coded = first * per_slab..first * per_slab + coded as u32;
        Ok((Self { pages }, (0..native as u32).collect(), coded.collect()))
    }

    fn fetch(
        &mut self,
        memory: &dyn PageMemory,
        layer: u32,
        format: KvFormat,
        pages: &[PageId],
        here: &[PageId],
    ) -> Result<(), BackendError> {
        for (&page, &here) in pages.iter().zip(here) {
            let from = formats::bytes_of(memory.shape(), format, page);
            let to = formats::bytes_of(self.pages.shape(), format, here);
            memory.read(layer, from.start, &mut self.pages.plane_bytes_mut(0)[to])?;
        }
        Ok(())
    }

    fn put_back(
        &self,
        memory: &mut dyn PageMemory,
        layer: u32,
        format: KvFormat,
        pages: &[PageId],
        here: &[PageId],
    ) -> Result<(), BackendError> {
        for (&page, &here) in pages.iter().zip(here) {
            let from = formats::bytes_of(self.pages.shape(), format, here);
            let to = formats::bytes_of(memory.shape(), format, page);
            memory.write(layer, to.start, &self.pages.plane_bytes(0)[from])?;
        }
        Ok(())
    }
}
