//! Rotary tables on the device.

use std::sync::Arc;

use super::CudaBackend;
use crate::attention::Rotation;
use crate::cuda::{CudaError, DeviceBuffer, Rotary};

/// Rotary tables that are on the device at a time.
const TABLES: usize = 4;

/// A rotary table on the device.
#[derive(Debug)]
pub(super) struct Table {
    id: u64,
    cos: DeviceBuffer<f32>,
    sin: DeviceBuffer<f32>,
}

impl CudaBackend {
    /// Positions and table of a rotation on the device.
    pub(super) fn rotary(&mut self, rotation: Rotation<'_>) -> Result<Rotary, CudaError> {
        let table = self.table(rotation)?;
        let positions = match &mut self.capturing {
            Some(inputs) => {
                inputs.read_table(&table);
                inputs.positions.pointer_of(rotation.positions)
            }
            None => {
                let positions = self.positions.fill(&self.stream, rotation.positions)?;
                positions.pointer()
            }
        };
        Ok(Rotary { positions, cos: table.cos.pointer(), sin: table.sin.pointer() })
    }

    /// The rotation's table on the device.
    fn table(&mut self, rotation: Rotation<'_>) -> Result<Arc<Table>, CudaError> {
        let id = rotation.table.id();
        match self.tables.iter().position(|table| table.id == id) {
            Some(at) => self.tables[at..].rotate_left(1),
            None if self.capturing.is_some() => {
                return Err(CudaError::Argument {
                    argument: "rope",
                    value: "a table that is not on the device".to_owned(),
                    expected: format!(
                        "one of at most {TABLES} that the step used when it was run first"
                    ),
                });
            }
            None => {
                let (device, half) = (self.stream.device(), self.half());
                let copy = |what, values: &[f32]| {
                    DeviceBuffer::from_slice(device, what, &half.table(values))
                };
                let table = Table {
                    id,
                    cos: copy("rotary cosines", rotation.table.cos())?,
                    sin: copy("rotary sines", rotation.table.sin())?,
                };
                if self.tables.len() >= TABLES {
                    // What reads it may be under way: freeing waits for it.
                    self.tables.remove(0);
                }
                self.tables.push(Arc::new(table));
            }
        }
        Ok(self.tables[self.tables.len() - 1].clone())
    }
}
