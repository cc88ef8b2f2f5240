//! What the user may ask of a replay. Understood before anything is built.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

/// Recorded tree-of-thought tasks that come along, by the name of their file in workloads/reasoning.
pub(crate) const TASKS: [&str; 4] = ["sorting128ToT", "docmergeToT", "keywordToT", "set128ToT"];
const FEW_SHOT: &str = "few-shot";
const MEDUSA: &str = "medusa";
const STEPS: u32 = 24;

/// Replays a recorded tree of decode steps, with each way to group its attention; needs no model.
///
/// The replay branches and prunes the tree as recorded, plans every step, and on some of them appends K and V,
/// runs one layer's attention (of Llama-3-8B, unless the file has its own shape) and compares rows of the output
/// with f64. It prints, for each grouping, the bytes read, attention's time and planning's, and draws the tree
/// over time to target/replay as an SVG. An attention time is that of the fastest of two calls from the host:
/// on a GPU, copies of queries and outputs are part of it; deft-bench, in the bundle, times the kernels alone.
///
/// Examples:
///   cargo xtask replay
///   cargo xtask replay --workload sorting128ToT --run 3 --grouping flatten
///   cargo xtask replay --workload workloads/trees.json --run spec64_ctx4k --json
#[derive(Clone, Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Args {
    /// What to replay: a recorded tree-of-thought task (sorting128ToT, docmergeToT, keywordToT,
    /// set128ToT), few-shot (a 4,000-token prompt with 50 branches), medusa (draft trees with their
    /// recorded acceptance), or a file in the format of workloads/trees.json, of workloads/medusa.json or
    /// of one in workloads/reasoning.
    #[arg(long, value_name = "NAME|FILE", default_value = "sorting128ToT", value_parser = Workload::parse)]
    pub(crate) workload: Workload,

    /// Which of the workload's recorded runs (0 to 19), draft trees (by size: 32 to 256), or named
    /// trees. Left out: the first; of the draft trees the one of 64.
    #[arg(long, value_name = "NAME")]
    pub(crate) run: Option<String>,

    /// How queries and KV are grouped; several may be given, separated by commas. Left out: all.
    /// The baseline, per-query, always runs along.
    #[arg(long, value_delimiter = ',')]
    pub(crate) grouping: Vec<GroupingArg>,

    /// Where attention runs; auto takes the first GPU that there are kernels for, else the CPU.
    #[arg(long, default_value = "auto")]
    pub(crate) device: DeviceArg,

    /// Decode steps on which attention is run, timed and checked, spread evenly over the run. Bytes and
    /// plans are counted on every step.
    #[arg(long, value_name = "N", default_value_t = STEPS, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) steps: u32,

    /// Print one JSON object instead of the table; everything else goes to stderr.
    #[arg(long)]
    pub(crate) json: bool,
}

impl Args {
    /// Those of a command line without any, but for `--json`.
    pub(crate) fn usual(json: bool) -> Self {
        Self {
            workload: Workload::Task(TASKS[0]),
            run: None,
            grouping: Vec::new(),
            device: DeviceArg::Auto,
            steps: STEPS,
            json,
        }
    }

    /// What is replayed, for people.
    pub(crate) fn title(&self) -> String {
        let run = self.run.as_ref();
        self.workload.name() + &run.map_or(String::new(), |run| format!(", run {run}"))
    }

    /// The same as words of a command line.
    pub(crate) fn words(&self) -> Vec<OsString> {
        let mut words: Vec<OsString> = vec!["--workload".into(), self.workload.word()];
        if let Some(run) = &self.run {
            // In one word, so that a name that starts with a hyphen stays a name.
            words.push(format!("--run={run}").into());
        }
        for grouping in &self.grouping {
            words.extend(["--grouping".into(), grouping.name().into()]);
        }
        let device = self.device.to_possible_value();
        let device = device.expect("no device is hidden").get_name().to_owned();
        words.extend(["--device".into(), device.into()]);
        words.extend(["--steps".into(), self.steps.to_string().into()]);
        words.extend(self.json.then(|| "--json".into()));
        words
    }
}

