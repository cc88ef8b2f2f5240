//! Element types of the cache, and slices of whichever one it is.

use bytemuck::Pod;
use half::{bf16, f16, slice::HalfFloatSliceExt};

#[cfg(feature = "cuda")]
use super::device_rows::DeviceElements;

/// Element type of a cache: of K and V as stored, of queries, and of outputs.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum DType {
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an [`DType::F32`].
    Bf16,
    /// IEEE 754 single precision; on the CPU only.
    F32,
}

impl DType {
    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// The name as it is written everywhere: `f16`, `bf16`, `f32`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        }
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
    impl Sealed for f32 {}
}

/// A Rust type that a cache stores: [`half::f16`], [`half::bf16`] or [`f32`].
pub trait KvElement: Pod + Default + Send + Sync + std::fmt::Debug + sealed::Sealed {
    /// Its [`DType`].
    const DTYPE: DType;

    /// The value, exactly.
    fn to_f32(self) -> f32;

    /// The nearest value, ties to even.
    fn from_f32(value: f32) -> Self;

    /// Converts `source` to `target`, which is as long.
    fn widen(source: &[Self], target: &mut [f32]);

    /// A slice as a backend takes it.
    fn elements(slice: &[Self]) -> Elements<'_>;

    /// A mutable slice as a backend takes it.
    fn elements_mut(slice: &mut [Self]) -> ElementsMut<'_>;
}

macro_rules! kv_element {
    ($type:ty, $variant:ident, |$value:ident| $to:expr, |$narrow:ident| $from:expr, |$source:ident, $target:ident| $widen:expr) => {
        impl KvElement for $type {
            const DTYPE: DType = DType::$variant;

            #[inline(always)]
            fn to_f32(self) -> f32 {
                let $value = self;
                $to
            }
            #[inline(always)]
            fn from_f32($narrow: f32) -> Self {
                $from
            }
            #[inline(always)]
            fn widen($source: &[Self], $target: &mut [f32]) {
                $widen
            }
            fn elements(slice: &[Self]) -> Elements<'_> {
                Elements::$variant(slice)
            }
            fn elements_mut(slice: &mut [Self]) -> ElementsMut<'_> {
                ElementsMut::$variant(slice)
            }
        }
    };
}

kv_element!(f16, F16, |value| f32::from(value), |value| f16::from_f32(value), |source, target| {
    source.convert_to_f32_slice(target)
});
kv_element!(
    bf16,
    Bf16,
    |value| f32::from(value),
    |value| bf16::from_f32(value),
    // Not `half`'s loop, which minds signalling NaNs and so is not vectorised: all that a bf16 lacks of
    // an f32 is the lower half.
    |source, target| {
        assert_eq!(source.len(), target.len());
        for (target, source) in target.iter_mut().zip(source) {
            *target = f32::from_bits(u32::from(source.to_bits()) << 16);
        }
    }
);
kv_element!(f32, F32, |value| value, |value| value, |source, target| {
    target.copy_from_slice(source)
});

/// A slice of one of the element types.
#[non_exhaustive]
#[derive(Clone, Copy, Debug)]
pub enum Elements<'a> {
    /// Half precision.
    F16(&'a [f16]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// Single precision.
    F32(&'a [f32]),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Device(DeviceElements),
}

/// A mutable slice of one of the element types.
#[non_exhaustive]
#[derive(Debug)]
pub enum ElementsMut<'a> {
    /// Half precision.
    F16(&'a mut [f16]),
    /// bfloat16.
    Bf16(&'a mut [bf16]),
    /// Single precision.
    F32(&'a mut [f32]),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Device(DeviceElements),
}

#[expect(clippy::len_without_is_empty, reason = "rows of a batch are never none")]
impl<'a> Elements<'a> {
    /// Where the elements are, if that is a GPU.
    #[cfg(feature = "cuda")]
    pub(crate) const fn on_device(&self) -> Option<DeviceElements> {
        match self {
            Self::Device(rows) => Some(*rows),
            _ => None,
        }
    }
    /// Element type.
    pub(crate) fn dtype(&self) -> DType {
        match self {
            Self::F16(_) => DType::F16,
            Self::Bf16(_) => DType::Bf16,
            Self::F32(_) => DType::F32,
            #[cfg(feature = "cuda")]
            Self::Device(rows) => rows.dtype,
        }
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F16(slice) => slice.len(),
            Self::Bf16(slice) => slice.len(),
            Self::F32(slice) => slice.len(),
            #[cfg(feature = "cuda")]
            Self::Device(rows) => rows.len,
        }
    }
    /// The elements as they lie in the host's memory, if they are there.
    pub fn bytes(&self) -> Option<&'a [u8]> {
        Some(match self {
            Self::F16(slice) => bytemuck::cast_slice(slice),
            Self::Bf16(slice) => bytemuck::cast_slice(slice),
            Self::F32(slice) => bytemuck::cast_slice(slice),
            #[cfg(feature = "cuda")]
            Self::Device(_) => return None,
        })
    }
    /// The slice, if its elements are `T` in the host's memory.
    pub(crate) fn typed<T: KvElement>(&self) -> Option<&'a [T]> {
        let bytes = self.bytes().filter(|_| self.dtype() == T::DTYPE);
        bytes.map(bytemuck::cast_slice)
    }
}

