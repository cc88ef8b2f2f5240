//! Fences between the generic and the async proxy.

use std::panic::Location;

use crate::emulator::block::instruction;

/// `fence.proxy.async`: what this thread has seen written becomes visible to bulk copies and `wgmma`.
#[track_caller]
pub fn fence_async() {
    instruction(Location::caller(), |block| {
        block.thread().view.fence_proxy();
        block.fence_mbarriers();
        Ok(())
    });
}
