//! A model's shape by its `config.json`. Every field is read, known to change nothing, or refused by its name.

use std::cell::RefCell;
use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::config::family::{FAMILIES, Family, yarn_divisors, yarn_scale};
use crate::config::{Activation, LlamaConfig, RopeScaling, Turn};

/// Fields that change nothing that a model computes here.
const HARMLESS: [&str; 33] = [
    "architectures",
    "attention_dropout",
    "attn_implementation",
    "auto_map",
    "bos_token_id",
    "cache_implementation",
    "dtype",
    "eos_token_id",
    "gradient_checkpointing",
    "hidden_dropout_prob",
    "id2label",
    "initializer_range",
    "is_llama_config",
    "keys_to_ignore_at_inference",
    "label2id",
    "max_window_layers",
    "model_type",
    "name_or_path",
    "pad_token_id",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "sep_token_id",
    "task_specific_params",
    "tokenizer_class",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "unk_token_id",
    "use_cache",
];

/// The object, and which of its fields were read.
struct Fields {
    json: Map<String, Value>,
    read: RefCell<HashSet<&'static str>>,
}

impl Fields {
    fn get(&self, key: &'static str) -> &Value {
        self.read.borrow_mut().insert(key);
        self.json.get(key).unwrap_or(&Value::Null)
    }

    /// An integer, or `usual` where there is none.
    fn integer(&self, key: &'static str, usual: Option<u32>) -> Result<u32, String> {
        match (self.get(key), usual) {
            (Value::Null, Some(usual)) => Ok(usual),
            (value, _) => {
                let number = value.as_u64().and_then(|value| u32::try_from(value).ok());
                number.ok_or_else(|| format!("{key} is {value}; it must be an integer of 32 bits"))
            }
        }
    }

    /// A number; where the field is not there at all the usual one, where it is null none.
    fn number(&self, key: &'static str, usual: Option<f64>) -> Result<Option<f64>, String> {
        let is_there = self.json.contains_key(key);
        match self.get(key) {
            Value::Null if is_there => Ok(None),
            Value::Null => Ok(usual),
            value => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(format!("{key} is {value}; it must be a number")),
            },
        }
    }

    /// Whether no field is left that may change something.
    fn check_rest(&self) -> Result<(), String> {
        let read = self.read.borrow();
        let rest = self.json.iter().find(|(key, value)| {
            let says_nothing = matches!(value, Value::Null | Value::Bool(false));
            let known =
                read.contains(&***key) || HARMLESS.contains(&&***key) || key.starts_with('_');
            !says_nothing && !known
        });
        match rest {
            Some((key, value)) => Err(format!(
                "{key} is {value}, and is not known; it may change what the model computes"
            )),
            None => Ok(()),
        }
    }
}

/// The shape of the model, to be validated; [`set_rotation`] is for what was.
pub(super) fn shape(text: &str) -> Result<(LlamaConfig, &'static Family), String> {
    let json: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    let Value::Object(json) = json else {
        return Err("it is no object".to_owned());
    };
    let kind = json.get("model_type").unwrap_or(&Value::Null).clone();
    let family = FAMILIES.iter().find(|family| kind == family.hf);
    let Some(family) = family else {
        let known: Vec<_> = FAMILIES.iter().map(|family| family.hf).collect();
        return Err(format!("model_type is {kind}; it must be one of {known:?}"));
    };
    let fields = Fields { json, read: RefCell::default() };
    for key in ["attention_bias", "mlp_bias", "use_bidirectional_attention", "rope_interleaved"] {
        if *fields.get(key) == true {
            return Err(format!("{key} is true; such models cannot be run"));
        }
    }
    let hidden = fields.integer("hidden_size", None)?;
    let q_heads = fields.integer("num_attention_heads", None)?;
    let kv_heads = (family.hf == "llama").then_some(q_heads);
    let usual_dim = family.default.head_dim.unwrap_or(hidden / q_heads.max(1));
    let mut variant = family.variant(hidden);
    variant.activation = activation(&fields, family)?;
    let head_dim = fields.integer("head_dim", Some(usual_dim))?;
    let scalar = fields.number("query_pre_attn_scalar", family.default.query_scalar)?;
    variant.query_scale = scalar
        .filter(|&scalar| scalar != f64::from(head_dim))
        .map(|scalar| scalar.powf(-0.5) as f32);
    let cap = |key, usual| -> Result<Option<f32>, String> {
        Ok(fields.number(key, usual)?.map(|cap| cap as f32))
    };
    variant.attention_cap = cap("attn_logit_softcapping", family.default.attention_cap)?;
    variant.logit_cap = cap("final_logit_softcapping", family.default.logit_cap)?;
    variant.window = window(&fields, family)?;
    let tied = fields.get("tie_word_embeddings");
    let config = LlamaConfig {
        layers: fields.integer("num_hidden_layers", None)?,
        hidden,
        ffn: fields.integer("intermediate_size", None)?,
        q_heads,
        kv_heads: fields.integer("num_key_value_heads", kv_heads)?,
        head_dim,
        vocabulary: fields.integer("vocab_size", None)?,
        context: fields.integer("max_position_embeddings", None)?,
        rms_eps: fields.number("rms_norm_eps", Some(1e-6))?.unwrap_or(1e-6) as f32,
        rope_theta: family.default.rope_theta,
        rope_scaling: RopeScaling::None,
        tied_embeddings: tied.as_bool().unwrap_or(family.default.tied),
        variant,
    };
    for key in ["layer_types", "no_rope_layers", "rope_local_base_freq"] {
        fields.get(key);
    }
    for key in ["no_rope_layer_interval", "sliding_window_pattern", "_sliding_window_pattern"] {
        let every =
            if key == "no_rope_layer_interval" { family.still_every } else { family.full_every };
        let found = fields.integer(key, Some(every.unwrap_or(0)))?;
        if Some(found) != every
            && (every.is_some() || found != 0)
            && !fields.json.contains_key("layer_types")
        {
            return Err(format!(
                "{key} is {found} without layer_types; a {} model has {every:?}",
                family.hf
            ));
        }
    }
    fields.check_rest()?;
    Ok((config, family))
}

