//! Arguments of a [`Backend`](super::Backend), checked the same way by all of them.

use kernels_gpu::abi::{APPEND_LIVE, AppendTarget, NONE, PAGE_TOKENS, RowTarget, TokenMove};

use super::{Attend, AttentionParams, BackendError, Compact, Counters, Rotation};
use crate::cache::{CacheShape, DType, Directory, Elements, PageId, SLAB_PAGES};
use crate::format::KvFormat;
use crate::plan::Plan;
use crate::tree::Residues;

/// Checks the arguments of [`Backend::append`](super::Backend::append), pages of targets included, and with a
/// `rotation` those of [`Backend::append_rotated`](super::Backend::append_rotated).
///
/// # Errors
/// [`BackendError`], naming the argument.
pub fn check_append(
    shape: &CacheShape,
    layer: u32,
    targets: &[AppendTarget],
    counters: Counters<'_>,
    rows: [Elements<'_>; 2],
    rotation: Option<Rotation<'_>>,
) -> Result<(), BackendError> {
    shape.check_layer(layer)?;
    let expected = targets.len() * shape.row_elements();
    for (argument, rows) in ["k", "v"].into_iter().zip(rows) {
        check_dtype(shape, argument, rows)?;
        check_length(argument, rows.len(), expected, "[targets, kv_heads, head_dim]")?;
    }
    let mut places = Vec::with_capacity(targets.len());
    for (index, &target) in targets.iter().enumerate() {
        let place = resolve(target, counters)
            .ok_or(BackendError::Slot { index, slot: target & !APPEND_LIVE })?;
        check_page(shape, "targets", index, place)?;
        places.push(place);
    }
    check_once("targets", &places)?;
    match rotation {
        Some(rotation) => rotation.check(shape, targets.len()),
        None => Ok(()),
    }
}

/// Checks the arguments of [`Backend::copy`](super::Backend::copy).
///
/// # Errors
/// [`BackendError::Page`].
pub fn check_moves(shape: &CacheShape, moves: &[TokenMove]) -> Result<(), BackendError> {
    for (index, step) in moves.iter().enumerate() {
        check_page(shape, "moves", index, step.from)?;
        check_page(shape, "moves", index, step.to)?;
    }
    Ok(())
}

/// Checks the arguments of [`Backend::compact`](super::Backend::compact): that layer, cells and sources are there.
///
/// # Errors
/// [`BackendError::Cell`], [`BackendError::Sources`], or for the layer.
pub fn check_compact(shape: &CacheShape, call: &Compact<'_>) -> Result<(), BackendError> {
    shape.check_layer(call.layer)?;
    let cells = shape.cells();
    let targets = call.targets.iter().map(|target| (target.cell, target.token));
    let sources = call.sources.iter().map(|source| (source.cell, source.token));
    let places = targets.enumerate().map(|place| ("targets", place));
    for (argument, (index, (cell, token))) in
        places.chain(sources.enumerate().map(|place| ("sources", place)))
    {
        if u64::from(cell) >= cells || token >= PAGE_TOKENS {
            return Err(BackendError::Cell { argument, index, cell, token, cells });
        }
    }
    let (mut before, sources) = (0, call.sources.len());
    for (index, &RowTarget { end, .. }) in call.targets.iter().enumerate() {
        if end <= before || end as usize > sources {
            return Err(BackendError::Sources { index, end, before, sources });
        }
        before = end;
    }
    Ok(())
}

/// Checks the arguments of [`Backend::attend`](super::Backend::attend). Whether the plan's pages exist is not part of
/// it: it takes as long as to read the plan.
///
/// # Errors
/// [`BackendError`], naming the argument.
pub fn check_attend(shape: &CacheShape, call: &Attend<'_>) -> Result<(), BackendError> {
    shape.check_layer(call.layer)?;
    let heads = call.plan.queries() as usize * (call.plan.group_size() * shape.kv_heads) as usize;
    let elements = heads * shape.head_dim as usize;
    for (argument, rows) in [("q", call.q), ("out", call.out.as_elements())] {
        check_dtype(shape, argument, rows)?;
        check_length(argument, rows.len(), elements, "[queries, q_heads, head_dim]")?;
    }
    if let Some(lse) = &call.lse {
        let (found, expected) = (lse.dtype(), DType::F32);
        if found != expected {
            let argument = "lse";
            return Err(BackendError::DType { argument, found, expected });
        }
        check_length("lse", lse.len(), heads, "[queries, q_heads]")?;
    }
    check_params(&call.params)
}

/// Checks that a plan's pages and length slots exist: a kernel would read beyond the cache. What is wrong is looked for
/// only where something is.
///
/// # Errors
/// [`BackendError::Page`], or [`BackendError::Length`] for too few counters.
pub(crate) fn check_plan(
    shape: &CacheShape,
    plan: &Plan,
    counters: Counters<'_>,
) -> Result<(), BackendError> {
    let bounds = plan.bounds();
    check_directory(shape, bounds.indices, counters.directory)?;
    let expected = plan.residues().iter().map(|of| of.index as usize + 1).max().unwrap_or(0);
    let found = counters.residues.map_or(0, Residues::len);
    if found < expected {
        let (argument, shape) = ("counters.residues", "a plan of nodes with residues");
        return Err(BackendError::Length { argument, found, expected, shape });
    }
    let slots = counters.lengths.len();
    if bounds.pages <= shape.pages && bounds.slots as usize <= slots {
        return Ok(());
    }
    for share in 0..plan.shares() {
        for item in plan.share(share).items() {
            let pages = match item.format() {
                KvFormat::Native => shape.pages,
                KvFormat::Compacted => NONE,
                format => shape.pages / SLAB_PAGES * format.pages_per_slab(shape.page()),
            };
            for segment in item.segments {
                if segment.length_slot != NONE && segment.length_slot as usize >= slots {
                    return Err(BackendError::Length {
                        argument: "counters.lengths",
                        found: slots,
                        expected: segment.length_slot as usize + 1,
                        shape: "the plan's length slots",
                    });
                }
                for (index, &page) in item.pages(segment).iter().enumerate() {
                    in_pages("plan", index, page, "the cache", pages as usize)?;
                }
            }
        }
    }
    Ok(())
}

/// Checks that a directory has `indices` indices, of a cache's layers and KV heads, and names none but its cells.
fn check_directory(
    shape: &CacheShape,
    indices: u32,
    directory: Option<&Directory>,
) -> Result<(), BackendError> {
    if indices == 0 {
        return Ok(());
    }
    let argument = "counters.directory";
    let found = directory.map_or(0, Directory::stride) as usize;
    if found < indices as usize {
        let (expected, shape) = (indices as usize, "a plan of compacted pages");
        return Err(BackendError::Length { argument, found, expected, shape });
    }
    let Some(directory) = directory else { return Ok(()) };
    if directory.heads() != (shape.layers, shape.kv_heads) {
        let found = directory.cells().len();
        let expected = (shape.layers * shape.kv_heads * directory.stride()) as usize;
        let shape = "[layers, kv_heads, stride]";
        return Err(BackendError::Length { argument, found, expected, shape });
    }
    if directory.cell_bound() > shape.cells() {
        let (cell, cells) = (directory.cell_bound() as u32 - 1, shape.cells());
        return Err(BackendError::Cell { argument, index: 0, cell, token: 0, cells });
    }
    Ok(())
}

/// Checks a model's numbers.
///
/// # Errors
/// [`BackendError::Param`].
pub(crate) fn check_params(params: &AttentionParams) -> Result<(), BackendError> {
    if !params.scale.is_finite() {
        return Err(BackendError::Param { name: "scale", value: params.scale, expected: "finite" });
    }
    match params.soft_cap {
        Some(cap) if !(cap.is_finite() && cap > 0.0) => Err(BackendError::Param {
            name: "soft_cap",
            value: cap,
            expected: "positive and finite",
        }),
        _ => Ok(()),
    }
}

/// `page * 64 + token` of a target; `None` for a counter that does not exist or counts no token.
pub(crate) fn resolve(target: AppendTarget, counters: Counters<'_>) -> Option<u32> {
    if target & APPEND_LIVE == 0 {
        return Some(target);
    }
    let slot = (target & !APPEND_LIVE) as usize;
    let last = counters.lengths.get(slot)?.checked_sub(1)?;
    let page = *counters.tail_pages.get(slot)?;
    (page != NONE).then(|| page * PAGE_TOKENS + last % PAGE_TOKENS)
}

/// A slice in the host's memory, for a backend that has no other.
pub(crate) fn on_host<T>(argument: &'static str, slice: Option<T>) -> Result<T, BackendError> {
    slice.ok_or(BackendError::NotOnHost { argument })
}

pub(super) fn check_dtype(
    shape: &CacheShape,
    argument: &'static str,
    elements: Elements<'_>,
) -> Result<(), BackendError> {
    let (found, expected) = (elements.dtype(), shape.dtype);
    if found != expected {
        return Err(BackendError::DType { argument, found, expected });
    }
    Ok(())
}

pub(crate) fn check_length(
    argument: &'static str,
    found: usize,
    expected: usize,
    shape: &'static str,
) -> Result<(), BackendError> {
    if found != expected {
        return Err(BackendError::Length { argument, found, expected, shape });
    }
    Ok(())
}

pub(super) fn check_page(
    shape: &CacheShape,
    argument: &'static str,
    index: usize,
    place: u32,
) -> Result<(), BackendError> {
    let (page, pages) = (place / PAGE_TOKENS, shape.pages as usize);
    in_pages(argument, index, page, "the cache", pages)
}

/// Whether all of `pages` are the cache's.
pub(crate) fn check_pages(
    shape: &CacheShape,
    argument: &'static str,
    pages: &[PageId],
) -> Result<(), BackendError> {
    let mut pages = pages.iter().enumerate();
    pages.try_for_each(|(index, &page)| {
        in_pages(argument, index, page, "the cache", shape.pages as usize)
    })
}

pub(super) fn in_pages(
    argument: &'static str,
    index: usize,
    page: PageId,
    holder: &'static str,
    pages: usize,
) -> Result<(), BackendError> {
    if page as usize >= pages {
        return Err(BackendError::Page { argument, index, page, holder, pages });
    }
    Ok(())
}

/// Whether no two of `numbers`, which say what is written, are equal.
pub(super) fn check_once(argument: &'static str, numbers: &[u32]) -> Result<(), BackendError> {
    if numbers.is_sorted_by(|before, after| before < after) {
        return Ok(());
    }
    let mut order: Vec<usize> = (0..numbers.len()).collect();
    order.sort_by_key(|&index| numbers[index]);
    let equal = |pair: &&[usize]| numbers[pair[0]] == numbers[pair[1]];
    match order.windows(2).find(equal) {
        Some(pair) => Err(BackendError::Twice {
            argument,
            first: pair[0],
            index: pair[1],
            value: numbers[pair[1]],
        }),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    use crate::cache::{KvElement, PagePool};
    use crate::plan::{Grouping, PlanConfig, Planner};
    use crate::tree::TokenForest;

    #[test]
    fn two_targets_of_one_place_are_refused_however_they_name_it() {
        let shape =
            CacheShape { layers: 1, kv_heads: 1, head_dim: 64, dtype: DType::Bf16, pages: 4 };
        let counters =
            Counters { lengths: &[70], tail_pages: &[2], directory: None, residues: None };
        let check = |targets: &[AppendTarget]| {
            let rows = vec![bf16::ZERO; targets.len() * 64];
            let rows = [bf16::elements(&rows); 2];
            check_append(&shape, 0, targets, counters, rows, None)
                .map_err(|error| error.to_string())
        };
        assert_eq!(check(&[9, 3, APPEND_LIVE]), Ok(()));
        for twice in [[3, 9, 3], [APPEND_LIVE, 9, 2 * 64 + 5]] {
            let error = check(&twice).unwrap_err();
            assert!(error.starts_with("targets[0] and targets[2] both name"), "{error}");
        }
    }

    #[test]
    fn a_plan_beyond_the_cache_or_its_counters_is_refused() {
        let mut forest = TokenForest::new(PagePool::new(8).unwrap());
        let root = forest.insert_root(300).unwrap();
        let config = PlanConfig::new(Grouping::Flatten, 1, 64, 2);
        let plan = Planner::new(config).unwrap().plan(&forest.view(&[root]).unwrap()).unwrap();
        let shape =
            |pages| CacheShape { layers: 1, kv_heads: 1, head_dim: 64, dtype: DType::Bf16, pages };
        let counters = |lengths| Counters { lengths, ..Counters::default() };
        assert!(check_plan(&shape(8), &plan, counters(&[0])).is_ok());
        assert!(matches!(
            check_plan(&shape(4), &plan, counters(&[0])),
            Err(BackendError::Page { page: 4, pages: 4, .. })
        ));
        assert!(matches!(
            check_plan(&shape(8), &plan, counters(&[])),
            Err(BackendError::Length { argument: "counters.lengths", .. })
        ));
    }
}
