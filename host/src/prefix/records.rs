//! The radix tree of token ids: what is sealed under which salt, and the longest match.

use std::collections::HashMap;

use kernels_gpu::abi::PAGE_TOKENS;

use crate::tree::NodeKey;

/// A page's tokens, as an index.
pub(super) const PAGE: usize = PAGE_TOKENS as usize;

/// A sealed node.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// The ids of its own tokens; at least one.
    pub(super) tokens: Vec<u32>,
    pub(super) parent: Option<NodeKey>,
    pub(super) salt: u64,
    /// In ascending order of their tokens. Any two of them share less than a page.
    pub(super) children: Vec<NodeKey>,
    pub(super) pins: u32,
    /// When it was last used; a parent's is later than its children's.
    pub(super) used: u64,
}

/// The longest match.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Match {
    /// The deepest node all of whose tokens match.
    pub(super) whole: Option<NodeKey>,
    /// Tokens up to its end.
    pub(super) whole_tokens: usize,
    /// A node below it of which some tokens match, and how many.
    pub(super) part: Option<(NodeKey, usize)>,
}

impl Match {
    /// Tokens that match.
    pub(super) fn tokens(&self) -> usize {
        self.whole_tokens + self.part.map_or(0, |(_, tokens)| tokens)
    }
}

/// All sealed nodes.
///
/// Every record's parent has a record, or the node is a root.
#[derive(Clone, Debug, Default)]
pub(super) struct Records {
    nodes: HashMap<NodeKey, Record>,
    /// Roots by salt, as [`Record::children`].
    roots: HashMap<u64, Vec<NodeKey>>,
}

impl Records {
    pub(super) fn get(&self, node: NodeKey) -> Option<&Record> {
        self.nodes.get(&node)
    }

    pub(super) fn get_mut(&mut self, node: NodeKey) -> Option<&mut Record> {
        self.nodes.get_mut(&node)
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeKey, &Record)> {
        self.nodes.iter().map(|(&node, record)| (node, record))
    }

    /// Children of `parent`; the roots of `salt` for none.
    pub(super) fn children(&self, parent: Option<NodeKey>, salt: u64) -> &[NodeKey] {
        let list = match parent {
            Some(parent) => self.nodes.get(&parent).map(|record| &record.children),
            None => self.roots.get(&salt),
        };
        list.map_or(&[], Vec::as_slice)
    }

    fn children_mut(&mut self, parent: Option<NodeKey>, salt: u64) -> &mut Vec<NodeKey> {
        match parent {
            Some(parent) => &mut self.record_mut(parent).children,
            None => self.roots.entry(salt).or_default(),
        }
    }

    fn record_mut(&mut self, node: NodeKey) -> &mut Record {
        let record = self.nodes.get_mut(&node);
        record.expect("links name nodes that are indexed")
    }

    /// Ids of a node that is indexed.
    pub(super) fn tokens(&self, node: NodeKey) -> &[u32] {
        &self.nodes[&node].tokens
    }

    pub(super) fn insert(&mut self, node: NodeKey, record: Record) {
        let (parent, salt) = (record.parent, record.salt);
        let list = self.children(parent, salt);
        let at = list.partition_point(|&child| self.tokens(child) <= &record.tokens[..]);
        self.children_mut(parent, salt).insert(at, node);
        self.nodes.insert(node, record);
    }

    /// Takes `node` out, which has no children in the index.
    pub(super) fn remove(&mut self, node: NodeKey) -> Option<Record> {
        let record = self.nodes.remove(&node)?;
        let list = self.children_mut(record.parent, record.salt);
        list.retain(|&child| child != node);
        if list.is_empty() && record.parent.is_none() {
            self.roots.remove(&record.salt);
        }
        Some(record)
    }

    /// Gives the first `tokens` tokens of `node` to `upper`, which takes its place; `node` is its only child then.
    pub(super) fn split(&mut self, node: NodeKey, tokens: usize, upper: NodeKey) {
        let record = self.record_mut(node);
        let rest = record.tokens.split_off(tokens);
        let front = std::mem::replace(&mut record.tokens, rest);
        let (parent, salt, used) = (record.parent, record.salt, record.used);
        record.parent = Some(upper);
        // Siblings share less than a page with either, so the order stays.
        for child in self.children_mut(parent, salt) {
            if *child == node {
                *child = upper;
            }
        }
        let record = Record { tokens: front, parent, salt, children: vec![node], pins: 0, used };
        self.nodes.insert(upper, record);
    }

    /// `node` and all indexed nodes below it, each before its children.
    pub(super) fn subtree(&self, node: NodeKey) -> Vec<NodeKey> {
        let mut all = vec![node];
        let mut next = 0;
        while let Some(record) = all.get(next).and_then(|node| self.nodes.get(node)) {
            all.extend_from_slice(&record.children);
            next += 1;
        }
        all
    }

    /// The longest beginning of `tokens` that is sealed under `salt`; of equal ones that which ends with a node.
    pub(super) fn find(&self, tokens: &[u32], salt: u64) -> Match {
        let mut best = Match::default();
        let mut open = vec![(None, 0)];
        while let Some((above, matched)) = open.pop() {
            if matched > best.tokens() || (matched == best.tokens() && best.part.is_some()) {
                best = Match { whole: above, whole_tokens: matched, part: None };
            }
            let rest = &tokens[matched..];
            self.matches(above, salt, rest, |node, common| {
                if common == self.tokens(node).len() {
                    open.push((Some(node), matched + common));
                } else if matched + common > best.tokens() {
                    best =
                        Match { whole: above, whole_tokens: matched, part: Some((node, common)) };
                }
            });
        }
        best
    }

    /// Children that begin as `rest` does, with the number of tokens in common: all that end within `rest`, and the
    /// one with most.
    ///
    /// Of a sorted list the strings on either side of `rest` have most in common with it. A child that is a beginning
    /// of `rest` is one of everything between the two, so the others of them are before the beginning in common.
    pub(super) fn matches(
        &self,
        above: Option<NodeKey>,
        salt: u64,
        rest: &[u32],
        mut found: impl FnMut(NodeKey, usize),
    ) {
        let list = self.children(above, salt);
        let up_to = |rest: &[u32]| list.partition_point(|&child| self.tokens(child) <= rest);
        let mut at = up_to(rest);
        if let Some(&after) = list.get(at) {
            match in_common(self.tokens(after), rest) {
                0 => {}
                common => found(after, common),
            }
        }
        while let Some(&before) = list[..at].last() {
            let tokens = self.tokens(before);
            let common = in_common(tokens, rest);
            if common == 0 {
                return;
            }
            found(before, common);
            at = up_to(&rest[..common - usize::from(common == tokens.len())]);
        }
    }
}

/// Tokens that `a` and `b` begin with.
pub(super) fn in_common(a: &[u32], b: &[u32]) -> usize {
    const STEP: usize = 16;
    let blocks = a.chunks_exact(STEP).zip(b.chunks_exact(STEP));
    let equal = STEP * blocks.take_while(|(a, b)| a == b).count();
    let rest = a[equal..].iter().zip(&b[equal..]);
    equal + rest.take_while(|(a, b)| a == b).count()
}
