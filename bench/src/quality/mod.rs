//! `deft-bench quality`: what a language model says with keys and values in fewer bits, against itself in full.

pub(crate) mod compare;

use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use deft::retain::{Budget, Policy};
use deft::{KvFormat, NodeKey};
use deft_engine::{Control, CpuModel, CpuOptions, DraftToken, Gguf, Retain, Tokenizer, TreeModel};

use self::compare::{Likeness, Row};
use crate::device::Device;
use crate::document::Document;
use crate::progress::Progress;

/// Tokens that are scored in one pass.
const PASS: usize = 64;
/// Most bytes of K and V.
const CAPACITY: u64 = 1 << 30;

/// A model and what it reads.
#[derive(Debug, clap::Args)]
pub(crate) struct Reading {
    /// The model, a GGUF file.
    #[arg(long, value_name = "FILE", default_value = crate::search::DEFAULT_MODEL)]
    pub(crate) model: PathBuf,
    /// Texts; several may be given, separated by commas.
    #[arg(
        long,
        value_delimiter = ',',
        value_name = "FILE",
        default_value = "docs/architecture.md,docs/engine.md"
    )]
    pub(crate) text: Vec<PathBuf>,
}

/// Compares a model's predictions with the prefix in fewer bits with those in full.
///
/// The first tokens of a text are a prompt whose full pages are kept in the format; the tokens after it are run one
/// after another, teacher-forced, in full. Their logits are compared: KL of the full model's distribution to the other's,
/// how often both have the same likeliest token, and by how much the text's own tokens become less likely.
///
/// Examples:
///   deft-bench quality --text README.md
///   deft-bench quality --text a.txt,b.txt --kv fp8,kivi2 --json out.json
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    #[command(flatten)]
    read: Reading,
    /// Tokens of a text that are kept in the format.
    #[arg(long, default_value_t = 1536)]
    prefix: usize,
    /// Tokens after them that are scored.
    #[arg(long, default_value_t = 256)]
    scored: usize,
    /// KV formats; several may be given, separated by commas.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "fp8,fp8-token,kivi4,kivi2,int4-g64,int4-g32,native-keep48,native-keep32,kivi4-keep48"
    )]
    kv: Vec<KvFormat>,
    /// Policies instead of formats, each with the part that it may keep if it asks (docs/retention.md): the prompt's tokens that
    /// they drop are gone for those that are scored. May be given several times.
    #[arg(long, value_name = "POLICY[@PART]", value_parser = kept)]
    retain: Vec<Kept>,
    /// Where to write the results, row by row.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
}

/// Runs the command. Nothing it finds counts as wrong.
pub(crate) fn run(args: &Args) -> Result<usize> {
    ensure!(args.prefix > 0 && args.scored > 0, "--prefix and --scored must be positive");
    let gguf = Gguf::open(&args.read.model)
        .with_context(|| format!("cannot read {}", args.read.model.display()))?;
    let tokenizer = Tokenizer::from_gguf(gguf.metadata())?;
    let texts =
        args.read.text.iter().map(|path| tokens(path, &tokenizer, args.prefix + args.scored));
    let texts = texts.collect::<Result<Vec<_>>>()?;
    let mut document = Document::new("quality", &Device::Cpu, None);
    let file = args.read.model.file_name().context("--model is no file")?;
    document.model = Some(file.to_string_lossy().into_owned());
    let ways: Vec<Way> = match args.retain.is_empty() {
        true => args.kv.iter().copied().map(Way::Format).collect(),
        false => args.retain.iter().cloned().map(Way::Kept).collect(),
    };
    let progress = Progress::new(texts.len() * (1 + ways.len()));
    let mut full = Vec::new();
    for way in [vec![Way::Format(KvFormat::Native)], ways].concat() {
        progress.doing(&way.to_string());
        let mut model = CpuModel::load(gguf.weights(), way.options(), |_, _| {})?;
        let vocabulary = model.vocabulary();
        let mut row = Row::new(way.to_string(), args.prefix, args.scored);
        for (at, text) in texts.iter().enumerate() {
            let logits = score_after(&mut model, text, args.prefix, |model, root| {
                if let Way::Kept(kept) = &way {
                    let chosen = model.compact(root, kept.part)?;
                    let rows = model.forest().length(root)? as usize;
                    row.add_kept(&chosen.context("the prompt is not compacted")?, rows);
                }
                Ok(())
            })?;
            row.add_bytes(&model.cache().bytes());
            clear(&mut model)?;
            if full.len() == at {
                full.push(logits);
            } else {
                let next = &text[args.prefix + 1..];
                row.add(Likeness::of(&full[at], &logits, vocabulary, next));
            }
            progress.step();
        }
        if way == Way::Format(KvFormat::Native) {
            progress.say(&Row::header());
            continue;
        }
        progress.say(&row.line());
        document.rows.push(row);
        document.write(args.json.as_deref())?;
    }
    Ok(0)
}

