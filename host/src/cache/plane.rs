//! The memory of one layer: allocated, or mapped so that parts of it can be given back.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut, Range};

use bytemuck::Pod;
use memmap2::{MmapMut, MmapOptions};

/// Zeroed elements, which take memory when they are first written where the system can do that.
#[derive(Debug)]
pub(super) enum Plane<T> {
    Allocated(Box<[T]>),
    Mapped(MmapMut, PhantomData<T>),
}

impl<T: Pod> Plane<T> {
    /// `None` for want of memory.
    pub(super) fn zeroed(elements: usize) -> Option<Self> {
        bytemuck::allocation::try_zeroed_slice_box(elements).ok().map(Self::Allocated)
    }

    /// The same, of which parts can be discarded; `None` if the system refuses.
    pub(super) fn mapped(elements: usize) -> Option<Self> {
        let bytes = elements.checked_mul(size_of::<T>())?;
        let map = MmapOptions::new().len(bytes).no_reserve_swap().map_anon().ok()?;
        Some(Self::Mapped(map, PhantomData))
    }

    /// Zeros elements; where they are mapped, the whole memory pages among them go back to the system.
    pub(super) fn discard(&mut self, elements: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Self::Mapped(map, _) = self {
            let (begin, len) = (elements.start * size_of::<T>(), elements.len() * size_of::<T>());
            // SAFETY: the map is private and of no file, so what was there reads as zeros afterwards, which are a `T`;
            // it is borrowed exclusively, so nobody sees it change.
            let discarded = unsafe {
                map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, begin, len)
            };
            if discarded.is_ok() {
                return;
            }
        }
        self[elements].fill(T::zeroed());
    }
}

impl<T: Pod> Deref for Plane<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Allocated(elements) => elements,
            Self::Mapped(map, _) => bytemuck::cast_slice(map),
        }
    }
}

impl<T: Pod> DerefMut for Plane<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        match self {
            Self::Allocated(elements) => elements,
            Self::Mapped(map, _) => bytemuck::cast_slice_mut(map),
        }
    }
}
