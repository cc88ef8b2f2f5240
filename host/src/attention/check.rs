//! Arguments of a [`Backend`](super::Backend), checked the same way by all of them.

use kernels_gpu::abi::{APPEND_LIVE, AppendTarget, NONE, PAGE_TOKENS, TokenMove};

use super::{Attend, AttentionParams, Counters, PagedTokens};
use crate::cache::{CacheShape, DType, PageId, PagedError, named_twice};
use crate::plan::Plan;

/// Why a backend refused. The cache and the outputs are as they were before the call.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// There is no such layer.
    #[error("layer is {layer}, the cache has {layers}")]
    Layer {
        /// The layer asked for.
        layer: u32,
        /// Layers of the cache.
        layers: u32,
    },
    /// A slice is of another element type than the cache.
    #[error("{argument} is {found}, the cache holds {expected}")]
    DType {
        /// The argument's name.
        argument: &'static str,
        /// What came.
        found: DType,
        /// What the cache holds.
        expected: DType,
    },
    /// Rows on a GPU came to a backend that has none.
    #[error("{argument} is on a GPU, the cache is in the host's memory")]
    NotOnHost {
        /// The argument's name.
        argument: &'static str,
    },
    /// Rows on a GPU begin at an address that kernels cannot read 16 bytes at.
    #[error("{argument} begins at {address:#x}; it must be a multiple of 16")]
    Misaligned {
        /// The argument's name.
        argument: &'static str,
        /// Where it begins.
        address: u64,
    },
    /// A slice is too short or too long.
    #[error("{argument} has {found} elements, {shape} takes {expected}")]
    Length {
        /// The argument's name.
        argument: &'static str,
        /// What came.
        found: usize,
        /// What its shape takes.
        expected: usize,
        /// Its shape.
        shape: &'static str,
    },
    /// A target or a move names a page beyond the cache.
    #[error("{argument}[{index}] names page {page}, the cache has {pages}")]
    Page {
        /// The argument's name.
        argument: &'static str,
        /// Index into it.
        index: usize,
        /// The page named.
        page: PageId,
        /// Pages of the cache.
        pages: u32,
    },
    /// A target names a counter that does not exist, or that counts no token.
    #[error("targets[{index}] names length slot {slot}, which holds no token")]
    Slot {
        /// Index into the targets.
        index: usize,
        /// The slot named.
        slot: u32,
    },
    /// Two targets name the same place.
    #[error("targets[{first}] and targets[{index}] name the same token, {token} of page {page}")]
    Twice {
        /// Index of one.
        first: usize,
        /// Index of the other.
        index: usize,
        /// The page both name.
        page: PageId,
        /// The token of the page.
        token: u32,
    },
    /// A row's position is beyond the rotary table.
    #[error("positions[{index}] is {position}, the rotary table has {positions} positions")]
    Position {
        /// Index into the positions.
        index: usize,
        /// The position.
        position: u32,
        /// Positions of the table.
        positions: usize,
    },
    /// A rotary table was made for other heads than the cache's.
    #[error("the rotary table is of head_dim {found}, the cache of {expected}")]
    RotaryHeadDim {
        /// The table's.
        found: u32,
        /// The cache's.
        expected: u32,
    },
    /// A head dimension whose dims cannot be paired.
    #[error("head_dim of a rotary table is {head_dim}; it must be even and positive")]
    OddHeadDim {
        /// What it was.
        head_dim: u32,
    },
    /// A number of [`AttentionParams`] is none to compute with.
    #[error("{name} is {value}; it must be {expected}")]
    Param {
        /// The parameter.
        name: &'static str,
        /// What it was.
        value: f32,
        /// What it may be.
        expected: &'static str,
    },
    /// An import or an export does not fit the cache or the foreign one.
    #[error(transparent)]
    Paged(#[from] PagedError),
    /// The device cannot do it, or failed.
    #[error(transparent)]
    Device(Box<dyn std::error::Error + Send + Sync>),
}

