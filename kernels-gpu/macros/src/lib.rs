//! `#[kernel]`: the entry points of a GPU kernel.
//!
//! On `nvptx64-nvidia-cuda` each instance of the function becomes an `extern "ptx-kernel"` symbol. rustc has no
//! attribute for launch bounds, so they go into the PTX as a comment, with the parameters' names and types:
//!
//! ```text
//! // .kernel {"entry":"append_d64","family":"append","group":"cache","threads":256,...,"parameters":[["pool","*mut u16"],...]}
//! ```
//!
//! The crate `deft-ptx-builder` reads it, sets `.maxntid` and `.minnctapersm`, and writes a record of the arguments
//! for the host. On every other target the function stays what it is, so that it can run on the emulator, and what the
//! attribute says is checked.

mod attribute;
mod expand;
mod function;

use proc_macro::TokenStream;

/// Makes entry points of an `unsafe fn`, one for each instance.
///
/// ```
/// use deft_kernel_macros::kernel;
///
/// const THREADS: u32 = 256;
///
/// #[kernel(
///     threads = THREADS,
///     min_blocks = 2,
///     group = "cache",
///     instances(clear_d64: <64>, clear_d128: <128>)
/// )]
/// unsafe fn clear<const D: u32>(pool: *mut u16, count: u32) {
///     // ...
/// }
/// ```
///
/// | argument | is | default |
/// |---|---|---|
/// | `threads` | most threads of a block, `.maxntid` | must be given |
/// | `min_blocks` | blocks that must fit on a multiprocessor, `.minnctapersm`: with `threads` it bounds the registers | 1 |
/// | `shared` | dynamic shared memory of a launch, in bytes | 0 |
/// | `group` | the PTX file that it goes into; `{D}` stands for the argument of the generic parameter `D` | the function's name |
/// | `archs(..)` | the architectures (`target-cpu`) that have it, such as `"sm_90a"` | all |
/// | `instances(..)` | symbols, with the generic arguments of each | the function's name, for one without generics |
///
/// `threads`, `min_blocks` and `shared` are constant expressions of type `u32`, in which the function's generic
/// parameters may stand. Parameters are pointers and 32- or 64-bit numbers: a pointer in a record would cost generic
/// loads. A `*const TensorMap` is passed as the map itself, and points to it among the parameters.
#[proc_macro_attribute]
pub fn kernel(attribute: TokenStream, item: TokenStream) -> TokenStream {
    expand::expand(attribute.into(), item.into())
        .unwrap_or_else(syn::Error::into_compile_error)
        .into()
}
