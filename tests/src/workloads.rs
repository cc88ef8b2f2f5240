//! The workloads folder at the repository's root.

use deft_workloads::{MedusaRun, ReasoningRun, StepWorkload};

fn read(name: &str) -> String {
    let path = format!("{}/../workloads/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// All of `trees.json`.
pub fn steps() -> Vec<StepWorkload> {
    StepWorkload::parse(&read("trees.json")).expect("trees.json")
}

/// The runs of a task: `sorting128ToT`, `docmergeToT`, `keywordToT` or `set128ToT`.
pub fn reasoning(task: &str) -> Vec<ReasoningRun> {
    ReasoningRun::parse(&read(&format!("reasoning/{task}.json"))).expect(task)
}

/// All of `medusa.json`.
pub fn medusa() -> Vec<MedusaRun> {
    MedusaRun::parse(&read("medusa.json")).expect("medusa.json")
}
