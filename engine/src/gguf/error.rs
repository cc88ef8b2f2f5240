//! What can be wrong with a GGUF file.

/// What is wrong with a GGUF file.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The file is of another kind.
    #[error("it starts with {found:?} rather than \"GGUF\"")]
    Magic {
        /// The first four bytes.
        found: [u8; 4],
    },
    /// A version that cannot be read.
    #[error("its version is {found}; 2 and 3, little-endian, can be read")]
    Version {
        /// The version.
        found: u32,
    },
    /// The file ends too early.
    #[error("{what} at byte {offset} takes {needed} bytes, {left} are left")]
    Truncated {
        /// What was to be read.
        what: &'static str,
        /// Where.
        offset: u64,
        /// Bytes it takes.
        needed: u64,
        /// Bytes that there are.
        left: u64,
    },
    /// A number is out of range.
    #[error("{what} at byte {offset} is {value}; {limit}")]
    Value {
        /// What the number is.
        what: &'static str,
        /// Where it is.
        offset: u64,
        /// What it is.
        value: u64,
        /// What it may be.
        limit: String,
    },
    /// A string is not UTF-8.
    #[error("{what} at byte {offset} is not UTF-8")]
    Utf8 {
        /// What was to be read.
        what: &'static str,
        /// Where.
        offset: u64,
    },
    /// A name that occurs twice.
    #[error("{what} {name:?} occurs twice")]
    Duplicate {
        /// What has the name.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// Metadata that the model needs.
    #[error("metadata {key:?} is missing")]
    Missing {
        /// The key.
        key: String,
    },
    /// Metadata that is not what it has to be.
    #[error("metadata {key:?} is {found}; it must be {expected}")]
    Metadata {
        /// The key.
        key: String,
        /// What it is.
        found: String,
        /// What it may be.
        expected: String,
    },
    /// A tensor that the model needs.
    #[error("tensor {name:?} is missing")]
    MissingTensor {
        /// The tensor.
        name: String,
    },
    /// A tensor that is none of the model's.
    #[error(
        "tensor {name:?} is not of a model of architecture {architecture:?} as it can be run here"
    )]
    UnknownTensor {
        /// The tensor.
        name: String,
        /// The model's architecture.
        architecture: String,
    },
    /// A tensor of a type that cannot be read.
    #[error(
        "tensor {name:?} of the {architecture:?} model is of type {kind}; {readable} can be read"
    )]
    Type {
        /// The tensor.
        name: String,
        /// The model's architecture.
        architecture: String,
        /// ggml's name for the type.
        kind: String,
        /// Those of the types that can be read.
        readable: String,
    },
    /// A key of the architecture that nothing is known of.
    #[error("metadata {key:?} is {found}, and is not known; it may change what the model computes")]
    UnknownKey {
        /// The key.
        key: String,
        /// What it is.
        found: String,
    },
    /// A part of a model in several files that is none.
    #[error("it is part {number} of a model in {count} files; {problem}")]
    Part {
        /// Which part, from 1 on.
        number: u32,
        /// Parts that there are.
        count: u32,
        /// What is wrong.
        problem: String,
    },
    /// A tensor of another size.
    #[error("tensor {name:?} is {found:?}, columns first; it must be {expected:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// Its dimensions.
        found: Vec<u64>,
        /// What they have to be.
        expected: Vec<u64>,
    },
    /// Tensors that share bytes of the file.
    #[error("the tensors take {bytes} bytes together or more, the file has {file_bytes}")]
    TooLarge {
        /// Bytes of the tensors up to where it was seen.
        bytes: u64,
        /// Bytes of the file.
        file_bytes: u64,
    },
    /// A tensor that is not within the file.
    #[error("tensor {name:?}: {bytes} bytes at {offset} do not end within the file's {file_bytes}")]
    OutOfFile {
        /// The tensor.
        name: String,
        /// Where it begins.
        offset: u64,
        /// Bytes it takes.
        bytes: u64,
        /// Bytes of the file.
        file_bytes: u64,
    },
}
