//! Policies of retention on trees, from scores to compacted nodes, on the CPU.

mod kept;
mod limits;
mod merging;
mod soak;
mod world;
