//! Nodes of fewer rows than tokens.

use std::sync::Arc;

use kernels_gpu::abi::{Cell, PAGE_TOKENS, RowSource, RowTarget};

use super::{CacheError, TreeCache, score};
use crate::attention::{BackendError, Compact};
use crate::format::KvFormat;
use crate::retain::{Compaction, HeadCompaction};
use crate::tree::{
    Compacting, FeatureMap, HeadRows, NodeKey, NodeRows, Residue, Residues, pages_for,
};

impl TreeCache {
    /// Replaces the rows of K and V of a node's first [`Compaction::tokens`] tokens, which fill pages, by fewer, as
    /// many in each layer and KV head as `compaction` says; the pages that are left over are free at once. Returns
    /// how many those are. What the node grows by stays native. Its length, its tokens and their positions are what they were, and
    /// attention over it is attention over the rows that are left, each with its bias added to its logit. A node may be
    /// compacted again, with more tokens or fewer rows.
    ///
    /// A compacted node leaves the prefix index, and so does all below it: these nodes are pruned by who uses them, as
    /// those are that were never sealed; indexed nodes below that nobody uses are evicted. It is neither exported, cut,
    /// merged into another nor sealed in a format. Batches made before are out of date.
    ///
    /// A compaction that leaves every row what and where it is changes nothing.
    ///
    /// # Errors
    /// [`CacheError::Compaction`] for rows that the node does not have; [`BackendError::Format`](crate::attention::BackendError::Format) of a device that has no
    /// compacted pages; [`ForestError::OtherFormat`](crate::tree::ForestError::OtherFormat) for a node with pages of a
    /// format, [`ForestError::Draft`](crate::tree::ForestError::Draft),
    /// [`ForestError::TokenRange`](crate::tree::ForestError::TokenRange);
    /// [`PrefixError::Pinned`](crate::prefix::PrefixError::Pinned) for a sealed prefix that somebody has pinned;
    /// [`PoolError::OutOfPages`](crate::cache::PoolError::OutOfPages), for the new pages are there before the old ones
    /// are free.
    pub fn compact_node(
        &mut self,
        node: NodeKey,
        compaction: &Compaction,
    ) -> Result<u32, CacheError> {
        let shape = *self.backend.shape();
        self.backend.check_format(KvFormat::Compacted)?;
        crate::cache::in_range("pages times kv_heads", shape.cells(), u64::from(u32::MAX))?;
        let heads = shape.layers as usize * shape.kv_heads as usize;
        let rows = self.forest.node_rows(node, compaction.tokens)?;
        let counts: Vec<_> = (0..heads).map(|head| rows.count(head, compaction.tokens)).collect();
        compaction.check(&counts)?;
        if compaction.is_identity(&counts) && keeps_biases(&rows, compaction) {
            return Ok(0);
        }
        self.check_folded(compaction)?;
        self.prefix.check_unpinned(node)?;
        let new: Vec<_> = compaction.heads.iter().map(|head| head.rows.len() as u32).collect();
        let biased: Vec<_> = compaction.heads.iter().map(is_biased).collect();
        self.map_for(pages_for(&new, shape.kv_heads))?;
        let free = self.forest.pool().free();
        let compacting =
            self.forest.begin_compact(node, compaction.tokens, shape.kv_heads, &new, &biased)?;
        let fresh = self.clear_fresh().map_err(CacheError::from);
        let moved = fresh.and_then(|()| {
            let folded = self.fold(node, compaction)?;
            self.move_rows(node, compaction, &compacting)?;
            Ok(folded)
        });
        let folded = match moved {
            Ok(folded) => folded,
            Err(error) => {
                self.forest.abandon_compact(compacting);
                self.settle();
                return Err(error);
            }
        };
        let rows = self.forest.node_rows(node, compaction.tokens)?;
        let heads = rows_afterwards(&rows, compaction);
        self.forest.finish_compact(compacting, heads, folded);
        self.prefix.release(&mut self.forest, node)?;
        self.settle();
        Ok(self.forest.pool().free() - free)
    }

    /// Has rows that compactions fold away ([`HeadCompaction::folded`]) become features by `map`: what queries see of them is
    /// one more partial result for each node that has such rows.
    ///
    /// # Errors
    /// [`CacheError::FeatureMapInUse`] as long as nodes have rows folded by the map before it;
    /// [`BackendError::Residues`](crate::attention::BackendError::Residues) on a device that cannot read them.
    pub fn set_feature_map(&mut self, map: Arc<dyn FeatureMap>) -> Result<(), CacheError> {
        self.check_residues()?;
        self.forest.set_residues(Residues::new(map)).ok_or(CacheError::FeatureMapInUse)
    }

    fn check_residues(&self) -> Result<(), CacheError> {
        match self.backend.has_residues() {
            true => Ok(()),
            false => Err(BackendError::Residues { backend: self.backend.name() }.into()),
        }
    }

