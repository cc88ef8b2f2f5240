//! A forest as simple as can be: every node is a list of token ids.

use std::collections::BTreeSet;

use deft::tree::NodeKey;

/// Tokens to a page.
pub(crate) const PAGE: usize = 64;

pub(crate) struct ModelNode {
    pub(crate) key: NodeKey,
    pub(crate) parent: Option<usize>,
    pub(crate) tokens: Vec<u64>,
    /// For a draft node, its block and its first token's position there.
    pub(crate) draft: Option<(usize, usize)>,
    pub(crate) sealed: bool,
    pub(crate) alive: bool,
}

#[derive(Default)]
pub(crate) struct Model {
    pub(crate) nodes: Vec<ModelNode>,
    next_token: u64,
    /// Tokens that every block was made for, or has grown to.
    blocks: Vec<usize>,
    /// Blocks that have grown.
    grown: BTreeSet<usize>,
}

impl Model {
    pub(crate) fn insert(&mut self, key: NodeKey, parent: Option<usize>) -> usize {
        self.nodes.push(ModelNode {
            key,
            parent,
            tokens: Vec::new(),
            draft: None,
            sealed: false,
            alive: true,
        });
        self.nodes.len() - 1
    }

    pub(crate) fn grow(&mut self, node: usize, k: u32) {
        for _ in 0..k {
            self.next_token += 1;
            self.nodes[node].tokens.push(self.next_token);
        }
    }

    pub(crate) fn insert_block(&mut self, trunk: usize, draft: &[(NodeKey, Option<usize>, u32)]) {
        let first = self.nodes.len();
        let mut begin = 0;
        for &(key, parent, tokens) in draft {
            let node = self.insert(key, Some(parent.map_or(trunk, |parent| first + parent)));
            self.grow(node, tokens);
            self.nodes[node].draft = Some((self.blocks.len(), begin));
            begin += tokens as usize;
        }
        self.blocks.push(begin);
    }

    /// The block of a trunk, if it carries one.
    fn block_of(&self, trunk: usize) -> Option<usize> {
        self.children(trunk)
            .into_iter()
            .find_map(|child| self.nodes[child].draft.map(|draft| draft.0))
    }

    /// Where a trunk's next draft token goes: a page of which all tokens are gone is not written again.
    fn block_end(&self, trunk: usize) -> usize {
        let Some(block) = self.block_of(trunk) else { return 0 };
        let tokens = self.blocks[block];
        let last = (block, (tokens - 1) / PAGE);
        if self.block_pages().contains(&last) { tokens } else { tokens.next_multiple_of(PAGE) }
    }

    /// Pages that `n` more tokens of a trunk's draft take.
    pub(crate) fn pages_to_draft(&self, trunk: usize, n: usize) -> usize {
        let end = self.block_end(trunk);
        (end + n).div_ceil(PAGE) - end.div_ceil(PAGE)
    }

    pub(crate) fn grow_block(&mut self, trunk: usize, nodes: &[(NodeKey, usize)]) {
        let begin = self.block_end(trunk);
        let block = self.block_of(trunk).unwrap_or_else(|| {
            self.blocks.push(0);
            self.blocks.len() - 1
        });
        for (at, &(key, parent)) in (begin..).zip(nodes) {
            let node = self.insert(key, Some(parent));
            self.grow(node, 1);
            self.nodes[node].draft = Some((block, at));
        }
        self.blocks[block] = begin + nodes.len();
        self.grown.insert(block);
    }

    /// Puts the tokens of a trunk's draft together, depth first.
    pub(crate) fn gather(&mut self, trunk: usize) {
        let Some(block) = self.block_of(trunk) else { return };
        let (mut stack, mut end) = (vec![trunk], 0);
        while let Some(node) = stack.pop() {
            stack.extend(self.children(node).into_iter().rev());
            if self.nodes[node].draft.is_some() {
                self.nodes[node].draft = Some((block, end));
                end += self.nodes[node].tokens.len();
            }
        }
        self.blocks[block] = end;
    }

    /// Tokens of a trunk's draft that are left.
    pub(crate) fn draft_tokens(&self, trunk: usize) -> usize {
        let block = self.block_of(trunk);
        let nodes = self.nodes.iter().filter(|node| node.alive && node.draft.is_some());
        let own = nodes.filter(|node| node.draft.map(|draft| draft.0) == block);
        own.map(|node| node.tokens.len()).sum()
    }

