//! Feature maps: what takes the place of `exp(q . k)` for tokens that are folded together.

use crate::tree::FeatureMap;

/// LESS's maps (arXiv 2402.09398): `phi(q) = |gelu(gelu(q W1) W2)|`; with `u = |s1| * gelu(gelu(k W1) W2)` of weights of
/// their own `psi(k) = |u + s2 * (u W3)|`. Products with `s1` and `s2` are by feature.
#[derive(Clone, Debug, PartialEq)]
pub struct LessMap {
    hidden: usize,
    features: usize,
    /// By layer.
    layers: Vec<LessLayer>,
}

/// A layer's weights, row-major, a head after the other; `hidden` may be any number.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LessLayer {
    /// `[q_heads, head_dim, hidden]`
    pub phi_w1: Vec<f32>,
    /// `[q_heads, hidden, R]`
    pub phi_w2: Vec<f32>,
    /// `[kv_heads, head_dim, hidden]`
    pub psi_w1: Vec<f32>,
    /// `[kv_heads, hidden, R]`
    pub psi_w2: Vec<f32>,
    /// `[kv_heads, R, R]`
    pub psi_w3: Vec<f32>,
    /// `[kv_heads, R]`
    pub s1: Vec<f32>,
    /// `[kv_heads, R]`
    pub s2: Vec<f32>,
}

/// The sizes that weights of [`LessMap`] have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LessShape {
    /// Query heads.
    pub q_heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Elements of a head.
    pub head_dim: usize,
    /// Elements between the two products.
    pub hidden: usize,
    /// Features, `R`.
    pub features: usize,
}

/// A weight has another number of elements than its shape says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("layer {layer}: {name} has {found} elements; its shape takes {expected}")]
pub struct LessError {
    /// The layer.
    pub layer: usize,
    /// The weight's name.
    pub name: &'static str,
    /// Elements that it has.
    pub found: usize,
    /// Elements that it must have.
    pub expected: usize,
}

impl LessMap {
    /// Maps of these weights, by layer that has keys of its own.
    ///
    /// # Errors
    /// [`LessError`].
    pub fn new(shape: LessShape, layers: Vec<LessLayer>) -> Result<Self, LessError> {
        let LessShape { q_heads, kv_heads, head_dim, hidden, features } = shape;
        for (layer, weights) in layers.iter().enumerate() {
            for (name, found, expected) in [
                ("phi_w1", &weights.phi_w1, q_heads * head_dim * hidden),
                ("phi_w2", &weights.phi_w2, q_heads * hidden * features),
                ("psi_w1", &weights.psi_w1, kv_heads * head_dim * hidden),
                ("psi_w2", &weights.psi_w2, kv_heads * hidden * features),
                ("psi_w3", &weights.psi_w3, kv_heads * features * features),
                ("s1", &weights.s1, kv_heads * features),
                ("s2", &weights.s2, kv_heads * features),
            ] {
                if found.len() != expected {
                    return Err(LessError { layer, name, found: found.len(), expected });
                }
            }
        }
        Ok(Self { hidden, features, layers })
    }
}

impl FeatureMap for LessMap {
    fn rank(&self) -> usize {
        self.features
    }

    fn phi(&self, layer: u32, q_head: u32, q: &[f32], features: &mut [f32]) {
        let weights = &self.layers[layer as usize];
        self.perceptron([&weights.phi_w1, &weights.phi_w2], q_head as usize, q, features);
        features.iter_mut().for_each(|feature| *feature = feature.abs());
    }

    fn psi(&self, layer: u32, kv_head: u32, k: &[f32], features: &mut [f32]) {
        let (weights, head, count) =
            (&self.layers[layer as usize], kv_head as usize, self.features);
        let mut inner = vec![0.0; count];
        self.perceptron([&weights.psi_w1, &weights.psi_w2], head, k, &mut inner);
        let [s1, s2] = [&weights.s1, &weights.s2].map(|s| &s[head * count..][..count]);
        inner.iter_mut().zip(s1).for_each(|(feature, s1)| *feature *= s1.abs());
        let mixed = &weights.psi_w3[head * count * count..][..count * count];
        product(&inner, mixed, features);
        for ((feature, inner), s2) in features.iter_mut().zip(&inner).zip(s2) {
            *feature = (inner + s2 * *feature).abs();
        }
    }
}

