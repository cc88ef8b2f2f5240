//! `deft-bench speculate`: what drafts looked up in the prompt save.

mod project;
mod prompts;
mod record;
mod report;

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use deft_engine::{ChatTemplate, Message, Role, TextCodec, TreeModel};
use deft_search::PromptLookup;

use self::project::Projection;
use self::prompts::PROMPTS;
use self::record::{Decoded, decode};
use self::report::{HEADER, Row};
use crate::document::Document;
use crate::progress::Progress;
use crate::search::DEFAULT_MODEL;
use crate::search::model::Opened;
use crate::stats::Spread;
use crate::{DeviceArgs, LibraryArgs};

/// Decodes greedily, a token a pass and with drafts looked up in the prompt, which one pass verifies.
///
/// The prompts ask to repeat a text with small changes, to rename something in a program, to go on with a table, and to
/// summarise. Both ways take turns; a row has the medians. What each pass kept is projected to Llama-3-8B by the times
/// of docs/benchmarks/h100-engine.json: a token, and 64 nodes verified, whatever smaller draft there was.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    libraries: LibraryArgs,
    /// The model, a GGUF file with a chat template.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_MODEL)]
    model: PathBuf,
    /// Tokens of an answer, at most.
    #[arg(long, default_value_t = 256)]
    tokens: usize,
    /// Tokens of a draft, at most; several may be given, separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "4,8,24")]
    nodes: Vec<usize>,
    /// Turns that each way takes.
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// Where to write the results, row by row.
    #[arg(long, value_name = "OUT")]
    json: Option<PathBuf>,
}

/// Runs the command. Text that is not the same does not count as wrong: rows say where it differs.
pub(crate) fn run(args: &Args) -> Result<usize> {
    args.check()?;
    let device = args.device.open()?;
    let progress = Progress::new(PROMPTS.len() * args.turns * (1 + args.nodes.len()));
    progress.doing("reading the model");
    let Opened { name, template, mut model, tokenizer } =
        Opened::read(&args.model, &device, args.libraries.cublas.as_deref())?;
    let template = template.context("the file has no chat template")?;
    let template = ChatTemplate::new(&template)?;
    let mut document = Document::new("speculate", &device, None);
    document.model = Some(name);
    let shown = document.model.as_deref().unwrap_or_default();
    progress.say(&format!("{}; {shown}", document.device));
    progress.say(HEADER);
    for (name, content) in PROMPTS {
        let prompt = template.encode(&tokenizer, &[Message { role: Role::User, content }])?;
        for row in time(args, (&mut *model, &tokenizer), (name, &prompt), &progress)? {
            progress.say(&row.line());
            document.rows.push(row);
            document.write(args.json.as_deref())?;
        }
    }
    let drafted = document.rows.iter().filter(|row| row.nodes > 0);
    for line in Projection::embedded()?.lines(drafted) {
        progress.say(&line);
    }
    Ok(0)
}

impl Args {
    fn check(&self) -> Result<()> {
        for (name, value) in [("tokens", self.tokens), ("turns", self.turns)] {
            ensure!(value > 0, "--{name} is 0; at least 1 is needed");
        }
        ensure!(self.nodes.iter().all(|&nodes| nodes > 0), "--nodes is 0; at least 1 is needed");
        Ok(())
    }

    /// Plain decoding, then with each size of drafts.
    fn ways(&self) -> Vec<Option<PromptLookup>> {
        let drafters = self.nodes.iter().map(|&nodes| {
            let usual = PromptLookup::default();
            Some(PromptLookup { nodes, depth: usual.depth.min(nodes), ..usual })
        });
        std::iter::once(None).chain(drafters).collect()
    }
}

/// All ways of one prompt, turn by turn.
fn time(
    args: &Args,
    (model, codec): (&mut dyn TreeModel, &dyn TextCodec),
    (name, prompt): (&str, &[u32]),
    progress: &Progress,
) -> Result<Vec<Row>> {
    let ways = args.ways();
    let mut runs: Vec<Vec<Decoded>> = ways.iter().map(|_| Vec::new()).collect();
    for turn in 0..args.turns {
        for (way, runs) in ways.iter().zip(&mut runs) {
            let nodes = way.map_or(0, |lookup| lookup.nodes);
            progress.doing(&format!("{name}, drafts of {nodes}, turn {turn}"));
            runs.push(decode((&mut *model, codec), prompt, (*way, args.tokens))?);
            progress.step();
        }
    }
    let plain = runs[0][0].answer.clone();
    let rows = ways.iter().zip(runs).map(|(way, runs)| {
        let seconds = Spread::of(runs.iter().map(|run| run.seconds).collect()).median;
        let first = runs.into_iter().next().expect("there is a turn");
        Row::new((name, prompt.len()), way.map_or(0, |way| way.nodes), (seconds, first), &plain)
    });
    Ok(rows.collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::search::mock::{AsciiCodec, HashModel, HashModelConfig};

    fn args(words: &[&str]) -> Args {
        let words = [&["deft-bench", "speculate"], words].concat();
        let crate::Command::Speculate(args) = crate::parse(&words).command else {
            panic!("another suite");
        };
        args
    }

    #[test]
    fn every_way_gives_the_same_answer_and_drafts_take_fewer_passes() {
        let args = args(&["--tokens", "60", "--nodes", "1,9", "--turns", "2"]);
        // It repeats itself, so that what was said before is said again.
        let config = HashModelConfig { memory: 1, ..HashModelConfig::default() };
        let mut model = HashModel::new(config).unwrap();
        let progress = Progress::new(6);
        let prompt = AsciiCodec.encode("once more");
        let rows = time(&args, (&mut model, &AsciiCodec), ("mock", &prompt), &progress).unwrap();
        let passes: Vec<usize> = rows.iter().map(|row| row.kept.len()).collect();
        assert_eq!(rows.iter().map(|row| row.nodes).collect::<Vec<_>>(), [0, 1, 9]);
        assert!(passes[0] > passes[1] && passes[1] > passes[2], "{passes:?}");
        for row in &rows {
            assert_eq!((row.tokens, row.differs_at), (rows[0].tokens, None));
            assert_eq!(1 + row.kept.iter().sum::<usize>(), row.tokens);
            assert!(row.drafted.iter().all(|&drafted| (1..=1 + row.nodes).contains(&drafted)));
        }
    }

    #[test]
    fn settings_without_anything_to_do_are_refused() {
        for (words, name) in [
            (["--tokens", "0"], "--tokens"),
            (["--turns", "0"], "--turns"),
            (["--nodes", "4,0"], "--nodes"),
        ] {
            let error = args(&words).check().unwrap_err().to_string();
            assert_eq!(error, format!("{name} is 0; at least 1 is needed"));
        }
    }
}
