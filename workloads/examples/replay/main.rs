//! A recorded tree of thoughts, step by step, through the library: how it branches and is pruned, what each way to
//! group its attention reads, and how long that takes.
//!
//! ```text
//! cargo run --release -p deft-workloads --example replay -- --workload sorting128ToT --run 3
//! cargo run --release -p deft-workloads --example replay --features cuda -- --device cuda
//! ```
//!
//! `session` does what was recorded to a `TreeCache`, plans, attends and compares; `picture` draws the tree over time.

mod picture;
mod session;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use deft::{Device, Grouping};
use deft_workloads::ReasoningRun;
use serde_json::{Value, json};

use picture::Picture;
use session::{HEADS, Session, Track};

/// Workloads that come along, by name.
const RECORDED: [(&str, &str); 4] = [
    ("sorting128ToT", include_str!("../../reasoning/sorting128ToT.json")),
    ("docmergeToT", include_str!("../../reasoning/docmergeToT.json")),
    ("keywordToT", include_str!("../../reasoning/keywordToT.json")),
    ("set128ToT", include_str!("../../reasoning/set128ToT.json")),
];
const GROUPINGS: [Grouping; 4] =
    [Grouping::PerQuery, Grouping::Node, Grouping::NodeChunk, Grouping::Flatten];

/// Replays a recorded tree of decode steps, with each way to group its attention; needs no model.
///
/// The replay branches and prunes the tree as recorded, plans every step, and on some of them appends K and V, runs
/// the attention of one layer of Llama-3-8B and compares rows of the output with f64. It prints, for each grouping,
/// the bytes read, attention's time and planning's, and draws the tree over time as an SVG. An attention time is that
/// of the fastest of two calls from the host: on a GPU, copies of queries and outputs are part of it; deft-bench
/// times the kernels alone.
#[derive(Debug, Parser)]
struct Args {
    /// sorting128ToT, docmergeToT, keywordToT or set128ToT (recorded runs), few-shot (a 4,000-token prompt with 50
    /// branches of 400), or a file in the format of one in workloads/reasoning.
    #[arg(long, value_name = "NAME|FILE", default_value = "sorting128ToT")]
    workload: String,
    /// Which of the workload's recorded runs.
    #[arg(long, value_name = "N", default_value_t = 0)]
    run: usize,
    /// Where attention runs; auto takes the first GPU that there are kernels for, else the CPU.
    #[arg(long, default_value = "auto")]
    device: DeviceArg,
    /// Decode steps on which attention is run, timed and checked, spread evenly over the run.
    #[arg(long, value_name = "N", default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Where the picture goes; a folder, made if it is not there.
    #[arg(long, value_name = "FOLDER", default_value = "target/replay")]
    out: PathBuf,
    /// Print one JSON object instead of the table.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum DeviceArg {
    /// a GPU if it can be, else the CPU
    Auto,
    /// the CPU
    Cpu,
    /// an NVIDIA GPU, or an error that says what is missing
    Cuda,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let report = replay(&args)?;
    if args.json {
        println!("{report:#}");
    } else {
        print(&report);
    }
    Ok(())
}

/// Replays, draws, and gives what was found.
fn replay(args: &Args) -> Result<Value> {
    let (title, run) = load(&args.workload, args.run)?;
    let device = match args.device {
        DeviceArg::Auto => Device::best(),
        DeviceArg::Cpu => Device::cpu(),
        #[cfg(feature = "cuda")]
        DeviceArg::Cuda => Device::cuda(0).context("--device is cuda")?,
        #[cfg(not(feature = "cuda"))]
        DeviceArg::Cuda => bail!("--device is cuda, but this was built without --features cuda"),
    };
    let started = Instant::now();
    let asking = asking_steps(&run)?;
    let sampled = spread(&asking, args.steps as usize);
    let mut session = Session::new(&run, &device)?;
    let mut picture = Picture::new(&run);
    let mut replay = run.replay()?;
    while let Some(change) = replay.advance()? {
        let step = change.step;
        picture.step(&change, replay.growing());
        let is_sampled = sampled.binary_search(&step).is_ok();
        session
            .step(&change, replay.growing(), is_sampled)
            .with_context(|| format!("step {step}"))?;
        if is_sampled {
            let rows = session.checked_rows;
            eprintln!("step {step} of {}: {rows} rows compared", run.steps());
        }
    }
    let path = args.out.join(file_name(&title));
    fs::create_dir_all(&args.out)
        .and_then(|()| fs::write(&path, picture.draw(&title, &sampled)))
        .with_context(|| format!("cannot write {}", path.display()))?;
    let baseline = &session.tracks[0];
    let counts = (asking.len() as f64, sampled.len() as f64);
    let lines = session.tracks.iter().map(|track| line(track, baseline, counts));
    Ok(json!({
        "workload": title,
        "device": session.device(),
        "nodes": run.parents().len(),
        "tokens": session.tokens(),
        "steps": run.steps(),
        "sampled_steps": sampled.len(),
        "checked_rows": session.checked_rows,
        "unique_kv_bytes": session.unique_kv,
        "groupings": lines.collect::<Vec<Value>>(),
        "picture": path,
        "seconds": started.elapsed().as_secs_f64(),
    }))
}