/// What becomes of a prompt.
#[derive(Clone, Debug, PartialEq)]
enum Way {
    Format(KvFormat),
    Kept(Kept),
}

/// A policy and the part of the rows that it may keep.
#[derive(Clone, Debug, PartialEq)]
struct Kept {
    policy: Policy,
    part: f64,
}

impl Way {
    fn options(&self) -> CpuOptions {
        let mut options = CpuOptions { capacity_bytes: CAPACITY, ..CpuOptions::default() };
        match self {
            Self::Format(format) => options.kv = *format,
            Self::Kept(Kept { policy, .. }) => {
                let budget = Budget::Tokens(0);
                options.retain = Some(Retain { policy: policy.clone(), budget, every: 0 });
            }
        }
        options
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format(format) => write!(f, "{format}"),
            Self::Kept(Kept { policy, part: 1.0 }) => write!(f, "{policy}"),
            Self::Kept(Kept { policy, part }) => write!(f, "{policy}@{part}"),
        }
    }
}

fn kept(text: &str) -> Result<Kept> {
    let (policy, part) = text.split_once('@').unwrap_or((text, "1"));
    let part: f64 = part.parse()?;
    ensure!((0.0..=1.0).contains(&part), "the part that is kept is {part}; it must be 0 to 1");
    Ok(Kept { policy: policy.parse()?, part })
}

/// The first `count + 1` tokens of a text.
pub(crate) fn tokens(path: &Path, tokenizer: &Tokenizer, count: usize) -> Result<Vec<u32>> {
    let shown = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    let mut tokens = tokenizer.encode(&text, Control::Text)?;
    ensure!(
        tokens.len() > count,
        "{shown} has {} tokens; --prefix and --scored take {count}, and one that is predicted",
        tokens.len()
    );
    tokens.truncate(count + 1);
    Ok(tokens)
}

/// Logits after each token behind the first `prefix`, the last but one included: `[tokens, vocabulary]`.
pub(crate) fn score(model: &mut CpuModel, text: &[u32], prefix: usize) -> Result<Vec<f32>> {
    score_after(model, text, prefix, |_, _| Ok(()))
}

/// The same when `change` has been done to the prompt's node.
fn score_after(
    model: &mut CpuModel,
    text: &[u32],
    prefix: usize,
    change: impl FnOnce(&mut CpuModel, NodeKey) -> Result<()>,
) -> Result<Vec<f32>> {
    let mut logits = Vec::new();
    let root = model.insert_prompt(&text[..prefix], &mut logits)?;
    change(model, root)?;
    let leaf = model.fork(root, 1)?[0];
    let mut all = Vec::new();
    for part in text[prefix..text.len() - 1].chunks(PASS) {
        let chain =
            (0u32..).zip(part).map(|(i, &token)| DraftToken { parent: i.checked_sub(1), token });
        let nodes = model.verify(leaf, &chain.collect::<Vec<_>>(), &mut logits)?;
        model.accept(leaf, &nodes)?;
        all.extend_from_slice(&logits);
    }
    Ok(all)
}

/// Takes all trees away.
pub(crate) fn clear(model: &mut CpuModel) -> Result<()> {
    for root in model.forest().roots().collect::<Vec<_>>() {
        model.prune(root)?;
    }
    Ok(())
}
