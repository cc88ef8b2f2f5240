//! From a workload's name or file to the trace of one of its runs.

use std::fs;

use anyhow::{Context, Result, bail};
use deft_workloads::{MedusaRun, ReasoningRun, StepWorkload};
use serde_json::Value;

use super::args::{Args, TASKS, Workload};
use super::trace::Trace;

/// Texts of [`TASKS`], in their order.
const RECORDED: [&str; TASKS.len()] = [
    include_str!("../../../workloads/reasoning/sorting128ToT.json"),
    include_str!("../../../workloads/reasoning/docmergeToT.json"),
    include_str!("../../../workloads/reasoning/keywordToT.json"),
    include_str!("../../../workloads/reasoning/set128ToT.json"),
];
const MEDUSA: &str = include_str!("../../../workloads/medusa.json");
/// The draft tree that runs if none is named: of 64 nodes, Medusa's own size.
const MEDUSA_RUN: &str = "64";

/// One run of a workload.
#[derive(Debug)]
pub(crate) struct Chosen {
    /// Which run, as `--run` names it; empty if the workload has but one.
    pub(crate) run: String,
    /// The same for people.
    pub(crate) label: String,
    pub(crate) trace: Trace,
}

/// Loads what `args` ask for.
pub(crate) fn load(args: &Args) -> Result<Chosen> {
    let run = args.run.as_deref();
    match &args.workload {
        Workload::Task(task) => {
            let recorded = TASKS.into_iter().zip(RECORDED);
            let text = recorded.into_iter().find(|(name, _)| name == task);
            let (_, text) = text.context("every task is recorded")?;
            choose_reasoning(ReasoningRun::parse(text)?, run)
        }
        Workload::FewShot => match run {
            Some(name) => bail!("--run is {name:?}, but few-shot has one run only"),
            None => Ok(Chosen {
                run: String::new(),
                label: String::new(),
                trace: Trace::few_shot(),
            }),
        },
        Workload::Medusa => choose_medusa(MedusaRun::parse(MEDUSA)?, run.or(Some(MEDUSA_RUN))),
        Workload::File(path) => {
            let shown = path.display();
            let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
            parse(&text, run).with_context(|| shown.to_string())
        }
    }
}

/// A file's text; its first entry says which format it has.
fn parse(text: &str, run: Option<&str>) -> Result<Chosen> {
    let value: Value = serde_json::from_str(text).context("not JSON")?;
    let first = value.get(0);
    let has = |name| first.is_some_and(|entry| entry.get(name).is_some());
    if has("prompt_tokens") {
        choose_reasoning(ReasoningRun::parse(text)?, run)
    } else if has("trees") {
        choose_step(StepWorkload::parse(text)?, run)
    } else if value.is_object() {
        choose_medusa(MedusaRun::parse(text)?, run)
    } else {
        bail!(
            "its first entry has neither `prompt_tokens`, as in workloads/reasoning, nor `trees`, as in \
             workloads/trees.json"
        )
    }
}

fn choose_reasoning(runs: Vec<ReasoningRun>, run: Option<&str>) -> Result<Chosen> {
    let named = runs.into_iter().enumerate();
    let named = named.map(|(index, run)| (index.to_string(), run));
    let (run, recorded) = choose(named.collect(), run)?;
    Ok(Chosen {
        label: format!("run {run}"),
        run,
        trace: Trace::reasoning(&recorded)?,
    })
}

fn choose_medusa(runs: Vec<MedusaRun>, run: Option<&str>) -> Result<Chosen> {
    let named = runs.into_iter().map(|run| (run.size().to_string(), run));
    let (run, recorded) = choose(named.collect(), run)?;
    Ok(Chosen {
        label: format!("draft tree of {run} nodes"),
        run,
        trace: Trace::medusa(&recorded),
    })
}

fn choose_step(workloads: Vec<StepWorkload>, run: Option<&str>) -> Result<Chosen> {
    let named = workloads.into_iter();
    let named = named.map(|workload| (workload.name.clone(), workload));
    let (run, workload) = choose(named.collect(), run)?;
    Ok(Chosen {
        label: run.clone(),
        run,
        trace: Trace::step(&workload),
    })
}

/// The one of that name; the first without a name.
fn choose<R>(runs: Vec<(String, R)>, name: Option<&str>) -> Result<(String, R)> {
    let names: Vec<String> = runs.iter().map(|(name, _)| name.clone()).collect();
    let wanted = |(of, _): &(String, R)| name.is_none_or(|name| name == of);
    match (runs.into_iter().find(wanted), name) {
        (Some(found), _) => Ok(found),
        (None, Some(name)) => bail!("--run is {name:?}, there are: {}", names.join(", ")),
        (None, None) => bail!("the workload is empty"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str, run: Option<&str>) -> String {
        format!("{:#}", parse(text, run).unwrap_err())
    }

    const TREES: &str = include_str!("../../../workloads/trees.json");

    #[test]
    fn the_format_of_a_file_is_recognised_and_the_first_run_taken() {
        let chosen = parse(RECORDED[0], None).unwrap();
        assert_eq!(
            (chosen.run.as_str(), chosen.trace.parents.len()),
            ("0", 101)
        );
        let chosen = parse(TREES, None).unwrap();
        assert_eq!(chosen.run, "fewshot_4k_w20");
        assert_eq!(chosen.trace.steps[0].queries.len(), 20);
    }

    #[test]
    fn a_named_run_is_taken() {
        let chosen = parse(TREES, Some("qwen05_tot")).unwrap();
        assert_eq!(chosen.trace.heads.q_heads, 14);
        let chosen = choose_medusa(MedusaRun::parse(MEDUSA).unwrap(), Some("32")).unwrap();
        assert_eq!(chosen.trace.parents.len(), 33);
    }

    #[test]
    fn what_cannot_be_replayed_is_refused_by_name() {
        assert_eq!(
            refusal(RECORDED[1], Some("20")),
            "--run is \"20\", there are: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, \
             18, 19"
        );
        assert!(refusal("[]", None).starts_with("its first entry has neither"));
        assert!(refusal("{", None).starts_with("not JSON: "));
        let cycle = r#"[{"prompt_tokens": 3, "parents": [-1, 2, 1], "start": [0, 1, 1], "end": [0, 1, 1]}]"#;
        assert!(refusal(cycle, None).contains("node 1 has parent 2, which does not precede it"));
    }
}
