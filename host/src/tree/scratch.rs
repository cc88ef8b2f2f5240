//! Which slots an operation has met.

/// A set of slots that empties in no time.
#[derive(Clone, Debug, Default)]
pub(super) struct Marks {
    stamp: u64,
    stamps: Vec<u64>,
}

impl Marks {
    /// Empties the set and makes room for slots below `slots`.
    pub(super) fn begin(&mut self, slots: usize) {
        self.stamp += 1;
        if self.stamps.len() < slots {
            self.stamps.resize(slots, 0);
        }
    }

    /// Adds `slot`; `false` if it was there.
    pub(super) fn insert(&mut self, slot: u32) -> bool {
        let stamp = &mut self.stamps[slot as usize];
        let is_new = *stamp != self.stamp;
        *stamp = self.stamp;
        is_new
    }
}