impl LessMap {
    /// `gelu(gelu(x W1) W2)` of a head.
    fn perceptron(&self, [w1, w2]: [&[f32]; 2], head: usize, x: &[f32], out: &mut [f32]) {
        let mut inner = vec![0.0; self.hidden];
        let of_head =
            |rows: usize, columns: usize| head * rows * columns..(head + 1) * rows * columns;
        product(x, &w1[of_head(x.len(), self.hidden)], &mut inner);
        inner.iter_mut().for_each(|x| *x = gelu(*x));
        product(&inner, &w2[of_head(self.hidden, self.features)], out);
        out.iter_mut().for_each(|x| *x = gelu(*x));
    }
}

/// `x W`, `W` row-major.
fn product(x: &[f32], w: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for (x, row) in x.iter().zip(w.chunks_exact(out.len().max(1))) {
        out.iter_mut().zip(row).for_each(|(out, w)| *out += x * w);
    }
}

/// `x * (1 + erf(x / sqrt 2)) / 2`, as PyTorch has it.
fn gelu(x: f32) -> f32 {
    x * 0.5 * (1.0 + erf(f64::from(x) * std::f64::consts::FRAC_1_SQRT_2) as f32)
}

/// To within 1.5e-7 (Abramowitz and Stegun, 7.1.26).
fn erf(x: f64) -> f64 {
    const FACTORS: [f64; 5] =
        [1.061_405_429, -1.453_152_027, 1.421_413_741, -0.284_496_736, 0.254_829_592];
    let t = 1.0 / (1.0 + 0.327_591_1 * x.abs());
    let polynomial = FACTORS.iter().fold(0.0, |sum, factor| (sum + factor) * t);
    (1.0 - polynomial * (-x * x).exp()).copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: LessShape =
        LessShape { q_heads: 2, kv_heads: 1, head_dim: 2, hidden: 3, features: 2 };

    fn layer() -> LessLayer {
        let ramp = |count: usize| (0..count).map(|i| 0.5 - 0.1 * i as f32).collect::<Vec<_>>();
        LessLayer {
            phi_w1: ramp(12),
            phi_w2: ramp(12),
            psi_w1: ramp(6),
            psi_w2: ramp(6),
            psi_w3: ramp(4),
            s1: vec![-2.0, 1.0],
            s2: vec![0.5, -1.0],
        }
    }

    #[test]
    fn gelu_is_what_its_definition_gives() {
        for (x, right) in [(0.0, 0.0), (1.0, 0.841_344_7), (-1.0, -0.158_655_3), (3.0, 2.995_95)] {
            assert!((gelu(x) - right).abs() < 1e-6, "{x}: {}", gelu(x));
        }
    }

    #[test]
    fn features_are_what_a_calculation_by_hand_gives() {
        let map = LessMap::new(SHAPE, vec![layer()]).unwrap();
        let k = [1.0, -2.0];
        // Rows of W1: (.5, .4, .3) and (.2, .1, 0).
        let inner = [0.1, 0.2, 0.3].map(gelu);
        // Rows of W2: (.5, .4), (.3, .2), (.1, 0).
        let u = [inner[0] * 0.5 + inner[1] * 0.3 + inner[2] * 0.1, inner[0] * 0.4 + inner[1] * 0.2];
        let u = [2.0 * gelu(u[0]), gelu(u[1])];
        // Rows of W3: (.5, .4), (.3, .2).
        let mixed = [u[0] * 0.5 + u[1] * 0.3, u[0] * 0.4 + u[1] * 0.2];
        let right = [(u[0] + 0.5 * mixed[0]).abs(), (u[1] - mixed[1]).abs()];
        let mut found = [f32::NAN; 2];
        map.psi(0, 0, &k, &mut found);
        assert!(found.iter().zip(right).all(|(a, b)| (a - b).abs() < 1e-6), "{found:?} {right:?}");
        // The second query head has weights of its own, all negative after the first few.
        let mut of_heads = [[f32::NAN; 2]; 2];
        map.phi(0, 0, &k, &mut of_heads[0]);
        map.phi(0, 1, &k, &mut of_heads[1]);
        assert_ne!(of_heads[0], of_heads[1]);
        assert!(of_heads.iter().flatten().all(|&feature| feature >= 0.0));
    }

    #[test]
    fn a_weight_of_another_size_is_named() {
        let mut wrong = layer();
        wrong.s2.pop();
        let error = LessMap::new(SHAPE, vec![layer(), wrong]).unwrap_err();
        assert_eq!(error, LessError { layer: 1, name: "s2", found: 1, expected: 2 });
    }
}
