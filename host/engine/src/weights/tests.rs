//! What every reader of weights relies on.

use super::*;

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
        let config = LlamaConfig {
            tied_embeddings,
            ..tiny()
        };
        let sizes =
            Tensor::all(&config).map(|tensor| tensor.shape(&config).iter().product::<usize>());
        let all: usize = sizes.sum();
        assert_eq!(all as u64, config.parameters());
    }
}

#[test]
fn rows_are_the_same_however_they_are_read() {
    let weights = Weights::synthetic(tiny(), 7).unwrap();
    let embedding = whole(&weights, Tensor::Embedding);
    let mut some = vec![f32::NAN; 24 * 3001];
    weights
        .read_f32(Tensor::Embedding, 999..4000, &mut some)
        .unwrap();
    assert_eq!(some, embedding[24 * 999..24 * 4000]);
    let mut narrow = vec![bf16::NAN; 24 * 5000];
    weights
        .read_bf16(Tensor::Embedding, 0..5000, &mut narrow)
        .unwrap();
    assert!(
        narrow
            .iter()
            .zip(&embedding)
            .all(|(&narrow, &wide)| narrow == bf16::from_f32(wide))
    );
    assert_eq!(whole(&weights, Tensor::Head), embedding, "tied");
    assert_eq!(
        embedding,
        whole(&Weights::synthetic(tiny(), 7).unwrap(), Tensor::Embedding)
    );
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
    assert_eq!(
        refused(Tensor::Layer(2, LayerTensor::Up), 0..2),
        "layer is 2; the model has 2"
    );
    assert_eq!(
        refused(Tensor::FinalNorm, 0..2),
        "rows 0..2 are not within FinalNorm, which has 1"
    );
    assert_eq!(
        refused(Tensor::Embedding, 0..3),
        "out has 48 elements, the rows of Embedding take 72"
    );
    assert_eq!(out, [7.0; 48]);
    let config = LlamaConfig {
        layers: 0,
        ..tiny()
    };
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
    assert_eq!(
        error,
        "layers is 2; it must be between 1 and the model's own, 1"
    );
}
