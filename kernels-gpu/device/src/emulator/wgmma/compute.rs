//! The products themselves, from operands in shared memory.

use super::queue::{Multiplication, Source};
use crate::emulator::block::Block;
use crate::emulator::matrix::{a_tile, to_f32};
use crate::emulator::report::Checked;
use crate::emulator::shadow::Access;

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
                let address = operand.core(first + core, half);
                let offset = self.shared.offset(address, 128)?;
                self.shared.shadow.read(offset, 128, access, &self.agents)?;
                let bytes = self.shared.bytes(offset, 128);
                for (i, element) in bytes.chunks_exact(2).enumerate() {
                    let value = to_f32(u16::from_ne_bytes([element[0], element[1]]), is_bf16);
                    let (outer, inner) = (i / 8, i % 8);
                    let (row, k) = if operand.transposed { (inner, outer) } else { (outer, inner) };
                    put(core as usize * 8 + row, half as usize * 8 + k, value);
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
}

impl SharedOperand {
    fn new(descriptor: u64, step_bytes: u32, step: u32, transposed: bool) -> Self {
        let field = |shift: u32| ((descriptor >> shift) as u32 & 0x3fff) << 4;
        Self {
            address: field(0) + step * step_bytes,
            leading: field(16),
            stride: field(32),
            transposed,
        }
    }

    /// Address of the core matrix with rows `8 * core..` and `8 * half..` of K; it wraps at 256 KiB.
    fn core(&self, core: u32, half: u32) -> u32 {
        (self.address + core * self.stride + half * self.leading) & 0x3ffff
    }
}
