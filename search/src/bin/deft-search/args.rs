//! What the user may ask of a search. `cargo xtask build-and-run` has the same arguments and understands them
//! before anything is built.

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use deft::retain::Policy;

/// Arguments of a search.
#[derive(Clone, Debug, clap::Args)]
// Another command has these arguments among its own.
#[group(skip)]
pub(crate) struct Args {
    /// Ask this instead of a puzzle; the model answers as in a chat. Nothing checks the answer: the search
    /// goes by how likely the model finds it.
    #[arg(long, value_name = "TEXT", conflicts_with = "task", value_parser = prompt)]
    pub(crate) prompt: Option<String>,

    /// Then ask this, of the same model; may be given several times. What a prompt has in common with those before it
    /// is not run again.
    #[arg(long, value_name = "TEXT", requires = "prompt", value_parser = prompt)]
    pub(crate) then: Vec<String>,

    /// The puzzle to solve. It comes with a checker that tells right from wrong.
    #[arg(long, default_value = "acrostic")]
    pub(crate) task: TaskArg,

    /// How the tree grows.
    #[arg(long, default_value = "tot")]
    pub(crate) search: SearchArg,

    /// Continuations at a time: beams, samples, or thoughts after every state (and states that go on).
    /// Left out: 6 for tot, 4 for beam, 8 for the others.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) width: Option<u16>,

    /// Levels of thoughts (--search tot). Left out: what the puzzle needs, or 4.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) depth: Option<u16>,

    /// Most tokens of an answer. Left out: what the puzzle needs, or 96.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub(crate) tokens: Option<u32>,

    /// Most tokens to run through the model in all, the prompt's not counted.
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) budget: u64,

    /// Chooses the puzzle and the random numbers: the same seed gives the same tree.
    #[arg(long, value_name = "N", default_value_t = 6)]
    pub(crate) seed: u64,

    /// Where the model runs; auto takes the first GPU if it can run there, else the CPU, and says so.
    #[arg(long, default_value = "auto")]
    pub(crate) device: DeviceArg,

    /// Run the model on so many GPUs of this machine, which share its heads; with --device cpu, by so many threads that
    /// share them.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub(crate) gpus: u32,

    /// This process is one of several that torchrun, mpirun or srun has started, on one machine or more, each for a GPU of
    /// its own: docs/several-gpus.md. The first one searches.
    #[arg(long, conflicts_with = "gpus")]
    pub(crate) launched: bool,

    /// How keys and values above a fork are kept: in the model's type, or in fewer bits.
    #[arg(long, default_value = "native")]
    pub(crate) kv: KvArg,

    /// Drop tokens that a policy finds minor for all branches, every 16 passes: corm:64, h2o:64, snapkv:32, sinks:4,256,
    /// merge:0.75, less:WEIGHTS,corm:64 (the last on the CPU only); docs/retention.md says which to choose.
    #[arg(long, value_name = "POLICY", conflicts_with_all = ["gpus", "launched"])]
    pub(crate) retain: Option<Policy>,

    /// With --retain: rows of K and V, a layer and KV head, from which on tokens are dropped; h2o and snapkv keep so many.
    #[arg(long, value_name = "ROWS", default_value_t = 0, requires = "retain")]
    pub(crate) retain_rows: u64,

    /// Print one JSON object a question instead of the tree; everything else goes to stderr. docs/search.md
    /// describes it.
    #[arg(long)]
    pub(crate) json: bool,
}

impl Args {
    /// Whether they go together; if not, what to change.
    ///
    /// # Errors
    /// For people.
    pub(crate) fn check(&self) -> Result<(), String> {
        match self.depth {
            Some(depth) if self.search != SearchArg::Tot => Err(format!(
                "--depth {depth} counts levels of thoughts, which --search {} does not have: leave it \
                 out, or take --search tot (--tokens limits the length of an answer)",
                word(self.search)
            )),
            _ => Ok(()),
        }
    }

    /// Continuations at a time.
    pub(crate) fn width(&self) -> usize {
        let usual = match self.search {
            SearchArg::Tot => 6,
            SearchArg::Beam => 4,
            _ => 8,
        };
        self.width.map_or(usual, usize::from)
    }
}

