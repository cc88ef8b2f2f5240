//! Block tables, and whether they say what can be planned.

use kernels_gpu::abi::PAGE_TOKENS;

use crate::plan::PlanError;

/// The sequences of a batch as engines with paged caches have them: which blocks hold each, and how many tokens.
#[derive(Clone, Copy, Debug)]
pub struct BlockTables<'a> {
    /// Each sequence's blocks, in order: `[sequences, stride]`. What lies behind a sequence's last token is not read.
    pub ids: &'a [i32],
    /// Ids from one sequence's first to the next's.
    pub stride: usize,
    /// Tokens of each sequence, those of its queries included: `[sequences]`.
    pub lens: &'a [i32],
    /// Tokens of a block; it divides 64.
    pub page_size: u32,
    /// Queries of each sequence, which are its last tokens: `[sequences]`; empty for one each. A sequence with none is
    /// passed over. Rows of `q` and `out` are in this order.
    pub queries: &'a [i32],
    /// Which of its sequence's queries each query sees, all of the tokens before them aside: `[rows, words]`, bit `j` of
    /// a row for the sequence's query `j`, 64 bits a word. Empty for those up to itself.
    pub masks: &'a [u64],
}

/// Why block tables cannot be planned; nothing was changed.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BlockTablesError {
    /// Blocks do not make up pages of 64 tokens.
    #[error("page_size is {page_size}; it must divide 64")]
    PageSize {
        /// Tokens of a block.
        page_size: u32,
    },
    /// An array is too short or too long.
    #[error("{argument} has {found} elements, {shape} takes {expected}")]
    Length {
        /// The argument's name.
        argument: &'static str,
        /// What came.
        found: usize,
        /// What its shape takes.
        expected: usize,
        /// Its shape.
        shape: &'static str,
    },
    /// A number is out of range.
    #[error("{argument}[{index}] is {value}; it must be between 0 and {max}, {limit}")]
    Range {
        /// The argument's name.
        argument: &'static str,
        /// Index into it.
        index: usize,
        /// What it was.
        value: i32,
        /// Most allowed.
        max: usize,
        /// What sets the limit.
        limit: &'static str,
    },
    /// A mask hides its own query, or shows what its sequence has not.
    #[error("masks[{index}] is {value:#x}; {expected}")]
    Mask {
        /// Index into the masks.
        index: usize,
        /// What it was.
        value: u64,
        /// What it must be.
        expected: &'static str,
    },
    /// The planner refused.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl BlockTables<'_> {
    pub(super) fn row(&self, sequence: usize) -> &[i32] {
        &self.ids[sequence * self.stride..][..self.stride]
    }

    pub(super) fn len(&self, sequence: usize) -> u32 {
        self.lens[sequence] as u32
    }

    pub(super) fn queries(&self, sequence: usize) -> u32 {
        self.queries.get(sequence).map_or(1, |&queries| queries as u32)
    }

    pub(super) fn mask_words(&self, rows: usize) -> usize {
        self.masks.len().checked_div(rows).unwrap_or(0)
    }

    pub(super) fn rows(&self) -> usize {
        (0..self.lens.len()).map(|at| self.queries(at) as usize).sum()
    }

    /// Checks all of it. `changed` becomes the sequences whose ids are not the first of those that are `known` to be
    /// good; one more than their largest id.
    pub(super) fn check<'a>(
        &self,
        known: impl Fn(usize) -> &'a [i32],
        changed: &mut Vec<usize>,
    ) -> Result<u32, BlockTablesError> {
        use BlockTablesError::{Length, PageSize, Range};
        changed.clear();
        let page_size = self.page_size;
        if !PAGE_TOKENS.is_multiple_of(page_size) {
            return Err(PageSize { page_size });
        }
        let (sequences, found) = (self.lens.len(), self.ids.len());
        let expected = sequences * self.stride;
        if found != expected {
            let (argument, shape) = ("block_tables", "[sequences, stride]");
            return Err(Length { argument, found, expected, shape });
        }
        if !self.queries.is_empty() && self.queries.len() != sequences {
            let (argument, found, shape) = ("queries", self.queries.len(), "[sequences]");
            return Err(Length { argument, found, expected: sequences, shape });
        }
        let range = |argument, index, value, max, limit| {
            let fits = usize::try_from(value).is_ok_and(|value: usize| value <= max);
            if fits { Ok(()) } else { Err(Range { argument, index, value, max, limit }) }
        };
        // What a row of the table and the planner's 32 bits hold.
        let room = (self.stride * page_size as usize).min(1 << 30);
        let mut blocks = 0;
        for (index, &len) in self.lens.iter().enumerate() {
            range("lens", index, len, room, "what a row of block_tables holds")?;
            if let Some(&queries) = self.queries.get(index) {
                // A query of an empty sequence sees nothing.
                range("queries", index, queries, len.max(1) as usize, "its sequence's length")?;
            }
            let used = &self.row(index)[..(len as u32).div_ceil(page_size) as usize];
            if known(index).get(..used.len()) != Some(used) {
                changed.push(index);
                blocks = used.iter().fold(blocks, |most, &id| most.max(id as u32));
            }
        }
        if blocks > i32::MAX as u32 {
            for (index, &id) in self.used() {
                range("block_tables", index, id, i32::MAX as usize, "a block")?;
            }
        }
        self.check_masks()?;
        Ok(blocks + 1)
    }

    /// The ids that are read, each with its index.
    fn used(&self) -> impl Iterator<Item = (usize, &i32)> {
        let used = |sequence: usize| self.len(sequence).div_ceil(self.page_size) as usize;
        let rows = (0..self.lens.len()).map(move |at| (at * self.stride, used(at)));
        rows.flat_map(|(begin, used)| (begin..).zip(&self.ids[begin..begin + used]))
    }

    fn check_masks(&self) -> Result<(), BlockTablesError> {
        if self.masks.is_empty() {
            return Ok(());
        }
        let (sequences, rows) = (self.lens.len(), self.rows());
        let most = (0..sequences).map(|at| self.queries(at)).max().unwrap_or(0);
        let words = self.mask_words(rows).max(most.div_ceil(64) as usize);
        if self.masks.len() != rows * words {
            let (argument, found, expected) = ("masks", self.masks.len(), rows * words);
            let shape = "[rows, words], a bit for each query of the longest draft,";
            return Err(BlockTablesError::Length { argument, found, expected, shape });
        }
        let own = (0..sequences).flat_map(|at| {
            let queries = self.queries(at) as usize;
            (0..queries).map(move |query| (query, queries))
        });
        for (row, (query, queries)) in own.enumerate() {
            for (word, index) in (row * words..(row + 1) * words).enumerate() {
                let value = self.masks[index];
                let bad = |expected| Err(BlockTablesError::Mask { index, value, expected });
                let bits = queries.saturating_sub(word * 64);
                if bits < 64 && value >> bits != 0 {
                    return bad("bits are of the sequence's own queries");
                }
                if query / 64 == word && value >> (query % 64) & 1 == 0 {
                    return bad("a query sees its own token");
                }
            }
        }
        Ok(())
    }
}
