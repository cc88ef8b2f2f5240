//! A rank's weights: rows and columns of the model's, cut as they are read.

use std::ops::Range;
use std::sync::Arc;

use super::Shard;
use crate::weights::{Format, LayerTensor, Source, Tensor, Weights, WeightsError};

/// Where a rank's tensor lies in the model's.
struct Cut {
    /// Row 0 of the rank's.
    first_row: u32,
    /// Its columns; `None` where they are all.
    columns: Option<Range<u32>>,
}

/// Rows and columns of another source.
#[derive(Debug)]
struct Part {
    source: Arc<dyn Source>,
    shard: Shard,
}

impl Shard {
    /// This rank's part of a model's weights: what [`Shard::config`] says, read from the same files. The head is
    /// [`Shard::vocabulary`]'s rows of the whole one.
    pub fn weights(&self, weights: &Weights) -> Weights {
        if self.ranks() == 1 {
            return weights.clone();
        }
        let part = Part { source: weights.source(), shard: self.clone() };
        Weights::of(self.config(), Arc::new(part))
    }
}

impl Part {
    fn cut(&self, tensor: Tensor) -> Cut {
        let head_dim = self.shard.whole().head_dim;
        let dims = |heads: Range<u32>| heads.start * head_dim..heads.end * head_dim;
        let (q, kv) = (dims(self.shard.q_heads()), dims(self.shard.kv_heads()));
        let rows = |rows: Range<u32>| Cut { first_row: rows.start, columns: None };
        let columns = |columns| Cut { first_row: 0, columns: Some(columns) };
        let Tensor::Layer(_, of_layer) = tensor else {
            return rows(0..0);
        };
        match of_layer {
            LayerTensor::Query => rows(q),
            LayerTensor::Key | LayerTensor::Value => rows(kv),
            LayerTensor::Gate | LayerTensor::Up => rows(self.shard.ffn()),
            LayerTensor::Output | LayerTensor::QueryBias => columns(q),
            LayerTensor::KeyBias | LayerTensor::ValueBias => columns(kv),
            LayerTensor::Down => columns(self.shard.ffn()),
            _ => rows(0..0),
        }
    }

    /// Whether the columns of `cut` are whole blocks of a format.
    fn is_whole(cut: &Cut, format: Format) -> bool {
        let block = format.block_elements() as u32;
        let columns = cut.columns.as_ref();
        columns.is_none_or(|at| at.start.is_multiple_of(block) && at.end.is_multiple_of(block))
    }

    /// Rows as `read` gives them of the source, `unit` for each `per` of the model's columns, cut to this rank's columns.
    fn read_cut<T: Clone>(
        &self,
        tensor: Tensor,
        rows: Range<usize>,
        (per, unit, zero): (usize, usize, T),
        out: &mut [T],
        read: impl FnOnce(Range<usize>, &mut [T]) -> Result<(), WeightsError>,
    ) -> Result<(), WeightsError> {
        let cut = self.cut(tensor);
        let first = cut.first_row as usize;
        let rows = first + rows.start..first + rows.end;
        let Some(columns) = cut.columns else {
            return read(rows, out);
        };
        let of = |columns: usize| columns / per * unit;
        let [_, all] = tensor.shape(self.shard.whole());
        let mut wide = vec![zero; rows.len() * of(all)];
        read(rows, &mut wide)?;
        let place = of(columns.start as usize)..of(columns.end as usize);
        for (row, out) in wide.chunks_exact(of(all)).zip(out.chunks_exact_mut(place.len())) {
            out.clone_from_slice(&row[place.clone()]);
        }
        Ok(())
    }
}

impl Source for Part {
    fn read(
        &self,
        tensor: Tensor,
        rows: Range<usize>,
        out: &mut [f32],
    ) -> Result<(), WeightsError> {
        let read = |rows, out: &mut [f32]| self.source.read(tensor, rows, out);
        self.read_cut(tensor, rows, (1, 1, 0.0), out, read)
    }

    /// The model's, or f32 where a rank's columns end within a block.
    fn format(&self, tensor: Tensor) -> Format {
        let format = self.source.format(tensor);
        if Self::is_whole(&self.cut(tensor), format) { format } else { Format::F32 }
    }

