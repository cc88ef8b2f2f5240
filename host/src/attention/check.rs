//! Arguments of a [`Backend`](super::Backend), checked the same way by all of them.

use kernels_gpu::abi::{APPEND_LIVE, AppendTarget, NONE, PAGE_TOKENS, TokenMove};

use super::{Attend, AttentionParams, Counters};
use crate::cache::{CacheShape, DType, PageId};

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
    for (index, &target) in targets.iter().enumerate() {
        let place = resolve(target, counters).ok_or(BackendError::Slot {
            index,
            slot: target & !APPEND_LIVE,
        })?;
        check_page(shape, "targets", index, place)?;
    }
    Ok(())
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

/// Checks the arguments of [`Backend::attend`](super::Backend::attend). That the plan's pages and slots
/// exist is the caller's part.
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
        check_length("lse", lse.len(), heads, "[queries, q_heads]")?;
    }
    check_params(&call.params)
}

/// Checks a model's numbers.
///
/// # Errors
/// [`BackendError::Param`].
pub fn check_params(params: &AttentionParams) -> Result<(), BackendError> {
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