/// Run `index` of the workload called `name`, or in a file of that name, and what to call it.
fn load(name: &str, index: usize) -> Result<(String, ReasoningRun)> {
    let recorded = RECORDED.iter().find(|(recorded, _)| *recorded == name);
    let text = match recorded {
        Some((_, text)) => (*text).to_owned(),
        None if name == "few-shot" => few_shot(),
        None => fs::read_to_string(name).with_context(|| {
            let names = RECORDED.map(|(name, _)| name).join(", ");
            format!("--workload is {name:?}, neither {names}, few-shot nor a file to read")
        })?,
    };
    let runs = ReasoningRun::parse(&text).with_context(|| name.to_owned())?;
    let count = runs.len();
    let Some(run) = runs.into_iter().nth(index) else {
        bail!("--run is {index}, but {name} has {count} runs, the first of them 0");
    };
    let stem = Path::new(name).file_stem().unwrap_or_default();
    Ok((format!("{}, run {index}", stem.to_string_lossy()), run))
}

/// A long prompt and many branches that all grow to the end (DeFT, section 4.1).
fn few_shot() -> String {
    let (width, steps) = (50, 400);
    let nodes = |root: i32, rest: i32| {
        let mut values = vec![rest; width + 1];
        values[0] = root;
        values
    };
    let (parents, start, end) = (nodes(-1, 0), nodes(0, 1), nodes(0, steps));
    json!([{"prompt_tokens": 4000, "parents": parents, "start": start, "end": end}]).to_string()
}

/// Steps in which some node grows; a recorded run may pause.
fn asking_steps(run: &ReasoningRun) -> Result<Vec<u32>> {
    let (mut replay, mut steps) = (run.replay()?, Vec::new());
    while let Some(change) = replay.advance()? {
        if !replay.growing().is_empty() {
            steps.push(change.step);
        }
    }
    Ok(steps)
}

/// `count` of `steps`, spread evenly from the first to the last; the last if it is one, all if there are fewer.
fn spread(steps: &[u32], count: usize) -> Vec<u32> {
    if count >= steps.len() {
        return steps.to_vec();
    }
    let last = steps.len() - 1;
    let at = |i: usize| {
        if count == 1 { last } else { i * last / (count - 1) }
    };
    (0..count).map(|i| steps[at(i)]).collect()
}

/// A name that every file system takes.
fn file_name(title: &str) -> String {
    let safe = |c: char| c.is_alphanumeric() || "-.".contains(c);
    title.replace(|c| !safe(c), "_") + ".svg"
}

/// One grouping's sums over `steps` steps, `sampled` of them with attention, beside those of the baseline.
fn line(track: &Track, baseline: &Track, (steps, sampled): (f64, f64)) -> Value {
    // Where nobody asks there is nothing to compare.
    let ratio = |a: f64, b: f64| if b == 0.0 { 1.0 } else { a / b };
    let less = |bytes: u64, of: u64| 100.0 * (1.0 - ratio(bytes as f64, of as f64));
    let attention = track.attention.as_secs_f64();
    json!({
        "grouping": format!("{:?}", track.grouping),
        "paper_kv_bytes": track.paper_kv,
        "issued_kv_bytes": track.issued_kv,
        "issued_read_bytes": track.issued_read,
        "paper_reduction_percent": less(track.paper_kv, baseline.paper_kv),
        "issued_reduction_percent": less(track.issued_read, baseline.issued_read),
        "attention_ms": 1e3 * ratio(attention, sampled),
        "attention_of_per_query": ratio(attention, baseline.attention.as_secs_f64()),
        "plan_us": 1e6 * ratio(track.planning.as_secs_f64(), steps),
        "new_plans": track.new_plans,
        "worst_relative_l2": track.worst_output,
        "worst_lse_error": track.worst_lse,
    })
}

