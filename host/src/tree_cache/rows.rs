//! Rows of a batch, wherever they are.

use crate::attention::RotaryTable;
use crate::cache::{Elements, ElementsMut, KvElement};
#[cfg(feature = "cuda")]
use crate::cuda::DeviceRows;

/// Rows that are read, one a token of a batch.
#[derive(Clone, Copy, Debug)]
pub enum Rows<'a, T> {
    /// In the host's memory.
    Host(&'a [T]),
    /// On the cache's GPU.
    #[cfg(feature = "cuda")]
    Device(DeviceRows<T>),
}

/// Rows that are written, one a token of a batch.
#[derive(Debug)]
pub enum RowsMut<'a, T> {
    /// In the host's memory.
    Host(&'a mut [T]),
    /// On the cache's GPU.
    #[cfg(feature = "cuda")]
    Device(DeviceRows<T>),
}

/// Keys and values of a batch's tokens, both `[rows, kv_heads, head_dim]`.
#[derive(Clone, Copy, Debug)]
pub struct Kv<'a, T> {
    /// Keys.
    pub k: Rows<'a, T>,
    /// Values.
    pub v: Rows<'a, T>,
    /// With a table keys are rotated by their positions on their way into the cache; queries are the caller's to
    /// rotate, by [`Batch::positions`](super::Batch::positions).
    pub rope: Option<&'a RotaryTable>,
}

/// Where attention's results go.
#[derive(Debug)]
pub struct Out<'a, T> {
    /// `[rows, q_heads, head_dim]`.
    pub out: RowsMut<'a, T>,
    /// `[rows, q_heads]`: the natural logarithm of the sum of `exp(logit)`, if it is wanted.
    pub lse: Option<RowsMut<'a, f32>>,
}

impl<'a, T> Kv<'a, T> {
    /// Keys and values that are written as they are.
    pub fn new(k: impl Into<Rows<'a, T>>, v: impl Into<Rows<'a, T>>) -> Self {
        Self { k: k.into(), v: v.into(), rope: None }
    }

    /// The same, keys rotated by `table`.
    #[must_use]
    pub fn rotated(self, table: &'a RotaryTable) -> Self {
        Self { rope: Some(table), ..self }
    }
}

impl<'a, T: KvElement> Rows<'a, T> {
    pub(super) fn elements(self) -> Elements<'a> {
        match self {
            Self::Host(rows) => T::elements(rows),
            #[cfg(feature = "cuda")]
            Self::Device(rows) => Elements::Device(rows.erased()),
        }
    }
}

impl<'a, T: KvElement> RowsMut<'a, T> {
    pub(super) fn elements(self) -> ElementsMut<'a> {
        match self {
            Self::Host(rows) => T::elements_mut(rows),
            #[cfg(feature = "cuda")]
            Self::Device(rows) => ElementsMut::Device(rows.erased()),
        }
    }
}

impl<'a, T> From<&'a [T]> for Rows<'a, T> {
    fn from(rows: &'a [T]) -> Self {
        Self::Host(rows)
    }
}

impl<'a, T> From<&'a Vec<T>> for Rows<'a, T> {
    fn from(rows: &'a Vec<T>) -> Self {
        Self::Host(rows)
    }
}

impl<'a, T> From<&'a mut [T]> for RowsMut<'a, T> {
    fn from(rows: &'a mut [T]) -> Self {
        Self::Host(rows)
    }
}

impl<'a, T> From<&'a mut Vec<T>> for RowsMut<'a, T> {
    fn from(rows: &'a mut Vec<T>) -> Self {
        Self::Host(rows)
    }
}

impl<'a, T> From<RowsMut<'a, T>> for Out<'a, T> {
    fn from(out: RowsMut<'a, T>) -> Self {
        Self { out, lse: None }
    }
}

impl<'a, T> From<&'a mut [T]> for Out<'a, T> {
    fn from(rows: &'a mut [T]) -> Self {
        RowsMut::from(rows).into()
    }
}

impl<'a, T> From<&'a mut Vec<T>> for Out<'a, T> {
    fn from(rows: &'a mut Vec<T>) -> Self {
        RowsMut::from(rows).into()
    }
}

impl<'a, T> Out<'a, T> {
    /// Outputs and their LSEs.
    pub fn with_lse(out: impl Into<RowsMut<'a, T>>, lse: impl Into<RowsMut<'a, f32>>) -> Self {
        Self { out: out.into(), lse: Some(lse.into()) }
    }
}

#[cfg(feature = "cuda")]
impl<T> From<DeviceRows<T>> for Rows<'_, T> {
    fn from(rows: DeviceRows<T>) -> Self {
        Self::Device(rows)
    }
}

#[cfg(feature = "cuda")]
impl<T> From<DeviceRows<T>> for RowsMut<'_, T> {
    fn from(rows: DeviceRows<T>) -> Self {
        Self::Device(rows)
    }
}

#[cfg(feature = "cuda")]
impl<T> From<DeviceRows<T>> for Out<'_, T> {
    fn from(rows: DeviceRows<T>) -> Self {
        RowsMut::from(rows).into()
    }
}
