//! What each operation reads and writes, and its kernel's arguments.

use deft::cuda::{CachePointers, DevicePtr, Rotary};
use kernels_gpu::ptx;

/// Device pointers of an embedding.
#[derive(Clone, Copy, Debug, Default)]
pub struct Embed {
    /// `[rows]` u32, each below the table's rows.
    pub tokens: DevicePtr,
    /// `[vocab, hidden]`, 16 bits.
    pub table: DevicePtr,
    /// `[rows, hidden]` f32, written.
    pub x: DevicePtr,
    /// Number of tokens.
    pub rows: u32,
    /// Elements of a row, a multiple of 8.
    pub hidden: u32,
}

impl Embed {
    pub(super) fn arguments(&self) -> ptx::Embed {
        ptx::Embed {
            tokens: self.tokens.0,
            table: self.table.0,
            x: self.x.0,
            rows: self.rows,
            hidden: self.hidden,
        }
    }
}

/// Device pointers of a root-mean-square normalisation.
#[derive(Clone, Copy, Debug, Default)]
pub struct RmsNorm {
    /// `[_, hidden]` f32.
    pub x: DevicePtr,
    /// `[rows]` u32: which row of `x` each row of `out` is of, [`NONE`](deft::abi::NONE) for one that is left
    /// as it is. Null for the first `rows` of `x`.
    pub picks: DevicePtr,
    /// `[hidden]` f32.
    pub weight: DevicePtr,
    /// `[rows, hidden]`, 16 bits, written.
    pub out: DevicePtr,
    /// Rows to normalise.
    pub rows: u32,
    /// Elements of a row, a multiple of 8 up to 16,384.
    pub hidden: u32,
    /// Added to the mean of squares.
    pub eps: f32,
}

impl RmsNorm {
    pub(super) fn arguments(&self) -> ptx::RmsNorm {
        ptx::RmsNorm {
            x: self.x.0,
            picks: self.picks.0,
            weight: self.weight.0,
            out: self.out.0,
            hidden: self.hidden,
            eps: self.eps,
        }
    }

    /// With `added`, `[_, hidden]`, 16 bits, of which rows are picked as of `x`.
    pub(super) fn arguments_with(&self, added: DevicePtr) -> ptx::AddRmsNorm {
        ptx::AddRmsNorm {
            x: self.x.0,
            added: added.0,
            picks: self.picks.0,
            weight: self.weight.0,
            out: self.out.0,
            hidden: self.hidden,
            eps: self.eps,
        }
    }
}

/// Device pointers of a rotation of queries and keys, with the append of keys and values.
#[derive(Clone, Copy, Debug, Default)]
pub struct RotateAppend {
    /// `[count, q_heads + 2 * kv_heads, head_dim]`, 16 bits: queries, then keys, then values, as one product gives
    /// them.
    pub qkv: DevicePtr,
    /// `[q_heads + 2 * kv_heads, head_dim]` f32, added to each row; null for nothing.
    pub bias: DevicePtr,
    /// `[2, head_dim]` f32: gains of the norms that every head's query and key go through before they turn; null for
    /// no norms.
    pub norms: DevicePtr,
    /// `[count, q_heads, head_dim]`, 16 bits, written.
    pub q: DevicePtr,
    /// `[count]` [`AppendTarget`](deft::abi::AppendTarget)s; rows of [`NONE`](deft::abi::NONE) are
    /// passed over, queries included.
    pub targets: DevicePtr,
    /// Number of rows.
    pub count: u32,
    /// Query heads.
    pub q_heads: u32,
    /// Added to the mean of squares of a head that is normed.
    pub eps: f32,
}

impl RotateAppend {
    pub(super) fn arguments(
        &self,
        rotary: &Rotary,
        kv_heads: u32,
        at: &CachePointers,
    ) -> ptx::RotateAppend {
        ptx::RotateAppend {
            qkv: self.qkv.0,
            bias: self.bias.0,
            norms: self.norms.0,
            q: self.q.0,
            pool: at.pool.0,
            targets: self.targets.0,
            lengths: at.lengths.0,
            tail_pages: at.tail_pages.0,
            positions: rotary.positions.0,
            cos: rotary.cos.0,
            sin: rotary.sin.0,
            count: self.count,
            q_heads: self.q_heads,
            kv_heads,
            eps: self.eps,
        }
    }
}

