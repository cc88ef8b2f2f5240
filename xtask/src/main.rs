//! `cargo xtask`: builds, tests and packs everything.

mod bench;
mod build_and_run;
mod bundle;
mod console;
mod kernels;
mod model;
mod process;
mod progress;
mod python;
mod report;
mod test;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, tests and packs DeFT: GPU kernels in Rust included.
///
/// Each command says what it does, sets up what it lacks (or names the command that would) and ends
/// with a summary. Only rustup's toolchain is needed to start.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    BuildAndRun(build_and_run::Args),
    BuildKernels(kernels::Args),
    Test(test::Args),
    Bundle(bundle::Args),
    Bench(bench::Args),
    Model(model::Args),
    Report(report::Args),
}

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Command::BuildAndRun(args) => build_and_run::run(&args),
        Command::BuildKernels(args) => kernels::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Bundle(args) => bundle::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Model(args) => model::run(&args),
        Command::Report(args) => report::run(&args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nerror: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::CommandFactory;

    #[test]
    fn commands_and_their_options_do_not_clash() {
        Cli::command().debug_assert();
    }
}
