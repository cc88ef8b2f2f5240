//! Recorded trees: the files from which plans are made.

use std::fmt::Display;

use deft_workloads::{MedusaRun, ReasoningRun, StepWorkload, WorkloadError};
use serde_json::{Value, json};

use crate::edits::{edited, edits, swapped, swaps};
use crate::fuzz;

/// Tokens of forests that are made here.
const MANY: u64 = 1 << 20;

fn json(valid: &Value, read: impl Fn(&str) -> Result<(), WorkloadError>) {
    let make = |(swaps, edits): &(Vec<_>, Vec<_>)| match swaps.is_empty() {
        true => edited(valid.to_string().into_bytes(), edits),
        false => swapped(valid.clone(), swaps).to_string().into_bytes(),
    };
    read(&valid.to_string()).unwrap();
    let read = |bytes: &Vec<u8>| {
        read(&String::from_utf8_lossy(bytes)).map_err(|e| Box::new(e) as Box<dyn Display>)
    };
    fuzz(1.0 / 3.0, &(swaps(), edits()), make, read);
}

#[test]
fn workloads() {
    let steps = json!([{"name": "x", "num_q_heads": 8, "num_kv_heads": 2, "head_dim": 64, "dtype": "bf16",
        "trees": [{"parents": [-1, 0, 0, 1], "lens": [100, 1, 70, 3], "queries": [2, 3]}]}]);
    json(&steps, |text| {
        for workload in StepWorkload::parse(text)? {
            // A forest takes memory for its tokens, of which a file may name many.
            let tokens = workload.trees().iter().flat_map(|tree| tree.tokens());
            if tokens.map(|&tokens| u64::from(tokens)).sum::<u64>() < MANY {
                workload.build(3)?;
            }
        }
        Ok(())
    });
    let runs = json!([{"prompt_tokens": 30, "parents": [-1, 0, 0, 1], "start": [0, 1, 1, 5], "end": [0, 4, 9, 7]}]);
    json(&runs, |text| {
        for run in ReasoningRun::parse(text)? {
            if u64::from(run.prompt_tokens()) + 4 * u64::from(run.steps()) > MANY {
                continue;
            }
            let mut replay = run.replay()?;
            for _ in 0..50 {
                if replay.advance()?.is_none() {
                    break;
                }
            }
        }
        Ok(())
    });
    let trees = json!({"4": {"parents": [-1, 0, 0, 1], "accept_length": [[1, 2, 3], [2]]}});
    json(&trees, |text| {
        for run in MedusaRun::parse(text)? {
            run.draft();
            (0..9).for_each(|length| drop(run.accepted_path(length).to_vec()));
        }
        Ok(())
    });
}
