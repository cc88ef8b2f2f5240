//! Rotary position embedding of one pair of dims, shared by host and device so that both give the same
//! bits.
//!
//! A key at position `p` is turned by the angle `p * theta_i` in the plane of its pair `i` of dims
//! (RoFormer, arXiv 2104.09864, equation 34). Which dims are a pair is a convention: RoFormer takes
//! neighbours, `2i` and `2i + 1`; here it is Llama's "rotate half", `i` and `i + head_dim / 2`, which
//! is the same up to an order of dims that queries share.

/// `[x, y]` turned by the angle whose cosine and sine are given: products and sums each rounded to f32,
/// none fused.
#[inline(always)]
pub fn rotate([x, y]: [f32; 2], cos: f32, sin: f32) -> [f32; 2] {
    [x * cos - y * sin, y * cos + x * sin]
}

#[cfg(test)]
mod tests {
    use super::rotate;

    #[test]
    fn a_quarter_turn_takes_the_first_axis_to_the_second() {
        assert_eq!(rotate([3.0, 0.0], 0.0, 1.0), [0.0, 3.0]);
        assert_eq!(rotate([0.0, 2.0], 0.0, 1.0), [-2.0, 0.0]);
        assert_eq!(rotate([1.5, -2.5], 1.0, 0.0), [1.5, -2.5]);
    }
}
