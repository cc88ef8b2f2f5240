//! Values that are not finite, on pages that some rows do not see all of.
//!
//! A row's weight of a token that it does not see is 0, and 0 times NaN or infinity is NaN. Such tokens are taken out of
//! the page before the product, and added afterwards to the rows that see them.

use kernels_gpu::layout::element_offset;
use pulp::Arch;

/// The tokens taken out of a page's V.
#[derive(Clone, Copy, Debug)]
pub(super) struct NonFinite<'a> {
    /// Bit `t` for token `t`.
    pub(super) tokens: u64,
    /// V with them in it.
    pub(super) v: &'a [f32],
}

impl<'a> NonFinite<'a> {
    /// Takes them out of `v`, of which the first `elements` elements hold `tokens` tokens: V without them, in `room` if
    /// there are any.
    pub(super) fn take(
        arch: Arch,
        v: &'a [f32],
        (head_dim, tokens): (usize, usize),
        elements: usize,
        room: &'a mut Vec<f32>,
    ) -> (&'a [f32], Option<Self>) {
        if arch.dispatch(|| all_finite(&v[..elements])) {
            return (v, None);
        }
        room.clear();
        room.extend_from_slice(v);
        let mut bad = 0;
        for token in 0..tokens {
            let places = (0..head_dim as u32)
                .map(|dim| element_offset(head_dim as u32, token as u32, dim) as usize);
            if places.clone().any(|at| !v[at].is_finite()) {
                bad |= 1 << token;
                places.for_each(|at| room[at] = 0.0);
            }
        }
        (room, Some(Self { tokens: bad, v }))
    }
}

/// As integers, for only these may be reordered into vectors.
#[inline(always)]
fn all_finite(values: &[f32]) -> bool {
    let magnitudes = values.iter().map(|value| value.to_bits() & 0x7fff_ffff);
    magnitudes.fold(0, u32::max) < f32::INFINITY.to_bits()
}

/// The bits that are set, from the lowest up.
pub(super) fn bits(mut word: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let bit = (word != 0).then(|| word.trailing_zeros() as usize)?;
        word &= word - 1;
        Some(bit)
    })
}
