//! Upkeep of a model on a GPU.

use deft::retain::Maintained;

use super::CudaModel;
use super::forward::Pass;
use crate::ModelError;
use crate::retain::Retaining;

impl CudaModel {
    /// As [`CpuModel::maintained`](crate::CpuModel::maintained).
    pub fn maintained(&self) -> Option<Maintained> {
        self.retain.as_ref().map(|retaining| retaining.done)
    }

    /// As [`CpuModel::maintain`](crate::CpuModel::maintain). Scores are read from the device, so it waits.
    ///
    /// # Errors
    /// The cache's.
    pub fn maintain(&mut self) -> Result<Maintained, ModelError> {
        let Some(retaining) = &mut self.retain else {
            return Ok(Maintained::default());
        };
        let done = retaining.maintain(&mut self.cache)?;
        if done.nodes > 0 {
            self.batch = None;
        }
        Ok(done)
    }

    /// Upkeep, if it is due; then a step or a draft begins.
    pub(super) fn begin_step(&mut self) -> Result<(), ModelError> {
        if self.retain.as_ref().is_some_and(Retaining::is_due) {
            self.maintain()?;
        }
        self.before_pass(0);
        Ok(())
    }

    /// `pass` with the scores that the model's policy asks for now.
    pub(super) fn observing(&self, pass: Pass) -> Pass {
        Pass { observe: self.retain.as_ref().and_then(Retaining::observe), ..pass }
    }

    /// Says that `after` tokens of a prompt come after those of the next pass.
    pub(super) fn before_pass(&mut self, after: usize) {
        if let Some(retaining) = &mut self.retain {
            retaining.begin_pass(after);
        }
    }
}
