//! The kernels' own source on the emulator.

mod attention;
mod cache;
mod compacted;
mod formats;
mod instructions;
mod model;
mod planted_bugs;
mod programs;
mod scores;
mod transfers;
