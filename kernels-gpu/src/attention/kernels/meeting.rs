//! Where blocks of a launch meet: none goes on before all have arrived.

use crate::device::atomic;

/// The counter's bit that turns over when the last block arrives.
const ROUND: u32 = 1 << 31;

/// A meeting of `blocks` blocks.
///
/// Each adds one to the counter, except for one that adds what is then missing to 2^31: the last arrival turns the
/// highest bit over and leaves the others as they were. So a counter that was zero once serves any number of
/// meetings, one after the other, and is never set back.
#[derive(Clone, Copy, Debug)]
pub struct Meeting {
    /// In global memory; no other meeting uses it meanwhile.
    pub counter: *mut u32,
    /// Blocks that meet.
    pub blocks: u32,
    /// Whether this block is the one that adds what is missing.
    pub leads: bool,
}

/// The counter before and after a block's arrival.
#[derive(Clone, Copy, Debug, Default)]
pub struct Arrival {
    before: u32,
    after: u32,
}

impl Meeting {
    /// Arrives for the block. What it wrote is released if a barrier of the block lies between that and this call.
    ///
    /// # Safety
    /// One thread of each block calls it; the counter is valid.
    #[inline(always)]
    pub unsafe fn arrive(&self) -> Arrival {
        let share = if self.leads {
            ROUND - (self.blocks - 1)
        } else {
            1
        };
        // SAFETY: the caller's.
        let before = unsafe { atomic::add_acq_rel_u32(self.counter, share) };
        Arrival {
            before,
            after: before.wrapping_add(share),
        }
    }

    /// Waits for the others. What they released is then visible to the calling thread, and to the threads that
    /// meet it at a barrier of the block afterwards.
    ///
    /// # Safety
    /// `arrival` is the block's, and all blocks are resident: one that cannot start before this one ends never arrives.
    #[inline(always)]
    pub unsafe fn wait(&self, arrival: Arrival) {
        let mut now = arrival.after;
        while (now ^ arrival.before) & ROUND == 0 {
            // SAFETY: the caller's.
            now = unsafe { atomic::load_acquire_u32(self.counter) };
        }
    }
}
