//! Drafts that grow, and what is taken from drafts.

use std::collections::BTreeSet;

use deft::tree::NodeKey;
use proptest::sample::Index;

use super::{Pick, World};
use crate::forest::model::PAGE;

impl World {
    /// A node that carries a draft, or else some node.
    pub(super) fn pick_trunk(&self, pick: Pick) -> Option<usize> {
        let mut drafted = self.model.alive();
        drafted.retain(|&node| self.model.is_drafted(node));
        match drafted.as_slice() {
            [] => self.pick(pick),
            trunks => Some(trunks[pick.index.index(trunks.len())]),
        }
    }

    pub(super) fn grow(&mut self, pick: Pick, parents: &[Index]) -> bool {
        let trunk = if pick.any { self.pick(pick) } else { self.pick_trunk(pick) };
        let Some(trunk) = trunk else { return false };
        let may = !parents.is_empty()
            && (self.model.is_growing(trunk) || self.model.is_drafted(trunk))
            && self.model.pages_to_draft(trunk, parents.len()) <= self.free_pages();
        let mut own = vec![trunk];
        if self.model.is_drafted(trunk) {
            let mut at = 0;
            while at < own.len() {
                own.extend(self.model.children(own[at]));
                at += 1;
            }
        }
        // Later nodes more often: those that a beam would go on from.
        let parents =
            parents.iter().map(|i| own[i.index(own.len()).max(i.index(own.len() + 1) / 2)]);
        let parents: Vec<usize> = parents.collect();
        let keys: Vec<NodeKey> = parents.iter().map(|&i| self.model.nodes[i].key).collect();
        let grown = self.forest.grow_draft(self.model.nodes[trunk].key, &keys);
        assert_eq!(grown.is_ok(), may, "{grown:?}");
        if let Ok(keys) = grown {
            let nodes: Vec<_> = keys.into_iter().zip(parents).collect();
            let first = self.model.nodes.len();
            self.model.grow_block(trunk, &nodes);
            for node in first..self.model.nodes.len() {
                self.write(node, 0);
            }
        }
        may
    }

    pub(super) fn prune_draft_leaves(&mut self, leaves: &[Index]) -> bool {
        let mut drafts = self.model.alive();
        drafts.retain(|&node| self.model.is_draft(node));
        if drafts.is_empty() {
            return false;
        }
        let leaves: Vec<usize> = leaves.iter().map(|i| drafts[i.index(drafts.len())]).collect();
        let distinct: BTreeSet<usize> = leaves.iter().copied().collect();
        let may = distinct.len() == leaves.len()
            && leaves.iter().all(|&leaf| self.model.children(leaf).is_empty());
        let keys: Vec<NodeKey> = leaves.iter().map(|&i| self.model.nodes[i].key).collect();
        let free = self.free_pages();
        let freed = self.forest.prune_draft(&keys);
        assert_eq!(freed.is_ok(), may, "{freed:?}");
        if let Ok(freed) = freed {
            for leaf in leaves {
                let mut next = Some(leaf);
                while let Some(node) = next.filter(|&node| {
                    self.model.is_draft(node) && self.model.children(node).is_empty()
                }) {
                    self.model.prune(node);
                    next = self.model.nodes[node].parent;
                }
            }
            assert_eq!(freed as usize, self.free_pages() - free);
        }
        may
    }

    pub(super) fn gather(&mut self, pick: Pick) -> bool {
        let Some(trunk) = self.pick_trunk(pick) else { return false };
        let tokens = self.model.draft_tokens(trunk);
        let drafted = self.model.is_drafted(trunk);
        let may = drafted && tokens.div_ceil(PAGE) <= self.free_pages();
        let key = self.model.nodes[trunk].key;
        let draft = self.forest.draft_use(key).unwrap();
        assert_eq!(draft.tokens as usize, if drafted { tokens } else { 0 });
        let moves = self.forest.gather_draft(key);
        assert_eq!(moves.is_ok(), may, "{moves:?}");
        if let Ok(moves) = moves {
            assert_eq!(moves.len(), tokens);
            let targets: BTreeSet<_> = moves.iter().map(|step| step.to).collect();
            assert!(moves.iter().all(|step| !targets.contains(&step.from)));
            for step in moves {
                self.store[step.to as usize] = self.store[step.from as usize];
            }
            self.model.gather(trunk);
            let draft = self.forest.draft_use(key).unwrap();
            assert_eq!(draft.pages as usize, tokens.div_ceil(PAGE));
        }
        may
    }

    /// Prunes a draft node, where there is one.
    pub(crate) fn prune_draft(&mut self, index: Index) {
        let mut drafts = self.model.alive();
        drafts.retain(|&node| self.model.is_draft(node));
        if !drafts.is_empty() {
            let node = drafts[index.index(drafts.len())];
            self.forest.prune(self.model.nodes[node].key).unwrap();
            self.model.prune(node);
        }
    }
}
