//! The replay from beginning to end.

use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use deft::{DType, Device, Grouping, KvElement, bf16, f16};

use super::args::{Args, DeviceArg, GroupingArg};
use super::load::{Chosen, load};
use super::picture::{self, Caption};
use super::progress::Progress;
use super::report::{self, Line, Report};
use super::session::Session;
use super::timeline::Timeline;
use crate::workspace;

/// Runs the command: replays, draws, and prints what it found.
pub(crate) fn run(args: &Args) -> Result<()> {
    let report = replay(args, &workspace::target().join("replay"))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{report}");
    }
    Ok(())
}

/// Replays and draws into `folder`.
fn replay(args: &Args, folder: &Path) -> Result<Report> {
    let chosen = load(args)?;
    let device = open(args.device)?;
    match chosen.trace.dtype {
        DType::F16 => replay_as::<f16>(args, &chosen, &device, folder),
        DType::F32 => replay_as::<f32>(args, &chosen, &device, folder),
        DType::Bf16 => replay_as::<bf16>(args, &chosen, &device, folder),
        other => bail!("K and V of type {other} cannot be made up"),
    }
}

fn replay_as<T: KvElement>(
    args: &Args,
    chosen: &Chosen,
    device: &Device,
    folder: &Path,
) -> Result<Report> {
    let started = Instant::now();
    let Chosen { run, trace, .. } = chosen;
    let groupings = groupings(&args.grouping);
    let mut session = Session::<T>::new(trace, device, &groupings)?;
    let asking = (0..)
        .zip(&trace.steps)
        .filter(|(_, step)| !step.queries.is_empty());
    let asking: Vec<u32> = asking.map(|(at, _)| at).collect();
    let sampled = spread(&asking, args.steps as usize);
    let progress = Progress::new(trace.steps.len() as u64);
    for at in 0..trace.steps.len() as u32 {
        session
            .step(at, sampled.binary_search(&at).is_ok())
            .with_context(|| format!("step {}", at + 1))?;
        progress.set(u64::from(at) + 1, || {
            format!("{} rows checked", session.checked_rows)
        });
    }
    drop(progress);

    let workload = args.workload.name();
    let caption = Caption {
        title: report::title(&workload, &chosen.label),
        subtitle: report::size(trace.parents.len(), trace.tokens(), trace.steps.len()),
        sampled: sampled.clone(),
    };
    let path = folder.join(report::file_name(&workload, args.run.as_deref()));
    fs::create_dir_all(folder)
        .and_then(|()| fs::write(&path, picture::draw(&Timeline::of(trace), &caption)))
        .with_context(|| format!("cannot write {}", path.display()))?;

    let baseline = &session.tracks()[0].tally;
    let line = |track: &super::session::Track| {
        Line::new(
            track.grouping,
            (&track.tally, baseline),
            asking.len(),
            sampled.len(),
        )
    };
    Ok(Report {
        workload,
        run: run.clone(),
        title: caption.title,
        device: session.device(),
        q_heads: trace.heads.q_heads,
        kv_heads: trace.heads.kv_heads,
        head_dim: trace.heads.head_dim,
        dtype: format!("{:?}", trace.dtype).to_lowercase(),
        nodes: trace.parents.len(),
        tokens: trace.tokens(),
        steps: trace.steps.len(),
        sampled_steps: sampled.len(),
        checked_rows: session.checked_rows,
        unique_kv_bytes: session.unique_kv,
        groupings: session.tracks().iter().map(line).collect(),
        picture: report::shown(&path),
        seconds: started.elapsed().as_secs_f64(),
    })
}

fn open(device: DeviceArg) -> Result<Device> {
    match device {
        DeviceArg::Auto => Ok(Device::best()),
        DeviceArg::Cpu => Ok(Device::cpu()),
        #[cfg(feature = "cuda")]
        DeviceArg::Cuda => Device::cuda(0).context("--device cuda"),
        #[cfg(not(feature = "cuda"))]
        DeviceArg::Cuda => bail!("--device cuda: GPUs are used on x86-64 Linux only"),
    }
}

/// The baseline, and those asked for; all if none is.
fn groupings(asked: &[GroupingArg]) -> Vec<Grouping> {
    let all = [
        (GroupingArg::PerQuery, Grouping::PerQuery),
        (GroupingArg::Node, Grouping::Node),
        (GroupingArg::NodeChunk, Grouping::NodeChunk),
        (GroupingArg::Flatten, Grouping::Flatten),
    ];
    let wanted = |arg| asked.is_empty() || arg == GroupingArg::PerQuery || asked.contains(&arg);
    let chosen = all.into_iter().filter(|(arg, _)| wanted(*arg));
    chosen.map(|(_, grouping)| grouping).collect()
}

