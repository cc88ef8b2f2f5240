//! What the emulator says when a kernel does wrong.

use std::fmt;
use std::panic::Location;

use crate::emulator::schedule::Schedule;

/// Where in the kernel's source an instruction is.
pub type Site = &'static Location<'static>;

/// The kind of mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cause {
    /// An access outside every registered buffer, or outside shared memory.
    OutOfBounds,
    /// An address that is not a multiple of what the instruction needs.
    Misaligned,
    /// A read of bytes that nothing has written.
    Unwritten,
    /// A write to a buffer registered as constant.
    Constant,
    /// Two accesses to the same bytes, one a write, without an order between them.
    Race,
    /// An ordinary write that the async proxy reads or overwrites without a proxy fence between.
    ProxyFence,
    /// Lanes of a warp (or warps of a warpgroup) that are not at the same instruction.
    Divergence,
    /// A barrier used against its rules.
    Barrier,
    /// An asynchronous result used before it was waited for, or never waited for.
    Unwaited,
    /// All threads wait, or poll, and nothing can wake them.
    Deadlock,
    /// An instruction's operand that the ISA does not allow.
    Operand,
    /// A [`Schedule`] to replay that is not of this kernel and launch.
    Schedule,
    /// A panic in the kernel: an arithmetic overflow or an index out of an array's bounds.
    Panic,
}

/// A kernel's mistake: what, who, where.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub struct Report {
    /// The kind of mistake.
    pub cause: Cause,
    /// Index of the block.
    pub block: [u32; 3],
    /// The thread within its block, if one thread did it.
    pub thread: Option<u32>,
    /// The instruction.
    pub site: Option<Site>,
    /// The launch's seed: the same seed shows the same mistake again.
    pub seed: u64,
    /// How the block came there, if the launch was asked to record it.
    pub schedule: Option<Schedule>,
    /// What happened, in words.
    pub message: String,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [x, y, z] = self.block;
        write!(f, "block ({x}, {y}, {z})")?;
        if let Some(thread) = self.thread {
            write!(f, ", thread {thread}")?;
        }
        if let Some(site) = self.site {
            write!(f, ", {site}")?;
        }
        write!(f, ": {} [seed {}]", self.message, self.seed)?;
        if let Some(schedule) = &self.schedule {
            write!(f, "\nschedule: {schedule}")?;
        }
        Ok(())
    }
}

/// A mistake before it is known who made it.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) cause: Cause,
    pub(crate) message: String,
    /// Who made it and where, if not the running thread at the present instruction.
    pub(crate) by: Option<(u32, Site)>,
}

impl Fault {
    pub(crate) fn new(cause: Cause, message: impl Into<String>) -> Box<Self> {
        Box::new(Self { cause, message: message.into(), by: None })
    }

    pub(crate) fn by(mut self: Box<Self>, thread: u32, site: Site) -> Box<Self> {
        self.by.get_or_insert((thread, site));
        self
    }
}

/// Success, or a mistake of the kernel.
pub(crate) type Checked<T = ()> = Result<T, Box<Fault>>;

/// Thread numbers as ranges: `0-31, 64`.
pub(crate) fn ranges(numbers: &[u32]) -> String {
    let mut text = String::new();
    let mut rest = numbers;
    while let [first, ..] = *rest {
        let length =
            rest.iter().zip(first..).take_while(|(number, expected)| **number == *expected).count();
        if !text.is_empty() {
            text.push_str(", ");
        }
        let last = rest[length - 1];
        text += &if length == 1 { first.to_string() } else { format!("{first}-{last}") };
        rest = &rest[length..];
    }
    text
}

/// Lanes of a mask as ranges.
pub(crate) fn lanes(mask: u32) -> String {
    let lanes: Vec<u32> = (0..32).filter(|lane| mask >> lane & 1 == 1).collect();
    ranges(&lanes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thread_numbers_are_told_as_ranges() {
        assert_eq!(ranges(&[]), "");
        assert_eq!(ranges(&[7]), "7");
        assert_eq!(ranges(&[0, 1, 2, 5, 8, 9]), "0-2, 5, 8-9");
        assert_eq!(lanes(0x8000_0003), "0-1, 31");
    }
}
