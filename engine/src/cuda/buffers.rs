//! Everything a pass reads and writes besides weights and pages, at addresses that never change.

use deft::RotaryTable;
use deft::cuda::{CudaDevice, CudaError, DeviceBuffer, DevicePtr, Stream};

use super::best::Best;
use super::decode::HISTORY;
use crate::LlamaConfig;
use kernels_gpu::random::settings;

/// Most entries that are ranked of a row of logits.
pub const MAX_RANKED: u32 = kernels_gpu::model::limits::MAX_K;

/// Parts of the input, each of one word a row.
#[derive(Clone, Copy, Debug)]
pub(super) enum Input {
    Tokens,
    Positions,
    Streams,
}

const INPUTS: usize = 3;

/// A pass's inputs, with the host's copy.
#[derive(Debug)]
pub(super) struct Inputs {
    rows: usize,
    /// `[tokens, positions, streams][rows]`.
    host: Vec<u32>,
    device: DeviceBuffer<u32>,
}

impl Inputs {
    fn new(device: &CudaDevice, rows: u32) -> Result<Self, CudaError> {
        let rows = rows as usize;
        let mut host = vec![0; INPUTS * rows];
        // A row draws from the stream of its own number, whatever pass it is of.
        let streams = &mut host[Input::Streams as usize * rows..][..rows];
        (0..).zip(streams).for_each(|(row, stream)| *stream = row);
        Ok(Self { device: DeviceBuffer::from_slice(device, "inputs", &host)?, host, rows })
    }

    pub(super) fn pointer(&self, input: Input) -> DevicePtr {
        self.device.pointer().offset((4 * input as usize * self.rows) as u64)
    }

    /// Enqueues tokens and positions to the device, token 0 at position 0 in the rows after them.
    pub(super) fn set(
        &mut self,
        tokens: &[u32],
        positions: &[u32],
        stream: &Stream,
    ) -> Result<(), CudaError> {
        for (input, values) in [(Input::Tokens, tokens), (Input::Positions, positions)] {
            let rows = &mut self.host[input as usize * self.rows..][..self.rows];
            rows[..values.len()].copy_from_slice(values);
            rows[values.len()..].fill(0);
        }
        self.device.upload(0, &self.host, stream)
    }
}

/// Device memory of a pass. `rows` is the most rows of any pass, `logit_rows` of one that gives logits of all.
#[derive(Debug)]
pub(super) struct Buffers {
    pub(super) inputs: Inputs,
    /// `[1]`: the row whose logits a prefill asks for.
    pub(super) pick: DeviceBuffer<u32>,
    /// `[3]`: seed and temperature of the samples that are drawn.
    pub(super) sampling: DeviceBuffer<u32>,
    /// Residual stream, `[rows, hidden]`.
    pub(super) x: DeviceBuffer<f32>,
    /// What enters a product, `[rows, hidden]`.
    pub(super) normed: DeviceBuffer<u16>,
    /// `[rows, q_heads + 2 kv_heads, head_dim]`.
    pub(super) qkv: DeviceBuffer<u16>,
    /// `[rows, q_heads, head_dim]`.
    pub(super) q: DeviceBuffer<u16>,
    /// `[rows, q_heads, head_dim]`.
    pub(super) attended: DeviceBuffer<u16>,
    /// `[rows, q_heads]`: attention's LSE, for scores; of a model that leaves some.
    pub(super) lse: Option<DeviceBuffer<f32>>,
    /// `[rows, 2 ffn]`.
    pub(super) gate_up: DeviceBuffer<u16>,
    /// `[rows, ffn]`.
    pub(super) gated: DeviceBuffer<u16>,
    /// `[logit_rows, vocabulary]`.
    pub(super) logits: DeviceBuffer<f32>,
    /// Ids and after them their log-probabilities, [`chosen_at`]: of `[logit_rows, MAX_RANKED]` at most.
    pub(super) chosen: DeviceBuffer<u32>,
    /// What is asked of rows besides a ranking; made when it is first needed.
    pub(super) asked: Option<DeviceBuffer<u32>>,
    /// For choices among all rows; made when one is first needed.
    pub(super) best: Option<Best>,
    /// `[logit_rows, HISTORY]`.
    pub(super) history: DeviceBuffer<u32>,
    /// `[context, head_dim / 2]` each.
    pub(super) cos: DeviceBuffer<f32>,
    pub(super) sin: DeviceBuffer<f32>,
}

/// Where so many ids begin in a buffer, and where their log-probabilities: right after them, so that both are one copy.
pub(super) fn chosen_at(buffer: &DeviceBuffer<u32>, count: u32) -> (DevicePtr, DevicePtr) {
    (buffer.pointer(), buffer.pointer().offset(4 * u64::from(count)))
}

impl Buffers {
    pub(super) fn new(
        device: &CudaDevice,
        config: &LlamaConfig,
        table: &RotaryTable,
        rows: u32,
        logit_rows: u32,
    ) -> Result<Self, CudaError> {
        let of = |rows: u32, width: u32| rows as usize * width as usize;
        let heads = config.q_width() + 2 * config.kv_width();
        let halves = |what, rows, width| {
            let buffer = DeviceBuffer::uninitialized(device, what, of(rows, width))?;
            // Inert rows are never written: what is there must be numbers.
            buffer.fill_bytes(0, &Stream::legacy(device))?;
            Ok::<_, CudaError>(buffer)
        };
        let buffers = Self {
            inputs: Inputs::new(device, rows)?,
            pick: DeviceBuffer::from_slice(device, "pick", &[0])?,
            sampling: DeviceBuffer::from_slice(device, "sampling", &settings(0, 0.0))?,
            x: DeviceBuffer::uninitialized(device, "residual stream", of(rows, config.hidden))?,
            normed: halves("normalised states", rows, config.hidden)?,
            qkv: halves("queries, keys and values", rows, heads)?,
            q: halves("rotated queries", rows, config.q_width())?,
            attended: halves("attention's output", rows, config.q_width())?,
            lse: None,
            gate_up: halves("gate and up", rows, 2 * config.ffn)?,
            gated: halves("gated", rows, config.ffn)?,
            logits: DeviceBuffer::uninitialized(
                device,
                "logits",
                of(logit_rows, config.vocabulary),
            )?,
            chosen: DeviceBuffer::uninitialized(
                device,
                "chosen tokens and their log-probabilities",
                2 * of(logit_rows, MAX_RANKED),
            )?,
            asked: None,
            best: None,
            history: DeviceBuffer::uninitialized(device, "chosen tokens", of(logit_rows, HISTORY))?,
            cos: DeviceBuffer::from_slice(device, "rotary cosines", table.cos())?,
            sin: DeviceBuffer::from_slice(device, "rotary sines", table.sin())?,
        };
        // Other streams do not wait for the legacy one.
        Stream::legacy(device).synchronize()?;
        Ok(buffers)
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        let words = self.inputs.host.len()
            + self.pick.len()
            + self.sampling.len()
            + self.chosen.len()
            + self.asked.as_ref().map_or(0, DeviceBuffer::len)
            + self.lse.as_ref().map_or(0, DeviceBuffer::len)
            + self.history.len();
        let floats = [&self.x, &self.logits, &self.cos, &self.sin];
        let halves = [&self.normed, &self.qkv, &self.q, &self.attended, &self.gate_up, &self.gated];
        let floats: usize = floats.map(DeviceBuffer::len).iter().sum();
        let halves: usize = halves.map(DeviceBuffer::len).iter().sum();
        let best = self.best.as_ref().map_or(0, Best::memory_bytes);
        (4 * (words + floats) + 2 * halves) as u64 + best
    }
}
