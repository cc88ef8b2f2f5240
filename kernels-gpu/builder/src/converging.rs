//! Instructions that a warp's lanes must reach together: what a compiler must not move into a branch, nor copy.

use std::collections::BTreeMap;

use anyhow::Result;

use crate::ptx;

/// Instructions that a warp's lanes must reach together, of a PTX text's entries: `.sync` and `.aligned` ones.
pub(crate) fn count(text: &str) -> Result<BTreeMap<String, Converging>> {
    let entries = ptx::parse(text)?
        .items
        .into_iter()
        .filter(|item| item.kind == ptx::Kind::Entry);
    Ok(entries
        .map(|item| (item.name, Converging::of(&item.text)))
        .collect())
}

/// Numbers of such instructions in an entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Converging {
    pub(crate) sync: u32,
    pub(crate) aligned: u32,
    /// `wgmma.wait_group`s.
    pub(crate) wgmma_waits: u32,
}

impl Converging {
    fn of(text: &str) -> Self {
        let mut counts = Self::default();
        for word in text.split([';', '{', '}', '\n']).filter_map(|instruction| {
            let mut words = instruction.split_whitespace();
            words.find(|word| !word.starts_with('@'))
        }) {
            counts.sync += u32::from(word.split('.').skip(1).any(|part| part == "sync"));
            counts.aligned += u32::from(word.split('.').skip(1).any(|part| part == "aligned"));
            counts.wgmma_waits += u32::from(word.starts_with("wgmma.wait_group"));
        }
        counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_are_counted_by_entry_whatever_stands_around_them() {
        let text = "\
.version 8.3
.visible .entry f()
{
\t{ .reg .pred p; @p bar.sync 0; wgmma.wait_group.sync.aligned 0; }
\tbarrier.sync.aligned 1;
\tmov.u32 \t%r1, %sync_word;
}
";
        let expected = Converging {
            sync: 3,
            aligned: 2,
            wgmma_waits: 1,
        };
        assert_eq!(count(text).unwrap()["f"], expected);
    }
}