/// Checks the arguments of [`Backend::append`](super::Backend::append), pages of targets included.
///
/// # Errors
/// [`BackendError`], naming the argument.
pub fn check_append(
    shape: &CacheShape,
    layer: u32,
    targets: &[AppendTarget],
    counters: Counters<'_>,
    sources: [(DType, usize); 2],
) -> Result<(), BackendError> {
    check_layer(shape, layer)?;
    let expected = targets.len() * shape.row_elements();
    for (argument, (dtype, found)) in ["k", "v"].into_iter().zip(sources) {
        check_dtype(shape, argument, dtype)?;
        check_length(argument, found, expected, "[targets, kv_heads, head_dim]")?;
    }
    let mut places = Vec::with_capacity(targets.len());
    for (index, &target) in targets.iter().enumerate() {
        let place = resolve(target, counters).ok_or(BackendError::Slot {
            index,
            slot: target & !APPEND_LIVE,
        })?;
        check_page(shape, "targets", index, place)?;
        places.push(place);
    }
    match named_twice(&places) {
        Some([first, index]) => Err(BackendError::Twice {
            first,
            index,
            page: places[index] / PAGE_TOKENS,
            token: places[index] % PAGE_TOKENS,
        }),
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

/// Checks the arguments of [`Backend::import`](super::Backend::import); `foreign` are types and lengths of K
/// and V.
///
/// # Errors
/// [`BackendError`], naming the argument.
pub fn check_import(
    shape: &CacheShape,
    paged: PagedTokens<'_>,
    foreign: [(DType, usize); 2],
) -> Result<(), BackendError> {
    let elements = check_foreign(shape, foreign)?;
    let (layer, places) = (paged.layer, paged.places);
    Ok(paged.table.check_import(shape, layer, places, elements)?)
}

/// Checks the arguments of [`Backend::export`](super::Backend::export); `foreign` are types and lengths of K
/// and V.
///
/// # Errors
/// [`BackendError`], naming the argument.
pub fn check_export(
    shape: &CacheShape,
    paged: PagedTokens<'_>,
    foreign: [(DType, usize); 2],
) -> Result<(), BackendError> {
    let elements = check_foreign(shape, foreign)?;
    let (layer, places) = (paged.layer, paged.places);
    Ok(paged.table.check_export(shape, layer, places, elements)?)
}

/// Elements of a foreign cache of the right type.
fn check_foreign(
    shape: &CacheShape,
    foreign: [(DType, usize); 2],
) -> Result<[usize; 2], BackendError> {
    for (argument, (dtype, _)) in ["k", "v"].into_iter().zip(foreign) {
        check_dtype(shape, argument, dtype)?;
    }
    Ok(foreign.map(|(_, elements)| elements))
}

/// Checks the arguments of [`Backend::attend`](super::Backend::attend). Whether the plan's pages exist is not part of
/// it: it takes as long as to read the plan.
///
/// # Errors
/// [`BackendError`], naming the argument.
pub fn check_attend(shape: &CacheShape, call: &Attend<'_>) -> Result<(), BackendError> {
    check_layer(shape, call.layer)?;
    check_dtype(shape, "q", call.q.dtype())?;
    check_dtype(shape, "out", call.out.dtype())?;
    let heads = call.plan.queries() as usize * (call.plan.group_size() * shape.kv_heads) as usize;
    let elements = heads * shape.head_dim as usize;
    check_length("q", call.q.len(), elements, "[queries, q_heads, head_dim]")?;
    check_length(
        "out",
        call.out.len(),
        elements,
        "[queries, q_heads, head_dim]",
    )?;
    if let Some(lse) = &call.lse {
        let (found, expected) = (lse.dtype(), DType::F32);
        if found != expected {
            let argument = "lse";
            return Err(BackendError::DType {
                argument,
                found,
                expected,
            });
        }
        check_length("lse", lse.len(), heads, "[queries, q_heads]")?;
    }
    check_params(&call.params)
}

/// Checks that a plan's pages and length slots exist: a kernel would read beyond the cache.
///
/// # Errors
/// [`BackendError::Page`], or [`BackendError::Length`] for too few counters.
pub(crate) fn check_plan(
    shape: &CacheShape,
    plan: &Plan,
    slots: usize,
) -> Result<(), BackendError> {
    for share in 0..plan.shares() {
        for item in plan.share(share).items() {
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
                    if page >= shape.pages {
                        return Err(BackendError::Page {
                            argument: "plan",
                            index,
                            page,
                            pages: shape.pages,
                        });
                    }
                }
            }
        }
    }
    Ok(())
}

