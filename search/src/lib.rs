#![doc = include_str!("../README.md")]

mod advance;
mod answer;
mod beam;
mod best_of_n;
mod branch;
mod compact;
mod drafter;
mod error;
mod event;
mod follow;
mod limits;
mod room;
pub mod sampler;
mod scorer;
mod speculative;
pub mod tasks;
mod thoughts;
mod tree;
mod tree_search;
mod walkers;

pub use advance::Growth;
pub use answer::{Answer, Ending, Finish, Outcome, Stats, Stop};
pub use beam::BeamSearch;
pub use best_of_n::{BestOfN, Choice, DiverseBatch};
pub use branch::{Branch, BranchId, Row};
pub use deft_engine::TextCodec;
pub use drafter::{Drafter, PromptLookup};
pub use error::SearchError;
pub use event::{Event, Observer, PruneReason};
pub use limits::{Cancel, Limits};
pub use sampler::Sampler;
pub use scorer::{Candidate, MeanLogProb, Scorer, Verdict};
pub use speculative::Speculative;
pub use thoughts::TreeOfThoughts;
pub use tree::SearchTree;
pub use tree_search::{SearchMethod, TreeSearch};

/// The examples in the guide.
#[cfg(doctest)]
#[doc = include_str!("../../docs/search.md")]
struct Guide;
