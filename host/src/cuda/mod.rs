//! NVIDIA GPUs through the CUDA driver, which is opened at run time.
//!
//! | file | what it adds |
//! |---|---|
//! | `sys` | the driver's library and its functions, which answer a plain `i32`, and why |
//! | `error` | one error enum, with the driver's codes and words |
//! | `device` | a device on its primary context; raw pointers and streams |
//! | `memory` | arrays in device memory |
//! | `elastic` | addresses of pages whose memory comes and goes |
//! | `pinned` | pinned host memory that copies are staged in |
//! | `stream` | streams, events, graphs |
//! | `ptx`, `images`, `module` | kernels by name, compiled when first used |
//! | `launch`, `kernels` | arguments and launches |
//! | `capacity`, `plan`, `device_plan` | plans at device addresses that never change |
//! | `counters` | lengths and tail pages of growing nodes |
//! | `compacted` | the directory of compacted nodes, biases, and the kernel that gathers rows |
//! | `scores` | scores of tokens, and the pass that makes them |
//! | `writers` | the kernels that write the cache |
//! | `paged` | the kernels between this cache and other engines' |
//! | `cache` | pages and counters, and attention over them, by device pointers |
//! | `backend` | the same for slices of the host |
//! | `in_place` | attention over other engines' caches where they are |
//! | `cust` (feature `cust`) | rust-cuda's contexts, streams and buffers as ours |
//!
//! A program built with this module starts without a driver too; then opening a device is
//! [`CudaError::NoDevice`]. Everything runs on the device's primary context, made current for the length
//! of a call and put back after it, so pointers and streams of candle, cudarc or PyTorch may be used.

mod backend;
mod cache;
mod capacity;
mod compacted;
mod counters;
#[cfg(feature = "cust")]
mod cust;
mod device;
mod device_plan;
mod elastic;
mod error;
mod images;
mod in_place;
mod kernels;
mod launch;
mod memory;
mod module;
mod paged;
mod pinned;
mod plan;
mod ptx;
mod scores;
mod stream;
mod sys;
mod tensor_map;
mod writers;

pub use crate::cache::device_rows::{DeviceElements, DevicePtr, DeviceRows, RawStream};
pub use backend::CudaBackend;
pub(crate) use backend::{RecordedStep, ScoreCall, Seen, StepCall};
pub use cache::{AttendBuffers, CudaCache};
pub use capacity::PlanCapacity;
pub use device::CudaDevice;
pub use device_plan::CudaPlan;
pub use elastic::ElasticPages;
pub use error::CudaError;
pub use in_place::InPlace;
pub use kernels_gpu::Arch;
/// A kernel's arguments in its own order, as the `#[kernel]` macro makes them.
pub use kernels_gpu::ptx::Arguments;
pub use launch::{Kernel, Launch, Resources};
pub use memory::DeviceBuffer;
pub use paged::PagedBuffers;
pub use scores::ScoreBuffers;
pub use stream::{Event, Graph, Stream};
pub use writers::{Append, CachePointers, Rotary};
