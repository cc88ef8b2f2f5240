//! What each operation does to a world.

use deft::cache::{PagedOrder, PagedTable};
use deft::{CacheError, DraftNode, Grouping, KvElement, NodeKey};

use super::super::GROUPINGS;
use super::world::World;
use super::{BATCHES, HEADS, LAYERS, Op, Pick, ROW};

impl<T: KvElement> World<T> {
    pub(super) fn apply(&mut self, op: &Op) -> Result<(), CacheError> {
        match op {
            Op::Root => {
                let root = self.cache.insert_root()?;
                self.insert(root, None);
            }
            Op::Fork(node, n) => {
                let node = self.node(node);
                for child in self.cache.fork(node, *n)? {
                    self.insert(child, Some(node));
                }
            }
            Op::Batch(nodes) => {
                let nodes: Vec<_> = nodes.iter().map(|(pick, n)| (self.node(pick), *n)).collect();
                let batch = self.cache.batch(&nodes)?;
                self.step(&batch, false);
                self.batches.push(batch);
                if self.batches.len() > BATCHES {
                    self.batches.remove(0);
                }
            }
            Op::Advance(at, n) => {
                let Some(mut batch) = self.batch(at) else {
                    return Ok(());
                };
                let outcome = self.cache.advance(&mut batch, *n);
                self.put(at, &batch);
                outcome?;
                self.step(&batch, false);
            }
            Op::Refresh(at) => {
                let Some(mut batch) = self.batch(at) else {
                    return Ok(());
                };
                let outcome = self.cache.refresh(&mut batch);
                self.put(at, &batch);
                outcome?;
                self.step(&batch, false);
            }
            Op::Regroup(at, grouping) => {
                let Some(mut batch) = self.batch(at) else {
                    return Ok(());
                };
                let grouping: Grouping = *grouping.get(&GROUPINGS);
                let outcome = self.cache.regroup(&mut batch, grouping);
                self.put(at, &batch);
                outcome?;
                self.step(&batch, false);
            }
            Op::Step(at, rotated) => {
                let Some(batch) = self.batch(at) else {
                    return Ok(());
                };
                self.probe(&batch)?;
                self.step(&batch, *rotated);
            }
            Op::Wrong(at, kind) => {
                let Some(batch) = self.batch(at) else {
                    return Ok(());
                };
                self.wrong(&batch, *kind);
            }
            Op::Import(node, k, page_size, hnd) => self.import(node, *k, *page_size, *hnd)?,
            Op::Export(node, begin, end, page_size) => {
                self.export(node, *begin, *end, *page_size)?
            }
            Op::Shrink(nodes, k) => {
                let nodes: Vec<_> = nodes.iter().map(|pick| self.node(pick)).collect();
                self.cache.shrink(&nodes, *k)?;
                for node in nodes {
                    let length = self.length(node);
                    self.shadow.replace(node, length, Vec::new());
                }
            }
            Op::Draft(trunk, draft) => self.draft(trunk, draft)?,
            Op::Accept(node, path) => self.accept(node, path)?,
            Op::Merge(node) => self.merge(node)?,
            Op::Prune(node) => {
                let node = self.node(node);
                self.cache.prune(node)?;
            }
        }
        Ok(())
    }

    /// New tokens of a leaf that come from pages of another engine.
    fn import(&mut self, pick: &Pick, k: u32, page_size: u32, hnd: bool) -> Result<(), CacheError> {
        let node = self.node(pick);
        let order = if hnd { PagedOrder::Hnd } else { PagedOrder::Nhd };
        let no_pages = PagedTable { order, page_size, pages: &[] };
        if page_size == 0 {
            return self.cache.import::<T>(0, node, 0..k.max(1), &no_pages, &[], &[]);
        }
        self.cache.extend(&[node], k)?;
        let rows = self.rows(k as usize);
        let end = self.cache.forest().context_length(node)? as u32;
        // Backwards, so that pages are in no order.
        let pages: Vec<u32> = (0..k.div_ceil(page_size)).rev().collect();
        let table = PagedTable { pages: &pages, ..no_pages };
        for (layer, kv) in (0..).zip(&rows) {
            let [keys, values] =
                kv.each_ref().map(|rows| to_pages(rows, page_size as usize, &pages, hnd));
            let imported = self.cache.import(layer, node, end - k..end, &table, &keys, &values);
            imported.expect("the tokens are there");
        }
        let kept = self.length(node) - k as usize;
        self.shadow.replace(node, kept, Self::exact(&rows, 0, k as usize));
        Ok(())
    }

