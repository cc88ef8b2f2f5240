//! Rows of compacted nodes in the host's memory.

use kernels_gpu::abi::{PAGE_TOKENS, RowSource, RowTarget};
use kernels_gpu::layout::{element_offset, half_page_elements};

use crate::attention::{BackendError, Compact};
use crate::cache::{HostPages, KvElement};

/// K and V of a row.
struct Rows<T> {
    k: Vec<T>,
    v: Vec<T>,
}

impl<T: Copy> Rows<T> {
    fn filled(element: T, head_dim: u32) -> Self {
        let row = vec![element; head_dim as usize];
        Self { k: row.clone(), v: row }
    }
}

/// Writes the rows of a call whose arguments were checked.
///
/// # Errors
/// Too little memory for biases; then nothing was written.
pub(super) fn compact<T: KvElement>(
    pages: &mut HostPages<T>,
    call: &Compact<'_>,
) -> Result<(), BackendError> {
    if call.biased {
        pages.make_biases(call.layer)?;
    }
    let (head_dim, kv_heads) = (pages.shape().head_dim, pages.shape().kv_heads);
    let at = |cell: u32, token: u32| (cell / kv_heads * PAGE_TOKENS + token, cell % kv_heads);
    let mut row = Rows::filled(T::default(), head_dim);
    let mut sum = Rows::filled(0.0_f32, head_dim);
    let mut begin = 0;
    for &RowTarget { cell, token, end, bias } in call.targets {
        let sources = &call.sources[begin..end as usize];
        begin = end as usize;
        let read = |source: &RowSource, row: &mut Rows<T>| {
            let (place, slot) = at(source.cell, source.token);
            pages.read_head(call.layer, place, slot, &mut row.k, &mut row.v);
        };
        match sources {
            [source @ RowSource { k: 1.0, v: 1.0, .. }] => read(source, &mut row),
            _ => {
                sum.k.fill(0.0);
                sum.v.fill(0.0);
                for source in sources {
                    read(source, &mut row);
                    add(&mut sum.k, &row.k, source.k);
                    add(&mut sum.v, &row.v, source.v);
                }
                round(&sum.k, &mut row.k);
                round(&sum.v, &mut row.v);
            }
        }
        let (place, slot) = at(cell, token);
        pages.write_head(call.layer, place, slot, &row.k, &row.v);
        if call.biased {
            pages.biases_mut(call.layer, cell)[token as usize] = bias;
        }
    }
    Ok(())
}

/// Reads whole cells: `[cells, 64, head_dim]` of K and of V, each unless it is empty.
pub(super) fn read_cells<T: KvElement>(
    pages: &HostPages<T>,
    layer: u32,
    cells: &[u32],
    rows: [&mut [f32]; 2],
) {
    let (head_dim, kv_heads) = (pages.shape().head_dim, pages.shape().kv_heads);
    for (half, rows) in rows.into_iter().enumerate() {
        let cell_elements = half_page_elements(head_dim) as usize;
        for (&cell, rows) in cells.iter().zip(rows.chunks_exact_mut(cell_elements)) {
            let page = pages.page(layer, cell / kv_heads, cell % kv_heads);
            unpack([page.k, page.v][half], head_dim, rows);
        }
    }
}

/// Elements of K, or V, of a page of one KV head, row by row: `[64, head_dim]`.
pub(in crate::attention) fn unpack<T: KvElement>(elements: &[T], head_dim: u32, rows: &mut [f32]) {
    for (token, row) in (0..PAGE_TOKENS).zip(rows.chunks_exact_mut(head_dim as usize)) {
        for (dim, element) in (0..).zip(row) {
            *element = elements[element_offset(head_dim, token, dim) as usize].to_f32();
        }
    }
}

fn add<T: KvElement>(sum: &mut [f32], row: &[T], weight: f32) {
    for (sum, element) in sum.iter_mut().zip(row) {
        *sum += weight * element.to_f32();
    }
}

fn round<T: KvElement>(sum: &[f32], row: &mut [T]) {
    for (element, &sum) in row.iter_mut().zip(sum) {
        *element = T::from_f32(sum);
    }
}
