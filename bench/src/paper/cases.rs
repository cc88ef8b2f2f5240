//! Which tasks are run with which heads and prompts.

use super::model::{CODELLAMA_7B, CODELLAMA_34B, LLAMA3_8B, Model};
use super::task::{Reasoning, Task};

/// Recorded runs that the paper's figures are the mean of: see docs/paper-io.md.
const PAPER_RUNS: usize = 10;
/// Runs where other prompts are tried: their ratios are what counts.
const VARIED_RUNS: usize = 3;

/// A task with heads and a prompt.
#[derive(Clone, Debug)]
pub(crate) struct Case {
    pub(crate) task: Task,
    pub(crate) model: Model,
    /// Tokens of the prompt; `None` for those of the recorded runs.
    pub(crate) prompt: Option<u32>,
    /// Most runs to replay.
    pub(crate) runs: usize,
    /// Whether chunks of other sizes are tried as well.
    pub(crate) chunk_sizes: bool,
}

/// All cases, the cases of a model one after the other; `quick` has one run of each, with fewer prompts.
pub(crate) fn cases(quick: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    for model in [LLAMA3_8B, CODELLAMA_7B, CODELLAMA_34B] {
        let main = model == LLAMA3_8B;
        let few_shot: &[u32] = if main { &[20, 30, 50] } else { &[30] };
        let few_shot = few_shot.iter().map(|&branches| Task::FewShot { branches });
        let speculative: &[u32] = if main { &[32, 64, 96, 128, 256] } else { &[64] };
        let speculative = speculative.iter().map(|&tokens| Task::Speculative { tokens });
        for task in few_shot.chain(speculative) {
            let usual = match task {
                Task::FewShot { .. } => 4_000,
                _ => 1_000,
            };
            for prompt in [1_000, 4_000, 5_000, 8_000, 10_000, 20_000] {
                if !quick || prompt == usual || (main && prompt == 20_000) {
                    cases.push(Case::new(task, model, Some(prompt)));
                }
            }
        }
        let tasks: &[Reasoning] = if main { &Reasoning::ALL } else { &[Reasoning::Sorting] };
        for &reasoning in tasks {
            cases.push(Case::new(Task::Reasoning(reasoning), model, None));
        }
        let longer: &[u32] = if main { &[5_000, 8_000, 10_000] } else { &[5_000, 8_000] };
        for &prompt in longer.iter().filter(|_| !quick) {
            let task = Task::Reasoning(Reasoning::Sorting);
            cases.push(Case::new(task, model, Some(prompt)));
        }
    }
    if quick {
        cases.iter_mut().for_each(|case| case.runs = 1);
    }
    cases
}

/// What a CPU does in minutes.
pub(crate) fn cpu_cases() -> Vec<Case> {
    let mut cases = cases(true);
    cases.retain(|case| {
        case.model == LLAMA3_8B
            && match case.task {
                Task::FewShot { branches } => branches == 20 && case.prompt == Some(4_000),
                Task::Reasoning(reasoning) => reasoning == Reasoning::Keyword,
                Task::Speculative { tokens } => tokens == 32 && case.prompt == Some(1_000),
            }
    });
    cases.iter_mut().for_each(|case| case.chunk_sizes = false);
    cases
}

impl Case {
    fn new(task: Task, model: Model, prompt: Option<u32>) -> Self {
        let recorded = matches!(task, Task::Reasoning(_)) && prompt.is_none();
        let chunk_sizes = model == LLAMA3_8B
            && match task {
                // Steps of recorded runs are many; one such task shows what ragged trees do.
                Task::Reasoning(reasoning) => recorded && reasoning == Reasoning::Sorting,
                _ => true,
            };
        Self {
            task,
            model,
            prompt,
            runs: if recorded { PAPER_RUNS } else { VARIED_RUNS },
            chunk_sizes,
        }
    }

    pub(crate) fn name(&self) -> String {
        let prompt = match self.prompt {
            Some(tokens) => format!("prompt {tokens}"),
            None => "recorded prompts".to_owned(),
        };
        format!("{} {} {prompt}", self.task.name(), self.model.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_the_paper_prints_for_an_a100_has_a_case() {
        let text = include_str!("../../../docs/benchmarks/paper-a100.json");
        let paper: serde_json::Value = serde_json::from_str(text).unwrap();
        let cases = cases(false);
        for table in paper["tables"].as_array().unwrap() {
            for column in table["columns"].as_array().unwrap() {
                let found = cases.iter().any(|case| {
                    column["task"] == case.task.name().as_str()
                        && column["model"] == case.model.name
                        && column["prompt_tokens"].as_u64() == case.prompt.map(u64::from)
                });
                assert!(found, "table {}: {column}", table["table"]);
            }
        }
    }

    #[test]
    fn quick_is_some_of_all_and_a_cpu_has_a_case_of_each_kind() {
        let all: Vec<String> = cases(false).iter().map(Case::name).collect();
        let quick: Vec<String> = cases(true).iter().map(Case::name).collect();
        assert!(quick.len() < all.len() / 2);
        assert!(quick.iter().all(|name| all.contains(name)));
        let models: Vec<_> = cases(false).iter().map(|case| case.model.name).collect();
        let mut once = models.clone();
        once.dedup();
        assert_eq!(once.len(), 3, "K and V are filled once a model");
        assert_eq!(cpu_cases().len(), 3);
    }
}
