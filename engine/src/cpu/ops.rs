//! The small operations between products.

use rayon::prelude::*;

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

/// SwiGLU (arXiv 2002.05202): `gate = silu(gate) up`, with `silu(x) = x / (1 + exp(-x))`.
pub(super) fn silu_mul(gate: &mut [f32], up: &[f32]) {
    let tasks = gate.par_chunks_mut(TASK).zip(up.par_chunks(TASK));
    tasks.for_each(|(gate, up)| {
        for (gate, &up) in gate.iter_mut().zip(up) {
            *gate = *gate / (1.0 + (-*gate).exp()) * up;
        }
    });
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
        silu_mul(&mut gate, &[5.0, 2.0, 2.0, 0.5, 1.0, 1.0]);
        let sigmoid = 1.0 / (1.0 + (-1.0_f32).exp());
        assert_eq!(gate[0], 0.0);
        assert!((gate[1] - 2.0 * sigmoid).abs() < 1e-6);
        assert!((gate[2] + 2.0 * (1.0 - sigmoid)).abs() < 1e-6);
        assert_eq!(gate[3], 50.0);
        assert!(gate[4].abs() < 1e-30 && gate[5].abs() < 1e-30);
    }
}
