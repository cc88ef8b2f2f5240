//! What the kinds of files share.

use serde::Deserialize;

use super::{MAX_NODES, WorkloadError};

/// Element type that a workload's KV is stored in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Storage {
    /// bfloat16.
    Bf16,
    /// IEEE half precision.
    F16,
    /// IEEE single precision.
    F32,
}

impl Storage {
    /// Bytes of an element.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::Bf16 | Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Heads of an attention layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HeadShape {
    /// Query heads.
    pub q_heads: u32,
    /// KV heads, which divide the query heads.
    pub kv_heads: u32,
    /// Elements of a head's query, key and value.
    pub head_dim: u32,
}

impl HeadShape {
    /// Llama-3-8B's, which the paper measures with (DeFT, section 4.1).
    pub const LLAMA3_8B: Self = Self {
        q_heads: 32,
        kv_heads: 8,
        head_dim: 128,
    };

    /// Query heads a KV head.
    pub const fn group_size(self) -> u32 {
        self.q_heads / self.kv_heads
    }

    pub(super) fn check(self, at: &str) -> Result<Self, WorkloadError> {
        let Self {
            q_heads,
            kv_heads,
            head_dim,
        } = self;
        if q_heads == 0 || kv_heads == 0 || q_heads % kv_heads != 0 {
            return Err(WorkloadError::Heads {
                at: at.to_owned(),
                q_heads,
                kv_heads,
            });
        }
        for (name, value) in [("q_heads", q_heads), ("head_dim", head_dim)] {
            check_range(at, name, i64::from(value), 1, 1 << 16)?;
        }
        Ok(self)
    }
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
    Err(WorkloadError::OutOfRange {
        at: at.to_owned(),
        name,
        value,
        min,
        max,
    })
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
        return Err(WorkloadError::Empty {
            at: at.to_owned(),
            what: "parents",
        });
    }
    check_range(
        at,
        "number of nodes",
        parents.len() as i64,
        1,
        MAX_NODES as i64,
    )?;
    let mut checked = Vec::with_capacity(parents.len());
    for (node, &parent) in parents.iter().enumerate() {
        if (node == 0) != (parent == -1) {
            return Err(WorkloadError::Root {
                at: at.to_owned(),
                node,
                parent,
            });
        }
        if parent != -1 && !(0..node as i64).contains(&parent) {
            return Err(WorkloadError::Parent {
                at: at.to_owned(),
                node,
                parent,
            });
        }
        checked.push(u32::try_from(parent).ok());
    }
    Ok(checked)
}
