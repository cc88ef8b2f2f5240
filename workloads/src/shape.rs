//! What the kinds of files share.

use super::{MAX_NODES, WorkloadError};
use deft::plan::HeadShape;

/// Checks that heads are positive and go together.
pub(super) fn check_heads(at: &str, heads: HeadShape) -> Result<(), WorkloadError> {
    let HeadShape { q_heads, kv_heads, head_dim } = heads;
    if q_heads == 0 || kv_heads == 0 || q_heads % kv_heads != 0 {
        return Err(WorkloadError::Heads { at: at.to_owned(), q_heads, kv_heads });
    }
    for (name, value) in [("q_heads", q_heads), ("head_dim", head_dim)] {
        check_range(at, name, i64::from(value), 1, 1 << 16)?;
    }
    Ok(())
}

pub(super) fn check_range(
    at: &str,
    name: &'static str,
    value: i64,
    min: i64,
    max: i64,
) -> Result<(), WorkloadError> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(WorkloadError::OutOfRange { at: at.to_owned(), name, value, min, max })
}

pub(super) fn check_same_length<A, B>(
    at: &str,
    (left, a): (&'static str, &[A]),
    (right, b): (&'static str, &[B]),
) -> Result<(), WorkloadError> {
    if a.len() == b.len() {
        return Ok(());
    }
    Err(WorkloadError::Lengths {
        at: at.to_owned(),
        left,
        left_len: a.len(),
        right,
        right_len: b.len(),
    })
}

/// Turns parents as files have them (-1 = root) into indices; node 0 is the only root, and parents
/// precede their children, so there is no cycle.
pub(super) fn check_parents(at: &str, parents: &[i64]) -> Result<Vec<Option<u32>>, WorkloadError> {
    if parents.is_empty() {
        return Err(WorkloadError::Empty { at: at.to_owned(), what: "parents" });
    }
    check_range(at, "number of nodes", parents.len() as i64, 1, MAX_NODES as i64)?;
    let mut checked = Vec::with_capacity(parents.len());
    for (node, &parent) in parents.iter().enumerate() {
        if (node == 0) != (parent == -1) {
            return Err(WorkloadError::Root { at: at.to_owned(), node, parent });
        }
        if parent != -1 && !(0..node as i64).contains(&parent) {
            return Err(WorkloadError::Parent { at: at.to_owned(), node, parent });
        }
        checked.push(u32::try_from(parent).ok());
    }
    Ok(checked)
}
