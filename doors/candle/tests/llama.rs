//! A small Llama in candle decodes eight branches of a prompt through [`PagedTreeAttention`], token by token as with
//! candle's own operations over each branch for itself.

use candle_core::{D, Device, IndexOp, Result, Tensor};
use deft::DType;
use deft::plan::BlockTables;
use deft_candle::PagedTreeAttention;

const LAYERS: usize = 3;
const DIM: usize = 96;
const HEADS: usize = 6;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const HIDDEN: usize = 160;
const VOCABULARY: usize = 200;
const PAGE: usize = 16;
const BLOCKS: usize = 64;
const BRANCHES: usize = 8;

struct Layer {
    qkv: Tensor,
    o: Tensor,
    gate_up: Tensor,
    down: Tensor,
}

struct Llama {
    embedding: Tensor,
    layers: Vec<Layer>,
}

/// Numbers by counter, so that every run has the same weights.
fn weights(seed: u32, rows: usize, columns: usize) -> Result<Tensor> {
    let value = |at: usize| {
        let word = (at as u32).wrapping_mul(2_654_435_761).wrapping_add(seed.wrapping_mul(40_503));
        let word = (word ^ (word >> 15)).wrapping_mul(0x85eb_ca6b);
        ((word >> 8) as f32 / (1 << 23) as f32 - 1.0) * (3.0 / rows as f32).sqrt()
    };
    let values: Vec<f32> = (0..rows * columns).map(value).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)
}

fn normed(x: &Tensor) -> Result<Tensor> {
    x.broadcast_div(&(x.sqr()?.mean_keepdim(D::Minus1)? + 1e-5)?.sqrt()?)
}

/// Rotates pairs of halves of `[rows, heads, HEAD_DIM]` by the rows' positions.
fn rotated(x: &Tensor, positions: &[usize]) -> Result<Tensor> {
    let half = HEAD_DIM / 2;
    let angle =
        |position: usize, at: usize| position as f32 * 10_000f32.powf(-(at as f32) / half as f32);
    let angles: Vec<f32> =
        positions.iter().flat_map(|&p| (0..half).map(move |at| angle(p, at))).collect();
    let angles = Tensor::from_vec(angles, (positions.len(), 1, half), &Device::Cpu)?;
    let (cos, sin) = (angles.cos()?, angles.sin()?);
    let (a, b) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let left = (a.broadcast_mul(&cos)? - b.broadcast_mul(&sin)?)?;
    let right = (b.broadcast_mul(&cos)? + a.broadcast_mul(&sin)?)?;
    Tensor::cat(&[left, right], 2)
}

impl Llama {
    fn new() -> Result<Self> {
        let layer = |at: u32| {
            Ok(Layer {
                qkv: weights(10 * at + 1, DIM, (HEADS + 2 * KV_HEADS) * HEAD_DIM)?,
                o: weights(10 * at + 2, HEADS * HEAD_DIM, DIM)?,
                gate_up: weights(10 * at + 3, DIM, 2 * HIDDEN)?,
                down: weights(10 * at + 4, HIDDEN, DIM)?,
            })
        };
        let layers = (0..LAYERS as u32).map(layer).collect::<Result<_>>()?;
        Ok(Self { embedding: weights(7777, VOCABULARY, DIM)?, layers })
    }

    /// Logits `[rows, VOCABULARY]` of tokens at positions; `attend` has of each layer Q, K and V of the rows.
    fn forward(
        &self,
        tokens: &[u32],
        positions: &[usize],
        mut attend: impl FnMut(usize, [Tensor; 3]) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let rows = tokens.len();
        let mut x = (self.embedding.index_select(&Tensor::new(tokens, &Device::Cpu)?, 0)? * 8.0)?;
        for (at, layer) in self.layers.iter().enumerate() {
            let qkv = normed(&x)?.matmul(&layer.qkv)?.reshape((rows, (), HEAD_DIM))?;
            let q = rotated(&qkv.narrow(1, 0, HEADS)?, positions)?;
            let k = rotated(&qkv.narrow(1, HEADS, KV_HEADS)?, positions)?;
            let v = qkv.narrow(1, HEADS + KV_HEADS, KV_HEADS)?.contiguous()?;
            let out = attend(at, [q, k, v])?.reshape((rows, HEADS * HEAD_DIM))?;
            x = (x + out.matmul(&layer.o)?)?;
            let gate_up = normed(&x)?.matmul(&layer.gate_up)?;
            let gated =
                (gate_up.narrow(1, 0, HIDDEN)?.silu()? * gate_up.narrow(1, HIDDEN, HIDDEN)?)?;
            x = (x + gated.matmul(&layer.down)?)?;
        }
        (normed(&x)? * 4.0)?.matmul(&self.embedding.t()?)
    }
}

/// A sequence for itself: its K and V of each layer in one piece, `[tokens, KV_HEADS, HEAD_DIM]`.
#[derive(Clone, Default)]
struct Alone(Vec<[Tensor; 2]>);

