//! What tensors are called in files.

use super::{LayerTensor, Tensor};
use crate::config::LlamaConfig;

/// Of each tensor of a layer: its name in GGUF files and in transformers' safetensors.
const OF_LAYER: [(LayerTensor, &str, &str); 16] = [
    (LayerTensor::AttentionNorm, "attn_norm.weight", "input_layernorm.weight"),
    (LayerTensor::Query, "attn_q.weight", "self_attn.q_proj.weight"),
    (LayerTensor::Key, "attn_k.weight", "self_attn.k_proj.weight"),
    (LayerTensor::Value, "attn_v.weight", "self_attn.v_proj.weight"),
    (LayerTensor::Output, "attn_output.weight", "self_attn.o_proj.weight"),
    (LayerTensor::FfnNorm, "ffn_norm.weight", "post_attention_layernorm.weight"),
    (LayerTensor::Gate, "ffn_gate.weight", "mlp.gate_proj.weight"),
    (LayerTensor::Up, "ffn_up.weight", "mlp.up_proj.weight"),
    (LayerTensor::Down, "ffn_down.weight", "mlp.down_proj.weight"),
    (LayerTensor::QueryBias, "attn_q.bias", "self_attn.q_proj.bias"),
    (LayerTensor::KeyBias, "attn_k.bias", "self_attn.k_proj.bias"),
    (LayerTensor::ValueBias, "attn_v.bias", "self_attn.v_proj.bias"),
    (LayerTensor::QueryNorm, "attn_q_norm.weight", "self_attn.q_norm.weight"),
    (LayerTensor::KeyNorm, "attn_k_norm.weight", "self_attn.k_norm.weight"),
    (
        LayerTensor::AttentionPostNorm,
        "post_attention_norm.weight",
        "post_attention_layernorm.weight",
    ),
    (LayerTensor::FfnPostNorm, "post_ffw_norm.weight", "post_feedforward_layernorm.weight"),
];

fn of_layer(tensor: LayerTensor) -> (&'static str, &'static str) {
    let found = OF_LAYER.iter().find(|row| row.0 == tensor);
    let &(_, gguf, hf) = found.expect("every tensor has a row");
    (gguf, hf)
}

/// In a GGUF file.
pub(crate) fn gguf(tensor: Tensor) -> String {
    match tensor {
        Tensor::Embedding => "token_embd.weight".to_owned(),
        Tensor::FinalNorm => "output_norm.weight".to_owned(),
        Tensor::Head => "output.weight".to_owned(),
        Tensor::Layer(layer, tensor) => format!("blk.{layer}.{}", of_layer(tensor).0),
    }
}

/// In a folder of safetensors.
pub(crate) fn hf(tensor: Tensor, config: &LlamaConfig) -> String {
    match tensor {
        Tensor::Embedding => "model.embed_tokens.weight".to_owned(),
        Tensor::FinalNorm => "model.norm.weight".to_owned(),
        Tensor::Head => "lm_head.weight".to_owned(),
        // Where attention has a norm after it, the name of the one before the feed-forward part is that one's.
        Tensor::Layer(layer, LayerTensor::FfnNorm) if config.variant.post_norms => {
            format!("model.layers.{layer}.pre_feedforward_layernorm.weight")
        }
        Tensor::Layer(layer, tensor) => format!("model.layers.{layer}.{}", of_layer(tensor).1),
    }
}