    /// Whether the rows that are to be folded can be.
    fn check_folded(&self, compaction: &Compaction) -> Result<(), CacheError> {
        let mut heads = compaction.heads.iter().enumerate();
        let Some((head, of)) = heads.find(|(_, of)| !of.folded.is_empty()) else {
            return Ok(());
        };
        self.check_residues()?;
        match self.forest.residues() {
            Some(_) => Ok(()),
            None => Err(CacheError::NoFeatureMap { head, rows: of.folded.len() }),
        }
    }

    /// What is left of the rows to be folded, `[layers, kv_heads]`; empty if there are none.
    fn fold(&mut self, node: NodeKey, compaction: &Compaction) -> Result<Vec<Residue>, CacheError> {
        let Some(map) = self.forest.residues().map(|residues| residues.map().clone()) else {
            return Ok(Vec::new());
        };
        if compaction.heads.iter().all(|of| of.folded.is_empty()) {
            return Ok(Vec::new());
        }
        let shape = *self.backend.shape();
        let rows = self.forest.node_rows(node, compaction.tokens)?;
        let (head_dim, mut features) = (shape.head_dim as usize, vec![0.0; map.rank()]);
        let mut cell = [(); 2].map(|()| vec![0.0; shape.page().half_elements()]);
        let mut residues = Vec::with_capacity(compaction.heads.len());
        for (head, of) in compaction.heads.iter().enumerate() {
            let (layer, kv_head) = (head as u32 / shape.kv_heads, head as u32 % shape.kv_heads);
            let (mut residue, mut held) = (Residue::default(), None);
            for &row in &of.folded {
                let (at, token) = rows.place(head, row, shape.kv_heads);
                let [k, v] = &mut cell;
                if held.replace(at) != Some(at) {
                    self.backend.read_cells(layer, &[at], [k, v])?;
                }
                let own = token as usize * head_dim..(token as usize + 1) * head_dim;
                map.psi(layer, kv_head, &k[own.clone()], &mut features);
                // A row of n tokens has the bias ln n: it counts as often here.
                residue.fold(&features, &v[own], rows.token(head, row).1.exp());
            }
            residues.push(residue);
        }
        Ok(residues)
    }

    /// Writes the rows to their new places, layer by layer.
    fn move_rows(
        &mut self,
        node: NodeKey,
        compaction: &Compaction,
        compacting: &Compacting,
    ) -> Result<(), CacheError> {
        let kv_heads = self.backend.shape().kv_heads;
        let rows = self.forest.node_rows(node, compaction.tokens)?;
        let (mut targets, mut sources) = (Vec::new(), Vec::new());
        let layers = compaction.heads.chunks_exact(kv_heads as usize);
        for (layer, heads) in (0..).zip(layers) {
            targets.clear();
            sources.clear();
            let first = (layer * kv_heads) as usize;
            for (head, of) in (first..).zip(heads) {
                let cells = &compacting.cells[head];
                push_targets(of, cells, sources.len() as u32, &mut targets);
                sources.extend(of.sources.iter().map(|source| {
                    let (cell, token) = rows.place(head, source.row, kv_heads);
                    RowSource { cell, token, k: source.k, v: source.v }
                }));
            }
            let biased = heads.iter().any(is_biased);
            let call = Compact { layer, targets: &targets, sources: &sources, biased };
            self.backend.compact(call)?;
            if let Some(scored) = &self.scored {
                let backend = &mut *self.backend;
                score::move_rows(backend, scored.reduce, layer, &targets, &sources)?;
            }
        }
        Ok(())
    }
}

/// Adds the places of a head's new rows; its sources come after `before` others.
fn push_targets(head: &HeadCompaction, cells: &[Cell], before: u32, targets: &mut Vec<RowTarget>) {
    targets.extend((0..).zip(&head.rows).map(|(at, row)| RowTarget {
        cell: cells[(at / PAGE_TOKENS) as usize].cell,
        token: at % PAGE_TOKENS,
        end: before + row.end,
        bias: row.bias,
    }));
}

fn is_biased(head: &HeadCompaction) -> bool {
    head.rows.iter().any(|row| row.bias != 0.0)
}

/// Whether each row has the bias that it is to have.
fn keeps_biases(now: &NodeRows<'_>, compaction: &Compaction) -> bool {
    compaction.heads.iter().enumerate().all(|(head, of)| {
        of.each_row().all(|(sources, row)| now.token(head, sources[0].row).1 == row.bias)
    })
}

/// Tokens and biases of the rows that are left.
fn rows_afterwards(now: &NodeRows<'_>, compaction: &Compaction) -> Vec<HeadRows> {
    let of_head = |(head, of): (usize, &HeadCompaction)| {
        let pivots = of.each_row().map(|(sources, _)| sources[0].row);
        let positions = pivots.map(|row| now.token(head, row).0).collect();
        let biases = match is_biased(of) {
            true => of.rows.iter().map(|row| row.bias).collect(),
            false => Vec::new(),
        };
        HeadRows { positions, biases }
    };
    compaction.heads.iter().enumerate().map(of_head).collect()
}