impl Alone {
    fn attend(&mut self, layer: usize, [q, k, v]: [Tensor; 3]) -> Result<Tensor> {
        let (rows, new) = (q.dim(0)?, [k, v]);
        if self.0.len() == layer {
            self.0.push(new);
        } else {
            let [k, v] = &self.0[layer];
            self.0[layer] = [Tensor::cat(&[k, &new[0]], 0)?, Tensor::cat(&[v, &new[1]], 0)?];
        }
        let group = HEADS / KV_HEADS;
        let spread = |half: &Tensor| -> Result<Tensor> {
            let tokens = half.dim(0)?;
            let wide = half.unsqueeze(2)?.expand((tokens, KV_HEADS, group, HEAD_DIM))?;
            wide.reshape((tokens, HEADS, HEAD_DIM))?.transpose(0, 1)?.contiguous()
        };
        let [k, v] = &self.0[layer];
        let (k, v, tokens) = (spread(k)?, spread(v)?, k.dim(0)?);
        let logits =
            (q.transpose(0, 1)?.contiguous()?.matmul(&k.t()?)? * (HEAD_DIM as f64).powf(-0.5))?;
        let hidden = |row: usize, token: usize| {
            if token > tokens - rows + row { f32::NEG_INFINITY } else { 0.0 }
        };
        let mask: Vec<f32> =
            (0..rows * tokens).map(|at| hidden(at / tokens, at % tokens)).collect();
        let logits =
            logits.broadcast_add(&Tensor::from_vec(mask, (rows, tokens), &Device::Cpu)?)?;
        let weights = logits.broadcast_sub(&logits.max_keepdim(2)?)?.exp()?;
        weights.broadcast_div(&weights.sum_keepdim(2)?)?.matmul(&v)?.transpose(0, 1)
    }
}

/// A paged cache of all sequences: K and V of each layer, `[BLOCKS, PAGE, KV_HEADS, HEAD_DIM]`, and the block tables.
struct Paged {
    layers: Vec<[Tensor; 2]>,
    tables: Vec<Vec<i32>>,
    lens: Vec<i32>,
    free: i32,
}

impl Paged {
    fn new() -> Result<Self> {
        // What no token was written to is never read.
        let half = || {
            Tensor::full(f32::NAN, (BLOCKS, PAGE, KV_HEADS, HEAD_DIM), &Device::Cpu)?.contiguous()
        };
        let layers = (0..LAYERS).map(|_| Ok([half()?, half()?])).collect::<Result<_>>()?;
        Ok(Self { layers, tables: vec![vec![]], lens: vec![0], free: 0 })
    }

    /// Makes room for `count` tokens of each sequence; the slots of these, sequence by sequence.
    fn grow(&mut self, count: usize) -> Vec<usize> {
        let mut slots = Vec::new();
        for (table, len) in self.tables.iter_mut().zip(&mut self.lens) {
            for token in *len as usize..*len as usize + count {
                if token / PAGE == table.len() {
                    table.push(BLOCKS as i32 - 1 - self.free);
                    self.free += 1;
                }
                slots.push(table[token / PAGE] as usize * PAGE + token % PAGE);
            }
            *len += count as i32;
        }
        slots
    }

    /// The only sequence `count` times: full blocks are shared, the last one is copied.
    fn fork(&mut self, count: usize) -> Result<()> {
        let full = self.lens[0] as usize / PAGE;
        let last = self.tables[0].get(full).copied();
        for _ in 1..count {
            let mut table = self.tables[0][..full].to_vec();
            if let Some(last) = last {
                let copy = BLOCKS as i32 - 1 - self.free;
                self.free += 1;
                for half in self.layers.iter().flatten() {
                    half.slice_set(
                        &half.i(last as usize..=last as usize)?.copy()?,
                        0,
                        copy as usize,
                    )?;
                }
                table.push(copy);
            }
            self.tables.push(table);
            self.lens.push(self.lens[0]);
        }
        Ok(())
    }

