//! `deft-bench trace`: queries, keys and values of a text, for those who train something on them.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use deft_engine::{CpuModel, CpuOptions, Gguf, Tokenizer};
use half::f16;
use safetensors::tensor::{Dtype, TensorView};

use crate::quality::{Reading, tokens};
use crate::say;

/// Writes what attention of each layer has of a text, in f16, into a safetensors file.
///
/// Of layer i there are `layers.i.q` [tokens, q_heads, head_dim], `layers.i.k` and `layers.i.v` [tokens, kv_heads, head_dim];
/// queries and keys are turned by their positions. bench/less/train.py reads it.
///
/// Example:
///   deft-bench trace --text docs/using.md --tokens 1024 --out using.safetensors
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(flatten)]
    read: Reading,
    /// The first so many tokens of the text.
    #[arg(long, default_value_t = 1024)]
    tokens: usize,
    /// The file.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

/// Runs the command. Nothing it finds counts as wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    let [path] = &args.read.text[..] else {
        anyhow::bail!("--text names {} texts; a trace is of one", args.read.text.len());
    };
    ensure!(args.tokens > 0, "--tokens must be positive");
    let gguf = Gguf::open(&args.read.model)
        .with_context(|| format!("cannot read {}", args.read.model.display()))?;
    let tokenizer = Tokenizer::from_gguf(gguf.metadata())?;
    let text = tokens(path, &tokenizer, args.tokens)?;
    let mut model = CpuModel::load(gguf.weights(), CpuOptions::default(), |_, _| {})?;
    let layers = model.attention_rows(&text[..args.tokens])?;
    let config = model.config();
    let (q_heads, kv_heads) = (config.q_heads as usize, config.kv_heads as usize);
    let mut tensors = Vec::new();
    for (layer, of) in layers.iter().enumerate() {
        for (name, heads, rows) in
            [("q", q_heads, &of.q), ("k", kv_heads, &of.k), ("v", kv_heads, &of.v)]
        {
            let bytes: Vec<u8> =
                rows.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect();
            let shape = vec![args.tokens, heads, config.head_dim as usize];
            tensors.push((format!("layers.{layer}.{name}"), shape, bytes));
        }
    }
    let views = tensors
        .iter()
        .map(|(name, shape, bytes)| Ok((name, TensorView::new(Dtype::F16, shape.clone(), bytes)?)));
    let views = views.collect::<Result<Vec<_>>>()?;
    safetensors::serialize_to_file(views, None, &args.out)
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    say(&format!("{} tokens, {} layers: {}", args.tokens, layers.len(), args.out.display()));
    Ok(0)
}
