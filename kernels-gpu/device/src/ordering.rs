//! How atomics order other accesses.

/// What an atomic operation orders (PTX ISA, "Memory Consistency Model").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Nothing.
    Relaxed,
    /// What comes after it sees what the writer of its value released.
    Acquire,
    /// What came before it is visible to who acquires its value.
    Release,
    /// Both.
    AcqRel,
}

impl Order {
    /// Whether it is [`Order::Acquire`] or more.
    pub const fn acquires(self) -> bool {
        matches!(self, Self::Acquire | Self::AcqRel)
    }

    /// Whether it is [`Order::Release`] or more.
    pub const fn releases(self) -> bool {
        matches!(self, Self::Release | Self::AcqRel)
    }
}

/// Among whom an operation is atomic, and orders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The threads of a block.
    Block,
    /// The threads of a GPU.
    Device,
    /// The GPU's threads, other GPUs' and the host's.
    System,
}