/// `count` of `steps`, spread evenly from the first to the last; all if there are fewer.
fn spread(steps: &[u32], count: usize) -> Vec<u32> {
    if count >= steps.len() {
        return steps.to_vec();
    }
    let last = steps.len() - 1;
    let at = |i: usize| {
        if count == 1 {
            last
        } else {
            i * last / (count - 1)
        }
    };
    (0..count).map(|i| steps[at(i)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::replay::args::Workload;
    use serde_json::Value;

    /// Replays `workload`, a file's text, on the CPU.
    fn replay_text(name: &str, workload: &str, steps: u32) -> (Report, String) {
        let folder =
            std::env::temp_dir().join(format!("deft-replay-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let file = folder.join("tiny.json");
        fs::write(&file, workload).unwrap();
        let args = Args {
            workload: Workload::File(file),
            run: None,
            grouping: Vec::new(),
            device: DeviceArg::Cpu,
            steps,
            json: true,
        };
        let report = replay(&args, &folder).unwrap();
        let picture = fs::read_to_string(folder.join("tiny.svg")).unwrap();
        fs::remove_dir_all(folder).unwrap();
        (report, picture)
    }

    #[test]
    fn a_run_is_replayed_checked_and_drawn_with_every_grouping() {
        // A prompt over a page edge; two children, one of which branches when the other is gone.
        let run = r#"[{"prompt_tokens": 70, "parents": [-1, 0, 0, 2, 2],
            "start": [0, 1, 1, 70, 70], "end": [0, 66, 68, 75, 72]}]"#;
        let (report, picture) = replay_text("run", run, 5);
        assert_eq!(
            (report.steps, report.sampled_steps, report.checked_rows),
            (75, 5, 20)
        );
        let names: Vec<&str> = report.groupings.iter().map(|line| line.grouping).collect();
        assert_eq!(names, ["PerQuery", "Node", "NodeChunk", "Flatten"]);
        let [per_query, .., flatten] = &report.groupings[..] else {
            panic!("four groupings")
        };
        // Tokens that queries see, by hand: steps 1 to 66 of two on a prompt of 70, then one of them until
        // 68, nobody in 69, two on 70 + 68 until 72, and one until 75.
        let alone = |from: u64, to: u64| (from..=to).sum::<u64>();
        let own = 2 * alone(1, 66) + alone(67, 68) + 2 * alone(1, 3) + alone(4, 6);
        let seen = own + 70 * (2 * 66 + 2) + 138 * (2 * 3 + 3);
        let token = 2 * 32 * 128 * 2;
        assert_eq!(per_query.paper_kv_bytes, seen * token);
        let tree = own + 70 * (66 + 2) + 138 * 6;
        assert_eq!(flatten.paper_kv_bytes, tree * token);
        assert!(report.unique_kv_bytes <= flatten.issued_kv_bytes);
        assert!(flatten.issued_kv_bytes < per_query.issued_kv_bytes);
        assert!(
            report
                .groupings
                .iter()
                .all(|line| line.worst_relative_l2 > 0.0)
        );
        assert_eq!(flatten.new_plans, 4);
        assert!(picture.contains("node 4: decode step 70 to 72"));
        let json: Value = serde_json::from_str(&serde_json::to_string(&report).unwrap()).unwrap();
        assert_eq!(json["groupings"][3]["grouping"], "Flatten");
        assert!(
            report
                .to_string()
                .contains("5 nodes, 213 tokens, 75 decode steps")
        );
    }

    #[test]
    fn accepted_drafts_are_read_by_later_steps() {
        let draft = r#"{"4": {"parents": [-1, 0, 0, 1], "accept_length": [[3, 1, 2, 3]]}}"#;
        let (report, _) = replay_text("draft", draft, 4);
        assert_eq!((report.sampled_steps, report.checked_rows), (4, 16));
    }

    #[test]
    fn trees_of_any_shape_and_type_are_replayed_as_they_are() {
        let trees = r#"[{"name": "forest", "num_q_heads": 6, "num_kv_heads": 2, "head_dim": 64, "dtype": "f32",
            "trees": [{"parents": [-1, 0, 0], "lens": [65, 1, 0]}, {"parents": [-1], "lens": [3]},
                {"parents": [-1, 0, 1], "lens": [5, 1, 1], "queries": [1, 2]}]}]"#;
        let (report, picture) = replay_text("trees", trees, 1);
        assert_eq!(
            (report.q_heads, report.dtype.as_str(), report.tokens),
            (6, "f32", 76)
        );
        assert!(picture.contains("position in the context"));
        assert!(
            report
                .to_string()
                .contains("7 nodes, 76 tokens, 1 decode step\n")
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

    #[test]
    fn the_baseline_always_runs_along_and_first() {
        let chosen = groupings(&[GroupingArg::Flatten, GroupingArg::Node]);
        assert_eq!(
            chosen,
            [Grouping::PerQuery, Grouping::Node, Grouping::Flatten]
        );
        assert_eq!(groupings(&[]).len(), 4);
    }
}
