//! What a foreign cache is to attention: its K and V in place, and whether an import or an export fits it.

use super::check::{check_dtype, check_length, check_once, check_page, check_params, in_pages};
use super::{AttentionParams, BackendError, PagedTokens};
use crate::cache::{CacheShape, DType, Elements, ElementsMut, PagedOrder};
use crate::plan::PagedPlan;

/// K or V of one layer where another engine keeps it: rows of `head_dim` contiguous elements.
#[derive(Clone, Copy, Debug)]
pub struct PagedTensor<'a> {
    /// From the first row on. K and V may be of the same memory.
    pub elements: Elements<'a>,
    /// Blocks that there are.
    pub blocks: usize,
    /// Elements from one block, token of a block and KV head to the next.
    pub strides: [usize; 3],
}

/// One call of attention over a foreign cache.
#[derive(Debug)]
pub struct PagedAttend<'a> {
    /// Keys.
    pub k: PagedTensor<'a>,
    /// Values, of the same element type.
    pub v: PagedTensor<'a>,
    /// KV heads of the foreign cache.
    pub kv_heads: u32,
    /// Elements of a head: a multiple of 8, up to 256.
    pub head_dim: u32,
    /// `[rows, q_heads, head_dim]`, of the element type of K and V; `q_heads` = the plan's group size x KV heads.
    pub q: Elements<'a>,
    /// As `q`. Zero for a query that sees no token.
    pub out: ElementsMut<'a>,
    /// f32, `[rows, q_heads]`: natural logarithm of the sum of `exp(logit)`; -inf for a query that sees no token.
    pub lse: Option<ElementsMut<'a>>,
    /// Numbers of the model.
    pub params: AttentionParams,
}

impl<'a> PagedTensor<'a> {
    /// Blocks one after the other, of `page_size` tokens, KV heads and head dimension `shape`.
    pub fn contiguous(elements: Elements<'a>, order: PagedOrder, shape: [usize; 3]) -> Self {
        let [page_size, kv_heads, head_dim] = shape;
        let block = page_size * kv_heads * head_dim;
        let strides = match order {
            PagedOrder::Nhd => [block, kv_heads * head_dim, head_dim],
            PagedOrder::Hnd => [block, head_dim, page_size * head_dim],
        };
        Self { elements, blocks: elements.len() / block.max(1), strides }
    }
}

/// Checks the arguments of [`InPlace::attend`](super::cpu::InPlace::attend), the plan's blocks included.
///
/// # Errors
/// [`BackendError`], naming the argument.
pub fn check_paged_attend(plan: &PagedPlan, call: &PagedAttend<'_>) -> Result<(), BackendError> {
    let PagedAttend { kv_heads, head_dim, .. } = *call;
    let multiple = head_dim > 0 && head_dim <= 256 && head_dim.is_multiple_of(8);
    for (name, value, fits, expected) in [
        ("head_dim", head_dim, multiple, "a multiple of 8, up to 256"),
        ("kv_heads", kv_heads, (1..=4096).contains(&kv_heads), "between 1 and 4096"),
    ] {
        if !fits {
            return Err(BackendError::Param { name, value: value as f32, expected });
        }
    }
    // Of the shape the element type alone counts.
    let dtype = call.k.elements.dtype();
    let shape = CacheShape { layers: 1, kv_heads, head_dim, dtype, pages: 1 };
    let rows = [plan.page_size() as usize, kv_heads as usize];
    for (argument, tensor) in [("k", call.k), ("v", call.v)] {
        check_dtype(&shape, argument, tensor.elements)?;
        let found = tensor.elements.len();
        let expected = extent(&tensor, rows, head_dim as usize).unwrap_or(usize::MAX);
        if found < expected {
            let shape = "[blocks, page_size, kv_heads, head_dim] by its strides";
            return Err(BackendError::Length { argument, found, expected, shape });
        }
        if plan.blocks() as usize > tensor.blocks {
            for (index, &id) in plan.used_ids() {
                in_pages("block_tables", index, id as u32, argument, tensor.blocks)?;
            }
        }
    }
    let heads = plan.plan().queries() as usize * (plan.plan().group_size() * kv_heads) as usize;
    for (argument, rows) in [("q", call.q), ("out", call.out.as_elements())] {
        check_dtype(&shape, argument, rows)?;
        let expected = heads * head_dim as usize;
        check_length(argument, rows.len(), expected, "[rows, q_heads, head_dim]")?;
    }
    if let Some(lse) = &call.lse {
        let shape = CacheShape { dtype: DType::F32, ..shape };
        check_dtype(&shape, "lse", lse.as_elements())?;
        check_length("lse", lse.len(), heads, "[rows, q_heads]")?;
    }
    check_params(&call.params)
}

