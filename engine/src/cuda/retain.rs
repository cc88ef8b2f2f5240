//! Upkeep of a model on a GPU.

use deft::retain::Maintained;

use super::CudaModel;
use super::forward::Pass;
use crate::ModelError;

impl CudaModel {
    /// As [`CpuModel::maintained`](crate::CpuModel::maintained).
    pub fn maintained(&self) -> Option<Maintained> {
        self.retain.done()
    }

    /// As [`CpuModel::maintain`](crate::CpuModel::maintain). Scores are read from the device, so it waits.
    ///
    /// # Errors
    /// The cache's.
    pub fn maintain(&mut self) -> Result<Maintained, ModelError> {
        let done = self.retain.maintain(&mut self.cache)?;
        if done.nodes > 0 {
            self.batch = None;
        }
        Ok(done)
    }

    /// Upkeep, if it is due; then a step or a draft begins.
    pub(super) fn begin_step(&mut self) -> Result<(), ModelError> {
        if self.retain.begin_step(&mut self.cache)? {
            self.batch = None;
        }
        Ok(())
    }

    /// `pass` with the scores that the model's policy asks for now.
    pub(super) fn observing(&self, pass: Pass) -> Pass {
        Pass { observe: self.retain.observe(), ..pass }
    }
}