/// A value's word on the command line.
fn word(value: impl ValueEnum) -> String {
    let value = value.to_possible_value().expect("no value is hidden");
    value.get_name().to_owned()
}

fn prompt(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("a prompt needs a word at least".to_owned());
    }
    Ok(text.to_owned())
}

/// A file that is there, or a folder with a model, as a whole path.
///
/// # Errors
/// For people.
pub(crate) fn model_file(text: &str) -> Result<PathBuf, String> {
    let path = Path::new(text);
    if !path.is_file() && !path.join("config.json").is_file() {
        return Err(
            "no such file; a GGUF file is wanted, or a folder of safetensors with a config.json; `cargo xtask model` \
             fetches one"
                .to_owned(),
        );
    }
    std::path::absolute(path).map_err(|error| error.to_string())
}

/// A puzzle of `deft_search::tasks`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum TaskArg {
    /// words whose initials are given letters
    Acrostic,
    /// digits in ascending order
    DigitSort,
    /// a number as a sum of different numbers
    DistinctSum,
    /// four numbers and + - * / make 24: more than the default model can do
    #[value(name = "game-of-24")]
    GameOf24,
}

/// A way of growing a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum SearchArg {
    /// tree of thoughts: sample thoughts after every state, judge, go on from the best
    Tot,
    /// beam search: the likeliest continuations at every token
    Beam,
    /// best of n samples: the one that is right, or else the likeliest
    BestOfN,
    /// a batch of continuations of one prompt, from greedy to daring
    FewShot,
    /// one greedy answer; drafted trees of tokens are verified in one pass
    Speculative,
}

/// Where the model runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceArg {
    /// a GPU if it can be, else the CPU
    Auto,
    /// the CPU
    Cpu,
    /// an NVIDIA GPU, or an error that says what is missing
    Cuda,
}

/// How keys and values are kept that change no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum KvArg {
    /// as they are computed
    Native,
    /// 8-bit floating point, E4M3
    Fp8,
    /// 4 bits, groups of a token's channels
    Int4,
    /// 4 bits, keys by channel
    Kivi4,
    /// 2 bits, keys by channel
    Kivi2,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::ffi::OsString;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[OsString]) -> Result<Args, String> {
        let words = [&["deft-search".into()], words].concat();
        let cli = Cli::try_parse_from(words);
        cli.map(|cli| cli.args).map_err(|error| error.to_string())
    }

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn values_out_of_range_are_refused_with_the_range() {
        for (text, part) in [
            ("--width 0", "1..=256"),
            ("--depth 65", "1..=64"),
            ("--tokens 0", "1..=100000"),
            ("--budget 0", "1.."),
            ("--search dfs", "possible values: tot, beam"),
            ("--kv int8", "possible values: native, fp8, int4, kivi4, kivi2"),
            ("--device gpu", "possible values: auto, cpu, cuda"),
            ("--retain corn:64", "there are corm, h2o"),
            ("--retain corm", "window must be"),
            ("--retain corm:64 --gpus 2", "cannot be used with"),
            ("--retain-rows 64", "--retain"),
            ("--gpus 0", "1..=64"),
            ("--gpus 2 --launched", "cannot be used with"),
            ("--prompt=", "a prompt needs a word"),
            ("--prompt=x --task acrostic", "cannot be used with"),
            ("--then x", "--prompt"),
        ] {
            let error = parse(&words(text)).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn a_depth_without_thoughts_is_refused_with_what_to_take_instead() {
        let args = parse(&words("--search beam --depth 3")).unwrap();
        let error = args.check().unwrap_err();
        assert!(error.contains("--search tot") && error.contains("--tokens"));
        assert!(parse(&words("--depth 3")).unwrap().check().is_ok());
    }

    #[test]
    fn a_model_that_is_not_there_is_refused_with_how_to_get_one() {
        let error = model_file("no/such.gguf").unwrap_err();
        assert!(error.contains("cargo xtask model"));
        assert!(model_file(env!("CARGO_MANIFEST_PATH")).is_ok());
    }
}