    fn read_stored(
        &self,
        tensor: Tensor,
        rows: Range<usize>,
        out: &mut [u8],
    ) -> Result<(), WeightsError> {
        let format = self.source.format(tensor);
        if !Self::is_whole(&self.cut(tensor), format) {
            return self.read_as_f32(tensor, rows, out);
        }
        let sizes = (format.block_elements(), format.block_bytes(), 0);
        let read = |rows, out: &mut [u8]| self.source.read_stored(tensor, rows, out);
        self.read_cut(tensor, rows, sizes, out, read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{LlamaConfig, Variant};

    fn config() -> LlamaConfig {
        LlamaConfig {
            layers: 1,
            hidden: 32,
            ffn: 768,
            q_heads: 6,
            kv_heads: 2,
            vocabulary: 11,
            variant: Variant { qkv_bias: true, qk_norm: true, post_norms: true, ..Variant::LLAMA },
            ..LlamaConfig::smollm2_135m()
        }
    }

    fn read(weights: &Weights, tensor: Tensor) -> Vec<f32> {
        let [rows, columns] = weights.shape(tensor);
        let mut out = vec![f32::NAN; rows * columns];
        weights.read_f32(tensor, 0..rows, &mut out).unwrap();
        out
    }

    /// The parts of all ranks, put together where the tensor is cut.
    fn together(parts: &[Vec<f32>], shapes: &[[usize; 2]], whole: [usize; 2]) -> Vec<f32> {
        let is_whole = |shape: &[usize; 2]| *shape == whole;
        if shapes.iter().all(is_whole) {
            return parts[0].clone();
        }
        if shapes.iter().all(|shape| shape[1] == whole[1]) {
            return parts.concat();
        }
        let row = |row: usize| {
            let parts = parts.iter().zip(shapes);
            parts.flat_map(move |(part, shape)| part[row * shape[1]..][..shape[1]].to_vec())
        };
        (0..whole[0]).flat_map(row).collect()
    }

    /// Blocks of 8-bit numbers with a scale, or of 256 elements: all bytes count.
    #[derive(Debug)]
    struct Blocks(Format);

    impl Source for Blocks {
        fn read(
            &self,
            tensor: Tensor,
            rows: Range<usize>,
            out: &mut [f32],
        ) -> Result<(), WeightsError> {
            let bytes = self.0.bytes(out.len() as u64).unwrap();
            let mut stored = vec![0; bytes as usize];
            self.read_stored(tensor, rows, &mut stored)?;
            self.0.dequantize(&stored, out);
            Ok(())
        }

        fn format(&self, _: Tensor) -> Format {
            self.0
        }

        fn read_stored(
            &self,
            _: Tensor,
            rows: Range<usize>,
            out: &mut [u8],
        ) -> Result<(), WeightsError> {
            let first = rows.start * (out.len() / rows.len());
            // The upper byte of a scale is small enough that no product overflows.
            let byte = |at: usize| (at * 7 % 61) as u8;
            out.iter_mut().enumerate().for_each(|(at, out)| *out = byte(first + at));
            Ok(())
        }
    }

    #[test]
    fn parts_put_together_are_the_whole_however_it_is_stored() {
        let config = config();
        let stored = |format| Weights::of(config.clone(), Arc::new(Blocks(format)));
        let floats = Weights::synthetic(config.clone(), 5).unwrap();
        for (weights, ranks) in
            [(&floats, 2), (&floats, 3), (&stored(Format::Q8_0), 2), (&stored(Format::Q8_0), 6)]
        {
            let shards = (0..ranks).map(|rank| Shard::new(&config, rank, ranks).unwrap());
            let parts: Vec<Weights> = shards.map(|shard| shard.weights(weights)).collect();
            for tensor in Tensor::all(&config).filter(|tensor| {
                !matches!(
                    tensor,
                    Tensor::Layer(
                        _,
                        LayerTensor::Key
                            | LayerTensor::Value
                            | LayerTensor::KeyBias
                            | LayerTensor::ValueBias
                    )
                ) || ranks == 2
            }) {
                if weights.shape(tensor)[1] % weights.format(tensor).block_elements() > 0 {
                    continue;
                }
                let values: Vec<_> = parts.iter().map(|part| read(part, tensor)).collect();
                let shapes: Vec<_> = parts.iter().map(|part| part.shape(tensor)).collect();
                let together = together(&values, &shapes, weights.shape(tensor));
                assert!(together == read(weights, tensor), "{tensor:?} of {ranks}");
            }
        }
    }

    #[test]
    fn columns_of_whole_blocks_stay_as_they_are_stored_and_others_become_floats() {
        let config = config();
        let weights = Weights::of(config.clone(), Arc::new(Blocks(Format::Q4K)));
        let part = Shard::new(&config, 1, 3).unwrap().weights(&weights);
        let of = |tensor| Tensor::Layer(0, tensor);
        // 256 columns of the feed-forward part, and 128 of queries.
        assert_eq!(part.format(of(LayerTensor::Down)), Format::Q4K);
        assert_eq!(part.format(of(LayerTensor::Output)), Format::F32);
        for tensor in [LayerTensor::Down, LayerTensor::Output].map(of) {
            let [rows, columns] = part.shape(tensor);
            let format = part.format(tensor);
            let mut bytes = vec![0; format.bytes((rows * columns) as u64).unwrap() as usize];
            part.read_stored(tensor, 0..rows, &mut bytes).unwrap();
            let mut decoded = vec![f32::NAN; rows * columns];
            format.dequantize(&bytes, &mut decoded);
            assert_eq!(decoded, read(&part, tensor));
        }
    }
}
