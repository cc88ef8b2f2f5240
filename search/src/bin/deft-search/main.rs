//! `deft-search`: a language model searches a tree of continuations, and the tree is shown as it grows.
//!
//! ```text
//! args --> question (prompt, checker) --> method --[TreeSearch over a measured model]--> outcome --> report
//!      \-> model (GGUF, CPU or GPU)                      \--> events --> tree --[draw]--> terminal, or lines
//! ```

mod args;
mod draw;
mod measure;
mod method;
mod model;
mod question;
mod report;
mod run;
mod screen;
mod show;
#[cfg(test)]
mod tests;
mod tree;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use args::{Args, model_file};
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
    /// A GGUF file of a Llama-architecture model with a byte-level BPE tokenizer.
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

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(what) = cli.args.check() {
        eprintln!("error: {what}");
        return ExitCode::from(2);
    }
    match run::run(&cli.model, &cli.args) {
        Ok(Ended::Itself) => ExitCode::SUCCESS,
        Ok(Ended::Cancelled) => ExitCode::from(130),
        // Whoever read has what they wanted.
        Err(error) if is_closed_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}
