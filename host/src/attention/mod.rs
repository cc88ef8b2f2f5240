//! Running a plan: the backends.

mod backend;
mod check;
pub mod cpu;
mod error;
mod memory;
mod paged;
mod rotary;
mod score;
pub mod staged;

pub use backend::{Attend, AttentionParams, Backend, Channels, Compact, Counters, PagedTokens};
pub use check::{check_append, check_attend, check_compact, check_moves};
pub(crate) use check::{check_length, check_params, on_host};
#[cfg(feature = "cuda")]
pub(crate) use check::{check_pages, check_plan};
pub use error::BackendError;
pub use memory::{ElasticMemory, HostBytes, LoadedPage, PageLoader};
pub use paged::{PagedAttend, PagedTensor, check_export, check_import, check_paged_attend};
pub use rotary::{RotaryTable, Rotation};
pub use score::{Reduce, Score, check_cells, check_score};
