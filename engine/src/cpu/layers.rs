//! What a model's layers hold, and layers that read the keys and values of others, tried on a model that was not made so.

use deft::NodeKey;
use deft::cache::{LayerMap, PagedOrder, PagedTable};

use super::forward::Wanted;
use super::{CpuModel, build_cache};
use crate::ModelError;

/// Queries, keys and values of a layer for a text.
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionRows {
    /// `[tokens, q_heads, head_dim]`
    pub q: Vec<f32>,
    /// `[tokens, kv_heads, head_dim]`
    pub k: Vec<f32>,
    /// `[tokens, kv_heads, head_dim]`
    pub v: Vec<f32>,
}

impl CpuModel {
    /// Has layers share keys and values as `map` says from now on, or none. All trees are gone.
    ///
    /// # Errors
    /// [`ModelError::Option`] for a map of another number of layers, and for a model with LESS's features, which are of layers
    /// with keys of their own; want of memory.
    pub fn set_layer_map(&mut self, map: Option<LayerMap>) -> Result<(), ModelError> {
        if let Some(map) = map.as_ref().filter(|map| map.layers() != self.config.layers) {
            return Err(ModelError::Option {
                option: "the layer map",
                value: format!("of {} layers", map.layers()),
                expected: format!("of {}", self.config.layers),
            });
        }
        if self.cache.forest().residues().is_some() {
            return Err(ModelError::Option {
                option: "the layer map",
                value: "of a model with LESS's features".to_owned(),
                expected: "of one without".to_owned(),
            });
        }
        self.cache = build_cache(&self.shard, &self.config, &self.params, &self.options, map)?;
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
        let tokens = self.path_length(node)? as f32;
        let width = self.config.kv_width() as usize;
        let mut layers = Vec::new();
        for layer in 0..self.config.layers {
            let mut mean = vec![0.0; 2 * width];
            for (rows, mean) in self.kv(layer, node)?.iter().zip(mean.chunks_exact_mut(width)) {
                for row in rows.chunks_exact(width) {
                    mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x / tokens);
                }
            }
            layers.push(mean);
        }
        Ok(layers)
    }

    /// What attention of each layer has of a text: queries and keys turned by their positions. Trees stay as they are.
    ///
    /// # Errors
    /// Those of [`TreeModel::insert_prompt`](crate::TreeModel::insert_prompt).
    pub fn attention_rows(&mut self, tokens: &[u32]) -> Result<Vec<AttentionRows>, ModelError> {
        self.check_tokens("tokens", tokens)?;
        let node = self.cache.insert_root()?;
        self.scratch.record_queries(self.config.layers);
        let run = self.fill(node, tokens, Wanted::None, &mut Vec::new());
        let queries = self.scratch.recorded_queries();
        let rows = run.and_then(|()| {
            let of_layer =
                |(layer, q)| self.kv(layer, node).map(|[k, v]| AttentionRows { q, k, v });
            (0..).zip(queries).map(of_layer).collect()
        });
        self.cache.prune(node)?;
        rows
    }

    /// K and V of the path to `node`, `[tokens, kv_heads, head_dim]`.
    fn kv(&mut self, layer: u32, node: NodeKey) -> Result<[Vec<f32>; 2], ModelError> {
        let tokens = self.path_length(node)? as u32;
        let elements = (tokens * self.config.kv_width()) as usize;
        let table = PagedTable { order: PagedOrder::Nhd, page_size: tokens.max(1), pages: &[0] };
        let [mut k, mut v] = [(); 2].map(|()| vec![0.0f32; elements]);
        self.cache.export(layer, node, 0..tokens, &table, &mut k, &mut v)?;
        Ok([k, v])
    }
}
