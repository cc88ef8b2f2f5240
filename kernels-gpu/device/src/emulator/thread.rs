//! Where the running thread is, and its pauses.

use std::panic::Location;

use crate::emulator::block::{instruction, suspend};

/// Index of the thread within its block.
#[track_caller]
pub fn index() -> u32 {
    instruction(Location::caller(), |block| Ok(block.current))
}

/// Threads of a block.
#[track_caller]
pub fn block_threads() -> u32 {
    instruction(Location::caller(), |block| Ok(block.grid.threads))
}

/// Index of the block within the grid.
#[track_caller]
pub fn block_index() -> [u32; 3] {
    instruction(Location::caller(), |block| Ok(block.index))
}

/// Blocks of the grid.
#[track_caller]
pub fn grid_blocks() -> [u32; 3] {
    instruction(Location::caller(), |block| Ok(block.grid.blocks))
}

/// Lets others run.
#[track_caller]
pub fn pause() {
    let site = Location::caller();
    instruction(site, |block| block.poll("nanosleep", site));
    suspend();
}

/// `griddepcontrol.wait`: from here on the thread may read what earlier kernels wrote.
#[track_caller]
pub fn wait_dependencies() {
    instruction(Location::caller(), |block| {
        block.thread().waited_dependencies = true;
        Ok(())
    });
}
