//! Several ranks that run one model together: how they talk, and which part of the model each has.
//!
//! A *rank* is one of `ranks` models on as many devices (or threads of the CPU), each with a share of the heads, of the
//! feed-forward part and of the vocabulary. Forest and plan name no head: every rank makes its own from the same
//! operations. [`Ranked`](crate::ranked::Ranked) sees to it that all get the same ones.
//!
//! | file | what it adds |
//! |---|---|
//! | `error` | what goes wrong between ranks |
//! | `communicator` | the collectives, over an exchange of messages |
//! | `memory` | that exchange between threads |
//! | `tcp` | that exchange between processes |
//! | `launch` | who this process is, by `torchrun`, `mpirun` or SLURM |
//! | `shard` | a rank's part of a model |
//! | `part` | its weights |
//! | `sequence` | attention over tokens that lie on several ranks |
//! | `top_k` | the best of logits that lie on several ranks |
//! | `threads` | ends threads before what they use |

mod communicator;
mod error;
mod launch;
mod memory;
mod part;
mod sequence;
mod shard;
mod tcp;
pub(crate) mod threads;
mod top_k;

pub use communicator::{Communicator, Kind, Message, TIMEOUT};
pub use error::RankError;
pub use launch::Launch;
pub use memory::Memory;
pub use sequence::merge_partials;
pub use shard::Shard;
pub use tcp::Tcp;
pub(crate) use top_k::best_of_all;
