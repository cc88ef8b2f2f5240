//! What a `config.json` says of a model's shape.

use serde_json::Value;

use super::*;
use crate::config::RopeScaling;

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 64, "num_hidden_layers": 1, "intermediate_size": 16,
    "vocab_size": 5, "max_position_embeddings": 100, "rms_norm_eps": 1e-5, "rope_theta": 5e5,
    "tie_word_embeddings": false, "rope_scaling": {"rope_type": "llama3", "factor": 8.0,
    "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}}"#;

/// The shape that a `config.json` describes.
fn config(text: &str) -> Result<LlamaConfig, String> {
    let (mut config, family) = super::config::shape(text)?;
    super::config::set_rotation(text, family, &mut config)?;
    Ok(config)
}

#[test]
fn the_fields_of_a_config_become_the_shape() {
    let config = config(CONFIG).unwrap();
    assert_eq!((config.vocabulary, config.rope_theta), (5, 5e5));
    assert!(matches!(config.rope_scaling, RopeScaling::Llama3 { original_context: 64, .. }));
}

#[test]
fn shapes_that_cannot_be_run_are_named() {
    let refused = |from: &str, to: &str| config(&CONFIG.replace(from, to)).unwrap_err();
    assert!(refused("\"llama\"", "\"gpt2\"").starts_with("model_type is \"gpt2\""));
    assert!(refused("llama3", "longrope").starts_with("rope_scaling is of type \"longrope\""));
    assert!(refused("\"vocab_size\": 5", "\"vocab_size\": -5").starts_with("vocab_size is -5"));
    assert!(refused("1e-5", "\"x\"").starts_with("rms_norm_eps is \"x\""));
    assert!(refused("\"head_dim\": 64", "\"mlp_bias\": true").starts_with("mlp_bias is true"));
}

/// [`CONFIG`] with this in place of its `rope_theta`, and without its `rope_scaling`.
fn with_rope(fields: &str) -> Result<LlamaConfig, String> {
    let mut json: Value = serde_json::from_str(CONFIG).unwrap();
    let fields: Value = serde_json::from_str(fields).unwrap();
    let config_fields = json.as_object_mut().unwrap();
    config_fields.remove("rope_theta");
    config_fields.remove("rope_scaling");
    config_fields.extend(fields.as_object().unwrap().clone());
    config(&json.to_string())
}

#[test]
fn rotary_parameters_are_read_from_either_form() {
    let read = |fields: &str| {
        let config = with_rope(fields).unwrap();
        (config.rope_theta, config.rope_scaling)
    };
    let llama3 = r#""rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64"#;
    let new = format!(r#"{{"rope_parameters": {{"rope_theta": 5e5, {llama3}}}}}"#);
    let old = format!(r#"{{"rope_theta": 5e5, "rope_scaling": {{{llama3}}}}}"#);
    assert_eq!(read(&new), read(&old));
    assert!(matches!(read(&new).1, RopeScaling::Llama3 { factor: 8.0, .. }));
    let plain = (123.0, RopeScaling::None);
    assert_eq!(
        read(r#"{"rope_parameters": {"rope_theta": 123.0, "rope_type": "default"}}"#),
        plain
    );
    assert_eq!(read(r#"{"rope_parameters": {"rope_theta": 123.0}, "rope_scaling": null}"#), plain);
    assert_eq!(read(r#"{"rope_parameters": {}, "rope_theta": 123}"#), plain);
    assert_eq!(read("{}"), (10_000.0, RopeScaling::None));
}

#[test]
fn rotary_parameters_that_cannot_be_run_are_named() {
    for (fields, message) in [
        (r#"{"rope_parameters": {"rope_type": "default"}}"#, "rope_theta is null"),
        (
            r#"{"rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic"}}"#,
            "rope_parameters is of type \"dynamic\"",
        ),
        (
            r#"{"rope_parameters": {"rope_theta": 1e4, "factor": 2.0}}"#,
            "rope_parameters is of type null",
        ),
        (
            r#"{"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}"#,
            "partial_rotary_factor is 0.5",
        ),
        (
            r#"{"rope_parameters": {"rope_theta": 1e4}, "rope_scaling": {"type": "default"}}"#,
            "rope_parameters and rope_scaling are both",
        ),
        (r#"{"partial_rotary_factor": "x"}"#, "partial_rotary_factor is \"x\""),
    ] {
        let error = with_rope(fields).unwrap_err();
        assert!(error.starts_with(message), "{fields}: {error}");
    }
}