fn activation(fields: &Fields, family: &Family) -> Result<Activation, String> {
    // Gemma has both fields, and the first counts.
    for key in ["hidden_activation", "hidden_act"] {
        match fields.get(key) {
            Value::Null => {}
            found => {
                fields.get("hidden_act");
                return match found.as_str() {
                    Some("silu" | "swish") => Ok(Activation::Silu),
                    Some("gelu_pytorch_tanh" | "gelu_new") => Ok(Activation::GeluTanh),
                    // Gemma's first files say so and mean the other.
                    Some("gelu") if family.hf == "gemma" => Ok(Activation::GeluTanh),
                    _ => Err(format!(
                        "{key} is {found}; \"silu\" and \"gelu_pytorch_tanh\" are known"
                    )),
                };
            }
        }
    }
    Ok(family.activation)
}

fn window(fields: &Fields, family: &Family) -> Result<Option<u32>, String> {
    let uses = fields.get("use_sliding_window").as_bool();
    let is_there = fields.json.contains_key("sliding_window");
    let tokens = match fields.get("sliding_window") {
        Value::Null if is_there => None,
        Value::Null => family.default.window,
        _ => Some(fields.integer("sliding_window", None)?),
    };
    // Where a model can do without it has to say so.
    let needs_word = family.gguf.starts_with("qwen") || family.hf == "smollm3";
    Ok(tokens.filter(|_| uses.unwrap_or(!needs_word)))
}

/// How queries and keys turn, for a shape that is known to be one.
pub(super) fn set_rotation(
    text: &str,
    family: &Family,
    config: &mut LlamaConfig,
) -> Result<(), String> {
    let json: Value = serde_json::from_str(text).map_err(|error| error.to_string())?;
    family.set_layers(config);
    set_turns(&json, family, config)?;
    let (new, old) = (&json["rope_parameters"], &json["rope_scaling"]);
    for part in [&json, new] {
        let part = &part["partial_rotary_factor"];
        if !part.is_null() && part.as_f64() != Some(1.0) {
            return Err(format!("partial_rotary_factor is {part}; it must be 1"));
        }
    }
    let theta = |json: &Value| match &json["rope_theta"] {
        Value::Null => Ok(None),
        _ => number(json, "rope_theta").map(Some),
    };
    if let Some(local) = json["rope_local_base_freq"].as_f64() {
        config.variant.local_rope_theta = local;
    }
    config.rope_theta = theta(&json)?.unwrap_or(config.rope_theta);
    if new.is_null() {
        return set_scaling(old, "rope_scaling", config);
    }
    if !old.is_null() {
        return Err("rope_parameters and rope_scaling are both there; one is needed".to_owned());
    }
    // Gemma 3 has one for each kind of layer.
    let (full, local) = (&new["full_attention"], &new["sliding_attention"]);
    let model = if full.is_null() { new } else { full };
    if let Some(theta) = theta(local)? {
        config.variant.local_rope_theta = theta;
    }
    if !matches!(local["rope_type"].as_str(), None | Some("default")) {
        return Err(format!(
            "rope_parameters.sliding_attention is of type {}; \"default\" is known",
            local["rope_type"]
        ));
    }
    config.rope_theta = theta(model)?.unwrap_or(config.rope_theta);
    if theta(model)?.is_none() && json["rope_theta"].is_null() {
        return Err(format!(
            "rope_theta is {}; it must be a number beside or in rope_parameters",
            json["rope_theta"]
        ));
    }
    set_scaling(model, "rope_parameters", config)
}

