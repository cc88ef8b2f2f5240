//! Sampled tokens as the next step's input.

use crate::abi::NONE;
use crate::model::limits::THREADS;
use device::{global, thread};

/// What a `feed` launch reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Feed {
    /// The chosen tokens; row `i`'s is `next[i * next_stride]`.
    pub next: *const u32,
    /// Where each row's K and V went, `[count]`; [`NONE`] for a row to leave out. Null for none.
    pub targets: *const u32,
    /// The model's input, `[count]`.
    pub tokens: *mut u32,
    /// The inputs' positions, `[count]`.
    pub positions: *mut u32,
    /// `[count, history_len]`: a token of position `p` is kept in column `p % history_len`. Null for none.
    pub history: *mut u32,
    /// Columns of `history`.
    pub history_len: u32,
    /// Words from a row's choice to the next row's.
    pub next_stride: u32,
    /// Rows.
    pub count: u32,
}

/// Makes each row's chosen token its input, one position further. A thread a row.
///
/// # Safety
/// The arrays are valid for their shapes, and `history_len` is not 0 if there is a history.
#[inline(always)]
pub unsafe fn feed(f: Feed) {
    let row = thread::block_idx_x() * THREADS + thread::thread_idx_x();
    if row >= f.count {
        return;
    }
    let row = row as usize;
    // SAFETY: `row` is below `count`.
    unsafe {
        if !f.targets.is_null() && global::load_u32(f.targets.add(row)) == NONE {
            return;
        }
        let token = global::load_u32(f.next.add(row * f.next_stride as usize));
        let position = global::load_u32(f.positions.add(row)) + 1;
        global::store_u32(f.tokens.add(row), token);
        global::store_u32(f.positions.add(row), position);
        if !f.history.is_null() {
            let column = (position % f.history_len) as usize;
            global::store_u32(f.history.add(row * f.history_len as usize + column), token);
        }
    }
}
