//! Pages of other formats in the host's memory.

use std::ops::Range;

use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::layout::{CORE, element_offset};
use rayon::prelude::*;

use crate::attention::{BackendError, Channels, PagedTokens};
use crate::cache::{CacheShape, HostPages, KvElement, PageId, SLAB_PAGES};
use crate::format::{KvFormat, choose_channels};

/// K and V of a page in f32.
#[derive(Debug, Default)]
struct Wide {
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Wide {
    fn of<T: KvElement>(pages: &HostPages<T>) -> Self {
        let zeros = || vec![0.0; pages.shape().page().half_elements()];
        Self { k: zeros(), v: zeros() }
    }

    fn read<T: KvElement>(&mut self, pages: &HostPages<T>, at: (u32, PageId, u32)) {
        let page = pages.page(at.0, at.1, at.2);
        T::widen(page.k, &mut self.k);
        T::widen(page.v, &mut self.v);
    }
}

/// Makes pages `to` of `format` of native pages `from`, of all layers and KV heads.
///
/// # Errors
/// [`BackendError::Unstorable`]; then some of `to` are written.
pub(in crate::attention) fn encode<T: KvElement>(
    pages: &mut HostPages<T>,
    format: KvFormat,
    from: &[PageId],
    to: &[PageId],
    channels: Channels<'_>,
) -> Result<(), BackendError> {
    let shape = *pages.shape();
    let size = size_of(pages, format);
    let heads =
        (0..shape.layers).flat_map(|layer| (0..shape.kv_heads).map(move |head| (layer, head)));
    for (layer, kv_head) in heads {
        let kept = kept(pages, format, from, (layer, kv_head), channels);
        // A chunk at a time, for the pages of all take as much memory again.
        for (chunk, pair) in from.chunks(CHUNK).zip(to.chunks(CHUNK)).enumerate() {
            let coded = (0..pair.0.len()).into_par_iter().map_init(
                || Wide::of(pages),
                |wide, index| {
                    wide.read(pages, (layer, pair.0[index], kv_head));
                    let mut bytes = vec![0; size.1];
                    let stored = format.encode(shape.page(), [&wide.k, &wide.v], &kept, &mut bytes);
                    stored.map(|()| bytes).map_err(|source| BackendError::Unstorable {
                        index: chunk * CHUNK + index,
                        layer,
                        kv_head,
                        source,
                    })
                },
            );
            let coded: Vec<_> = coded.collect::<Result<_, BackendError>>()?;
            for (bytes, &page) in coded.iter().zip(pair.1) {
                pages.coded_mut(layer, page, kv_head, size).copy_from_slice(bytes);
            }
        }
    }
    Ok(())
}

/// Pages that are encoded at once.
const CHUNK: usize = 64;

/// Writes native pages `to` with what pages `from` of `format` say, of all layers and KV heads.
pub(in crate::attention) fn decode<T: KvElement>(
    pages: &mut HostPages<T>,
    format: KvFormat,
    from: &[PageId],
    to: &[PageId],
) {
    let shape = *pages.shape();
    let mut wide = Wide::of(pages);
    for layer in 0..shape.layers {
        for kv_head in 0..shape.kv_heads {
            for (&from, &to) in from.iter().zip(to) {
                decode_page(pages, format, (layer, from, kv_head), [&mut wide.k, &mut wide.v]);
                for (native, wide) in
                    pages.page_mut(layer, to, kv_head).into_iter().zip([&wide.k, &wide.v])
                {
                    for (native, &wide) in native.iter_mut().zip(wide) {
                        *native = T::from_f32(wide);
                    }
                }
            }
        }
    }
}

/// Reads a page of `format`: `(layer, page, KV head)`.
pub(in crate::attention) fn decode_page<T: KvElement>(
    pages: &HostPages<T>,
    format: KvFormat,
    (layer, page, kv_head): (u32, PageId, u32),
    halves: [&mut [f32]; 2],
) {
    let bytes = pages.coded(layer, page, kv_head, size_of(pages, format));
    format.decode(pages.shape().page(), bytes, halves);
}

/// Copies tokens out: token `i` of `tokens` lies at `paged.places[i]`, in a page of `format`.
pub(in crate::attention) fn export<T: KvElement>(
    pages: &HostPages<T>,
    format: KvFormat,
    tokens: Range<usize>,
    paged: PagedTokens<'_>,
    [k, v]: [&mut [T]; 2],
) {
    let shape = *pages.shape();
    let mut wide = Wide::of(pages);
    for kv_head in 0..shape.kv_heads {
        let mut read = None;
        for token in tokens.clone() {
            let (page, slot) =
                (paged.places[token] / PAGE_TOKENS, paged.places[token] % PAGE_TOKENS);
            if read != Some(page) {
                let at = (paged.layer, page, kv_head);
                match format {
                    KvFormat::Native => wide.read(pages, at),
                    _ => decode_page(pages, format, at, [&mut wide.k, &mut wide.v]),
                }
                read = Some(page);
            }
            let row = paged.table.offset(&shape, token, kv_head);
            for dim in 0..shape.head_dim {
                let from = element_offset(shape.head_dim, slot, dim) as usize;
                k[row + dim as usize] = T::from_f32(wide.k[from]);
                v[row + dim as usize] = T::from_f32(wide.v[from]);
            }
        }
    }
}

/// The channels that a format keeps of a layer's KV head; none if it keeps all.
fn kept<T: KvElement>(
    pages: &HostPages<T>,
    format: KvFormat,
    from: &[PageId],
    (layer, kv_head): (u32, u32),
    channels: Channels<'_>,
) -> Vec<u8> {
    let Some(keep) = format.kept_channels() else {
        return Vec::new();
    };
    let shape = pages.shape();
    let weights = match channels {
        Channels::Of(page) => {
            let bytes = pages.coded(layer, page, kv_head, size_of(pages, format));
            return format.channels(bytes).to_vec();
        }
        Channels::Scored(weights) => weights,
    };
    let head_dim = shape.head_dim as usize;
    let mut scores = vec![0.0; head_dim];
    for &page in from {
        let k = pages.page(layer, page, kv_head).k;
        for (core, block) in k.chunks_exact((CORE * CORE) as usize).enumerate() {
            let first = core % (head_dim / CORE as usize) * CORE as usize;
            for (at, key) in block.iter().enumerate() {
                let key = f64::from(key.to_f32());
                scores[first + at % CORE as usize] += key * key;
            }
        }
    }
    let head = (layer * shape.kv_heads + kv_head) as usize * head_dim;
    if !weights.is_empty() {
        for (score, weight) in scores.iter_mut().zip(&weights[head..head + head_dim]) {
            *score *= f64::from(*weight);
        }
    }
    choose_channels(&scores, keep)
}

/// Where a page of all KV heads lies in a layer's memory, in bytes.
pub(in crate::attention) fn bytes_of(
    shape: &CacheShape,
    format: KvFormat,
    page: PageId,
) -> Range<usize> {
    let of = shape.page();
    let (bytes, heads) = (format.page_bytes(of), shape.kv_heads as usize);
    let begin = match format {
        KvFormat::Native => page as usize * heads * bytes,
        _ => {
            let per_slab = format.pages_per_slab(of);
            let slab = page / per_slab * SLAB_PAGES;
            slab as usize * heads * of.native_bytes() + (page % per_slab) as usize * heads * bytes
        }
    };
    begin..begin + heads * bytes
}

/// What a page of `format` takes, and how many a slab holds.
fn size_of<T: KvElement>(
    pages: &HostPages<T>,
    format: KvFormat,
) -> (crate::cache::SlabClass, usize) {
    let page = pages.shape().page();
    (format.slab_class(page), format.page_bytes(page))
}