/// What was found, for people.
fn print(report: &Value) {
    let number = |row: &Value, name: &str| row[name].as_f64().unwrap_or_default();
    let gb = |row: &Value, name: &str| number(row, name) * 1e-9;
    let text = |row: &Value, name: &str| row[name].as_str().unwrap_or_default().to_owned();
    println!(
        "{}: {} nodes, {} tokens, {} decode steps\none layer, {} query heads on {} KV heads x {}, bf16, on {}\n",
        text(report, "workload"),
        report["nodes"],
        report["tokens"],
        report["steps"],
        HEADS.q_heads,
        HEADS.kv_heads,
        HEADS.head_dim,
        text(report, "device")
    );
    println!(
        "               KV read,      than   all reads,      than  attention        of       plan    new"
    );
    println!(
        "          paper's count  PerQuery       issued  PerQuery     a step  PerQuery     a step  plans"
    );
    let rows = report["groupings"].as_array().map_or(&[][..], Vec::as_slice);
    for row in rows {
        println!(
            "{:<10}{:>10.2} GB{:>8.2} %{:>10.2} GB{:>8.2} %{:>8.2} ms{:>8.2} x{:>8.1} us{:>7}",
            text(row, "grouping"),
            gb(row, "paper_kv_bytes"),
            0.0 - number(row, "paper_reduction_percent"),
            gb(row, "issued_read_bytes"),
            0.0 - number(row, "issued_reduction_percent"),
            number(row, "attention_ms"),
            number(row, "attention_of_per_query"),
            number(row, "plan_us"),
            row["new_plans"].to_string()
        );
    }
    let worst = |name: &str| rows.iter().map(|row| number(row, name)).fold(0.0, f64::max);
    println!(
        "\nBytes are those of all steps; K and V that some query sees, each once: {:.2} GB. The paper counts K and V at\n\
         the width of the query heads; issued is all that the plans read: K and V at the width of the KV heads,\n\
         queries, programs, masks, partial results (docs/paper-io.md). Attention ran on {} steps, {} rows of each\n\
         grouping's output compared with f64: at most {:.1e} off (relative L2), LSE {:.1e}.\nPicture: {}\n\
         Replayed in {:.1} s.",
        gb(report, "unique_kv_bytes"),
        report["sampled_steps"],
        report["checked_rows"],
        worst("worst_relative_l2"),
        worst("worst_lse_error"),
        text(report, "picture"),
        number(report, "seconds")
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_replayed_checked_and_drawn_with_every_grouping() {
        // A prompt over a page edge; two children, one of which branches when the other is gone.
        let run = r#"[{"prompt_tokens": 70, "parents": [-1, 0, 0, 2, 2],
            "start": [0, 1, 1, 70, 70], "end": [0, 66, 68, 75, 72]}]"#;
        let folder = std::env::temp_dir().join(format!("deft-replay-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("tiny.json");
        fs::write(&file, run).unwrap();
        let (file, out) = (file.display().to_string(), folder.display().to_string());
        let words = ["--workload", &file, "--out", &out, "--device", "cpu"];
        let words = ["replay"].iter().chain(&words).chain(&["--steps", "5"]);
        let report = replay(&Args::parse_from(words)).unwrap();
        let picture = fs::read_to_string(report["picture"].as_str().unwrap()).unwrap();
        fs::remove_dir_all(folder).unwrap();

        let counts = ["steps", "sampled_steps", "checked_rows"].map(|name| &report[name]);
        assert_eq!(counts, [75, 5, 20]);
        let rows = report["groupings"].as_array().unwrap();
        let (per_query, flatten) = (&rows[0], &rows[3]);
        assert_eq!([&per_query["grouping"], &flatten["grouping"]], ["PerQuery", "Flatten"]);
        // Tokens that queries see, by hand: steps 1 to 66 of two on a prompt of 70, then one of them until 68, nobody
        // in 69, two on 70 + 68 until 72, and one until 75.
        let alone = |from: u64, to: u64| (from..=to).sum::<u64>();
        let own = 2 * alone(1, 66) + alone(67, 68) + 2 * alone(1, 3) + alone(4, 6);
        let token = 2 * 32 * 128 * 2;
        let seen = own + 70 * (2 * 66 + 2) + 138 * (2 * 3 + 3);
        assert_eq!(per_query["paper_kv_bytes"], seen * token);
        assert_eq!(flatten["paper_kv_bytes"], (own + 70 * (66 + 2) + 138 * 6) * token);
        let bytes = |value: &Value| value.as_u64().unwrap();
        assert!(bytes(&report["unique_kv_bytes"]) <= bytes(&flatten["issued_kv_bytes"]));
        assert!(bytes(&flatten["issued_kv_bytes"]) < bytes(&per_query["issued_kv_bytes"]));
        assert!(rows.iter().all(|row| row["worst_relative_l2"].as_f64() > Some(0.0)));
        assert_eq!(flatten["new_plans"], 4);
        assert!(picture.contains("node 4: decode step 70 to 72"));
    }

    #[test]
    fn what_is_not_there_is_refused_with_what_is() {
        let refusal = |name, run| format!("{:#}", load(name, run).unwrap_err());
        assert!(refusal("set128ToT", 20).contains("--run is 20, but set128ToT has 20 runs"));
        assert!(refusal("sorting", 0).contains("neither sorting128ToT, docmergeToT"));
        let (title, run) = load("few-shot", 0).unwrap();
        assert_eq!(
            (title.as_str(), run.parents().len(), run.steps()),
            ("few-shot, run 0", 51, 400)
        );
    }

    #[test]
    fn sampled_steps_are_spread_over_the_whole_run() {
        let steps: Vec<u32> = (10..20).collect();
        assert_eq!(spread(&steps, 4), [10, 13, 16, 19]);
        assert_eq!(spread(&steps, 1), [19]);
        assert_eq!(spread(&steps, 99), steps);
        assert_eq!(spread(&[], 3), [0; 0]);
    }
}
