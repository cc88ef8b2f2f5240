//! The runs of what sequences share, and of what only one has.

use std::ops::Range;

use kernels_gpu::abi::PAGE_TOKENS;

use super::BlockTables;
use crate::format::KvFormat;
use crate::tree::{OwnPages, Run, TreeView, run};

/// Adds the pages of a sequence's blocks.
pub(super) fn push_pages(
    view: &mut TreeView,
    tables: &BlockTables<'_>,
    sequence: u32,
    blocks: Range<u32>,
) -> Range<u32> {
    let first = view.pages.len() as u32;
    let row = sequence * tables.stride as u32;
    let step = (PAGE_TOKENS / tables.page_size) as usize;
    view.pages.extend(blocks.step_by(step).map(|block| row + block));
    first..view.pages.len() as u32
}

/// Adds the runs of what only one sequence has: `length` tokens from block `begin` on, the last of which have queries in
/// rows from `row` on.
pub(super) fn push_own(
    view: &mut TreeView,
    tables: &BlockTables<'_>,
    row: u32,
    (sequence, begin, length): (u32, u32, u32),
    parent: Option<u32>,
) {
    let rows = tables.queries(sequence as usize);
    let query = view.query_order.len() as u32;
    let queries = query..query + rows;
    view.query_order.extend(row..row + rows);
    let blocks = begin..begin + length.div_ceil(tables.page_size);
    if rows == 1 {
        let pages = push_pages(view, tables, sequence, blocks);
        let length_slot = Some(sequence);
        view.runs.push(Run { length_slot, ..run(parent, queries, length, pages) });
    } else if tables.masks.is_empty() {
        let pages = push_pages(view, tables, sequence, blocks);
        let pages = view.pages.split_off(pages.start as usize);
        let own =
            OwnPages { pages: &pages, coded: 0, format: KvFormat::Native, compacted: None, length };
        own.push_chunk(view, parent, queries);
    } else {
        let words = tables.mask_words(tables.rows());
        let masks = &tables.masks[row as usize * words..][..rows as usize * words];
        let pages = push_pages(view, tables, sequence, blocks);
        push_masked(view, parent, pages, queries, length, masks);
    }
}

/// Adds the run of the pages before a draft, and that of the pages with its tokens.
fn push_masked(
    view: &mut TreeView,
    mut parent: Option<u32>,
    pages: Range<u32>,
    queries: Range<u32>,
    length: u32,
    masks: &[u64],
) {
    let rows = queries.end - queries.start;
    let draft = length - rows;
    let before = draft / PAGE_TOKENS;
    let first = pages.start + before;
    if before > 0 {
        let none = queries.start..queries.start;
        view.runs.push(run(parent, none, before * PAGE_TOKENS, pages.start..first));
        parent = Some(view.runs.len() as u32 - 1);
    }
    let mask = Some(view.masks.len() as u32);
    let begin = before * PAGE_TOKENS;
    view.runs.push(Run { mask, ..run(parent, queries, length - begin, first..pages.end) });
    for page in (begin..length).step_by(PAGE_TOKENS as usize) {
        let words = masks.chunks_exact(masks.len() / rows as usize);
        view.masks.extend(words.map(|words| page_word(words, draft, page)));
    }
}

/// Which tokens of the page that begins at token `page` a query sees: all before `draft`, then those of its bits.
fn page_word(bits: &[u64], draft: u32, page: u32) -> u64 {
    match draft.checked_sub(page) {
        Some(before) => (bits[0] << before) | ((1 << before) - 1),
        None => {
            let (word, shift) = ((page - draft) / 64, (page - draft) % 64);
            let at = |word: u32| bits.get(word as usize).copied().unwrap_or(0);
            at(word) >> shift | at(word + 1).checked_shl(64 - shift).unwrap_or(0)
        }
    }
}
