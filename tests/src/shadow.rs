//! A cache as one would write it down: every token's K and V by node, and attention by its definition.

use std::collections::HashMap;

use deft::plan::HeadShape;
use deft::tree::{Run, TreeView};
use deft::{KvElement, KvFormat, NodeKey, TreeCache};
use kernels_gpu::abi::PAGE_TOKENS;

use crate::oracle::reference_params;
use crate::reference::attention::{self, ReferenceOutput};

/// K and V of one token, `[layer][k, v][kv_heads, head_dim]`.
pub type Token = Vec<[Vec<f64>; 2]>;

/// What a [`TreeCache`] should hold.
#[derive(Debug, Default)]
pub struct Shadow {
    nodes: HashMap<NodeKey, Node>,
}

#[derive(Debug)]
struct Node {
    parent: Option<NodeKey>,
    tokens: Vec<Token>,
}

impl Shadow {
    /// Adds a node without tokens.
    pub fn insert(&mut self, node: NodeKey, parent: Option<NodeKey>) {
        let tokens = Vec::new();
        self.nodes.insert(node, Node { parent, tokens });
    }

    /// Adds a token to a node.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn push(&mut self, node: NodeKey, token: Token) {
        self.nodes.get_mut(&node).unwrap().tokens.push(token);
    }

    /// Gives a node `tokens` in the place of its last ones, as many as it had more than `kept`.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn replace(&mut self, node: NodeKey, kept: usize, tokens: Vec<Token>) {
        let held = &mut self.nodes.get_mut(&node).unwrap().tokens;
        held.truncate(kept);
        held.extend(tokens);
    }

    /// Gives `node` the tokens of `below`, a chain, and `children`, those of the last of them.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn merge(&mut self, node: NodeKey, below: &[NodeKey], children: &[NodeKey]) {
        for other in below {
            let tokens = self.nodes[other].tokens.clone();
            self.nodes.get_mut(&node).unwrap().tokens.extend(tokens);
        }
        for child in children {
            self.nodes.get_mut(child).unwrap().parent = Some(node);
        }
    }

    /// The tokens of a node.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn tokens(&self, node: NodeKey) -> &[Token] {
        &self.nodes[&node].tokens
    }

    /// The same, to be changed.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn tokens_mut(&mut self, node: NodeKey) -> &mut Vec<Token> {
        &mut self.nodes.get_mut(&node).unwrap().tokens
    }

    /// The node above a node.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn parent(&self, node: NodeKey) -> Option<NodeKey> {
        self.nodes[&node].parent
    }

    /// Puts a node below another one.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn move_below(&mut self, node: NodeKey, parent: NodeKey) {
        self.nodes.get_mut(&node).unwrap().parent = Some(parent);
    }

    /// Tokens on the path from the root down to `node`.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn path(&self, node: NodeKey) -> Vec<&Token> {
        let parents = std::iter::successors(Some(node), |node| self.nodes[node].parent);
        let mut nodes: Vec<_> = parents.collect();
        nodes.reverse();
        nodes.iter().flat_map(|node| &self.nodes[node].tokens).collect()
    }

    /// Attention of `q`, `[leaves, q_heads, head_dim]`, at `leaves` of `cache`.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn attend<T: KvElement>(
        &self,
        cache: &TreeCache,
        layer: usize,
        leaves: &[NodeKey],
        q: &[T],
    ) -> ReferenceOutput {
        let rows: Vec<_> = leaves.iter().map(|&leaf| (leaf, 0)).collect();
        self.attend_rows(cache, layer, &rows, q)
    }

    /// Attention of `q`, `[rows, q_heads, head_dim]`, at `rows`: nodes, each with as many of its last tokens as the row
    /// does not see.
    ///
    /// # Panics
    /// If there is no such node.
    pub fn attend_rows<T: KvElement>(
        &self,
        cache: &TreeCache,
        layer: usize,
        rows: &[(NodeKey, usize)],
        q: &[T],
    ) -> ReferenceOutput {
        let config = cache.config();
        let heads = HeadShape {
            q_heads: config.q_heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        };
        let params = reference_params(heads, &config.params());
        let q: Vec<f64> = q.iter().map(|value| value.to_f32().into()).collect();
        let path = |&(node, unseen): &(NodeKey, usize)| {
            let mut path = self.path(node);
            path.truncate(path.len() - unseen);
            path
        };
        let paths: Vec<_> = rows.iter().map(path).collect();
        let (view, places) = separate_sequences(paths.iter().map(Vec::len));
        attention::attend(&view, &params, &q, |page, token, head| {
            let (path, first) = places[page as usize];
            let [k, v] = &paths[path][first + token as usize][layer];
            let row = head * params.head_dim..(head + 1) * params.head_dim;
            (&k[row.clone()], &v[row])
        })
    }
}

/// A view in which nothing is shared, and of each page the sequence and its first token.
fn separate_sequences(lengths: impl Iterator<Item = usize>) -> (TreeView, Vec<(usize, usize)>) {
    let mut view = TreeView::default();
    let mut places = Vec::new();
    for (sequence, tokens) in lengths.enumerate() {
        let first = view.pages.len() as u32;
        for at in (0..tokens).step_by(PAGE_TOKENS as usize) {
            view.pages.push(places.len() as u32);
            places.push((sequence, at));
        }
        view.runs.push(Run {
            parent: None,
            queries: view.queries..view.queries + 1,
            tokens: tokens as u32,
            format: KvFormat::Native,
            first_token: 0,
            pages: first..view.pages.len() as u32,
            length_slot: None,
            mask: None,
            causal: 0,
        });
        view.query_order.push(view.queries);
        view.queries += 1;
    }
    (view, places)
}
