//! The small operations between products.

use rayon::prelude::*;

use crate::config::Activation;

/// Elements that one task of a pool works on.
const TASK: usize = 4096;

/// RMSNorm (arXiv 1910.07467): each row of `x`, `[n, width]`, divided by its root mean square and multiplied
/// with `gain`, `[width]`, into `out`.
pub(super) fn rms_norm(x: &[f32], gain: &[f32], epsilon: f32, out: &mut [f32]) {
    let width = gain.len();
    for (x, out) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
        let squares: f64 = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let mean = squares / width as f64 + f64::from(epsilon);
        let scale = mean.sqrt().recip() as f32;
        for ((out, &x), &gain) in out.iter_mut().zip(x).zip(gain) {
            *out = x * scale * gain;
        }
    }
}

/// The same in place.
pub(super) fn rms_norm_in_place(x: &mut [f32], gain: &[f32], epsilon: f32) {
    let mut row = vec![0.0; gain.len()];
    for x in x.chunks_exact_mut(gain.len()) {
        row.copy_from_slice(x);
        rms_norm(&row, gain, epsilon, x);
    }
}

/// `y` of every row of `x` is added to it: `[width]` to `[n, width]`.
pub(super) fn add_to_rows(x: &mut [f32], y: &[f32]) {
    for row in x.chunks_exact_mut(y.len()) {
        row.iter_mut().zip(y).for_each(|(x, y)| *x += y);
    }
}

/// A gated unit (arXiv 2002.05202): `gate = f(gate) up`.
pub(super) fn gate_mul(activation: Activation, gate: &mut [f32], up: &[f32]) {
    match activation {
        Activation::Silu => gated(gate, up, |x| x / (1.0 + (-x).exp())),
        Activation::GeluTanh => gated(gate, up, |x| {
            let root = std::f32::consts::FRAC_2_SQRT_PI * std::f32::consts::FRAC_1_SQRT_2;
            0.5 * x * (1.0 + (root * (x + 0.044_715 * x * x * x)).tanh())
        }),
    }
}

fn gated(gate: &mut [f32], up: &[f32], f: impl Fn(f32) -> f32 + Sync) {
    let tasks = gate.par_chunks_mut(TASK).zip(up.par_chunks(TASK));
    tasks.for_each(|(gate, up)| {
        for (gate, &up) in gate.iter_mut().zip(up) {
            *gate = f(*gate) * up;
        }
    });
}

/// `x = cap tanh(x / cap)`.
pub(super) fn soft_cap(x: &mut [f32], cap: f32) {
    let tasks = x.par_chunks_mut(TASK);
    tasks.for_each(|x| x.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_normed_row_has_the_gain_s_mean_square() {
        let x = [3.0, -4.0, 0.0, 0.0, 1e-20, 0.0, 0.0, 0.0];
        let mut out = [f32::NAN; 8];
        rms_norm(&x, &[1.0, 1.0, 1.0, 2.0], 0.0, &mut out);
        assert_eq!(out[..4], [1.2, -1.6, 0.0, 0.0]);
        assert_eq!(out[4..], [2.0, 0.0, 0.0, 0.0]);
        rms_norm(&[0.0; 4], &[1.0; 4], 1e-5, &mut out[..4]);
        assert_eq!(out[..4], [0.0; 4], "no row divides by zero");
    }

    #[test]
    fn gates_open_and_close() {
        let mut gate = [0.0, 1.0, -1.0, 100.0, -100.0, -1e30];
        gate_mul(Activation::Silu, &mut gate, &[5.0, 2.0, 2.0, 0.5, 1.0, 1.0]);
        let sigmoid = 1.0 / (1.0 + (-1.0_f32).exp());
        assert_eq!(gate[0], 0.0);
        assert!((gate[1] - 2.0 * sigmoid).abs() < 1e-6);
        assert!((gate[2] + 2.0 * (1.0 - sigmoid)).abs() < 1e-6);
        assert_eq!(gate[3], 50.0);
        assert!(gate[4].abs() < 1e-30 && gate[5].abs() < 1e-30);
        let mut gate = [0.0, 1.0, -1.0, 100.0, -100.0, 1e30];
        gate_mul(Activation::GeluTanh, &mut gate, &[5.0, 2.0, 2.0, 0.5, 1.0, 1.0]);
        let inner = (2.0 / std::f64::consts::PI).sqrt() * 1.044_715;
        let one = 0.5 * (1.0 + inner.tanh()) as f32;
        assert_eq!((gate[0], gate[3], gate[4], gate[5]), (0.0, 50.0, 0.0, 1e30));
        assert!((gate[1] - 2.0 * one).abs() < 1e-6 && (gate[2] + 2.0 * (1.0 - one)).abs() < 1e-6);
    }

    #[test]
    fn caps_bend_what_is_large_and_keep_signs() {
        let mut x = [0.0, 0.01, -30.0, 1e9, f32::NEG_INFINITY];
        soft_cap(&mut x, 30.0);
        assert_eq!((x[0], x[3], x[4]), (0.0, 30.0, -30.0));
        assert!((x[1] - 0.01).abs() < 1e-6 && (x[2] + 30.0 * 1.0_f32.tanh()).abs() < 1e-5);
    }

    #[test]
    fn rows_are_normed_in_place_as_elsewhere() {
        let mut x = [3.0, -4.0, 1.0, 2.0];
        let mut expected = [0.0; 4];
        rms_norm(&x, &[1.0, 2.0], 1e-5, &mut expected);
        rms_norm_in_place(&mut x, &[1.0, 2.0], 1e-5);
        assert_eq!(x, expected);
        add_to_rows(&mut x, &[0.5, -0.5]);
        assert_eq!(x[2..], [expected[2] + 0.5, expected[3] - 0.5]);
    }
}
