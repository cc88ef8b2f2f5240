//! LESS's weights in a safetensors file.

use std::path::Path;

use deft::retain::{LessLayer, LessMap, LessShape};
use safetensors::{Dtype, SafeTensors};

use crate::config::LlamaConfig;
use crate::weights::WeightsError;

/// Reads the feature maps of a model from a safetensors file. Of layer `i`, in f32, row-major:
///
/// | tensor | shape |
/// |---|---|
/// | `layers.i.phi.w1`, `layers.i.phi.w2` | `[q_heads, head_dim, hidden]`, `[q_heads, hidden, R]` |
/// | `layers.i.psi.w1`, `layers.i.psi.w2` | `[kv_heads, head_dim, hidden]`, `[kv_heads, hidden, R]` |
/// | `layers.i.psi.w3` | `[kv_heads, R, R]` |
/// | `layers.i.psi.s1`, `layers.i.psi.s2` | `[kv_heads, R]` |
///
/// Queries and keys are those that attention has, turned by their positions. Layer 0 says what `hidden` and `R` are.
///
/// # Errors
/// [`WeightsError`]: the file cannot be read or is broken, or a tensor is missing or has another shape or type.
pub fn read_less(path: &Path, config: &LlamaConfig) -> Result<LessMap, WeightsError> {
    let bytes = std::fs::read(path).map_err(|error| WeightsError::io(path, error))?;
    parse(&bytes, config).map_err(|what| WeightsError::file(path, what))
}

fn parse(bytes: &[u8], config: &LlamaConfig) -> Result<LessMap, String> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| error.to_string())?;
    let [q_heads, kv_heads, head_dim] =
        [config.q_heads, config.kv_heads, config.head_dim].map(|size| size as usize);
    let inner = |name: &str| -> Result<usize, String> {
        let tensor = file.tensor(name).map_err(|error| error.to_string())?;
        tensor.shape().last().copied().ok_or_else(|| format!("tensor {name:?} is a number"))
    };
    let (hidden, features) = (inner("layers.0.phi.w1")?, inner("layers.0.phi.w2")?);
    let read = |layer: u32, name: &str, shape: &[usize]| -> Result<Vec<f32>, String> {
        let name = format!("layers.{layer}.{name}");
        let tensor = file.tensor(&name).map_err(|error| error.to_string())?;
        if tensor.shape() != shape || tensor.dtype() != Dtype::F32 {
            let (found, of) = (tensor.shape(), tensor.dtype());
            return Err(format!("tensor {name:?} is {of:?} {found:?}; it must be F32 {shape:?}"));
        }
        let (values, _) = tensor.data().as_chunks::<4>();
        Ok(values.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect())
    };
    let layers = (0..config.layers).map(|layer| {
        Ok(LessLayer {
            phi_w1: read(layer, "phi.w1", &[q_heads, head_dim, hidden])?,
            phi_w2: read(layer, "phi.w2", &[q_heads, hidden, features])?,
            psi_w1: read(layer, "psi.w1", &[kv_heads, head_dim, hidden])?,
            psi_w2: read(layer, "psi.w2", &[kv_heads, hidden, features])?,
            psi_w3: read(layer, "psi.w3", &[kv_heads, features, features])?,
            s1: read(layer, "psi.s1", &[kv_heads, features])?,
            s2: read(layer, "psi.s2", &[kv_heads, features])?,
        })
    });
    let layers = layers.collect::<Result<Vec<_>, String>>()?;
    let shape = LessShape { q_heads, kv_heads, head_dim, hidden, features };
    LessMap::new(shape, layers).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use deft::retain::FeatureMap;
    use safetensors::tensor::TensorView;

    use super::*;

    /// A file with two query heads on one KV head of 64, `hidden` 3 and 4 features; `wrong` is a tensor of another shape.
    fn file(wrong: &str) -> Vec<u8> {
        let shapes: [(&str, Vec<usize>); 7] = [
            ("phi.w1", vec![2, 64, 3]),
            ("phi.w2", vec![2, 3, 4]),
            ("psi.w1", vec![1, 64, 3]),
            ("psi.w2", vec![1, 3, 4]),
            ("psi.w3", vec![1, 4, 4]),
            ("psi.s1", vec![1, 4]),
            ("psi.s2", vec![1, 4]),
        ];
        let tensors = shapes.into_iter().map(|(name, mut shape)| {
            if name == wrong {
                shape.push(1);
            }
            let count: usize = shape.iter().product();
            let bytes: Vec<u8> =
                (0..count).flat_map(|i| (0.01 * i as f32).sin().to_le_bytes()).collect();
            (format!("layers.0.{name}"), shape, bytes)
        });
        let tensors: Vec<_> = tensors.collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            (name.as_str(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    fn config() -> LlamaConfig {
        LlamaConfig {
            layers: 1,
            hidden: 128,
            ffn: 32,
            q_heads: 2,
            kv_heads: 1,
            head_dim: 64,
            vocabulary: 40,
            context: 300,
            rms_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: crate::config::RopeScaling::None,
            tied_embeddings: true,
            variant: crate::config::Variant::LLAMA,
        }
    }

    #[test]
    fn maps_are_read_with_the_sizes_that_the_first_layer_has() {
        let map = parse(&file(""), &config()).unwrap();
        assert_eq!(map.rank(), 4);
        let mut features = [f32::NAN; 4];
        map.phi(0, 1, &[0.3; 64], &mut features);
        assert!(features.iter().all(|&feature| feature >= 0.0));
        map.psi(0, 0, &[0.3; 64], &mut features);
        assert!(features.iter().all(|&feature| feature >= 0.0));
    }

    #[test]
    fn a_tensor_that_is_missing_or_of_another_shape_is_named() {
        let error = parse(&file("psi.w3"), &config()).unwrap_err();
        assert!(error.contains("layers.0.psi.w3") && error.contains("[1, 4, 4]"), "{error}");
        let more = LlamaConfig { layers: 2, ..config() };
        let error = parse(&file(""), &more).unwrap_err();
        assert!(error.contains("layers.1.phi.w1"), "{error}");
        assert!(parse(b"nothing", &config()).is_err());
    }
}
