//! The running softmax of one query row, and how partial results merge.
//!
//! Attention over any split of the KV is a merge of partial results `(o, lse)`; merging is
//! commutative and associative with [`Partial::EMPTY`] as identity (DeFT, section 3.1, equation 1;
//! FlashAttention's online softmax). Logits are in base 2: `s2 = s * log2(e)`, so that the device's
//! `ex2` serves.

/// What the algebra needs of a processor: `core` has none of it, a device has instructions.
pub trait Math {
    /// `2^x`; 0 for -inf.
    fn exp2(x: f32) -> f32;
    /// Base-2 logarithm; -inf for 0.
    fn log2(x: f32) -> f32;
}

/// The device's approximations, for this algebra.
#[cfg(any(target_arch = "nvptx64", feature = "emulate"))]
#[derive(Clone, Copy, Debug)]
pub struct Approximate;

#[cfg(any(target_arch = "nvptx64", feature = "emulate"))]
impl Math for Approximate {
    #[inline(always)]
    fn exp2(x: f32) -> f32 {
        device::math::exp2(x)
    }

    #[inline(always)]
    fn log2(x: f32) -> f32 {
        device::math::log2(x)
    }
}

/// The scalar part of a partial result: what is needed to weigh its `o` against others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Partial {
    /// Largest base-2 logit, or -inf for no token.
    pub max: f32,
    /// Sum of `2^(s2 - max)`.
    pub sum: f32,
}

/// Two partial results as one: the scalar part and what each side's unnormalised `o` is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Merged {
    /// The result over both sides' tokens.
    pub partial: Partial,
    /// Factor of the first side's `o`; 1 while its maximum stands.
    pub first: f32,
    /// Factor of the second side's `o`.
    pub second: f32,
}

