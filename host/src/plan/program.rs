//! A plan as the kernels read it, and typed views of it for everybody else.

use kernels_gpu::abi::{MergeRow, ProgramHeader, Segment, WorkItem, words_of};

use super::Grouping;

/// What every backend executes: which queries meet which pages where, and how the parts merge.
///
/// A plan names neither a layer nor a KV head, so one plan serves them all, on any number of devices.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Plan {
    pub(super) grouping: Grouping,
    pub(super) group_size: u32,
    pub(super) queries: u32,
    pub(super) shares: u32,
    pub(super) stride: u32,
    pub(super) words: Vec<u32>,
    pub(super) masks: Vec<u64>,
    #[cfg_attr(feature = "serde", serde(with = "merge_rows"))]
    pub(super) merge_rows: Vec<MergeRow>,
    pub(super) merge_slots: Vec<u32>,
    pub(super) partial_slots: u32,
}

impl Plan {
    /// How the plan was grouped.
    pub fn grouping(&self) -> Grouping {
        self.grouping
    }
    /// Query heads a KV head: the rows a query adds to a work item.
    pub fn group_size(&self) -> u32 {
        self.group_size
    }
    /// Number of queries.
    pub fn queries(&self) -> u32 {
        self.queries
    }
    /// Number of shares a KV head.
    pub fn shares(&self) -> u32 {
        self.shares
    }
    /// Words from one share's program to the next; a multiple of 4.
    pub fn stride(&self) -> u32 {
        self.stride
    }
    /// All programs: `[shares][stride]`.
    pub fn words(&self) -> &[u32] {
        &self.words
    }
    /// Masks of pages that hold several small nodes; see [`Segment::mask`].
    pub fn masks(&self) -> &[u64] {
        &self.masks
    }
    /// Queries whose result is merged from several partial slots.
    pub fn merge_rows(&self) -> &[MergeRow] {
        &self.merge_rows
    }
    /// Partial slots of all merge rows.
    pub fn merge_slots(&self) -> &[u32] {
        &self.merge_slots
    }
    /// Number of partial slots a KV head; each holds `group_size` rows of `(o, lse)`.
    pub fn partial_slots(&self) -> u32 {
        self.partial_slots
    }
    /// The program of share `index`.
    ///
    /// # Panics
    /// If `index` is not below [`Plan::shares`].
    pub fn share(&self, index: u32) -> Share<'_> {
        let begin = (index * self.stride) as usize;
        Share {
            words: &self.words[begin..begin + self.stride as usize],
        }
    }
}

/// One share's program.
#[derive(Clone, Copy, Debug)]
pub struct Share<'a> {
    words: &'a [u32],
}

/// A work item with its segments.
#[derive(Clone, Copy, Debug)]
pub struct Item<'a> {
    /// The item's record.
    pub record: &'a WorkItem,
    /// Its segments, in the order they are processed.
    pub segments: &'a [Segment],
    program: &'a [u32],
}

impl<'a> Share<'a> {
    fn header(&self) -> &'a ProgramHeader {
        bytemuck::from_bytes(bytemuck::cast_slice(
            &self.words[..words_of::<ProgramHeader>() as usize],
        ))
    }
    /// The share's work items, in order.
    pub fn items(&self) -> impl ExactSizeIterator<Item = Item<'a>> + use<'a> {
        let header = self.header();
        let words = self.words;
        let items_begin = words_of::<ProgramHeader>() as usize;
        let segments_begin = items_begin + (header.items * words_of::<WorkItem>()) as usize;
        let segments_end = segments_begin + (header.segments * words_of::<Segment>()) as usize;
        let items: &[WorkItem] = bytemuck::cast_slice(&words[items_begin..segments_begin]);
        let segments: &[Segment] = bytemuck::cast_slice(&words[segments_begin..segments_end]);
        items.iter().map(move |record| {
            let begin = record.segment_begin as usize;
            Item {
                record,
                segments: &segments[begin..begin + record.segment_count as usize],
                program: words,
            }
        })
    }
}

impl<'a> Item<'a> {
    /// Page ids of one of the item's segments.
    pub fn pages(&self, segment: &Segment) -> &'a [u32] {
        let begin = segment.page_word as usize;
        &self.program[begin..begin + segment.page_count as usize]
    }
}

#[cfg(feature = "serde")]
mod merge_rows {
    use kernels_gpu::abi::MergeRow;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(super) fn serialize<S: Serializer>(rows: &[MergeRow], s: S) -> Result<S::Ok, S::Error> {
        bytemuck::cast_slice::<_, u32>(rows).serialize(s)
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<MergeRow>, D::Error> {
        let words = Vec::<u32>::deserialize(d)?;
        bytemuck::allocation::try_cast_vec(words)
            .or_else(|(_, words)| {
                if words.len() % 4 == 0 {
                    Ok(bytemuck::pod_collect_to_vec(&words))
                } else {
                    Err(words.len())
                }
            })
            .map_err(|n| {
                serde::de::Error::custom(format!("{n} words are no whole number of merge rows"))
            })
    }
}
