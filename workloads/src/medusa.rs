//! Draft trees of speculative decoding, with recorded acceptance.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::WorkloadError;
use super::shape::{check_parents, check_range};
use deft::tree::DraftNode;

/// A draft tree's shape and how many of its tokens were accepted, step by step.
///
/// Node 0 is the token accepted last, whose K and V are as new as the others'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MedusaRun {
    parents: Vec<Option<u32>>,
    accepted: Vec<Vec<u32>>,
    /// Nodes of the deepest path, from node 0 down.
    deepest: Vec<u32>,
}

#[derive(Deserialize)]
struct RawRun {
    parents: Vec<i64>,
    accept_length: Vec<Vec<i64>>,
}

impl MedusaRun {
    /// Reads a file of draft trees: a map from size to `{parents, accept_length}`, smallest first.
    ///
    /// # Errors
    /// A [`WorkloadError`] that says which tree is wrong, and how.
    pub fn parse(json: &str) -> Result<Vec<Self>, WorkloadError> {
        let raw: BTreeMap<u32, RawRun> = serde_json::from_str(json)?;
        let runs = raw.into_iter();
        runs.map(|(size, run)| Self::check(&format!("tree of {size}"), size, run)).collect()
    }

    fn check(at: &str, size: u32, raw: RawRun) -> Result<Self, WorkloadError> {
        let parents = check_parents(at, &raw.parents)?;
        let nodes = parents.len() as i64;
        check_range(at, "number of parents", nodes, i64::from(size), i64::from(size))?;
        let mut depth = vec![1u32; parents.len()];
        for (node, parent) in parents.iter().enumerate() {
            if let Some(parent) = parent {
                depth[node] = depth[*parent as usize] + 1;
            }
        }
        let last = (0..parents.len()).max_by_key(|&node| depth[node]);
        let last = last.map(|node| node as u32);
        let mut deepest: Vec<u32> =
            std::iter::successors(last, |&node| parents[node as usize]).collect();
        deepest.reverse();
        let mut accepted = Vec::with_capacity(raw.accept_length.len());
        for lengths in raw.accept_length {
            let mut checked = Vec::with_capacity(lengths.len());
            for length in lengths {
                check_range(at, "an accepted length", length, 1, deepest.len() as i64)?;
                checked.push(length as u32);
            }
            accepted.push(checked);
        }
        Ok(Self { parents, accepted, deepest })
    }

    /// Nodes of the tree.
    pub fn size(&self) -> u32 {
        self.parents.len() as u32
    }

    /// Parent of each node.
    pub fn parents(&self) -> &[Option<u32>] {
        &self.parents
    }

    /// Tokens accepted in each step, one list a recorded run.
    pub fn accepted(&self) -> &[Vec<u32>] {
        &self.accepted
    }

    /// The tree, to be put below a trunk.
    pub fn draft(&self) -> Vec<DraftNode> {
        let nodes = self.parents.iter();
        nodes.map(|&parent| DraftNode { parent, tokens: 1 }).collect()
    }

    /// The first `length` nodes of the deepest path: which tokens were accepted was not recorded, only
    /// how many.
    pub fn accepted_path(&self, length: u32) -> &[u32] {
        &self.deepest[..(length as usize).min(self.deepest.len())]
    }
}