/// A workload by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Workload {
    /// One of [`TASKS`].
    Task(&'static str),
    FewShot,
    Medusa,
    /// Absolute.
    File(PathBuf),
}

impl Workload {
    fn parse(text: &str) -> Result<Self, String> {
        if let Some(task) = TASKS.into_iter().find(|&task| task == text) {
            return Ok(Self::Task(task));
        }
        match text {
            FEW_SHOT => Ok(Self::FewShot),
            MEDUSA => Ok(Self::Medusa),
            _ if Path::new(text).is_file() => std::path::absolute(text)
                .map(Self::File)
                .map_err(|error| error.to_string()),
            _ => Err(format!(
                "neither a file nor one of {}, {FEW_SHOT}, {MEDUSA}",
                TASKS.join(", ")
            )),
        }
    }

    fn word(&self) -> OsString {
        match self {
            Self::File(path) => path.into(),
            _ => self.name().into(),
        }
    }

    /// A short name, that of a file without folder and extension.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Task(task) => (*task).to_owned(),
            Self::FewShot => FEW_SHOT.to_owned(),
            Self::Medusa => MEDUSA.to_owned(),
            Self::File(path) => {
                let stem = path.file_stem().unwrap_or_default();
                stem.to_string_lossy().into_owned()
            }
        }
    }
}

/// `deft::Grouping` on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum GroupingArg {
    /// every query reads its whole path (Flash-Decoding)
    PerQuery,
    /// a tree node with all queries below it (DeFT-Node)
    Node,
    /// 128 tokens of a node (DeFT-Node-Chunk)
    NodeChunk,
    /// the tree flattened and cut into even shares (DeFT-Flatten)
    Flatten,
}

impl GroupingArg {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::PerQuery => "per-query",
            Self::Node => "node",
            Self::NodeChunk => "node-chunk",
            Self::Flatten => "flatten",
        }
    }
}

/// Where attention runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceArg {
    /// a GPU if it can be, else the CPU
    Auto,
    /// the CPU
    Cpu,
    /// an NVIDIA GPU, or an error that says what is missing
    Cuda,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        args: Args,
    }

    fn parse(words: &[OsString]) -> Result<Args, String> {
        let words = [&["xtask".into()], words].concat();
        let cli = Cli::try_parse_from(words);
        cli.map(|cli| cli.args).map_err(|error| error.to_string())
    }

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn arguments_survive_the_way_through_a_command_line() {
        let text =
            "--workload medusa --run=-x --grouping node,flatten --device cpu --steps 3 --json";
        let args = parse(&words(text)).unwrap();
        assert_eq!(args.grouping, [GroupingArg::Node, GroupingArg::Flatten]);
        let again = parse(&args.words()).unwrap();
        assert_eq!(format!("{again:?}"), format!("{args:?}"));
        let default = parse(&[]).unwrap();
        assert_eq!(format!("{default:?}"), format!("{:?}", Args::usual(false)));
        let again = parse(&default.words()).unwrap();
        assert_eq!(format!("{again:?}"), format!("{default:?}"));
    }

    #[test]
    fn a_file_is_a_workload_and_anything_else_is_refused_with_the_names_known() {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../workloads/trees.json");
        let workload = Workload::parse(file.to_str().unwrap()).unwrap();
        assert_eq!(workload.name(), "trees");
        let error = parse(&words("--workload sorting")).unwrap_err();
        assert!(error.contains("neither a file nor one of sorting128ToT, docmergeToT"));
    }

    #[test]
    fn no_step_at_all_is_refused() {
        assert!(
            parse(&words("--steps 0"))
                .unwrap_err()
                .contains("0 is not in 1..")
        );
    }
}
