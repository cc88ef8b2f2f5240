//! Why a format refused.

/// Why a [`KvFormat`](super::KvFormat) refused.
#[non_exhaustive]
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum FormatError {
    /// A number of the format is out of range.
    #[error("{name} is {value}; it must be {expected}")]
    OutOfRange {
        /// Which number.
        name: &'static str,
        /// What it was.
        value: u32,
        /// What it may be.
        expected: String,
    },
    /// No format is called that.
    #[error(
        "there is no KV format {name:?}; there are native, fp8, fp8-token, int4-g<group>, kivi4, kivi2, \
         native-keep<channels>, kivi4-keep<channels> and kivi2-keep<channels>"
    )]
    Name {
        /// What was asked for.
        name: String,
    },
    /// A NaN, an infinity, or a number so large that a group's range would not be finite.
    #[error(
        "{half} of token {token} is {value} at dim {dim}; codes hold numbers between -{most} and {most}"
    )]
    Value {
        /// `k` or `v`.
        half: &'static str,
        /// The element.
        value: f32,
        /// Token of the page.
        token: u32,
        /// Dim of the head.
        dim: u32,
        /// Largest magnitude that can be stored.
        most: f32,
    },
}
