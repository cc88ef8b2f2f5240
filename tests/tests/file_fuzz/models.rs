//! GGUF, and folders of safetensors.

use std::fmt::Display;

use deft_engine::{Gguf, Tensor, Tokenizer, Weights, WeightsError, safetensors};
use proptest::prelude::*;
use serde_json::Value;

use crate::edits::{edited, edits, swapped, swaps};
use crate::files::{
    Folder, safetensors as file_of, tiny_config, tiny_gguf, tiny_halves, tiny_index, tiny_tensors,
};
use crate::fuzz;

/// Reads a row of every tensor.
fn read(weights: &Weights) -> Result<(), WeightsError> {
    for tensor in Tensor::all(weights.config()) {
        let mut row = vec![0.0; weights.shape(tensor)[1]];
        weights.read_f32(tensor, 0..1, &mut row)?;
    }
    Ok(())
}

/// Says which file is wrong.
fn named<T>(name: &str, result: Result<T, impl Display>) -> Result<T, String> {
    result.map_err(|error| error.to_string()).inspect_err(|text| {
        let of_shape = [" is ", "must be"].iter().any(|part| text.contains(part));
        assert!(text.contains(name) || of_shape, "{text}");
    })
}

#[test]
fn gguf() {
    let mut file = tiny_gguf();
    let names = ["<unk>", "<s>", "\u{2581}", "h", "i", "hi"];
    file.set_text("tokenizer.ggml.model", "llama");
    file.set_texts("tokenizer.ggml.tokens", &names);
    file.set_u32("tokenizer.ggml.bos_token_id", 1);
    let array = |kind: u32, all: [[u8; 4]; 6]| {
        [&kind.to_le_bytes()[..], &6_u64.to_le_bytes(), all.as_flattened()].concat()
    };
    let scores = [0.0, 0.0, -1.0, -2.0, -3.0, -4.0_f32].map(f32::to_le_bytes);
    file.set("tokenizer.ggml.scores", 9, &array(6, scores));
    file.set(
        "tokenizer.ggml.token_type",
        9,
        &array(5, [2, 3, 1, 1, 1, 1_i32].map(i32::to_le_bytes)),
    );
    let file = file.bytes();
    let data = file.len() - 2048;
    let folder = Folder::new("fuzz-gguf");
    // Weights may be any bytes, so most edits are of what is before them.
    let cases = (edits(), prop::bool::weighted(0.2));
    let make = |(edits, whole): &(Vec<_>, bool)| match whole {
        true => edited(file.clone(), edits),
        false => {
            let head = data.min(1800);
            [edited(file[..head].to_vec(), edits), file[head..].to_vec()].concat()
        }
    };
    fuzz(1.0, &cases, make, |bytes| {
        let path = folder.write("model.gguf", bytes);
        let gguf = named("model.gguf", Gguf::open(&path))?;
        named("model.gguf", read(gguf.weights()))?;
        let tokenizer = Tokenizer::from_gguf(gguf.metadata()).map_err(|error| error.to_string())?;
        crate::tokenizers::used(&tokenizer);
        Ok::<_, String>(())
    });
}

/// A folder whose file `name` is what `make` says.
fn folder_with(name: &str) -> (Folder, Vec<u8>) {
    let folder = Folder::new(&format!("fuzz-{name}"));
    let [a, b] = tiny_halves();
    let config = tiny_config().to_string().into_bytes();
    let all = [
        ("config.json", config),
        ("model.safetensors.index.json", tiny_index()),
        ("a.safetensors", a),
        ("b.safetensors", b),
    ];
    for (name, bytes) in &all {
        folder.write(name, bytes);
    }
    let valid = all.into_iter().find(|(other, _)| *other == name);
    (folder, valid.unwrap().1)
}

fn json_of_a_folder(name: &str, of: &str) {
    let (folder, valid) = folder_with(name);
    let json: Value = serde_json::from_slice(&valid).unwrap();
    let cases = (swaps(), edits());
    let make = |(swaps, edits): &(Vec<_>, Vec<_>)| match swaps.is_empty() {
        true => edited(valid.clone(), edits),
        false => swapped(json.clone(), swaps).to_string().into_bytes(),
    };
    fuzz(1.0, &cases, make, |bytes| {
        folder.write(name, bytes);
        named(of, safetensors::open(&folder.0)).and_then(|weights| named(of, read(&weights)))
    });
}

#[test]
fn config() {
    json_of_a_folder("config.json", "config.json");
}

#[test]
fn index() {
    json_of_a_folder("model.safetensors.index.json", "fuzz-model.safetensors.index.json");
}

#[test]
fn tensors() {
    let (folder, _) = folder_with("config.json");
    std::fs::remove_file(folder.0.join("model.safetensors.index.json")).unwrap();
    for name in ["a.safetensors", "b.safetensors"] {
        std::fs::remove_file(folder.0.join(name)).unwrap();
    }
    let valid = file_of(&tiny_tensors());
    let length = u64::from_le_bytes(valid[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&valid[8..8 + length]).unwrap();
    let make = |(swaps, edits): &(Vec<_>, Vec<_>)| match swaps.is_empty() {
        true => edited(valid.clone(), edits),
        false => {
            let header = swapped(header.clone(), swaps).to_string();
            [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &valid[8 + length..]].concat()
        }
    };
    fuzz(1.0, &(swaps(), edits()), make, |bytes| {
        folder.write("model.safetensors", bytes);
        let of = "fuzz-config.json";
        named(of, safetensors::open(&folder.0)).and_then(|weights| named(of, read(&weights)))
    });
}