#[expect(clippy::len_without_is_empty, reason = "as Elements")]
impl<'a> ElementsMut<'a> {
    /// The elements to be read.
    pub(crate) fn as_elements(&self) -> Elements<'_> {
        match self {
            Self::F16(slice) => Elements::F16(slice),
            Self::Bf16(slice) => Elements::Bf16(slice),
            Self::F32(slice) => Elements::F32(slice),
            #[cfg(feature = "cuda")]
            Self::Device(rows) => Elements::Device(*rows),
        }
    }
    /// Where the elements are, if that is a GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn on_device(&self) -> Option<DeviceElements> {
        self.as_elements().on_device()
    }
    /// Element type.
    pub(crate) fn dtype(&self) -> DType {
        self.as_elements().dtype()
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.as_elements().len()
    }
    /// The elements as they lie in the host's memory, if they are there.
    pub fn into_bytes(self) -> Option<&'a mut [u8]> {
        Some(match self {
            Self::F16(slice) => bytemuck::cast_slice_mut(slice),
            Self::Bf16(slice) => bytemuck::cast_slice_mut(slice),
            Self::F32(slice) => bytemuck::cast_slice_mut(slice),
            #[cfg(feature = "cuda")]
            Self::Device(_) => return None,
        })
    }
    /// The slice, if its elements are `T` in the host's memory.
    pub fn into_typed<T: KvElement>(self) -> Option<&'a mut [T]> {
        if self.dtype() != T::DTYPE {
            return None;
        }
        self.into_bytes().map(bytemuck::cast_slice_mut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_keeps_its_type_and_place() {
        let mut values = [bf16::from_f32(1.5), bf16::from_f32(-2.0)];
        let elements = bf16::elements(&values);
        assert_eq!((elements.dtype(), elements.len()), (DType::Bf16, 2));
        assert_eq!(elements.bytes().unwrap(), [0xc0, 0x3f, 0x00, 0xc0]);
        assert_eq!(elements.typed::<bf16>(), Some(&values[..]));
        assert_eq!(elements.typed::<f16>(), None);
        bf16::elements_mut(&mut values).into_typed::<bf16>().unwrap()[1] = bf16::ZERO;
        assert_eq!(values[1], bf16::ZERO);
        assert!(bf16::elements_mut(&mut values).into_typed::<f32>().is_none());
    }

    #[test]
    fn widening_is_exact_for_every_16_bit_value() {
        fn check<T: KvElement>(of_bits: impl Fn(u16) -> T, to_f64: impl Fn(T) -> f64) {
            let source: Vec<T> = (0..=u16::MAX).map(of_bits).collect();
            let mut target = vec![0.0; source.len()];
            T::widen(&source, &mut target);
            for (&value, &wide) in source.iter().zip(&target) {
                let exact = to_f64(value);
                assert!(f64::from(wide) == exact || (exact.is_nan() && wide.is_nan()));
                assert!(value.to_f32() == wide || wide.is_nan());
            }
        }
        check(f16::from_bits, f64::from);
        check(bf16::from_bits, f64::from);
    }
}
