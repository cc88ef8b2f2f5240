//! The products themselves, from operands in shared memory.

use super::queue::{Multiplication, Source};
use crate::emulator::block::Block;
use crate::emulator::matrix::{a_tile, to_f32};
use crate::emulator::report::Checked;
use crate::emulator::shadow::Access;
use crate::emulator::tensor::swizzled;

impl Block<'_> {
    /// `values[16][n] (+)= a * b`.
    pub(super) fn compute(&mut self, warp: u32, m: &Multiplication, values: &mut [f32]) -> Checked {
        if !m.shape.accumulate {
            values.fill(0.0);
        }
        let n = m.shape.n as usize;
        let access = Access {
            agent: self.agents.wgmma(warp),
            epoch: m.epoch,
            view: &m.view,
            asynchronous: true,
            poison: self.grid.poison_matrix_reads,
            site: m.site,
        };
        let mut b = vec![0.0; 16 * n];
        for step in 0..m.shape.steps {
            let a = match &m.a {
                Source::Registers(steps) => a_tile(&steps[step as usize], m.shape.bf16),
                Source::Shared { descriptor, step_bytes, transposed } => {
                    let operand = SharedOperand::new(*descriptor, *step_bytes, step, *transposed);
                    let mut a = [[0.0; 16]; 16];
                    self.read_operand(
                        &operand,
                        warp % 4 * 2,
                        2,
                        m.shape.bf16,
                        &access,
                        |row, k, x| {
                            a[row][k] = x;
                        },
                    )?;
                    a
                }
            };
            let operand = SharedOperand::new(m.b.descriptor, m.b.step_bytes, step, m.b.transposed);
            self.read_operand(
                &operand,
                0,
                m.shape.n / 8,
                m.shape.bf16,
                &access,
                |column, k, x| {
                    b[k * n + column] = x;
                },
            )?;
            for (row, values) in a.iter().zip(values.chunks_exact_mut(n)) {
                for (x, b) in row.iter().zip(b.chunks_exact(n)) {
                    for (value, y) in values.iter_mut().zip(b) {
                        *value += x * y;
                    }
                }
            }
        }
        Ok(())
    }

    /// Calls `put(row, k, value)` for 16 of K and `cores` times 8 rows (of M or N) from core `first`.
    fn read_operand(
        &mut self,
        operand: &SharedOperand,
        first: u32,
        cores: u32,
        is_bf16: bool,
        access: &Access<'_>,
        mut put: impl FnMut(usize, usize, f32),
    ) -> Checked {
        for core in 0..cores {
            for half in 0..2 {
                for line in 0..8 {
                    let address = operand.line(first + core, half, line);
                    let offset = self.shared.offset(address, 16)?;
                    self.shared.shadow.read(offset, 16, access, &self.agents)?;
                    let bytes = self.shared.bytes(offset, 16);
                    for (i, element) in bytes.chunks_exact(2).enumerate() {
                        let value = to_f32(u16::from_ne_bytes([element[0], element[1]]), is_bf16);
                        let line = line as usize;
                        let (row, k) = if operand.transposed { (i, line) } else { (line, i) };
                        put(core as usize * 8 + row, half as usize * 8 + k, value);
                    }
                }
            }
        }
        Ok(())
    }
}

/// One step's 16 of K of an operand in shared memory.
struct SharedOperand {
    address: u32,
    leading: u32,
    stride: u32,
    transposed: bool,
    swizzled: bool,
}

impl SharedOperand {
    fn new(descriptor: u64, step_bytes: u32, step: u32, transposed: bool) -> Self {
        let field = |shift: u32| ((descriptor >> shift) as u32 & 0x3fff) << 4;
        Self {
            address: field(0) + step * step_bytes,
            leading: field(16),
            stride: field(32),
            transposed,
            swizzled: descriptor >> 62 == 1,
        }
    }

    /// Address of line `line` of the core matrix with rows `8 * core..` and `8 * half..` of K: eight neighbours of K, or,
    /// transposed, of M or N. It wraps at 256 KiB.
    fn line(&self, core: u32, half: u32, line: u32) -> u32 {
        let place = match (self.swizzled, self.transposed) {
            (false, _) => core * self.stride + half * self.leading + line * 16,
            (true, false) => core * self.stride + half * 16 + line * 128,
            (true, true) => {
                core / 8 * self.leading + core % 8 * 16 + half * self.stride + line * 128
            }
        };
        let address = (self.address + place) & 0x3ffff;
        if self.swizzled { swizzled(address) } else { address }
    }
}
