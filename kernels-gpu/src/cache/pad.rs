//! Rows of other lengths: heads that there are no attention kernels for go in padded and come out cut.

use super::{Chunk, THREADS};
use crate::layout::CORE;
use device::{global, thread};
use kernel_macros::kernel;

/// Makes rows of `to` elements of rows of `from`: longer ones end in zeros, shorter ones are cut. The target has the
/// `count` rows of `first`, then, unless it is null, those of `second`. A thread writes eight elements.
///
/// # Safety
/// `first` and `second` are valid for `count` rows of `from` elements, `target` for as many of `to` as they have together; all are
/// 16-byte aligned, and `from` and `to` positive multiples of eight.
#[kernel(threads = THREADS, min_blocks = 2, group = "cache", instances(pad_rows))]
#[inline(always)]
pub unsafe fn pad_rows(
    first: *const u16,
    second: *const u16,
    target: *mut u16,
    count: u32,
    from: u32,
    to: u32,
) {
    let index = thread::block_idx_x() * THREADS + thread::thread_idx_x();
    let chunks = to / CORE;
    let (row, chunk) = (index / chunks, index % chunks);
    let rows = if second.is_null() { count } else { 2 * count };
    if row >= rows {
        return;
    }
    let (source, of) = if row < count { (first, row) } else { (second, row - count) };
    let mut data: Chunk = [0; 4];
    // SAFETY: the row is one of the source's, the chunk within its row and the target's; both are aligned as arrays are.
    unsafe {
        if chunk < from / CORE {
            let at = of as usize * from as usize + (chunk * CORE) as usize;
            data = global::load_v4_u32(source.add(at).cast());
        }
        let at = index as usize * CORE as usize;
        global::store_v4_u32(target.add(at).cast(), data);
    }
}
