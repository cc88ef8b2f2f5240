//! Looking into a pass: every stage's output, to find the first that is wrong.

use deft::cuda::{DeviceBuffer, Stream};
use deft::{DType, KvElement, bf16, f16};

use super::CudaModelError;

/// A point of the forward pass, in order within a layer.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The embedding's rows: `[rows, hidden]`; of layer 0.
    Embedded,
    /// Normalised for attention: `[rows, hidden]`.
    AttentionInput,
    /// Queries, keys and values before they are rotated: `[rows, q_heads + 2 kv_heads, head_dim]`.
    Projected,
    /// Rotated queries: `[rows, q_heads, head_dim]`.
    Queries,
    /// Attention's output: `[rows, q_heads, head_dim]`.
    Attended,
    /// The residual stream with it: `[rows, hidden]`. Of one of several ranks without it, and so [`Stage::AfterFfn`]: what
    /// ranks add comes with the norm that follows.
    AfterAttention,
    /// Normalised for the feed-forward part: `[rows, hidden]`.
    FfnInput,
    /// Gate and up: `[rows, 2 ffn]`.
    GateUp,
    /// SwiGLU: `[rows, ffn]`.
    Gated,
    /// The residual stream after the layer: `[rows, hidden]`.
    AfterFfn,
    /// Normalised for the head: `[rows, hidden]`; of the last layer.
    HeadInput,
    /// `[rows, vocabulary]`; of the last layer.
    Logits,
}

/// What a stage left.
#[derive(Clone, Debug, PartialEq)]
pub struct Probe {
    /// The layer.
    pub layer: u32,
    /// The stage.
    pub stage: Stage,
    /// Rows and elements of a row.
    pub shape: [u32; 2],
    /// `[rows, elements]`.
    pub values: Vec<f32>,
}

/// A stage's output on the device, and its shape.
#[derive(Clone, Copy, Debug)]
pub(super) enum Seen<'b> {
    F32(&'b DeviceBuffer<f32>, [u32; 2]),
    Half(&'b DeviceBuffer<u16>, [u32; 2]),
}

/// Sees each stage's output after its work was enqueued.
pub(super) trait Observer {
    fn saw(&mut self, layer: u32, stage: Stage, what: Seen<'_>) -> Result<(), CudaModelError>;
}

/// Looks at nothing.
pub(super) struct Nobody;

impl Observer for Nobody {
    fn saw(&mut self, _: u32, _: Stage, _: Seen<'_>) -> Result<(), CudaModelError> {
        Ok(())
    }
}

/// Waits for each stage and copies its output.
pub(super) struct Recorder<'s> {
    pub(super) stream: &'s Stream,
    /// Of 16-bit outputs.
    pub(super) dtype: DType,
    pub(super) probes: Vec<Probe>,
}

impl Observer for Recorder<'_> {
    fn saw(&mut self, layer: u32, stage: Stage, what: Seen<'_>) -> Result<(), CudaModelError> {
        let (shape, values) = match what {
            Seen::F32(buffer, shape) => {
                let mut values = vec![0.0; elements(shape)];
                buffer.read(0, &mut values, self.stream)?;
                (shape, values)
            }
            Seen::Half(buffer, shape) => {
                let mut bits = vec![0; elements(shape)];
                buffer.read(0, &mut bits, self.stream)?;
                (shape, widened(self.dtype, &bits))
            }
        };
        self.probes.push(Probe { layer, stage, shape, values });
        Ok(())
    }
}

/// 16-bit patterns as what they stand for.
fn widened(dtype: DType, bits: &[u16]) -> Vec<f32> {
    let mut values = vec![0.0; bits.len()];
    match dtype {
        DType::F16 => f16::widen(bytemuck::cast_slice(bits), &mut values),
        _ => bf16::widen(bytemuck::cast_slice(bits), &mut values),
    }
    values
}

fn elements([rows, width]: [u32; 2]) -> usize {
    rows as usize * width as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_as_the_model_s_type() {
        // Sign, exponent and mantissa: 5 and 10 bits of f16, 8 and 7 of bf16.
        let bits = [0x3c00, 0xc100, 0x3f80];
        assert_eq!(widened(DType::F16, &bits), [1.0, -2.5, 1.875]);
        assert_eq!(widened(DType::Bf16, &bits), [0.007_812_5, -8.0, 1.0]);
    }
}