impl Partial {
    /// The result over no token.
    pub const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };

    /// The result over one token with base-2 logit `s2`.
    #[inline(always)]
    pub fn one(s2: f32) -> Self {
        if s2 == f32::NEG_INFINITY {
            return Self::EMPTY;
        }
        Self { max: s2, sum: 1.0 }
    }

    /// A finished result that goes by its base-2 LSE, with a *normalised* `o`: it weighs as one token
    /// of that logit does.
    #[inline(always)]
    pub fn from_lse(lse2: f32) -> Self {
        Self::one(lse2)
    }

    /// Takes both results as one. Exactly the other side's when one is empty.
    #[inline(always)]
    pub fn merge<M: Math>(self, other: Self) -> Merged {
        let max = if self.max > other.max { self.max } else { other.max };
        // -inf - -inf is NaN: an empty side weighs nothing, whatever the other is.
        let weight = |side: Self| {
            if side.max == f32::NEG_INFINITY { 0.0 } else { M::exp2(side.max - max) }
        };
        let (first, second) = (weight(self), weight(other));
        Merged { partial: Self { max, sum: self.sum * first + other.sum * second }, first, second }
    }

    /// Adds a token with base-2 logit `s2`; its value's factor is [`Merged::second`].
    #[inline(always)]
    pub fn update<M: Math>(self, s2: f32) -> Merged {
        self.merge::<M>(Self::one(s2))
    }

    /// What an unnormalised `o` is multiplied by in the end; 0 for no token, NaN if a logit was.
    #[inline(always)]
    pub fn normalizer(self) -> f32 {
        if self.sum == 0.0 { 0.0 } else { 1.0 / self.sum }
    }

    /// Base-2 logarithm of the sum of `2^s2`: -inf for no token, NaN if a logit was.
    #[inline(always)]
    pub fn lse2<M: Math>(self) -> f32 {
        if self.sum == 0.0 { f32::NEG_INFINITY } else { self.max + M::log2(self.sum) }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::vec::Vec;

    use super::*;

    struct Std;

    impl Math for Std {
        fn exp2(x: f32) -> f32 {
            x.exp2()
        }
        fn log2(x: f32) -> f32 {
            x.log2()
        }
    }

    /// A partial result with a one-dimensional unnormalised `o`.
    #[derive(Clone, Copy, Debug)]
    struct Row {
        partial: Partial,
        o: f32,
    }

    const NOTHING: Row = Row { partial: Partial::EMPTY, o: 0.0 };

    fn merge(a: Row, b: Row) -> Row {
        let merged = a.partial.merge::<Std>(b.partial);
        Row { partial: merged.partial, o: a.o * merged.first + b.o * merged.second }
    }

    fn row(tokens: &[(f32, f32)]) -> Row {
        tokens.iter().fold(NOTHING, |row, &(s2, value)| {
            let merged = row.partial.update::<Std>(s2);
            Row { partial: merged.partial, o: row.o * merged.first + value * merged.second }
        })
    }

    fn finish(row: Row) -> (f32, f32) {
        (row.o * row.partial.normalizer(), row.partial.lse2::<Std>())
    }

    fn close(a: Row, b: Row) {
        let ((a_o, a_lse), (b_o, b_lse)) = (finish(a), finish(b));
        assert!((a_o - b_o).abs() <= 2e-6 * (1.0 + a_o.abs()), "{a:?} {b:?}");
        assert!(
            a_lse == b_lse || (a_lse - b_lse).abs() <= 1e-6 * (1.0 + a_lse.abs()),
            "{a:?} {b:?}"
        );
    }

    /// Rows of all kinds: none, one token, invisible tokens, ordinary and huge logits.
    fn rows() -> Vec<Row> {
        let hidden = f32::NEG_INFINITY;
        std::vec![
            NOTHING,
            row(&[(hidden, 7.0)]),
            row(&[(0.5, -2.0)]),
            row(&[(1.0, 1.0), (-3.0, 4.0), (2.5, 0.25)]),
            row(&[(hidden, 9.0), (-0.75, 3.0)]),
            row(&[(1e4, 1.0), (1e4 - 1.0, 2.0)]),
            row(&[(-1e30, 5.0)]),
            row(&[(3e38, -1.0)]),
        ]
    }

    #[test]
    fn merging_with_nothing_changes_nothing() {
        for a in rows() {
            let (left, right) = (merge(NOTHING, a), merge(a, NOTHING));
            assert_eq!(left.partial, a.partial);
            assert_eq!(right.partial, a.partial);
            assert_eq!((left.o, right.o), (a.o, a.o));
        }
    }

    #[test]
    fn merging_commutes_and_associates() {
        for a in rows() {
            for b in rows() {
                close(merge(a, b), merge(b, a));
                for c in rows() {
                    close(merge(merge(a, b), c), merge(a, merge(b, c)));
                }
            }
        }
    }

    #[test]
    fn no_token_and_hidden_tokens_are_zero_with_lse_minus_infinity() {
        for nothing in [NOTHING, row(&[(f32::NEG_INFINITY, 3.0); 5])] {
            assert_eq!(finish(nothing), (0.0, f32::NEG_INFINITY));
        }
    }

    #[test]
    fn a_logit_that_is_not_a_number_spoils_every_result_that_it_merges_into() {
        let spoilt = [
            row(&[(f32::NAN, 1.0)]),
            row(&[(0.5, 1.0), (f32::NAN, 1.0), (9.0, 2.0)]),
            row(&[(f32::INFINITY, 1.0)]),
        ];
        for spoilt in &spoilt[..2] {
            for other in rows() {
                for merged in [merge(*spoilt, other), merge(other, *spoilt)] {
                    let (o, lse2) = finish(merged);
                    assert!(o.is_nan() && lse2.is_nan(), "{merged:?}");
                    let again = merge(Row { partial: Partial::from_lse(lse2), o }, other);
                    let (o, lse2) = finish(again);
                    assert!(o.is_nan() && lse2.is_nan(), "{again:?}");
                }
            }
        }
        let (o, lse2) = finish(merge(spoilt[2], spoilt[2]));
        assert!(o.is_nan() && lse2.is_nan(), "infinity has no softmax");
    }

    #[test]
    fn one_token_gives_its_value_and_its_logit() {
        assert_eq!(finish(row(&[(-12.5, 42.0)])), (42.0, -12.5));
    }

    #[test]
    fn huge_logits_neither_overflow_nor_vanish() {
        let (o, lse) = finish(row(&[(1e30, 1.0), (1e30, 3.0)]));
        assert_eq!((o, lse), (2.0, 1e30));
        let (o, lse) = finish(row(&[(-1e30, 1.0), (1e30, 3.0)]));
        assert_eq!((o, lse), (3.0, 1e30));
    }

    #[test]
    fn any_order_and_split_is_the_softmax_in_double_precision() {
        let tokens: Vec<(f32, f32)> = (0..97u32)
            .map(|i| {
                let x = (i + 1).wrapping_mul(2_654_435_761) as f32 / u32::MAX as f32;
                (40.0 * x - 20.0, (i as f32).sin())
            })
            .collect();
        let weights: Vec<f64> = tokens.iter().map(|t| f64::from(t.0).exp2()).collect();
        let sum: f64 = weights.iter().sum();
        let values = tokens.iter().zip(&weights);
        let expected: f64 = values.map(|(t, w)| f64::from(t.1) * w / sum).sum();
        for cut in [0, 1, 13, 96, 97] {
            let (a, b) = tokens.split_at(cut);
            let (o, lse) = finish(merge(row(b), row(a)));
            assert!((f64::from(o) - expected).abs() < 1e-6);
            assert!((f64::from(lse) - sum.log2()).abs() < 1e-5);
        }
    }

    #[test]
    fn a_finished_result_weighs_as_its_unfinished_self() {
        for a in rows() {
            for b in rows() {
                let finished = [a, b].map(|side| {
                    let (o, lse2) = finish(side);
                    Row { partial: Partial::from_lse(lse2), o }
                });
                close(merge(finished[0], finished[1]), merge(a, b));
            }
        }
    }
}
