//! Native pages that lie elsewhere from now on.

use std::collections::HashMap;

use super::TokenForest;
use super::node::Content;
use crate::cache::PageId;

impl TokenForest {
    /// Gives every owner of a page the page that it was moved to: `moves` are of held native pages to free ones.
    pub(crate) fn relocate(&mut self, moves: &[(PageId, PageId)]) {
        let moved: HashMap<PageId, PageId> = moves.iter().copied().collect();
        let follow = |page: &mut PageId| {
            if let Some(&to) = moved.get(page) {
                *page = to;
            }
        };
        for node in self.nodes.values_mut() {
            let coded = node.coded_pages();
            if let Content::Owned { pages, .. } = &mut node.content {
                pages[coded..].iter_mut().for_each(follow);
            }
            if let Some(compacted) = &mut node.compacted {
                compacted.pages.iter_mut().for_each(follow);
            }
        }
        self.blocks.values_mut().for_each(|block| block.pages.iter_mut().for_each(follow));
        self.tail_pages.iter_mut().for_each(follow);
        if let Some(directory) = &mut self.directory {
            directory.relocate(|page| moved.get(&page).copied());
        }
        for &(from, to) in moves {
            self.pool.relocate(from, to);
        }
        self.changes.reshaped();
    }
}