    fn tables<R>(&self, queries: i32, run: impl FnOnce(&BlockTables<'_>) -> R) -> R {
        let stride = self.tables.iter().map(Vec::len).max().unwrap_or(0);
        let padded = self.tables.iter().flat_map(|table| {
            table.iter().copied().chain(std::iter::repeat_n(-1, stride - table.len()))
        });
        let (ids, queries) = (padded.collect::<Vec<_>>(), vec![queries; self.lens.len()]);
        let page_size = PAGE as u32;
        run(&BlockTables {
            ids: &ids,
            stride,
            lens: &self.lens,
            page_size,
            queries: &queries,
            masks: &[],
        })
    }

    fn attend(
        &self,
        attention: &PagedTreeAttention,
        slots: &[usize],
        layer: usize,
        [q, k, v]: [Tensor; 3],
    ) -> Result<Tensor> {
        let [k_cache, v_cache] = &self.layers[layer];
        for (cache, new) in [(k_cache, k), (v_cache, v)] {
            let flat = cache.reshape((BLOCKS * PAGE, KV_HEADS, HEAD_DIM))?;
            for (row, &slot) in slots.iter().enumerate() {
                flat.slice_set(&new.i(row..=row)?.contiguous()?, 0, slot)?;
            }
        }
        attention.forward(&q, k_cache, v_cache)
    }
}

#[test]
fn branches_decode_as_each_does_for_itself() -> Result<()> {
    let llama = Llama::new()?;
    let prompt: Vec<u32> = (0..37u32).map(|at| (at * at * 7 + 3) % VOCABULARY as u32).collect();
    let positions: Vec<usize> = (0..prompt.len()).collect();
    let heads = [HEADS, KV_HEADS, HEAD_DIM].map(|count| count as u32);

    let (mut alone, mut paged) = (Alone::default(), Paged::new()?);
    let right = llama.forward(&prompt, &positions, |layer, qkv| alone.attend(layer, qkv))?;
    let slots = paged.grow(prompt.len());
    let plan = |tables: &BlockTables<'_>| PagedTreeAttention::new(heads, DType::F32, tables);
    let attention = paged.tables(prompt.len() as i32, plan)?;
    let found = llama
        .forward(&prompt, &positions, |layer, qkv| paged.attend(&attention, &slots, layer, qkv))?;
    assert!(far(&found, &right)? < 1e-4);

    // The branches begin with the prompt's likeliest tokens, and are greedy from there.
    let last = right.i(prompt.len() - 1)?.arg_sort_last_dim(false)?.to_vec1::<u32>()?;
    let mut tokens = last[..BRANCHES].to_vec();
    let mut branches = vec![alone; BRANCHES];
    paged.fork(BRANCHES)?;
    let mut attention = None;
    for step in 0..40 {
        let position = prompt.len() + step;
        let slots = paged.grow(1);
        let attention = match attention.as_mut() {
            None => attention.insert(paged.tables(1, plan)?),
            Some(attention) => {
                paged.tables(1, |tables| PagedTreeAttention::update(attention, tables))?;
                attention
            }
        };
        let positions = [position; BRANCHES];
        let found = llama.forward(&tokens, &positions, |layer, qkv| {
            paged.attend(attention, &slots, layer, qkv)
        })?;
        let each = tokens.iter().zip(&mut branches).map(|(&token, branch)| {
            llama.forward(&[token], &[position], |layer, qkv| branch.attend(layer, qkv))
        });
        let right = Tensor::cat(&each.collect::<Result<Vec<_>>>()?, 0)?;
        assert!(far(&found, &right)? < 1e-4, "step {step}");
        tokens = found.argmax(1)?.to_vec1()?;
        assert_eq!(tokens, right.argmax(1)?.to_vec1::<u32>()?, "step {step}");
    }
    tokens.sort_unstable();
    tokens.dedup();
    assert!(tokens.len() > 1, "branches that are all alike show nothing");
    Ok(())
}

/// The largest difference.
fn far(found: &Tensor, right: &Tensor) -> Result<f32> {
    let far = (found - right)?.abs()?.max_all()?.to_scalar::<f32>()?;
    assert!(far.is_finite());
    Ok(far)
}

#[test]
fn what_does_not_fit_is_refused_by_name() -> Result<()> {
    let tables = BlockTables {
        ids: &[0, 5],
        stride: 2,
        lens: &[20],
        page_size: 16,
        queries: &[],
        masks: &[],
    };
    let attention = PagedTreeAttention::new([4, 2, 64], DType::Bf16, &tables)?;
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu);
    let kind = candle_core::DType::BF16;
    let q = zeros(&[1, 4, 64], kind)?;
    let k = zeros(&[6, 16, 2, 64], kind)?;
    attention.forward(&q, &k, &k)?;
    attention.forward(&q, &zeros(&[6, 2, 16, 64], kind)?.transpose(1, 2)?, &k)?;
    for (q, k, text) in [
        (q.clone(), zeros(&[5, 16, 2, 64], kind)?, "block_tables[1] names page 5, k has 5"),
        (
            q.clone(),
            zeros(&[6, 16, 1, 64], kind)?,
            "k has blocks of [16, 1, 64]; they must be [16, 2, 64]",
        ),
        (q.clone(), zeros(&[6, 16, 64, 2], kind)?.transpose(2, 3)?, "rows are contiguous"),
        (
            zeros(&[2, 4, 64], kind)?,
            k.clone(),
            "q has 512 elements, [rows, q_heads, head_dim] takes 256",
        ),
        (q.to_dtype(candle_core::DType::F32)?, k.clone(), "all be f16, all bf16 or all f32"),
    ] {
        let refused = attention.forward(&q, &k, &k).unwrap_err().to_string();
        assert!(refused.contains(text), "{refused}, not {text}");
    }
    Ok(())
}
