//! SmolLM2-135M-Instruct against transformers: 64 greedy tokens after each of five prompts, and the logits
//! that they were chosen by. `reference/README.md` says how the expected numbers were made.

use std::path::{Path, PathBuf};

use deft::NodeKey;
use deft_engine::{
    ChatTemplate, Control, CpuModel, CpuOptions, Gguf, Message, Role, Tokenizer, TreeModel,
};
use serde_json::Value;

/// The file of `DEFT_MODEL`, or where `cargo xtask` puts it.
fn model_file() -> Option<PathBuf> {
    let path = std::env::var_os("DEFT_MODEL").map_or_else(
        || {
            let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
            workspace.join("target/models/SmolLM2-135M-Instruct.Q4_1.gguf")
        },
        PathBuf::from,
    );
    if !path.exists() {
        println!(
            "skipped: there is no {}; `cargo xtask model` fetches it, DEFT_MODEL names another place",
            path.display()
        );
        return None;
    }
    Some(path)
}

fn expected(name: &str) -> Vec<Value> {
    let all: Value = serde_json::from_str(include_str!("data/smollm2.json")).unwrap();
    all[name].as_array().unwrap().clone()
}

fn ids(of: &Value) -> Vec<u32> {
    let ids = of.as_array().unwrap().iter();
    ids.map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Largest difference of the logits given from those of `row`, relative to the largest of them.
fn error(row: &[f32], top: &Value) -> f64 {
    let pairs = top.as_array().unwrap().iter();
    let pairs = pairs.map(|pair| (pair[0].as_u64().unwrap() as usize, pair[1].as_f64().unwrap()));
    let pairs: Vec<_> = pairs.collect();
    let largest = pairs.iter().fold(0.0_f64, |max, pair| max.max(pair.1.abs()));
    let errors = pairs.iter().map(|&(id, expected)| (f64::from(row[id]) - expected).abs());
    errors.fold(0.0, f64::max) / largest
}

fn greedy(row: &[f32]) -> u32 {
    let best = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.unwrap().0 as u32
}

#[test]
fn greedy_tokens_and_logits_are_those_of_transformers() {
    let Some(path) = model_file() else { return };
    let gguf = Gguf::open(&path).unwrap();
    let mut model = CpuModel::load(gguf.weights(), CpuOptions::default(), |_, _| {}).unwrap();
    let runs = expected("runs");
    let vocabulary = model.vocabulary();
    let mut rows = Vec::new();
    let mut logits = Vec::new();
    let mut leaves: Vec<NodeKey> = Vec::new();
    for run in &runs {
        leaves.push(model.insert_prompt(&ids(&run["ids"]), &mut logits).unwrap());
        rows.extend_from_slice(&logits);
    }
    let mut largest = 0.0_f64;
    let tokens: Vec<Vec<u32>> = runs.iter().map(|run| ids(&run["tokens"])).collect();
    for at in 0..tokens[0].len() {
        for ((row, run), tokens) in rows.chunks(vocabulary).zip(&runs).zip(&tokens) {
            let prompt = &run["prompt"];
            assert_eq!(greedy(row), tokens[at], "token {at} after {prompt}");
            largest = largest.max(error(row, &run["tops"][at]));
        }
        let next: Vec<u32> = tokens.iter().map(|tokens| tokens[at]).collect();
        model.step(&leaves, &next, &mut rows).unwrap();
    }
    println!("largest error of a logit, relative to its row's largest: {largest:.1e}");
    assert!(largest < 1e-4, "{largest}");
}

fn tokenizer(gguf: &Gguf) -> Tokenizer {
    Tokenizer::from_gguf(gguf.metadata()).unwrap()
}

#[test]
fn texts_are_the_same_tokens() {
    let Some(path) = model_file() else { return };
    let gguf = Gguf::open(&path).unwrap();
    let tokenizer = tokenizer(&gguf);
    assert_eq!(tokenizer.vocabulary(), gguf.weights().config().vocabulary as usize);
    let runs = expected("runs");
    let prompts = runs.iter().map(|run| (run["prompt"].clone(), ids(&run["ids"])));
    let texts = expected("texts");
    let texts = texts.iter().map(|text| (text[0].clone(), ids(&text[1])));
    for (text, expected) in prompts.chain(texts) {
        let text = text.as_str().unwrap();
        let tokens = tokenizer.encode(text, Control::Recognized).unwrap();
        assert_eq!(tokens, expected, "{text:?}");
        assert_eq!(tokenizer.decode(&tokens), text);
    }
}

#[test]
fn a_conversation_is_the_same_tokens() {
    let Some(path) = model_file() else { return };
    let gguf = Gguf::open(&path).unwrap();
    let source = gguf.metadata().text("tokenizer.chat_template").unwrap();
    let template = ChatTemplate::new(source.unwrap()).unwrap();
    let messages = expected("messages");
    let messages: Vec<Message<'_>> = messages
        .iter()
        .map(|message| Message {
            role: match message["role"].as_str() {
                Some("user") => Role::User,
                _ => Role::Assistant,
            },
            content: message["content"].as_str().unwrap(),
        })
        .collect();
    let tokens = template.encode(&tokenizer(&gguf), &messages).unwrap();
    assert_eq!(tokens, ids(&Value::Array(expected("chat"))));
}
