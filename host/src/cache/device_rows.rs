//! Rows that are on the device already, in tensors of the caller's. Public as items of `deft::cuda`.

use std::marker::PhantomData;

use super::{DType, Elements, ElementsMut, KvElement};

/// An address in device memory (`CUdeviceptr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct DevicePtr(pub u64);

impl DevicePtr {
    /// No address.
    pub const NULL: Self = Self(0);

    /// The address `bytes` further on.
    pub const fn offset(self, bytes: u64) -> Self {
        Self(self.0 + bytes)
    }
}

/// A stream (`CUstream`) of any owner. 0 is the legacy default stream, 1 the same by name, 2 the
/// per-thread one; all are passed on as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct RawStream(pub usize);

/// Rows of a tensor on the device: an address, a number of elements, and the stream on which the tensor is made and
/// used. Of candle, cudarc, cust or PyTorch: whoever has a pointer can make one.
///
/// Calls that take it enqueue their work and return; work that is enqueued on `stream` before a call comes before it,
/// and work enqueued after the call comes after it.
#[derive(Debug)]
pub struct DeviceRows<T> {
    elements: DeviceElements,
    of: PhantomData<T>,
}

/// [`DeviceRows`] of some element type.
#[derive(Clone, Copy, Debug)]
pub struct DeviceElements {
    pub(crate) dtype: DType,
    pub(crate) pointer: DevicePtr,
    pub(crate) len: usize,
    pub(crate) stream: RawStream,
}

impl<T> Clone for DeviceRows<T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for DeviceRows<T> {}

impl<T: KvElement> DeviceRows<T> {
    /// `len` elements from `pointer` on, row after row.
    ///
    /// # Safety
    /// The memory is on the device of the cache that it is passed to, 16-byte aligned, and stays valid until the work
    /// that is enqueued on `stream` after the calls that take it is done, and in a step of
    /// [`TreeCache::capture`](crate::TreeCache::capture) as long as its graph is used; `stream` is a stream of the device's primary
    /// context. Nobody else writes rows that a call reads, or touches rows that it writes, except in the order of
    /// `stream`.
    pub const unsafe fn new(pointer: DevicePtr, len: usize, stream: RawStream) -> Self {
        let dtype = T::DTYPE;
        Self { elements: DeviceElements { dtype, pointer, len, stream }, of: PhantomData }
    }

    /// The rows to be read, as backends take them.
    pub const fn elements(self) -> Elements<'static> {
        Elements::Device(self.elements)
    }

    /// The rows to be written.
    pub const fn elements_mut(self) -> ElementsMut<'static> {
        ElementsMut::Device(self.elements)
    }

    pub(crate) const fn erased(self) -> DeviceElements {
        self.elements
    }
}
