//! The eight likeliest ways to begin an answer, each continued greedily, all in one tree.
//!
//! ```sh
//! cargo xtask model
//! cargo run --release -p deft-engine --example 01_continue -- \
//!     target/models/SmolLM2-135M-Instruct.Q4_1.gguf "What is a tree?"
//! ```

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use deft_engine::{ChatTemplate, CpuModel, CpuOptions, Gguf, Message, Role, Tokenizer, TreeModel};

const LEAVES: usize = 8;
const TOKENS: usize = 48;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(path), Some(question)) = (args.next(), args.next()) else {
        return Err("usage: 01_continue MODEL.gguf QUESTION".into());
    };
    let gguf = Gguf::open(Path::new(&path))?;
    let tokenizer = Tokenizer::from_gguf(gguf.metadata())?;
    let source = gguf.metadata().text("tokenizer.chat_template")?;
    let template = ChatTemplate::new(source.ok_or("the model has no chat template")?)?;
    let mut model = CpuModel::load(gguf.weights(), CpuOptions::default(), |_, _| {})?;

    let message = Message { role: Role::User, content: &question };
    let prompt = template.encode(&tokenizer, &[message])?;
    let mut logits = Vec::new();
    let started = Instant::now();
    let root = model.insert_prompt(&prompt, &mut logits)?;
    println!("prefill: {} tokens in {:.2?}", prompt.len(), started.elapsed());

    let before = model.traffic();
    let leaves = model.fork(root, LEAVES)?;
    let mut texts: Vec<Vec<u32>> = likeliest(&logits, LEAVES).map(|token| vec![token]).collect();
    let started = Instant::now();
    for _ in 1..TOKENS {
        let last: Vec<u32> = texts.iter().map(|text| text[text.len() - 1]).collect();
        model.step(&leaves, &last, &mut logits)?;
        let rows = logits.chunks(model.vocabulary());
        for (text, row) in texts.iter_mut().zip(rows) {
            text.extend(likeliest(row, 1));
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let steps = (TOKENS - 1) as f64;
    for text in &texts {
        let end = text.iter().position(|&token| tokenizer.is_end(token));
        println!("- {:?}", tokenizer.decode(&text[..end.unwrap_or(text.len())]));
    }
    let after = model.traffic();
    println!(
        "{LEAVES} leaves: {:.1} steps/s, {:.1} tokens/s",
        steps / seconds,
        steps / seconds * LEAVES as f64
    );
    println!(
        "K and V read: {:.1} MB, a query at a time {:.1} MB",
        (after.read - before.read) as f64 / 1e6,
        (after.per_query - before.per_query) as f64 / 1e6
    );
    Ok(())
}

/// The `n` tokens of the largest logits, largest first.
fn likeliest(row: &[f32], n: usize) -> impl Iterator<Item = u32> + use<> {
    let mut tokens: Vec<u32> = (0..row.len() as u32).collect();
    tokens.sort_by(|&a, &b| row[b as usize].total_cmp(&row[a as usize]));
    tokens.into_iter().take(n)
}
