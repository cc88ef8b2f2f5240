//! `deft-bench layers`: which layers of a model stand reading the keys and values of others.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use deft::cache::{LayerMap, LayerSearch, PairOrder};
use deft_engine::{CpuModel, CpuOptions, Gguf, Tokenizer, TreeModel};

use crate::quality::compare::Likeness;
use crate::quality::{Reading, clear, score, tokens};
use crate::say;

/// Looks for layers of a model that may share keys and values, as KVSharer does, and says what it costs.
///
/// Pairs of layers are ordered by the distance of their mean keys and values over the beginning of each text. A pair is
/// kept if the model's final state, after each of those beginnings, keeps a cosine of --least to what it is without
/// sharing. What was found is then compared with the whole model on the tokens that follow: KL, how often both have the
/// same likeliest token, and by how much the text's own tokens become less likely.
///
/// Examples:
///   deft-bench layers --text docs/engine.md
///   deft-bench layers --order nearest --least 0.9 --shared 4
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(flatten)]
    read: Reading,
    /// Tokens of a text that the search sees.
    #[arg(long, default_value_t = 128)]
    seen: usize,
    /// Tokens after them that are scored.
    #[arg(long, default_value_t = 128)]
    scored: usize,
    /// Layers that are to share.
    #[arg(long, default_value_t = 7)]
    shared: usize,
    /// Least cosine that is kept; KVSharer takes 0.5.
    #[arg(long, default_value_t = 0.5)]
    least: f64,
    /// Which pairs are tried first; KVSharer takes the farthest.
    #[arg(long, value_enum, default_value = "farthest")]
    order: Order,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Order {
    Farthest,
    Nearest,
}

/// Runs the command. Nothing it finds counts as wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    ensure!(args.seen > 0 && args.scored > 0, "--seen and --scored must be positive");
    let gguf = Gguf::open(&args.read.model)
        .with_context(|| format!("cannot read {}", args.read.model.display()))?;
    let tokenizer = Tokenizer::from_gguf(gguf.metadata())?;
    let texts = args.read.text.iter().map(|path| tokens(path, &tokenizer, args.seen + args.scored));
    let texts = texts.collect::<Result<Vec<_>>>()?;
    let options = CpuOptions { capacity_bytes: 256 << 20, ..CpuOptions::default() };
    let mut model = CpuModel::load(gguf.weights(), options, |_, _| {})?;
    let layers = model.config().layers;
    let means = means(&mut model, &texts, args.seen)?;
    let whole = states(&mut model, &texts, args.seen)?;
    let distance = |a: u32, b: u32| distance(&means[a as usize], &means[b as usize]);
    let order = match args.order {
        Order::Farthest => PairOrder::Farthest,
        Order::Nearest => PairOrder::Nearest,
    };
    let search = LayerSearch { shared: args.shared, least: args.least, order };
    say(&format!(
        "{}: {layers} layers, {} to share, cosine of {} at least, {:?} pairs first, {} texts of {} tokens",
        args.read.model.file_name().unwrap_or_default().to_string_lossy(),
        args.shared,
        args.least,
        args.order,
        texts.len(),
        args.seen
    ));
    let begin = Instant::now();
    let (map, trials) = search.run(layers, distance, |map| -> Result<f64, anyhow::Error> {
        model.set_layer_map(Some(map.clone()))?;
        let states = states(&mut model, &texts, args.seen)?;
        let cosines = states.iter().zip(&whole).map(|(shared, whole)| cosine(shared, whole));
        Ok(cosines.sum::<f64>() / texts.len() as f64)
    })?;
    for trial in &trials {
        let kept = if trial.kept { "kept" } else { "left" };
        let (layer, source) = (trial.layer, trial.source);
        say(&format!("  layer {layer:>2} reads {source:>2}: cosine {:.3}, {kept}", trial.score));
    }
    say(&format!(
        "{} maps tried in {:.1} s; {} of {layers} layers stored",
        trials.len(),
        begin.elapsed().as_secs_f64(),
        map.stored()
    ));
    judge(&mut model, map, &texts, args)?;
    Ok(0)
}

/// Compares the model with itself where layers share as `map` says.
fn judge(model: &mut CpuModel, map: LayerMap, texts: &[Vec<u32>], args: &Args) -> Result<()> {
    let mut logits = Vec::new();
    for map in [None, Some(map)] {
        model.set_layer_map(map)?;
        let mut of_texts = Vec::new();
        for text in texts {
            of_texts.push(score(model, text, args.seen)?);
            clear(model)?;
        }
        logits.push(of_texts);
    }
    say(&format!("{:<24} {:>8} {:>6} {:>8}", "text", "KL", "top-1", "dNLL"));
    for (at, path) in args.read.text.iter().enumerate() {
        let next = &texts[at][args.seen + 1..];
        let likeness = Likeness::of(&logits[0][at], &logits[1][at], model.vocabulary(), next);
        let (kl, top1, nll) = (likeness.kl, likeness.top1, likeness.nll);
        say(&format!("{:<24} {kl:>8.3} {top1:>6.3} {nll:>8.3}", path.display()));
    }
    Ok(())
}

/// Of each layer the mean keys and values, over all texts.
fn means(model: &mut CpuModel, texts: &[Vec<u32>], seen: usize) -> Result<Vec<Vec<f32>>> {
    let mut sums: Vec<Vec<f32>> = Vec::new();
    for text in texts {
        let root = model.insert_prompt(&text[..seen], &mut Vec::new())?;
        let of_text = model.mean_kv(root)?;
        clear(model)?;
        sums.resize(of_text.len(), vec![0.0; of_text[0].len()]);
        for (sum, mean) in sums.iter_mut().zip(of_text) {
            sum.iter_mut().zip(mean).for_each(|(sum, mean)| *sum += mean / texts.len() as f32);
        }
    }
    Ok(sums)
}

/// The final state after the beginning of each text.
fn states(model: &mut CpuModel, texts: &[Vec<u32>], seen: usize) -> Result<Vec<Vec<f32>>> {
    let mut all = Vec::new();
    for text in texts {
        model.insert_prompt(&text[..seen], &mut Vec::new())?;
        all.push(model.final_state().to_vec());
        clear(model)?;
    }
    Ok(all)
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>().sqrt()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let product = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
    };
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_and_cosines_are_those_of_geometry() {
        assert_eq!(distance(&[1.0, 2.0], &[4.0, 6.0]), 5.0);
        assert_eq!(cosine(&[2.0, 0.0], &[0.0, 3.0]), 0.0);
        assert!((cosine(&[1.0, 1.0], &[3.0, 3.0]) - 1.0).abs() < 1e-12);
    }
}
