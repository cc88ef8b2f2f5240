//! Folders of safetensors: what comes back of them, and the error that each that lies must get.

#[path = "common/files.rs"]
#[allow(dead_code, reason = "other suites use the rest")]
mod files;

use deft_engine::{Tensor, safetensors};
use files::{
    Folder, counted, safetensors as safetensors_bytes, tiny_config, tiny_halves, tiny_index,
    tiny_tensors, written,
};
use serde_json::json;

/// A folder with this beside a good `config.json` and what it holds.
fn refused(files: &[(&str, Vec<u8>)]) -> String {
    let folder = Folder::new("hostile-folder");
    folder.write("config.json", tiny_config().to_string());
    for (name, bytes) in files {
        folder.write(name, bytes);
    }
    match safetensors::open(&folder.0) {
        Err(error) => error.to_string(),
        Ok(_) => panic!("{:?} were taken", files.iter().map(|file| file.0).collect::<Vec<_>>()),
    }
}

#[test]
fn safetensors_that_lie_are_refused_by_name() {
    let whole = safetensors_bytes(&tiny_tensors());
    let headed =
        |length: u64, header: &str| [&length.to_le_bytes()[..], header.as_bytes()].concat();
    let one = |info: &str| {
        let header = format!("{{\"model.norm.weight\":{info}}}");
        headed(header.len() as u64, &header)
    };
    let mut more = tiny_tensors();
    more.insert("model.layers.0.self_attn.q_proj.bias".to_owned(), written(&[128]));
    for (name, bytes, expected) in [
        ("empty", Vec::new(), "model.safetensors"),
        ("no-header", headed(u64::MAX, "{}"), "its header is of 18446744073709551615 bytes"),
        ("long-header", headed(1 << 33, "{}"), "its header is of 8589934592 bytes"),
        ("no-json", headed(2, "{["), "model.safetensors"),
        (
            "gigabytes",
            one(r#"{"dtype":"F32","shape":[1073741824],"data_offsets":[0,4294967296]}"#),
            "its tensors take 4294967296 bytes, 0 are there",
        ),
        (
            "overflow",
            one(r#"{"dtype":"F32","shape":[18446744073709551615,9],"data_offsets":[0,0]}"#),
            "model.safetensors",
        ),
        (
            "backwards",
            one(r#"{"dtype":"F32","shape":[8],"data_offsets":[32,0]}"#),
            "model.safetensors",
        ),
        (
            "unknown-type",
            one(r#"{"dtype":"F9","shape":[8],"data_offsets":[0,32]}"#),
            "model.safetensors",
        ),
        ("cut", whole[..whole.len() - 1].to_vec(), "bytes, "),
        (
            "bias",
            safetensors_bytes(&more),
            "tensor \"model.layers.0.self_attn.q_proj.bias\" is not of a \"llama\" model",
        ),
    ] {
        let error = refused(&[("model.safetensors", bytes)]);
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn every_field_of_a_config_counts_or_is_refused_by_name() {
    let folder = Folder::new("hostile-config");
    folder.write("model.safetensors", safetensors_bytes(&tiny_tensors()));
    let open = |field: &str, value: serde_json::Value| {
        let mut config = tiny_config();
        config[field] = value;
        folder.write("config.json", config.to_string());
        safetensors::open(&folder.0).map(|_| ()).map_err(|error| error.to_string())
    };
    for (field, value) in [
        ("attention_bias", json!(true)),
        ("mlp_bias", json!(true)),
        ("hidden_act", json!("relu")),
        ("model_type", json!("gpt2")),
        ("num_local_experts", json!(8)),
        ("quantization_config", json!({"bits": 4})),
        ("partial_rotary_factor", json!(0.5)),
        ("rope_interleaved", json!(true)),
        ("layer_types", json!(["linear_attention"])),
        ("layer_types", json!(["full_attention", "full_attention"])),
        ("no_rope_layers", json!([1, 1])),
        ("no_rope_layer_interval", json!(4)),
        ("attention_multiplier", json!(0.1)),
        ("logit_scale", json!(0.5)),
        ("vocab_size", json!(-1)),
        ("hidden_size", json!(1e30)),
    ] {
        let error = open(field, value.clone()).expect_err(field);
        assert!(error.contains(field), "{field} = {value}: {error}");
    }
    for kind in ["longrope", "dynamic", "su", ""] {
        let error = open("rope_scaling", json!({"rope_type": kind, "factor": 2.0})).unwrap_err();
        assert!(error.contains(&format!("rope_scaling is of type {kind:?}")), "{error}");
    }
    for (field, value) in [
        ("architectures", json!(["LlamaForCausalLM"])),
        ("pretraining_tp", json!(1)),
        ("_name_or_path", json!("x")),
        ("something_new", json!(false)),
        ("something_newer", json!(null)),
        ("rope_scaling", json!({"type": "linear", "factor": 2.0})),
        ("layer_types", json!(["full_attention"])),
    ] {
        assert_eq!(open(field, value), Ok(()), "{field}");
    }
}

#[test]
fn a_model_in_two_files_comes_back_rows_in_order() {
    let folder = Folder::new("two-files");
    folder.write("config.json", tiny_config().to_string());
    let mut all = tiny_tensors();
    all.values_mut().for_each(|tensor| *tensor = counted(&tensor.shape, 0.0));
    let second = all.split_off("model.layers.0.post_attention_layernorm.weight");
    folder.write("a.safetensors", safetensors_bytes(&all));
    folder.write("b.safetensors", safetensors_bytes(&second));
    let weights = safetensors::open(&folder.0).unwrap();
    for tensor in Tensor::all(weights.config()) {
        let [rows, columns] = weights.shape(tensor);
        let mut out = vec![f32::NAN; rows * columns];
        weights.read_f32(tensor, 0..rows, &mut out).unwrap();
        assert_eq!(out, counted(&[rows, columns], 0.0).values, "{tensor:?}");
    }
    let path = folder.0.join("b.safetensors");
    let whole = std::fs::read(&path).unwrap();
    for length in [0, 7, 8, 100, whole.len() - 1] {
        folder.write("b.safetensors", &whole[..length]);
        let error = safetensors::open(&folder.0).unwrap_err().to_string();
        assert!(error.contains("b.safetensors"), "{length}: {error}");
    }
    std::fs::remove_file(path).unwrap();
    let error = safetensors::open(&folder.0).unwrap_err().to_string();
    assert!(error.contains("is missing"), "{error}");
    std::fs::remove_file(folder.0.join("config.json")).unwrap();
    let error = safetensors::open(&folder.0).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
}

#[test]
fn the_index_decides_which_files_are_the_model() {
    let [a, b] = tiny_halves();
    let folder = Folder::new("index");
    folder.write("config.json", tiny_config().to_string());
    folder.write("model.safetensors.index.json", tiny_index());
    folder.write("a.safetensors", &a);
    folder.write("b.safetensors", &b);
    // What computers and people leave beside.
    folder.write("._a.safetensors", b"junk");
    folder.write("copy of a.safetensors", &a);
    folder.write("adapter_model.safetensors", b"junk");
    folder.write("model.safetensors", b"junk");
    let weights = safetensors::open(&folder.0).unwrap();
    let mut out = [0.0; 8];
    weights.read_f32(Tensor::FinalNorm, 0..1, &mut out).unwrap();
    assert_eq!(out, [0.5; 8]);

    std::fs::remove_file(folder.0.join("b.safetensors")).unwrap();
    let error = safetensors::open(&folder.0).unwrap_err().to_string();
    assert!(error.contains("\"b.safetensors\", which has 5 of the tensors, is missing"), "{error}");
    for (map, expected) in [
        (json!({}), "weight_map, from tensors to files, is missing"),
        (
            json!({"weight_map": {"x": "../a.safetensors"}}),
            "the file of tensor \"x\" is \"../a.safetensors\"",
        ),
        (json!({"weight_map": {"x": 1}}), "the file of tensor \"x\" is 1"),
    ] {
        folder.write("model.safetensors.index.json", map.to_string());
        let error = safetensors::open(&folder.0).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn without_an_index_strays_and_adapters_are_left_out() {
    let [a, b] = tiny_halves();
    let folder = Folder::new("strays");
    folder.write("config.json", tiny_config().to_string());
    let error = safetensors::open(&folder.0).unwrap_err().to_string();
    assert!(error.contains("there is no model.safetensors.index.json"), "{error}");
    folder.write("a.safetensors", &a);
    folder.write("b.safetensors", &b);
    folder.write("._a.safetensors", b"junk");
    folder.write("adapter_model.safetensors", b"junk");
    safetensors::open(&folder.0).unwrap();
    folder.write("c.safetensors", &a);
    let error = safetensors::open(&folder.0).unwrap_err().to_string();
    assert!(error.contains("is in another file too"), "{error}");
    folder.write("model.safetensors", safetensors_bytes(&tiny_tensors()));
    safetensors::open(&folder.0).unwrap();
}