/// Checks a model's numbers.
///
/// # Errors
/// [`BackendError::Param`].
pub(crate) fn check_params(params: &AttentionParams) -> Result<(), BackendError> {
    if !params.scale.is_finite() {
        return Err(BackendError::Param {
            name: "scale",
            value: params.scale,
            expected: "finite",
        });
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
pub fn resolve(target: AppendTarget, counters: Counters<'_>) -> Option<u32> {
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

fn check_layer(shape: &CacheShape, layer: u32) -> Result<(), BackendError> {
    let layers = shape.layers;
    if layer >= layers {
        return Err(BackendError::Layer { layer, layers });
    }
    Ok(())
}

pub(crate) fn check_dtype(
    shape: &CacheShape,
    argument: &'static str,
    found: DType,
) -> Result<(), BackendError> {
    let expected = shape.dtype;
    if found != expected {
        return Err(BackendError::DType {
            argument,
            found,
            expected,
        });
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
        return Err(BackendError::Length {
            argument,
            found,
            expected,
            shape,
        });
    }
    Ok(())
}

fn check_page(
    shape: &CacheShape,
    argument: &'static str,
    index: usize,
    place: u32,
) -> Result<(), BackendError> {
    let (page, pages) = (place / PAGE_TOKENS, shape.pages);
    if page >= pages {
        return Err(BackendError::Page {
            argument,
            index,
            page,
            pages,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::PagePool;
    use crate::plan::{Grouping, PlanConfig, Planner};
    use crate::tree::TokenForest;

    #[test]
    fn two_targets_of_one_place_are_refused_however_they_name_it() {
        let shape = CacheShape {
            layers: 1,
            kv_heads: 1,
            head_dim: 64,
            dtype: DType::Bf16,
            pages: 4,
        };
        let counters = Counters {
            lengths: &[70],
            tail_pages: &[2],
        };
        let check = |targets: &[AppendTarget]| {
            let sources = [(DType::Bf16, targets.len() * 64); 2];
            check_append(&shape, 0, targets, counters, sources).map_err(|error| error.to_string())
        };
        assert_eq!(check(&[9, 3, APPEND_LIVE]), Ok(()));
        for twice in [[3, 9, 3], [APPEND_LIVE, 9, 2 * 64 + 5]] {
            let error = check(&twice).unwrap_err();
            assert!(
                error.starts_with("targets[0] and targets[2] name the same token"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_plan_beyond_the_cache_or_its_counters_is_refused() {
        let mut forest = TokenForest::new(PagePool::new(8).unwrap());
        let root = forest.insert_root(300).unwrap();
        let config = PlanConfig::new(Grouping::Flatten, 1, 64, 2);
        let plan = Planner::new(config)
            .unwrap()
            .plan(&forest.view(&[root]).unwrap())
            .unwrap();
        let shape = |pages| CacheShape {
            layers: 1,
            kv_heads: 1,
            head_dim: 64,
            dtype: DType::Bf16,
            pages,
        };
        assert!(check_plan(&shape(8), &plan, 1).is_ok());
        assert!(matches!(
            check_plan(&shape(4), &plan, 1),
            Err(BackendError::Page {
                page: 4,
                pages: 4,
                ..
            })
        ));
        assert!(matches!(
            check_plan(&shape(8), &plan, 0),
            Err(BackendError::Length {
                argument: "counters.lengths",
                ..
            })
        ));
    }
}
