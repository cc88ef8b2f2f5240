//! Copies of boxes of a tensor (`cp.async.bulk.tensor`), and the maps that say what a box is.

use std::panic::Location;

use bytemuck::Zeroable;

use crate::emulator::block::{Block, instruction};
use crate::emulator::bulk::Piece;
use crate::emulator::report::{Cause, Checked, Fault, Site};
use crate::emulator::span::check_aligned;
use crate::tensor::TensorMap;

/// Dimensions of a tensor that has a map.
const RANK: usize = 5;
/// Bytes of a map.
const MAP_BYTES: u32 = size_of::<TensorMap>() as u32;
/// Bytes of a row of the box, which the 128-byte swizzle takes.
const ROW_BYTES: u32 = 128;

/// A tensor of elements of 16 bits, dimensions innermost first, and the box that a copy brings, with 128-byte swizzle: what
/// `cuTensorMapEncodeTiled` takes, as the emulator keeps it.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Tensor {
    /// Device address of the first element.
    pub address: u64,
    /// Bytes from an element to the next in each dimension but the first.
    pub strides: [u64; 4],
    /// Elements in each dimension.
    pub sizes: [u32; 5],
    /// Those of the box.
    pub of_box: [u32; 5],
    /// Zeros: a driver's map has as many bytes.
    pub unused: [u32; 12],
}

const _: () = assert!(size_of::<Tensor>() == size_of::<TensorMap>());

impl Tensor {
    /// The map, to be put into a buffer that kernels read.
    ///
    /// # Panics
    /// If a GPU's driver would refuse it (CUDA Driver API, "cuTensorMapEncodeTiled").
    pub fn map(self) -> [u64; 16] {
        assert_eq!(self.of_box[0] * 2, ROW_BYTES, "the swizzle's rows have 128 bytes");
        assert!(self.address.is_multiple_of(16), "tensors begin at multiples of 16 bytes");
        let valid = |stride: &u64| stride.is_multiple_of(16) && *stride < 1 << 40;
        assert!(self.strides.iter().all(valid), "strides {:?}", self.strides);
        assert!(self.of_box.iter().all(|size| (1..=256).contains(size)), "box {:?}", self.of_box);
        assert!(self.sizes.iter().all(|&size| size > 0), "sizes {:?}", self.sizes);
        bytemuck::cast(self)
    }

    fn bytes(&self) -> u32 {
        2 * self.of_box.iter().product::<u32>()
    }

    /// The box's rows, in the order of shared memory: global addresses, or nothing outside of the tensor.
    fn rows(&self, at: [u32; RANK]) -> Vec<Option<u64>> {
        let [_, counts @ ..] = self.of_box;
        let mut rows = Vec::new();
        for index in 0..counts.iter().product::<u32>() {
            let mut rest = index;
            let mut address = Some(self.address + u64::from(at[0]) * 2);
            for dimension in 1..RANK {
                let place = at[dimension].wrapping_add(rest % counts[dimension - 1]);
                rest /= counts[dimension - 1];
                address = address
                    .filter(|_| place < self.sizes[dimension])
                    .map(|address| address + u64::from(place) * self.strides[dimension - 1]);
            }
            rows.push(address.filter(|_| at[0] + self.of_box[0] <= self.sizes[0]));
        }
        rows
    }
}

/// `cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes`.
#[track_caller]
pub fn box_to_shared(destination: u32, map: *const u8, at: [u32; RANK], mbarrier: u32) {
    let site = Location::caller();
    instruction(site, |block| {
        block.check_bulk_mbarrier(mbarrier)?;
        check_aligned("tensor map's", map as u64, 64)?;
        check_aligned("shared", destination.into(), 1024)?;
        let span = block.grid.memory.span(map as u64, MAP_BYTES)?;
        if !span.is_constant() {
            return Err(Fault::new(Cause::Operand, "a tensor map that a kernel may write"));
        }
        let mut tensor = Tensor::zeroed();
        span.load(bytemuck::bytes_of_mut(&mut tensor));
        block.issue_box(destination, &tensor, at, mbarrier, site)
    });
}

impl Block<'_> {
    fn issue_box(
        &mut self,
        destination: u32,
        tensor: &Tensor,
        at: [u32; RANK],
        mbarrier: u32,
        site: Site,
    ) -> Checked {
        self.shared.offset(destination, tensor.bytes())?;
        let mut pieces = Vec::new();
        for (row, from) in (0..).zip(tensor.rows(at)) {
            if let Some(from) = from {
                let span = self.grid.memory.span(from, ROW_BYTES)?;
                self.check_dependencies(&span, "reads")?;
            }
            for chunk in 0..ROW_BYTES / 16 {
                let shared = swizzled(destination + row * ROW_BYTES + chunk * 16);
                let global = from.map(|from| from + u64::from(chunk * 16));
                pieces.push(Piece { shared, global, bytes: 16 });
            }
        }
        self.issue_pieces(pieces, mbarrier, site);
        Ok(())
    }
}

/// Where the 128-byte swizzle puts a place of shared memory: address bits 7 to 9 are added, without carry, to bits 4 to 6.
pub(crate) fn swizzled(address: u32) -> u32 {
    address ^ (address >> 3 & 0x70)
}
