//! Everything of the library that runs on a CPU, against its definition: attention, plans, the cache and what moves in and out of
//! it, formats, retention.

mod attention;
mod block_tables;
mod compacted;
mod elastic;
mod forest;
mod formats;
mod layer_map;
mod non_finite;
mod paper_io;
mod plan_balance;
mod plan_choice;
mod plan_coverage;
mod plan_patch;
mod plan_shape;
mod prefill;
mod prefix;
mod restore;
mod retention;
mod rotary;
mod saved_prefix;
mod scores;
mod sequence_ranks;
mod tree_cache;
mod tree_transfers;
mod workload_files;
