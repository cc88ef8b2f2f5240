//! The four warps of a warpgroup must multiply alike.

use std::collections::VecDeque;

use super::Key;
use crate::emulator::block::Block;
use crate::emulator::report::{Cause, Checked, Fault, Site};

/// What the warps of a warpgroup must agree on, in order; entries all have passed are dropped.
#[derive(Default)]
pub(crate) struct Agreement {
    first: usize,
    entries: VecDeque<(Site, Key, u32)>,
}

impl Block<'_> {
    /// Checks that the warps of a warpgroup issue the same multiplications.
    pub(super) fn agree(&mut self, site: Site, key: Key) -> Checked {
        let warp = self.current / 32;
        let queue = &mut self.warps[warp as usize].queue;
        let turn = queue.agreed;
        queue.agreed += 1;
        let members = (self.warps.len() as u32 - warp / 4 * 4).min(4);
        if members < 4 {
            let text = "wgmma needs four warps, the first a multiple of 4";
            return Err(Fault::new(Cause::Divergence, text));
        }
        let agreement = &mut self.warpgroups[(warp / 4) as usize];
        let index = turn - agreement.first;
        if index == agreement.entries.len() {
            agreement.entries.push_back((site, key, 0));
        }
        let (first_site, first_key, passed) = &mut agreement.entries[index];
        if *first_key != key || *first_site != site {
            let text = format!(
                "warps of a warpgroup multiply differently: another issued the wgmma at {first_site}{}",
                if *first_site == site { ", with other operands" } else { "" }
            );
            return Err(Fault::new(Cause::Divergence, text));
        }
        *passed += 1;
        if *passed == members {
            agreement.entries.pop_front();
            agreement.first += 1;
        }
        Ok(())
    }

    /// Checks that all warps of each warpgroup multiplied, and waited.
    pub(crate) fn check_wgmma_finished(&self) -> Checked {
        for agreement in &self.warpgroups {
            if let Some((site, ..)) = agreement.entries.front() {
                let text = format!("not all warps of a warpgroup issued the wgmma at {site}");
                return Err(Fault::new(Cause::Divergence, text));
            }
        }
        for warp in &self.warps {
            if warp.queue.issued > warp.queue.waited {
                let text = "the block ends without having waited for its wgmmas";
                return Err(Fault::new(Cause::Unwaited, text));
            }
        }
        Ok(())
    }
}
