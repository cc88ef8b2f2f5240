//! Layers that read the keys and values of others, tried on a model that was not made so.

use deft::NodeKey;
use deft::cache::{LayerMap, PagedOrder, PagedTable};

use super::{CpuModel, build_cache};
use crate::ModelError;

impl CpuModel {
    /// Has layers share keys and values as `map` says from now on, or none. All trees are gone.
    ///
    /// # Errors
    /// [`ModelError::Option`] for a map of another number of layers; want of memory.
    pub fn set_layer_map(&mut self, map: Option<LayerMap>) -> Result<(), ModelError> {
        if let Some(map) = map.as_ref().filter(|map| map.layers() != self.config.layers) {
            return Err(ModelError::Option {
                option: "the layer map",
                value: format!("of {} layers", map.layers()),
                expected: format!("of {}", self.config.layers),
            });
        }
        self.cache = build_cache(&self.shard, &self.config, &self.params, self.options, map)?;
        self.step = None;
        Ok(())
    }

    /// The state that the last row of logits is of, as the head reads it: `[hidden]`.
    pub fn final_state(&self) -> &[f32] {
        let (rows, width) = (self.scratch.normed(), self.config.hidden as usize);
        &rows[rows.len().saturating_sub(width)..]
    }

    /// Of each layer the mean over the tokens of the path to `node`: K, then V, `[2, kv_heads, head_dim]`.
    ///
    /// # Errors
    /// [`ModelError::Cache`].
    pub fn mean_kv(&mut self, node: NodeKey) -> Result<Vec<Vec<f32>>, ModelError> {
        let tokens = self.path_length(node)? as u32;
        let width = self.config.kv_width() as usize;
        let table = PagedTable { order: PagedOrder::Nhd, page_size: tokens.max(1), pages: &[0] };
        let mut layers = Vec::new();
        for layer in 0..self.config.layers {
            let [mut k, mut v] = [(); 2].map(|()| vec![0.0f32; tokens as usize * width]);
            self.cache.export(layer, node, 0..tokens, &table, &mut k, &mut v)?;
            let mut mean = vec![0.0; 2 * width];
            for (rows, mean) in [k, v].iter().zip(mean.chunks_exact_mut(width)) {
                for row in rows.chunks_exact(width) {
                    mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x / tokens as f32);
                }
            }
            layers.push(mean);
        }
        Ok(layers)
    }
}
