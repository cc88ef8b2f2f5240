//! Vector operations that `pulp` leaves to its users.

use pulp::Simd;

/// Coefficients of `2^x = sum (x ln 2)^k / k!`, from the highest power down.
const EXP2: [f32; 7] = {
    let mut coefficients = [0.0; 7];
    let mut term = 1.0f64;
    let mut k = 0;
    while k < 7 {
        coefficients[6 - k] = term as f32;
        k += 1;
        term *= std::f64::consts::LN_2 / k as f64;
    }
    coefficients
};

/// Added to and taken from a small float it leaves the nearest integer, which its last bits then hold.
const ROUND: f32 = 12_582_912.0;

/// `2^x` for `x <= 127`, to within 2e-7 of its value; 0 below -126, for -inf too; NaN for NaN.
#[inline(always)]
pub(super) fn exp2<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let least = simd.splat_f32s(-126.0);
    // Not `max`, which on some processors gives the other operand for NaN.
    let vanishes = simd.less_than_f32s(x, least);
    let clamped = simd.select_f32s(vanishes, least, x);
    let shifted = simd.add_f32s(clamped, simd.splat_f32s(ROUND));
    let whole = simd.sub_f32s(shifted, simd.splat_f32s(ROUND));
    let rest = simd.sub_f32s(clamped, whole);
    let mut power = simd.splat_f32s(EXP2[0]);
    for coefficient in &EXP2[1..] {
        power = simd.mul_add_e_f32s(power, rest, simd.splat_f32s(*coefficient));
    }
    // The whole part goes into the exponent's bits.
    let bits = simd.transmute_u32s_f32s(shifted);
    let exponent = simd.wrapping_dyn_shl_u32s(bits, simd.splat_u32s(23));
    let scaled = simd.add_u32s(simd.transmute_u32s_f32s(power), exponent);
    let scaled = simd.transmute_f32s_u32s(scaled);
    // What the sum made of a NaN's bits may be a number.
    let scaled = simd.select_f32s(simd.equal_f32s(x, x), scaled, x);
    simd.select_f32s(vanishes, simd.splat_f32s(0.0), scaled)
}

/// `tanh(x)` to within 3e-7; NaN for NaN.
#[inline(always)]
pub(super) fn tanh<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    // 1 - 2 / (e^2x + 1); beyond 10 f32 has nothing but 1.
    let one = simd.splat_f32s(1.0);
    let [least, most] = [simd.splat_f32s(-10.0), simd.splat_f32s(10.0)];
    let bounded = simd.select_f32s(simd.less_than_f32s(x, least), least, x);
    let bounded = simd.select_f32s(simd.less_than_f32s(most, bounded), most, bounded);
    let power = simd.mul_f32s(bounded, simd.splat_f32s(2.0 * std::f32::consts::LOG2_E));
    let below = simd.add_f32s(exp2(simd, power), one);
    simd.sub_f32s(one, simd.div_f32s(simd.splat_f32s(2.0), below))
}

#[cfg(test)]
mod tests {
    use pulp::{Arch, WithSimd};

    use super::*;

    struct Map<'a> {
        values: &'a mut [f32],
        tanh: bool,
    }

    impl WithSimd for Map<'_> {
        type Output = ();

        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let (vectors, rest) = S::as_mut_simd_f32s(self.values);
            assert!(rest.is_empty());
            for x in vectors {
                *x = if self.tanh { tanh(simd, *x) } else { exp2(simd, *x) };
            }
        }
    }

    fn map(values: &[f32], tanh: bool) -> Vec<f32> {
        let mut out = values.to_vec();
        Arch::new().dispatch(Map { values: &mut out, tanh });
        out
    }

    #[test]
    fn exp2_keeps_to_its_bound_and_vanishes_for_minus_infinity() {
        let values: Vec<f32> = (0..64_000).map(|i| i as f32 * -0.002 + 2.0).collect();
        for (x, y) in values.iter().zip(map(&values, false)) {
            let exact = f64::from(*x).exp2();
            let error = (f64::from(y) - exact).abs() / exact;
            assert!(error < 2e-7 || (*x < -126.0 && y == 0.0), "{x}: {y}");
        }
        let edges = [f32::NEG_INFINITY, -3e38, -1e4, -126.5, 0.0, 1.0, 0.5, 127.0].repeat(2);
        let powers = map(&edges, false);
        assert_eq!(powers[..6], [0.0, 0.0, 0.0, 0.0, 1.0, 2.0]);
        assert_eq!(powers[7], 2f32.powi(127));
    }

    #[test]
    fn tanh_keeps_to_its_bound_everywhere() {
        let values: Vec<f32> = (-32_000..32_000).map(|i| i as f32 * 0.001).collect();
        for (x, y) in values.iter().zip(map(&values, true)) {
            assert!((f64::from(y) - f64::from(*x).tanh()).abs() < 3e-7, "{x}: {y}");
        }
        let far = map(&[f32::INFINITY, f32::NEG_INFINITY].repeat(8), true);
        assert_eq!(far[..2], [1.0, -1.0]);
    }

    #[test]
    fn not_a_number_stays_so_whatever_its_bits() {
        let quiet = (0..32).map(|bit| f32::from_bits(0x7fc0_0000 | 1 << bit));
        let values: Vec<f32> = quiet.filter(|x| x.is_nan()).chain([-f32::NAN; 8]).collect();
        let values = &values[..values.len() / 16 * 16];
        for tanh in [false, true] {
            assert!(map(values, tanh).iter().all(|y| y.is_nan()));
        }
    }
}
