//! A tiny model written by the format's own library, and broken files.

use safetensors::tensor::TensorView;

use super::*;

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 64, "num_hidden_layers": 1, "intermediate_size": 16,
    "vocab_size": 5, "max_position_embeddings": 100, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
    "tie_word_embeddings": false, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}"#;

/// A folder that goes away with its value.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Element `i` of every tensor is `i`, in F32.
fn write(name: &str) -> Folder {
    let folder = std::env::temp_dir().join(format!("deft-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.json"), CONFIG).unwrap();
    let config = config(CONFIG).unwrap();
    for (file, half) in ["a.safetensors", "b.safetensors"].iter().zip([0, 1]) {
        let of_half = Tensor::all(&config)
            .enumerate()
            .filter(|(at, _)| at % 2 == half);
        let tensors: Vec<(String, Vec<usize>, Vec<u8>)> = of_half
            .map(|(_, tensor)| {
                let [rows, columns] = tensor.shape(&config);
                let bytes = (0..rows * columns).flat_map(|i| (i as f32).to_le_bytes());
                let shape = if is_vector(tensor) {
                    vec![columns]
                } else {
                    vec![rows, columns]
                };
                (super::name(tensor), shape, bytes.collect())
            })
            .collect();
        let views = tensors.iter().map(|(name, shape, bytes)| {
            (
                name,
                TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap(),
            )
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        std::fs::write(folder.join(file), bytes).unwrap();
    }
    Folder(folder)
}

#[test]
fn a_model_in_two_files_comes_back_rows_in_order() {
    let folder = write("whole");
    let weights = open(&folder.0).unwrap();
    let config = weights.config().clone();
    assert_eq!((config.vocabulary, config.rope_theta), (5, 5e5));
    assert!(matches!(
        config.rope_scaling,
        RopeScaling::Llama3 {
            original_context: 64,
            ..
        }
    ));
    for tensor in Tensor::all(&config) {
        let [rows, columns] = tensor.shape(&config);
        let mut out = vec![f32::NAN; rows * columns];
        weights.read_f32(tensor, 0..rows, &mut out).unwrap();
        assert!(
            out.iter().enumerate().all(|(i, &x)| x == i as f32),
            "{tensor:?}"
        );
    }
}

#[test]
fn broken_and_missing_files_are_named() {
    let folder = write("broken");
    let refused = || open(&folder.0).unwrap_err().to_string();
    let path = folder.0.join("b.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for length in [0, 7, 8, 100, whole.len() - 1] {
        std::fs::write(&path, &whole[..length]).unwrap();
        assert!(refused().contains("b.safetensors"), "{length}");
    }
    std::fs::write(&path, [&u64::MAX.to_le_bytes()[..], &whole[8..]].concat()).unwrap();
    assert!(refused().contains("its header is of 18446744073709551615 bytes"));
    std::fs::copy(folder.0.join("a.safetensors"), &path).unwrap();
    assert!(refused().contains("is in another file too"));
    std::fs::remove_file(&path).unwrap();
    assert!(refused().contains("is missing"));
    std::fs::remove_file(folder.0.join("config.json")).unwrap();
    assert!(refused().contains("config.json"));
}

#[test]
fn shapes_that_cannot_be_run_are_named() {
    let refused = |from: &str, to: &str| config(&CONFIG.replace(from, to)).unwrap_err();
    assert!(refused("\"llama\"", "\"gpt2\"").starts_with("model_type is \"gpt2\""));
    assert!(refused("llama3", "yarn").starts_with("rope_scaling is of type \"yarn\""));
    assert!(refused("\"vocab_size\": 5", "\"vocab_size\": -5").starts_with("vocab_size is -5"));
    assert!(refused("1e-5", "\"x\"").starts_with("rms_norm_eps is \"x\""));
    assert!(refused("\"head_dim\": 64", "\"mlp_bias\": true").starts_with("mlp_bias is true"));
}