    pub(crate) fn has_grown(&self, block: usize) -> bool {
        self.grown.contains(&block)
    }

    pub(crate) fn accept(&mut self, trunk: usize, path: &[usize]) {
        for &node in path {
            let tokens = self.nodes[node].tokens.clone();
            self.nodes[trunk].tokens.extend(tokens);
        }
        for child in self.children(trunk) {
            self.prune(child);
        }
    }

    /// The nodes below `node`, each the only child of the one before.
    pub(crate) fn only_children(&self, node: usize) -> Vec<usize> {
        match self.children(node)[..] {
            [child] => [vec![child], self.only_children(child)].concat(),
            _ => Vec::new(),
        }
    }

    pub(crate) fn merge(&mut self, node: usize, chain: &[usize]) {
        let Some(&last) = chain.last() else { return };
        for child in self.children(last) {
            self.nodes[child].parent = Some(node);
        }
        self.nodes[node].sealed = self.nodes[last].sealed;
        for &below in chain {
            let tokens = std::mem::take(&mut self.nodes[below].tokens);
            self.nodes[node].tokens.extend(tokens);
            self.nodes[below].alive = false;
        }
    }

    pub(crate) fn prune(&mut self, node: usize) {
        self.nodes[node].alive = false;
        for child in self.children(node) {
            self.prune(child);
        }
    }

    pub(crate) fn alive(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|&node| self.nodes[node].alive).collect()
    }

    pub(crate) fn children(&self, node: usize) -> Vec<usize> {
        let mut alive = self.alive();
        alive.retain(|&child| self.nodes[child].parent == Some(node));
        alive
    }

    pub(crate) fn is_draft(&self, node: usize) -> bool {
        self.nodes[node].draft.is_some()
    }

    pub(crate) fn is_drafted(&self, node: usize) -> bool {
        !self.is_draft(node) && self.children(node).iter().any(|&child| self.is_draft(child))
    }

    pub(crate) fn is_growing(&self, node: usize) -> bool {
        !self.is_draft(node) && !self.nodes[node].sealed && !self.is_drafted(node)
    }

    pub(crate) fn root(&self, node: usize) -> usize {
        self.nodes[node].parent.map_or(node, |parent| self.root(parent))
    }

    pub(crate) fn find(&self, key: NodeKey) -> &ModelNode {
        self.nodes.iter().find(|node| node.key == key).unwrap()
    }

    /// What a query at `node` sees.
    pub(crate) fn visible_at(&self, node: &ModelNode) -> Vec<u64> {
        let above = node.parent.map(|parent| &self.nodes[parent]);
        let mut tokens = above.map_or(Vec::new(), |parent| self.visible_at(parent));
        tokens.extend(&node.tokens);
        tokens
    }

    /// Pages that `k` more tokens take.
    pub(crate) fn pages_to_grow(&self, node: usize, k: u32) -> usize {
        let length = self.nodes[node].tokens.len();
        (length + k as usize).div_ceil(PAGE) - length.div_ceil(PAGE)
    }

    /// Pages that hold a token of some node.
    pub(crate) fn live_pages(&self) -> usize {
        let nodes = self.nodes.iter();
        let owned = nodes.filter(|node| node.alive && node.draft.is_none());
        let owned: usize = owned.map(|node| node.tokens.len().div_ceil(PAGE)).sum();
        owned + self.block_pages().len()
    }

    /// `(block, page of it)` of the pages that hold a token of some draft node.
    fn block_pages(&self) -> BTreeSet<(usize, usize)> {
        let mut pages = BTreeSet::new();
        for node in self.nodes.iter().filter(|node| node.alive) {
            if let Some((block, begin)) = node.draft {
                let positions = begin..begin + node.tokens.len();
                pages.extend(positions.map(|position| (block, position / PAGE)));
            }
        }
        pages
    }

    /// Tokens that a block's pages hold, those of pruned nodes beside living ones included.
    pub(crate) fn block_tokens(&self, block: usize) -> usize {
        let pages = self.block_pages();
        let pages = pages.iter().filter(|page| page.0 == block);
        pages.map(|page| PAGE.min(self.blocks[block] - page.1 * PAGE)).sum()
    }
}
