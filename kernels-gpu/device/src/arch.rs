//! What kernels are compiled for.

use core::str::FromStr;

/// What PTX is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// Ampere and what came after it, by the driver's translation: `mma.sync`, `cp.async`.
    Sm80,
    /// Hopper only: `wgmma`, bulk copies, `mbarrier`.
    Sm90a,
}

impl Arch {
    /// All, least demanding first.
    pub const ALL: [Self; 2] = [Self::Sm80, Self::Sm90a];

    /// Name as in PTX's `.target` and rustc's `target-cpu`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sm80 => "sm_80",
            Self::Sm90a => "sm_90a",
        }
    }

    /// Dynamic shared memory that a block can have on all GPUs that run it, in bytes (CUDA C++ Programming Guide,
    /// "Technical Specifications per Compute Capability").
    pub const fn shared_limit(self) -> u32 {
        match self {
            Self::Sm80 => 99 * 1024,
            Self::Sm90a => 227 * 1024,
        }
    }

    /// Whether a kernel can begin before the one that it depends on has ended, and wait by itself.
    pub const fn overlaps_grids(self) -> bool {
        match self {
            Self::Sm80 => false,
            Self::Sm90a => true,
        }
    }
}

impl FromStr for Arch {
    type Err = &'static str;

    /// The architecture of that [`Arch::name`].
    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let mut all = Self::ALL.into_iter();
        all.find(|arch| arch.name() == name).ok_or("there are kernels for sm_80 and sm_90a")
    }
}