/// How each layer turns, where the file lists it.
fn set_turns(json: &Value, family: &Family, config: &mut LlamaConfig) -> Result<(), String> {
    let layers = config.layers as usize;
    let list = |key: &str| match &json[key] {
        Value::Array(list) if list.len() == layers => Ok(Some(list)),
        Value::Null => Ok(None),
        found => Err(format!("{key} is {found}; it must be a list of {layers} layers")),
    };
    if let Some(kinds) = list("layer_types")? {
        for (turn, kind) in config.variant.turns.iter_mut().zip(kinds) {
            let is_local = match kind.as_str() {
                Some("full_attention") => false,
                Some("sliding_attention") => true,
                _ => {
                    return Err(format!(
                        "layer_types has {kind}; \"full_attention\" and \"sliding_attention\" are known"
                    ));
                }
            };
            if family.local_theta.is_some() {
                *turn = if is_local { Turn::Local } else { Turn::Model };
            }
        }
        if kinds.iter().all(|kind| kind == "full_attention") {
            config.variant.window = None;
        }
    }
    if let Some(turns) = list("no_rope_layers")? {
        // A layer that turns has 1.
        for (turn, does) in config.variant.turns.iter_mut().zip(turns) {
            *turn = if *does == 0 { Turn::Not } else { Turn::Model };
        }
    }
    Ok(())
}

fn set_scaling(json: &Value, name: &str, config: &mut LlamaConfig) -> Result<(), String> {
    let kind = if json["rope_type"].is_null() { &json["type"] } else { &json["rope_type"] };
    let maybe = |key: &str| match &json[key] {
        Value::Null => Ok(None),
        _ => number(json, key).map(Some),
    };
    config.rope_scaling = match kind.as_str() {
        Some("default") => RopeScaling::None,
        None if kind.is_null() && json["factor"].is_null() => RopeScaling::None,
        Some("linear") => {
            let factor = number(json, "factor")? as f32;
            RopeScaling::Divisors(vec![factor; config.head_dim as usize / 2])
        }
        Some("llama3") => RopeScaling::Llama3 {
            factor: number(json, "factor")?,
            low: number(json, "low_freq_factor")?,
            high: number(json, "high_freq_factor")?,
            original_context: integer(json, "original_max_position_embeddings")?,
        },
        Some("yarn") => {
            for key in ["mscale", "mscale_all_dim", "truncate"] {
                if !json[key].is_null() && json[key] != true {
                    return Err(format!("{name}.{key} is {}; it is not known", json[key]));
                }
            }
            let factor = number(json, "factor")?;
            let original = maybe("original_max_position_embeddings")?
                .unwrap_or_else(|| f64::from(config.context));
            let beta = [maybe("beta_fast")?.unwrap_or(32.0), maybe("beta_slow")?.unwrap_or(1.0)];
            let usual =
                config.variant.query_scale.map_or(f64::from(config.head_dim).powf(-0.5), f64::from);
            let scale = usual * yarn_scale(factor, maybe("attention_factor")?);
            config.variant.query_scale = Some(scale as f32);
            RopeScaling::Divisors(yarn_divisors(
                config.head_dim,
                config.rope_theta,
                factor,
                original,
                beta,
            ))
        }
        _ => {
            return Err(format!(
                "{name} is of type {kind}; \"default\", \"linear\", \"llama3\" and \"yarn\" are known"
            ));
        }
    };
    Ok(())
}

fn integer(json: &Value, key: &str) -> Result<u32, String> {
    let value = json[key].as_u64().and_then(|value| u32::try_from(value).ok());
    value.ok_or_else(|| format!("{key} is {}; it must be an integer of 32 bits", json[key]))
}

fn number(json: &Value, key: &str) -> Result<f64, String> {
    let value = json[key].as_f64();
    value.ok_or_else(|| format!("{key} is {}; it must be a number", json[key]))
}
