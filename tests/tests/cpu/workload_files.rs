//! Workload files: the shipped ones load and replay, hostile ones are refused by name.

use deft_tests::workloads;
use deft_workloads::{MedusaRun, ReasoningRun, StepWorkload, WorkloadError};

fn tree(parents: &str, lens: &str, rest: &str) -> String {
    format!(
        r#"[{{"name":"x","num_q_heads":8,"num_kv_heads":2,"head_dim":64,"dtype":"bf16",
            "trees":[{{"parents":{parents},"lens":{lens}{rest}}}]}}]"#
    )
}

fn refusal(json: &str) -> String {
    StepWorkload::parse(json).unwrap_err().to_string()
}

#[test]
fn shipped_steps_become_forests_with_their_lengths_and_queries() {
    let all = workloads::steps();
    assert_eq!(all.len(), 14);
    for workload in all {
        let built = workload.build(3).unwrap();
        let view = built.forest.view(&built.queries).unwrap();
        let tokens = |of: &[u32]| of.iter().map(|&t| u64::from(t)).sum::<u64>();
        let expected: u64 = workload.trees().iter().map(|t| tokens(t.tokens())).sum();
        let seen: u64 = view.runs.iter().map(|run| u64::from(run.tokens)).sum();
        assert_eq!(seen, expected, "{}", workload.name);
        let queries: usize = workload.trees().iter().map(|t| t.queries().len()).sum();
        assert_eq!(view.queries as usize, queries);
        let draft = workload.name.starts_with("spec");
        assert_eq!(view.runs.iter().any(|run| run.mask.is_some()), draft);
    }
}

#[test]
fn a_reasoning_run_grows_branches_and_prunes_as_recorded() {
    let run = &workloads::reasoning("docmergeToT")[0];
    let mut replay = run.replay().unwrap();
    let mut alive = vec![false; run.parents().len()];
    while let Some(step) = replay.advance().unwrap() {
        step.born.iter().for_each(|&node| alive[node as usize] = true);
        step.pruned.iter().for_each(|&node| alive[node as usize] = false);
        for node in 1..run.parents().len() as u32 {
            let (start, end) = run.steps_of(node);
            let grows = (start..=end).contains(&step.step);
            assert_eq!(replay.growing().contains(&node), grows);
            assert_eq!(replay.key(node).is_some(), alive[node as usize]);
            assert!(alive[node as usize] || !grows);
        }
    }
    assert_eq!(run.steps(), 2375);
}

#[test]
fn medusa_trees_have_their_sizes_and_recorded_acceptance() {
    let runs = workloads::medusa();
    let sizes: Vec<_> = runs.iter().map(MedusaRun::size).collect();
    assert_eq!(sizes, [32, 64, 96, 128, 256]);
    for run in &runs {
        assert_eq!(run.draft().len(), run.size() as usize);
        let path = run.accepted_path(5);
        assert_eq!(path[0], 0);
        let parent = |node: u32| run.parents()[node as usize];
        assert!(path.windows(2).all(|pair| parent(pair[1]) == Some(pair[0])));
        let accepted = run.accepted().iter().flatten();
        assert!(accepted.clone().all(|length| (1..=5).contains(length)));
    }
}

#[test]
fn cycles_and_unknown_parents_are_refused() {
    for parents in ["[-1,2,1]", "[-1,1]", "[-1,7]", "[-1,-5]"] {
        let lens = if parents.len() > 7 { "[1,1,1]" } else { "[1,1]" };
        let error = StepWorkload::parse(&tree(parents, lens, "")).unwrap_err();
        assert!(
            matches!(error, WorkloadError::Parent { .. } | WorkloadError::Lengths { .. }),
            "{error}"
        );
    }
    assert_eq!(
        refusal(&tree("[-1,2,1]", "[1,1,1]", "")),
        "workload \"x\", tree 0: node 1 has parent 2, which does not precede it"
    );
    assert_eq!(
        refusal(&tree("[0]", "[1]", "")),
        "workload \"x\", tree 0: node 0 has parent 0; node 0 alone is a root, with parent -1"
    );
}

#[test]
fn lengths_that_overflow_or_are_negative_are_refused() {
    for lens in ["[-1]", "[4294967296]", "[9223372036854775807]"] {
        assert!(refusal(&tree("[-1]", lens, "")).contains("a length is"));
    }
    let many = refusal(&tree("[-1,0]", "[268435456,1]", ""));
    assert!(many.contains("length so far is 268435457"), "{many}");
}

#[test]
fn zero_heads_empty_trees_and_bad_queries_are_refused() {
    let none = tree("[-1]", "[1]", "").replace("\"num_kv_heads\":2", "\"num_kv_heads\":0");
    assert_eq!(
        refusal(&none),
        "workload \"x\": 8 query heads are no positive multiple of 0 KV heads"
    );
    assert_eq!(refusal(&tree("[]", "[]", "")), "workload \"x\", tree 0: parents is empty");
    assert!(refusal(&tree("[-1]", "[1,2]", "")).contains("lens has 2"));
    assert!(refusal(&tree("[-1]", "[1]", r#","queries":[]"#)).contains("queries is empty"));
    for queries in ["[1]", "[0,0]"] {
        let rest = format!(r#","queries":{queries}"#);
        assert!(refusal(&tree("[-1]", "[1]", &rest)).contains("each node may be named once"));
    }
    assert!(refusal("{").starts_with("not a workload file"));
}

#[test]
fn hostile_reasoning_runs_are_refused() {
    let run = |prompt: &str, parents: &str, start: &str, end: &str| {
        let json = format!(
            r#"[{{"prompt_tokens":{prompt},"parents":{parents},"start":{start},"end":{end}}}]"#
        );
        ReasoningRun::parse(&json).unwrap_err().to_string()
    };
    let early = run("9", "[-1,0,1]", "[-8,1,3]", "[0,3,5]");
    assert_eq!(early, "run 0: node 2 starts in step 3, but its parent grows until step 3");
    assert!(run("0", "[-1]", "[0]", "[0]").contains("prompt_tokens is 0"));
    assert!(run("9", "[-1,0]", "[-8,5]", "[0,3]").contains("an end is 3"));
    assert!(run("9", "[-1,0]", "[-8,1]", "[0,9223372036854775807]").contains("an end is"));
    assert!(run("9", "[-1,0]", "[-8,-9223372036854775808]", "[0,3]").contains("a start is"));
    assert!(run("9", "[-1,0]", "[-8]", "[0,3]").contains("start has 1"));
}

#[test]
fn hostile_draft_trees_are_refused() {
    let run = |json: &str| MedusaRun::parse(json).unwrap_err().to_string();
    let deep = run(r#"{"2":{"parents":[-1,0],"accept_length":[[3]]}}"#);
    assert_eq!(deep, "tree of 2: an accepted length is 3; it must be between 1 and 2");
    let size = run(r#"{"3":{"parents":[-1,0],"accept_length":[]}}"#);
    assert!(size.contains("number of parents is 2"));
}

#[test]
fn a_run_takes_another_prompt_unless_that_is_nothing_or_too_much() {
    let run = workloads::reasoning("keywordToT").swap_remove(0);
    let longer = run.clone().with_prompt(5000).unwrap();
    assert_eq!((longer.prompt_tokens(), longer.steps()), (5000, run.steps()));
    for tokens in [0, u32::MAX] {
        let error = run.clone().with_prompt(tokens).unwrap_err().to_string();
        assert!(error.contains(&format!("prompt_tokens is {tokens}")), "{error}");
    }
}
