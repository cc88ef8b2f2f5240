//! `deft-search`: a language model searches a tree of continuations, and the tree is shown as it grows.
//!
//! ```text
//! args --> question (prompt, checker) --> method --[TreeSearch over a measured model]--> outcome --> report
//!      \-> model (GGUF, CPU or GPUs)                     \--> events --> tree --[draw]--> terminal, or lines
//! ```

mod args;
mod draw;
mod measure;
mod method;
mod model;
mod question;
mod ranks;
mod report;
mod run;
mod screen;
mod show;
#[cfg(test)]
mod tests;
mod tree;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use args::{Args, model_file};
use report::LastWord;
use run::Ended;

/// Searches a tree of continuations with a language model, and shows the tree as it grows.
///
/// Branches share the K and V of the tokens they have in common, and attention reads them once a step; the
/// summary says what reading them for every branch by itself would have cost.
///
/// Examples:
///   deft-search --model SmolLM2-135M-Instruct.Q4_1.gguf
///   deft-search --model llama.gguf --prompt "Name three rivers." --search best-of-n --width 6
///   deft-search --model llama.gguf --task digit-sort --search beam --json
#[derive(Parser)]
#[command(version, verbatim_doc_comment, max_term_width = 100)]
struct Cli {
    /// A GGUF file (of several, any), or a folder of safetensors with config.json and tokenizer.json. Llama's
    /// architecture, or Mistral's, Qwen's, SmolLM's or Gemma's.
    #[arg(long, value_name = "PATH", value_parser = model_file)]
    model: PathBuf,

    #[command(flatten)]
    args: Args,
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let mut causes = error.chain();
    causes.any(|cause| {
        let io = cause.downcast_ref::<std::io::Error>();
        io.is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

/// Tells people, if they still listen.
fn tell(what: &str) {
    let _ = writeln!(std::io::stderr(), "{what}");
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(what) = cli.args.check() {
        tell(&format!("error: {what}"));
        return ExitCode::from(2);
    }
    let last = LastWord::new(cli.args.json);
    match run::run(&cli.model, &cli.args, &last) {
        Ok(Ended::Itself) => ExitCode::SUCCESS,
        Ok(Ended::Cancelled) => ExitCode::from(130),
        // Whoever read has what they wanted.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            last.say(&serde_json::json!({ "error": format!("{error:#}") }));
            tell(&format!("\nerror: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