/// Elements that a tensor's blocks reach over.
fn extent(tensor: &PagedTensor<'_>, rows: [usize; 2], head_dim: usize) -> Option<usize> {
    let [block, slot, head] = tensor.strides;
    let Some(blocks) = tensor.blocks.checked_sub(1) else { return Some(0) };
    let last = blocks.checked_mul(block)?.checked_add((rows[0] - 1).checked_mul(slot)?)?;
    last.checked_add((rows[1] - 1).checked_mul(head)?)?.checked_add(head_dim)
}

/// Checks the arguments of [`Backend::import`](super::Backend::import): what exists, and that no place is named twice.
///
/// # Errors
/// [`BackendError`], naming the argument.
pub fn check_import(
    shape: &CacheShape,
    paged: PagedTokens<'_>,
    foreign: [Elements<'_>; 2],
) -> Result<(), BackendError> {
    check(shape, paged, foreign)?;
    check_once("places", paged.places)
}

/// Checks the arguments of [`Backend::export`](super::Backend::export): what exists, and that no page that is written
/// is named twice.
///
/// # Errors
/// [`BackendError`], naming the argument.
pub fn check_export(
    shape: &CacheShape,
    paged: PagedTokens<'_>,
    foreign: &[ElementsMut<'_>; 2],
) -> Result<(), BackendError> {
    let used = check(shape, paged, foreign.each_ref().map(ElementsMut::as_elements))?;
    check_once("pages", &paged.table.pages[..used])
}

/// The pages of the table that are used.
fn check(
    shape: &CacheShape,
    paged: PagedTokens<'_>,
    foreign: [Elements<'_>; 2],
) -> Result<usize, BackendError> {
    shape.check_layer(paged.layer)?;
    let (table, places) = (paged.table, paged.places);
    let page_size = table.page_size as usize;
    if page_size == 0 {
        return Err(BackendError::Param { name: "page_size", value: 0.0, expected: "positive" });
    }
    let used = places.len().div_ceil(page_size);
    let found = table.pages.len().min(used);
    check_length("pages", found, used, "[ceil(tokens / page_size)]")?;
    for (argument, foreign) in ["k", "v"].into_iter().zip(foreign) {
        check_dtype(shape, argument, foreign)?;
        let pages = foreign.len() / shape.row_elements() / page_size;
        for (index, &page) in table.pages[..used].iter().enumerate() {
            in_pages("pages", index, page, argument, pages)?;
        }
    }
    for (index, &place) in places.iter().enumerate() {
        check_page(shape, "places", index, place)?;
    }
    Ok(used)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{DType, KvElement, PagedOrder, PagedTable};

    const SHAPE: CacheShape =
        CacheShape { layers: 2, kv_heads: 3, head_dim: 64, dtype: DType::F32, pages: 4 };

    fn paged<'a>(places: &'a [u32], page_size: u32, pages: &'a [u32]) -> PagedTokens<'a> {
        PagedTokens {
            layer: 0,
            places,
            table: PagedTable { order: PagedOrder::Nhd, page_size, pages },
        }
    }

    #[test]
    fn what_is_written_may_be_named_once() {
        let mut k = vec![0.0; 3 * 2 * SHAPE.row_elements()];
        let mut v = k.clone();
        let places = [7, 9, 7, 8, 1];
        let import = paged(&places[..3], 2, &[1, 2, 1]);
        assert_eq!(
            check_import(&SHAPE, import, [f32::elements(&k), f32::elements(&v)])
                .unwrap_err()
                .to_string(),
            "places[0] and places[2] both name 7; what is written is named once"
        );
        let foreign = [f32::elements_mut(&mut k), f32::elements_mut(&mut v)];
        let export =
            |count: usize| check_export(&SHAPE, paged(&places[..count], 2, &[1, 2, 1]), &foreign);
        assert!(export(4).is_ok(), "its third page is not used");
        assert_eq!(
            export(5).unwrap_err().to_string(),
            "pages[0] and pages[2] both name 1; what is written is named once"
        );
    }

    #[test]
    fn arguments_out_of_range_are_named() {
        let k = vec![0.0; 2 * 16 * SHAPE.row_elements()];
        let refuse = |paged| {
            let foreign = [f32::elements(&k); 2];
            check_import(&SHAPE, paged, foreign).unwrap_err().to_string()
        };
        let beyond = PagedTokens { layer: 2, ..paged(&[0], 16, &[0]) };
        assert_eq!(refuse(beyond), "layer is 2, the cache has 2");
        assert_eq!(refuse(paged(&[0], 0, &[0])), "page_size is 0; it must be positive");
        assert_eq!(
            refuse(paged(&[0; 17], 16, &[0])),
            "pages has 1 elements, [ceil(tokens / page_size)] takes 2"
        );
        assert_eq!(refuse(paged(&[0; 17], 16, &[1, 2])), "pages[1] names page 2, k has 2");
        assert_eq!(refuse(paged(&[0, 256], 16, &[0])), "places[1] names page 4, the cache has 4");
    }
}