/// Device pointers of SwiGLU's gate.
#[derive(Clone, Copy, Debug, Default)]
pub struct SiluMul {
    /// `[rows, 2 * ffn]`, 16 bits: the gate, then what it is multiplied with.
    pub gate_up: DevicePtr,
    /// `[rows, ffn]`, 16 bits, written.
    pub out: DevicePtr,
    /// Number of rows.
    pub rows: u32,
    /// Elements of a row, a multiple of 8.
    pub ffn: u32,
}

impl SiluMul {
    pub(super) fn arguments(&self) -> ptx::SiluMul {
        ptx::SiluMul { gate_up: self.gate_up.0, out: self.out.0, rows: self.rows, ffn: self.ffn }
    }
}

/// Device pointers of a ranking of logits.
#[derive(Clone, Copy, Debug, Default)]
pub struct TopK {
    /// `[rows, vocab]` f32.
    pub logits: DevicePtr,
    /// `[rows, k]` u32, written.
    pub ids: DevicePtr,
    /// `[rows, k]` f32, natural logarithm, written.
    pub log_probs: DevicePtr,
    /// Number of rows.
    pub rows: u32,
    /// Entries of a row.
    pub vocab: u32,
    /// Entries to give of each row, 1 to 64.
    pub k: u32,
}

impl TopK {
    pub(super) fn arguments(&self) -> ptx::LogSoftmaxTopK {
        ptx::LogSoftmaxTopK {
            logits: self.logits.0,
            ids: self.ids.0,
            log_probs: self.log_probs.0,
            vocab: self.vocab,
            k: self.k,
        }
    }
}

/// Device pointers of a ranking of some entries of each row.
#[derive(Clone, Copy, Debug, Default)]
pub struct TopKPart {
    /// `[rows, entries]` f32.
    pub logits: DevicePtr,
    /// `[rows]` records of [`part_words`](kernels_gpu::model::limits::part_words) u32, written; 4-byte aligned.
    pub found: DevicePtr,
    /// Number of rows.
    pub rows: u32,
    /// Entries of a row that are here.
    pub entries: u32,
    /// The id of the first of them.
    pub first: u32,
    /// Entries to give of each row, 1 to 64; fewer come where there are fewer.
    pub k: u32,
}

impl TopKPart {
    pub(super) fn arguments(&self) -> ptx::TopKPart {
        ptx::TopKPart {
            logits: self.logits.0,
            found: self.found.0,
            entries: self.entries,
            first: self.first,
            k: self.k,
        }
    }
}

/// Device pointers of a merge of rankings.
#[derive(Clone, Copy, Debug, Default)]
pub struct MergeTopK {
    /// `[parts, rows]` records, as [`TopKPart`] has them, each of `k` entries.
    pub found: DevicePtr,
    /// `[rows, k]` u32, written.
    pub ids: DevicePtr,
    /// `[rows, k]` f32, natural logarithm, written.
    pub log_probs: DevicePtr,
    /// Parts that a row has.
    pub parts: u32,
    /// Number of rows.
    pub rows: u32,
    /// Entries to give of each row.
    pub k: u32,
}

impl MergeTopK {
    pub(super) fn arguments(&self) -> ptx::MergeTopK {
        ptx::MergeTopK {
            found: self.found.0,
            ids: self.ids.0,
            log_probs: self.log_probs.0,
            parts: self.parts,
            rows: self.rows,
            k: self.k,
        }
    }
}

/// Device pointers of tokens that rows of logits are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pick {
    /// `[_, vocab]` f32.
    pub logits: DevicePtr,
    /// `[blocks, 4]` u32: a row, the first of its asks and how many, and the bits of `1 / temperature` as f32, or 0 for
    /// asks that are tokens.
    pub rows: DevicePtr,
    /// u32: a token, or the bits of an f32 from 0 to below 1 that draws one.
    pub asks: DevicePtr,
    /// u32, as many as asks, written.
    pub ids: DevicePtr,
    /// f32, as many, natural logarithm, written.
    pub log_probs: DevicePtr,
    /// Rows that are asked.
    pub blocks: u32,
    /// Entries of a row.
    pub vocab: u32,
}

