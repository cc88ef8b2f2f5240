//! What becomes of a node's rows.

use kernels_gpu::abi::PAGE_TOKENS;

/// What becomes of a node's first tokens: fewer rows of keys and values, a different number for each layer and KV head.
///
/// The node's length, its tokens and their positions stay as they are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compaction {
    /// How many of the node's first tokens are compacted from now on: a multiple of 64, no fewer than before.
    pub tokens: u32,
    /// Of each layer that has keys of its own, and KV head: `[layers, kv_heads]`.
    pub heads: Vec<HeadCompaction>,
}

/// What becomes of the rows of one layer and KV head.
///
/// Rows that are there *now* are counted from 0: those of the part that is compacted already, then the native tokens up to
/// [`Compaction::tokens`]. Each is in at most one new row, or folded; what is neither is dropped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HeadCompaction {
    /// The rows afterwards, in this order.
    pub rows: Vec<Row>,
    /// What they are made of, row by row.
    pub sources: Vec<Source>,
    /// Rows now whose keys and values go into the node's residue. Ascending.
    pub folded: Vec<u32>,
}

/// A row afterwards: the weighted sum of its sources, those from the end of the row before it to its own. Sums are in
/// f32, in the order of the sources, and rounded once. One source of weights 1 is copied bit for bit, and keeps its bias
/// if [`Row::bias`] says it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Row {
    /// One past the row's last source.
    pub end: u32,
    /// What is added to the row's scaled logit, in units of the natural logarithm: all of it, also where the sources
    /// have a bias already. 0 of a token that was only kept.
    pub bias: f32,
}

/// A part of a row afterwards. The first source of a row is its pivot: the row has its position.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Source {
    /// The row now.
    pub row: u32,
    /// The weight of its key.
    pub k: f32,
    /// The weight of its value.
    pub v: f32,
}

/// Why a compaction was refused. Heads are counted `layer * kv_heads + kv_head`, over layers with keys of their own.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum CompactionError {
    /// Whole pages are compacted.
    #[error("tokens is {tokens}; it must be a positive multiple of {PAGE_TOKENS}")]
    Tokens {
        /// Tokens given.
        tokens: u32,
    },
    /// There is one entry a layer and KV head.
    #[error(
        "heads has {found} entries; the cache has {expected} (layers with keys of their own, times KV heads)"
    )]
    Heads {
        /// Entries given.
        found: usize,
        /// Entries there must be.
        expected: usize,
    },
    /// A row has no source, or ends beyond the last one.
    #[error(
        "heads[{head}].rows[{row}].end is {end}; it must be more than {before} and at most {sources}, the number of sources"
    )]
    End {
        /// The head.
        head: usize,
        /// The row.
        row: usize,
        /// Its end.
        end: u32,
        /// The end of the row before it.
        before: u32,
        /// Sources of the head.
        sources: usize,
    },
    /// Sources are left that no row has.
    #[error("heads[{head}] has {sources} sources; its rows have {used}")]
    UnusedSources {
        /// The head.
        head: usize,
        /// Sources of the head.
        sources: usize,
        /// Those that a row has.
        used: u32,
    },
    /// There is no such row.
    #[error("heads[{head}].{list}[{index}] is of row {row}; the head has {rows}")]
    NoRow {
        /// The head.
        head: usize,
        /// `sources` or `folded`.
        list: &'static str,
        /// Index into it.
        index: usize,
        /// The row named.
        row: u32,
        /// Rows of the head.
        rows: u32,
    },
    /// A row would count twice.
    #[error("heads[{head}].{list}[{index}] is of row {row}, which is named twice")]
    Twice {
        /// The head.
        head: usize,
        /// `sources` or `folded`.
        list: &'static str,
        /// Index into it.
        index: usize,
        /// The row named.
        row: u32,
    },
    /// A number is none to compute with.
    #[error("heads[{head}].{list}[{index}].{field} is {value}; it must be finite")]
    NotFinite {
        /// The head.
        head: usize,
        /// `rows` or `sources`.
        list: &'static str,
        /// Index into it.
        index: usize,
        /// The field's name.
        field: &'static str,
        /// Its value.
        value: f32,
    },
}

impl Compaction {
    /// Checks it against the rows that each head has now, up to [`Compaction::tokens`]: `[layers, kv_heads]`.
    ///
    /// # Errors
    /// [`CompactionError`], naming head, entry and value.
    pub fn check(&self, rows: &[u32]) -> Result<(), CompactionError> {
        let tokens = self.tokens;
        if tokens == 0 || !tokens.is_multiple_of(PAGE_TOKENS) {
            return Err(CompactionError::Tokens { tokens });
        }
        if self.heads.len() != rows.len() {
            let (found, expected) = (self.heads.len(), rows.len());
            return Err(CompactionError::Heads { found, expected });
        }
        let mut named = Vec::new();
        for (head, (of, &rows)) in self.heads.iter().zip(rows).enumerate() {
            named.clear();
            named.resize(rows as usize, false);
            of.check(head, &mut named)?;
        }
        Ok(())
    }

    /// Whether every row of every head would be as it is: `rows` as in [`Compaction::check`].
    pub fn is_identity(&self, rows: &[u32]) -> bool {
        self.heads.iter().zip(rows).all(|(head, &rows)| {
            head.rows.len() == rows as usize
                && head.sources.iter().enumerate().all(|(i, source)| source.row as usize == i)
                && head.is_selection()
        })
    }
}