    fn export(
        &mut self,
        pick: &Pick,
        begin: u32,
        end: u32,
        page_size: u32,
    ) -> Result<(), CacheError> {
        let node = self.node(pick);
        let tokens = end.saturating_sub(begin).min(2000) as usize;
        let pages: Vec<u32> = (0..tokens.div_ceil(page_size.max(1) as usize) as u32).collect();
        let table = PagedTable { order: PagedOrder::Nhd, page_size, pages: &pages };
        let room = pages.len() * page_size.max(1) as usize * ROW;
        for layer in 0..LAYERS {
            let [mut k, mut v] = [(); 2].map(|()| vec![T::from_f32(7.0); room]);
            self.cache.export(layer, node, begin..end, &table, &mut k, &mut v)?;
            for (at, token) in
                self.shadow.path(node)[begin as usize..end as usize].iter().enumerate()
            {
                for (found, right) in [&k, &v].into_iter().zip(&token[layer as usize]) {
                    let spoilt = token[layer as usize].iter().flatten().any(|x| !x.is_finite());
                    let found = found[at * ROW..][..ROW].iter().map(|x| f64::from(x.to_f32()));
                    let same = found.zip(right).all(|(a, &b)| a == b || a.is_nan() && b.is_nan());
                    assert!(same || self.kernels && spoilt, "token {at} of layer {layer}");
                }
            }
        }
        Ok(())
    }

    fn draft(&mut self, trunk: &Pick, draft: &[(Option<u32>, u32)]) -> Result<(), CacheError> {
        let trunk = self.node(trunk);
        let draft: Vec<_> =
            draft.iter().map(|&(parent, tokens)| DraftNode { parent, tokens }).collect();
        let keys = self.cache.insert_draft(trunk, &draft)?;
        for (&key, node) in keys.iter().zip(&draft) {
            let parent = node.parent.map_or(trunk, |parent| keys[parent as usize]);
            self.insert(key, Some(parent));
        }
        // One by one from the top: no node sees those that are not written yet, whatever is in their pages.
        for (&key, node) in keys.iter().zip(&draft) {
            let batch = self.cache.batch_held(&[(key, node.tokens)]).unwrap();
            self.step(&batch, false);
        }
        Ok(())
    }

    fn accept(&mut self, pick: &Pick, path: &[Pick]) -> Result<(), CacheError> {
        let forest = self.cache.forest();
        let mut trunk = self.node(pick);
        let mut nodes: Vec<_> = path.iter().map(|pick| self.node(pick)).collect();
        if forest.is_draft(trunk).unwrap_or(false) {
            nodes.clear();
            while forest.is_draft(trunk)? {
                nodes.insert(0, trunk);
                trunk = forest.parent(trunk)?.expect("a draft has a trunk");
            }
        }
        self.cache.accept(trunk, &nodes)?;
        self.shadow.merge(trunk, &nodes, &[]);
        self.look(trunk);
        Ok(())
    }

    fn merge(&mut self, pick: &Pick) -> Result<(), CacheError> {
        let node = self.node(pick);
        let children = |of: NodeKey| -> Vec<NodeKey> {
            let children = self.cache.forest().children(of);
            children.map(Iterator::collect).unwrap_or_default()
        };
        let (mut below, mut last) = (Vec::new(), children(node));
        while let [only] = last[..] {
            below.push(only);
            last = children(only);
        }
        self.cache.merge_chain(node)?;
        self.shadow.merge(node, &below, &last);
        self.look(node);
        Ok(())
    }
}

/// `rows` in pages of another engine's cache.
fn to_pages<T: KvElement>(rows: &[T], page_size: usize, pages: &[u32], hnd: bool) -> Vec<T> {
    let (heads, dim) = (HEADS[1] as usize, HEADS[2] as usize);
    let mut paged = vec![T::from_f32(7.0); pages.len() * page_size * ROW];
    for (at, row) in rows.chunks_exact(dim).enumerate() {
        let (token, head) = (at / heads, at % heads);
        let (page, slot) = (pages[token / page_size] as usize, token % page_size);
        let within = if hnd { head * page_size + slot } else { slot * heads + head };
        let place = (page * page_size * heads + within) * dim;
        paged[place..place + dim].copy_from_slice(row);
    }
    paged
}
