//! The library on a GPU: kernels and models against f64 and against the CPU. Without a GPU every test says so and passes.
//!
//! `gpu --nocapture attention::` runs one room's tests. `DEFT_FORESTS=200` and `DEFT_SEED=2` draw more forests, and others.

mod attention;
mod capture;
mod compacted;
mod decode;
mod documentation;
mod formats;
mod in_place;
mod instructions;
mod model;
mod prefill;
mod writes;