impl HeadCompaction {
    /// Keeps rows `kept`, as they are.
    pub fn keep(kept: impl IntoIterator<Item = u32>) -> Self {
        let mut head = Self::default();
        kept.into_iter().for_each(|row| head.push_kept(row, 0.0));
        head
    }

    /// Keeps one more row as it is; `bias` is what it has.
    pub fn push_kept(&mut self, row: u32, bias: f32) {
        self.push(&[Source { row, k: 1.0, v: 1.0 }], bias);
    }

    /// Makes one more row of `sources`, its pivot first.
    pub fn push(&mut self, sources: &[Source], bias: f32) {
        self.sources.extend_from_slice(sources);
        self.rows.push(Row { end: self.sources.len() as u32, bias });
    }

    /// The sources of each row.
    pub fn each_row(&self) -> impl Iterator<Item = (&[Source], Row)> {
        let mut begin = 0;
        self.rows.iter().map(move |&row| {
            let sources = &self.sources[begin..row.end as usize];
            begin = row.end as usize;
            (sources, row)
        })
    }

    /// Whether each row is one that is there now.
    pub fn is_selection(&self) -> bool {
        self.each_row().all(|(sources, _)| matches!(sources, [Source { k: 1.0, v: 1.0, .. }]))
    }

    /// `named`: for each row now, whether it was named; all `false`.
    fn check(&self, head: usize, named: &mut [bool]) -> Result<(), CompactionError> {
        let mut before = 0;
        let sources = self.sources.len();
        for (row, &Row { end, bias }) in self.rows.iter().enumerate() {
            if end <= before || end as usize > sources {
                return Err(CompactionError::End { head, row, end, before, sources });
            }
            finite(head, ("rows", row, "bias"), bias)?;
            before = end;
        }
        if (before as usize) < sources {
            return Err(CompactionError::UnusedSources { head, sources, used: before });
        }
        for (index, source) in self.sources.iter().enumerate() {
            name(head, ("sources", index), source.row, named)?;
            finite(head, ("sources", index, "k"), source.k)?;
            finite(head, ("sources", index, "v"), source.v)?;
        }
        for (index, &row) in self.folded.iter().enumerate() {
            name(head, ("folded", index), row, named)?;
        }
        Ok(())
    }
}

fn name(
    head: usize,
    (list, index): (&'static str, usize),
    row: u32,
    named: &mut [bool],
) -> Result<(), CompactionError> {
    let rows = named.len() as u32;
    match named.get_mut(row as usize) {
        None => Err(CompactionError::NoRow { head, list, index, row, rows }),
        Some(true) => Err(CompactionError::Twice { head, list, index, row }),
        Some(named) => {
            *named = true;
            Ok(())
        }
    }
}

fn finite(
    head: usize,
    (list, index, field): (&'static str, usize, &'static str),
    value: f32,
) -> Result<(), CompactionError> {
    if value.is_finite() {
        return Ok(());
    }
    Err(CompactionError::NotFinite { head, list, index, field, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(head: HeadCompaction) -> Compaction {
        Compaction { tokens: 64, heads: vec![head] }
    }

    #[test]
    fn keeping_every_row_is_the_identity_and_leaving_one_out_is_not() {
        let all = one(HeadCompaction::keep(0..64));
        assert_eq!(all.check(&[64]), Ok(()));
        assert!(all.is_identity(&[64]));
        assert!(!one(HeadCompaction::keep(1..64)).is_identity(&[64]));
        assert!(!one(HeadCompaction::keep((0..64).rev())).is_identity(&[64]));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |compaction: Compaction| compaction.check(&[64]).unwrap_err();
        let wrong = error(Compaction { tokens: 63, heads: vec![HeadCompaction::keep(0..9)] });
        assert_eq!(wrong, CompactionError::Tokens { tokens: 63 });
        let wrong = error(Compaction { tokens: 64, heads: vec![] });
        assert_eq!(wrong, CompactionError::Heads { found: 0, expected: 1 });
        let wrong = error(one(HeadCompaction::keep([3, 64])));
        let list = "sources";
        assert_eq!(wrong, CompactionError::NoRow { head: 0, list, index: 1, row: 64, rows: 64 });
        let wrong = error(one(HeadCompaction::keep([3, 3])));
        assert_eq!(wrong, CompactionError::Twice { head: 0, list, index: 1, row: 3 });
        let wrong = error(one(HeadCompaction { folded: vec![5, 3], ..HeadCompaction::keep([3]) }));
        let list = "folded";
        assert_eq!(wrong, CompactionError::Twice { head: 0, list, index: 1, row: 3 });
        let mut none = HeadCompaction::keep([3, 4]);
        none.rows[1].end = 1;
        let wrong = error(one(none.clone()));
        assert_eq!(wrong, CompactionError::End { head: 0, row: 1, end: 1, before: 1, sources: 2 });
        none.rows.pop();
        assert_eq!(
            error(one(none)),
            CompactionError::UnusedSources { head: 0, sources: 2, used: 1 }
        );
        let mut infinite = HeadCompaction::keep([3]);
        infinite.rows[0].bias = f32::INFINITY;
        assert!(matches!(error(one(infinite)), CompactionError::NotFinite { field: "bias", .. }));
    }

    #[test]
    fn an_empty_head_is_allowed() {
        assert_eq!(one(HeadCompaction::default()).check(&[64]), Ok(()));
    }
}
