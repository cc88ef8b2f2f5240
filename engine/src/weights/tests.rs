//! What every reader of weights relies on.

use deft::{bf16, f16};

use super::*;
use crate::config::Variant;

fn tiny() -> LlamaConfig {
    LlamaConfig {
        layers: 2,
        hidden: 24,
        ffn: 40,
        q_heads: 6,
        kv_heads: 2,
        head_dim: 64,
        vocabulary: 5000,
        ..LlamaConfig::smollm2_135m()
    }
}

fn whole(weights: &Weights, tensor: Tensor) -> Vec<f32> {
    let [rows, columns] = weights.shape(tensor);
    let mut out = vec![f32::NAN; rows * columns];
    weights.read_f32(tensor, 0..rows, &mut out).unwrap();
    out
}

#[test]
fn every_parameter_is_listed_once() {
    for tied_embeddings in [false, true] {
        let config = LlamaConfig { tied_embeddings, ..tiny() };
        let sizes =
            Tensor::all(&config).map(|tensor| tensor.shape(&config).iter().product::<usize>());
        let all: usize = sizes.sum();
        assert_eq!(all as u64, config.parameters());
    }
}

fn narrow_reads_round<T: KvElement + PartialEq>(weights: &Weights, embedding: &[f32]) {
    let mut narrow = vec![T::from_f32(f32::NAN); embedding.len()];
    let rows = 0..weights.shape(Tensor::Embedding)[0];
    weights.read_as(Tensor::Embedding, rows, &mut narrow).unwrap();
    let mut pairs = narrow.iter().zip(embedding);
    assert!(pairs.all(|(&narrow, &wide)| narrow == T::from_f32(wide)));
}

#[test]
fn rows_are_the_same_however_they_are_read() {
    let weights = Weights::synthetic(tiny(), 7).unwrap();
    let embedding = whole(&weights, Tensor::Embedding);
    let mut some = vec![f32::NAN; 24 * 3001];
    weights.read_f32(Tensor::Embedding, 999..4000, &mut some).unwrap();
    assert_eq!(some, embedding[24 * 999..24 * 4000]);
    narrow_reads_round::<bf16>(&weights, &embedding);
    narrow_reads_round::<f16>(&weights, &embedding);
    assert_eq!(whole(&weights, Tensor::Head), embedding, "tied");
    assert_eq!(embedding, whole(&Weights::synthetic(tiny(), 7).unwrap(), Tensor::Embedding));
}

#[test]
fn tensors_rows_and_seeds_differ() {
    let weights = Weights::synthetic(tiny(), 7).unwrap();
    let gate = whole(&weights, Tensor::Layer(0, LayerTensor::Gate));
    assert_ne!(gate, whole(&weights, Tensor::Layer(0, LayerTensor::Up)));
    assert_ne!(gate, whole(&weights, Tensor::Layer(1, LayerTensor::Gate)));
    assert_ne!(gate[..24], gate[24..48]);
    let other = Weights::synthetic(tiny(), 8).unwrap();
    assert_ne!(gate, whole(&other, Tensor::Layer(0, LayerTensor::Gate)));
}

#[test]
fn synthetic_weights_keep_a_state_s_size() {
    let weights = Weights::synthetic(tiny(), 1).unwrap();
    let values = whole(&weights, Tensor::Embedding);
    let mean = values.iter().map(|&x| f64::from(x)).sum::<f64>() / values.len() as f64;
    let squares = values.iter().map(|&x| f64::from(x).powi(2));
    let variance = squares.sum::<f64>() / values.len() as f64;
    assert!(mean.abs() < 2e-3, "{mean}");
    assert!((variance * 24.0 - 1.0).abs() < 0.02, "{variance}");
    assert_eq!(whole(&weights, Tensor::FinalNorm), [1.0; 24]);
}

#[test]
fn reads_out_of_range_are_named_and_write_nothing() {
    let weights = Weights::synthetic(tiny(), 1).unwrap();
    let mut out = [7.0; 48];
    let mut refused = |tensor, rows| {
        let error = weights.read_f32(tensor, rows, &mut out).unwrap_err();
        error.to_string()
    };
    assert_eq!(refused(Tensor::Layer(2, LayerTensor::Up), 0..2), "layer is 2; the model has 2");
    assert_eq!(refused(Tensor::FinalNorm, 0..2), "rows 0..2 are not within FinalNorm, which has 1");
    assert_eq!(
        refused(Tensor::Embedding, 0..3),
        "out has 48 elements, the rows of Embedding take 72"
    );
    assert_eq!(out, [7.0; 48]);
    let config = LlamaConfig { layers: 0, ..tiny() };
    assert_eq!(Weights::synthetic(config, 1).unwrap_err().field, "layers");
}

#[test]
fn a_model_cut_short_has_the_first_layers_and_both_ends() {
    let whole = Weights::synthetic(tiny(), 7).unwrap();
    let cut = Weights::synthetic(tiny(), 7).unwrap();
    let cut = cut.with_layers(1).unwrap();
    assert_eq!(cut.config().layers, 1);
    for tensor in Tensor::all(cut.config()) {
        assert_eq!(self::whole(&cut, tensor), self::whole(&whole, tensor));
    }
    let error = cut.with_layers(2).unwrap_err().to_string();
    assert_eq!(error, "layers is 2; it must be between 1 and the model's own, 1");
}

/// All weights are one value.
#[derive(Debug)]
struct Constant(f32);

impl Source for Constant {
    fn read(&self, _: Tensor, _: Range<usize>, out: &mut [f32]) -> Result<(), WeightsError> {
        out.fill(self.0);
        Ok(())
    }
}

#[test]
fn a_weight_beyond_a_type_s_range_is_named_and_not_made_infinite() {
    let of = |value| Weights::of(tiny(), Arc::new(Constant(value)));
    let mut out = [f16::ZERO; 24];
    // The largest that is rounded down to f16's largest, and the least that is not.
    let (last, first) = (65_519.0, 65_520.0);
    of(-last).read_as(Tensor::Embedding, 0..1, &mut out).unwrap();
    assert_eq!(out, [f16::MIN; 24]);
    let error = of(-first).read_as(Tensor::Embedding, 0..1, &mut out).unwrap_err();
    assert_eq!(
        error.to_string(),
        "Embedding has a weight of -65520; f16 holds up to 65504, bf16 up to 3.39e38"
    );
    let mut wide = [bf16::ZERO; 24];
    of(first).read_as(Tensor::Embedding, 0..1, &mut wide).unwrap();
    assert_eq!(wide, [bf16::from_f32(first); 24]);
}

#[test]
fn a_model_s_parameters_are_those_of_its_tensors() {
    for variant in [
        Variant::LLAMA,
        Variant { qkv_bias: true, ..Variant::LLAMA },
        Variant { qk_norm: true, post_norms: true, ..Variant::LLAMA },
    ] {
        for tied_embeddings in [false, true] {
            let config = LlamaConfig { variant: variant.clone(), tied_embeddings, ..tiny() };
            let sizes =
                Tensor::all(&config).map(|tensor| tensor.shape(&config).iter().product::<usize>());
            assert_eq!(config.parameters(), sizes.sum::<usize>() as u64);
        }
    }
}