impl Pick {
    pub(super) fn arguments(&self) -> ptx::PickTokens {
        ptx::PickTokens {
            logits: self.logits.0,
            rows: self.rows.0,
            asks: self.asks.0,
            ids: self.ids.0,
            log_probs: self.log_probs.0,
            vocab: self.vocab,
        }
    }
}

/// How rows are sampled. The noise of an entry is a function of seed, stream, step and entry alone.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sampling {
    /// `[rows]` u32: the number of each row's stream of noise.
    pub streams: DevicePtr,
    /// `[rows]` u32: each row's step within its stream. Positions serve, which [`Feed`] advances.
    pub steps: DevicePtr,
    /// `[3]` u32: the words of [`settings`](kernels_gpu::random::settings). In memory, so that a captured launch serves every seed
    /// and temperature.
    pub settings: DevicePtr,
}

impl Sampling {
    pub(super) fn arguments(&self, top_k: &TopK) -> ptx::SampleTopK {
        ptx::SampleTopK {
            logits: top_k.logits.0,
            ids: top_k.ids.0,
            log_probs: top_k.log_probs.0,
            vocab: top_k.vocab,
            k: top_k.k,
            streams: self.streams.0,
            steps: self.steps.0,
            settings: self.settings.0,
        }
    }

    pub(super) fn arguments_of(&self, part: &TopKPart) -> ptx::SamplePart {
        ptx::SamplePart {
            logits: part.logits.0,
            found: part.found.0,
            entries: part.entries,
            first: part.first,
            k: part.k,
            streams: self.streams.0,
            steps: self.steps.0,
            settings: self.settings.0,
        }
    }
}

/// Device pointers of the step from chosen tokens to the next input.
#[derive(Clone, Copy, Debug, Default)]
pub struct Feed {
    /// u32: row `i`'s choice is `next[i * next_stride]`.
    pub next: DevicePtr,
    /// `[count]` append targets, to leave out rows of [`NONE`](deft::abi::NONE); null to take all.
    pub targets: DevicePtr,
    /// `[count]` u32, written: the choices.
    pub tokens: DevicePtr,
    /// `[count]` u32, written: one more each.
    pub positions: DevicePtr,
    /// `[count, history_len]` u32, written: the token of position `p` goes to column `p % history_len`. Null for none.
    pub history: DevicePtr,
    /// Columns of `history`.
    pub history_len: u32,
    /// Words from a row's choice to the next row's: the `k` of the ranking.
    pub next_stride: u32,
    /// Number of rows.
    pub count: u32,
}

impl Feed {
    pub(super) fn arguments(&self) -> ptx::Feed {
        ptx::Feed {
            next: self.next.0,
            targets: self.targets.0,
            tokens: self.tokens.0,
            positions: self.positions.0,
            history: self.history.0,
            history_len: self.history_len,
            next_stride: self.next_stride,
            count: self.count,
        }
    }
}

/// A buffer of uniform random values.
#[derive(Clone, Copy, Debug, Default)]
pub struct FillRandom {
    /// `[count]`, written.
    pub out: DevicePtr,
    /// Number of elements, a multiple of 8.
    pub count: u64,
    /// Names the values: element `i` is [`uniform`](kernels_gpu::random::uniform)`(seed, i, scale)`, rounded to the
    /// buffer's type.
    pub seed: u64,
    /// Values are from `-scale` to `scale`.
    pub scale: f32,
}

impl FillRandom {
    pub(super) fn chunks(&self) -> u64 {
        self.count / u64::from(kernels_gpu::model::limits::CHUNK)
    }

    pub(super) fn arguments(&self) -> ptx::Fill {
        ptx::Fill { out: self.out.0, chunks: self.chunks(), seed: self.seed, scale: self.scale }
    }
}
