//! The kernels as PTX, embedded: whoever uses this crate needs neither a GPU compiler nor a nightly. And for each
//! kernel a record of its arguments by name.
//!
//! `cargo xtask build-kernels` writes what is included here, from the kernels' declarations.

use crate::Arch;

/// One PTX module.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// What it is compiled for, as in `.target`.
    pub arch: &'static str,
    /// Its kernels' group; file `<arch>/<group>.ptx`.
    pub group: &'static str,
    /// Its entry points.
    pub entries: &'static [Entry],
    /// SHA-256 of `ptx`, hexadecimal.
    pub sha256: &'static str,
    /// The PTX text.
    pub ptx: &'static str,
}

/// How a kernel is launched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its symbol.
    pub name: &'static str,
    /// Most threads of a block.
    pub threads: u32,
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// Bytes of each parameter, in order.
    pub parameters: &'static [u32],
}

/// A kernel's arguments by name. Addresses are of device memory.
pub trait Arguments {
    /// Bytes of each, in the kernel's order.
    const BYTES: &'static [u32];

    /// The bits of each, in the kernel's order, zero-extended to whole words.
    fn bits(&self) -> impl AsRef<[u64]>;
}

/// Declares a kernel's [`Arguments`].
macro_rules! arguments {
    ($what:literal $record:ident { $($name:ident: $ty:ty = $source:literal,)* }) => {
        #[doc = $what]
        #[derive(Clone, Copy, Debug, Default, PartialEq)]
        pub struct $record {
            $(#[doc = $source] pub $name: $ty,)*
        }

        impl Arguments for $record {
            const BYTES: &'static [u32] = &[$(size_of::<$ty>() as u32),*];

            fn bits(&self) -> impl AsRef<[u64]> {
                const WORDS: usize = 0 $(+ size_of::<$ty>().div_ceil(8))*;
                let mut words = [0; WORDS];
                let mut left = &mut words[..];
                $(left = put(&self.$name, left);)*
                debug_assert!(left.is_empty());
                words
            }
        }
    };
}

include!("../ptx/kernels.rs");

/// Puts an argument's bits into as many words as it needs; the words left.
fn put<'w, T: bytemuck::NoUninit>(argument: &T, words: &'w mut [u64]) -> &'w mut [u64] {
    let (own, left) = words.split_at_mut(size_of::<T>().div_ceil(8));
    let bytes = bytemuck::bytes_of(argument);
    bytemuck::cast_slice_mut(own)[..bytes.len()].copy_from_slice(bytes);
    left
}

/// The module that has `entry` for `arch`.
pub fn image(entry: &str, arch: Arch) -> Option<&'static Image> {
    let has = |image: &&Image| image.entries.iter().any(|each| each.name == entry);
    IMAGES.iter().filter(|image| image.arch == arch.name()).find(has)
}

/// How the embedded kernel `entry` for `arch` is launched.
pub fn entry(entry: &str, arch: Arch) -> Option<&'static Entry> {
    image(entry, arch)?.entries.iter().find(|each| each.name == entry)
}

#[cfg(test)]
#[expect(unreachable_pub, reason = "records are public")]
mod tests {
    use super::*;

    arguments! { "Of each width and kind."
    All {
        address: u64 = "`*const u16`",
        count: u32 = "`u32`",
        shift: i32 = "`i32`",
        scale: f32 = "`f32`",
        map: [u64; 16] = "`*const TensorMap`",
    } }

    #[test]
    fn arguments_are_passed_as_their_bits_in_the_kernels_order() {
        let map = core::array::from_fn(|i| i as u64);
        let all = All { address: u64::MAX - 1, count: 7, shift: -1, scale: -0.5, map };
        assert_eq!(All::BYTES, [8, 4, 4, 4, 128]);
        let numbers = [u64::MAX - 1, 7, 0xffff_ffff, 0xbf00_0000];
        assert_eq!(all.bits().as_ref(), [&numbers[..], &map].concat());
    }
}
