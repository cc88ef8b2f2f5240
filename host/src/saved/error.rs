//! Why a saved prefix is not written or taken.

use std::path::PathBuf;

/// Why a prefix could not be saved or loaded. After a failed load the cache holds what it held before; after a failed
/// save a file that was there is as it was.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// The system refused.
    #[error("cannot {action} a saved prefix: {source}")]
    Io {
        /// What was to be done.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The system refused a file.
    #[error("cannot {action} {}: {source}", .path.display())]
    File {
        /// What was to be done.
        action: &'static str,
        /// With which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The device refused what was read.
    #[error("a saved prefix cannot be written to the device: {source}")]
    Device {
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It begins otherwise.
    #[error("this is no saved prefix: it begins with {found:02x?}")]
    Foreign {
        /// The first bytes.
        found: [u8; 8],
    },
    /// It was written by another version of this library.
    #[error("the saved prefix has format {found}; this library reads {known}")]
    Version {
        /// The file's.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// It ends too soon.
    #[error("the saved prefix ends within its {part}: it was not written to the end")]
    Torn {
        /// Where it ends.
        part: &'static str,
    },
    /// It goes on after its end.
    #[error("the saved prefix has bytes after its last layer")]
    TooLong,
    /// Its bytes are not those that were written.
    #[error(
        "the checksum of the saved prefix's {part} is {found:#010x}, its bytes have {expected:#010x}"
    )]
    Checksum {
        /// Which bytes.
        part: &'static str,
        /// The file's checksum.
        found: u32,
        /// That of its bytes.
        expected: u32,
    },
    /// A number in it cannot be.
    #[error("{field} of the saved prefix is {found}; it must be between 1 and {most}")]
    Range {
        /// The field.
        field: &'static str,
        /// What it is.
        found: u64,
        /// Most that it may be.
        most: u64,
    },
    /// It is of another model, format or layer map.
    #[error("{field} of the saved prefix is {found}, the cache's is {expected}")]
    OtherCache {
        /// The field.
        field: &'static str,
        /// The file's.
        found: String,
        /// The cache's.
        expected: String,
    },
}

impl SavedError {
    /// What failed to write or to read.
    pub(crate) fn io(action: &'static str) -> impl Fn(std::io::Error) -> Self {
        move |source| Self::Io { action, source }
    }
}
