//! Single attention problems: forests with lengths and queries.

use serde::Deserialize;

use super::shape::{check_heads, check_parents, check_range, check_same_length};
use super::{MAX_TOKENS, WorkloadError};
use deft::abi::PAGE_TOKENS;
use deft::cache::{DType, PagePool};
use deft::plan::HeadShape;
use deft::tree::{DraftNode, ForestError, NodeKey, TokenForest};

/// One attention problem: what a decode step of some forest asks.
#[derive(Clone, Debug, PartialEq)]
pub struct StepWorkload {
    /// What it is called.
    pub name: String,
    /// Heads of the layer.
    pub heads: HeadShape,
    /// How K and V are stored.
    pub dtype: DType,
    trees: Vec<StepTree>,
}

/// A tree with lengths and queries.
#[derive(Clone, Debug, PartialEq)]
pub struct StepTree {
    parents: Vec<Option<u32>>,
    tokens: Vec<u32>,
    queries: Vec<u32>,
}

/// A forest made from a workload.
#[derive(Debug)]
pub struct BuiltForest {
    /// The forest.
    pub forest: TokenForest,
    /// The nodes that have a query.
    pub queries: Vec<NodeKey>,
}

#[derive(Deserialize)]
struct RawWorkload {
    name: String,
    num_q_heads: u32,
    num_kv_heads: u32,
    head_dim: u32,
    dtype: DType,
    trees: Vec<RawTree>,
}

#[derive(Deserialize)]
struct RawTree {
    parents: Vec<i64>,
    lens: Vec<i64>,
    queries: Option<Vec<u32>>,
}

impl StepWorkload {
    /// Reads a file of workloads: a list of `{name, num_q_heads, num_kv_heads, head_dim, dtype, trees:
    /// [{parents, lens, queries?}]}`, `parents` with -1 for the root, which is node 0, and a query at
    /// every leaf where `queries` is left out.
    ///
    /// # Errors
    /// A [`WorkloadError`] that says which workload and tree is wrong, and how.
    pub fn parse(json: &str) -> Result<Vec<Self>, WorkloadError> {
        let raw: Vec<RawWorkload> = serde_json::from_str(json)?;
        raw.into_iter().map(Self::check).collect()
    }

    fn check(raw: RawWorkload) -> Result<Self, WorkloadError> {
        let at = format!("workload {:?}", raw.name);
        let heads = HeadShape {
            q_heads: raw.num_q_heads,
            kv_heads: raw.num_kv_heads,
            head_dim: raw.head_dim,
        };
        check_heads(&at, heads)?;
        if raw.trees.is_empty() {
            return Err(WorkloadError::Empty { at, what: "trees" });
        }
        let mut total = 0;
        let mut trees = Vec::with_capacity(raw.trees.len());
        for (i, tree) in raw.trees.into_iter().enumerate() {
            trees.push(StepTree::check(&format!("{at}, tree {i}"), tree, &mut total)?);
        }
        Ok(Self { name: raw.name, heads, dtype: raw.dtype, trees })
    }

    /// The trees.
    pub fn trees(&self) -> &[StepTree] {
        &self.trees
    }

    /// Builds the forest. A tree that asks at all nodes but its root, each a few tokens long, becomes a
    /// draft below the root, every other one is forked.
    ///
    /// The pool has `spare_pages` more than are filled.
    ///
    /// # Errors
    /// Those of the forest's operations, where the workload asks for more than a forest holds.
    pub fn build(&self, spare_pages: u32) -> Result<BuiltForest, WorkloadError> {
        let pages: u32 = self.trees.iter().map(StepTree::most_pages).sum();
        let pages = pages.saturating_add(spare_pages).max(1);
        let mut forest = TokenForest::new(PagePool::new(pages)?);
        let mut queries = Vec::new();
        for tree in &self.trees {
            let keys = if tree.is_draft() {
                tree.build_draft(&mut forest)?
            } else {
                tree.build_forked(&mut forest)?
            };
            queries.extend(tree.queries.iter().map(|&node| keys[node as usize]));
        }
        Ok(BuiltForest { forest, queries })
    }
}

impl StepTree {
    fn check(at: &str, raw: RawTree, total: &mut u64) -> Result<Self, WorkloadError> {
        check_same_length(at, ("parents", &raw.parents), ("lens", &raw.lens))?;
        let parents = check_parents(at, &raw.parents)?;
        let mut tokens = Vec::with_capacity(raw.lens.len());
        for &len in &raw.lens {
            check_range(at, "a length", len, 0, MAX_TOKENS as i64)?;
            *total += len as u64;
            tokens.push(len as u32);
        }
        check_range(at, "the workload's length so far", *total as i64, 0, MAX_TOKENS as i64)?;
        let mut has_child = vec![false; parents.len()];
        for &parent in parents.iter().flatten() {
            has_child[parent as usize] = true;
        }
        let queries = raw.queries.unwrap_or_else(|| {
            let leaves = (0..).zip(&has_child).filter(|(_, has)| !**has);
            leaves.map(|(node, _)| node).collect()
        });
        check_queries(at, &queries, parents.len())?;
        Ok(Self { parents, tokens, queries })
    }

    /// Parent of each node.
    pub fn parents(&self) -> &[Option<u32>] {
        &self.parents
    }

    /// Tokens of each node.
    pub fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Nodes that ask.
    pub fn queries(&self) -> &[u32] {
        &self.queries
    }

    /// Pages if no node shares one.
    fn most_pages(&self) -> u32 {
        self.tokens.iter().map(|t| t.div_ceil(PAGE_TOKENS)).sum()
    }

    /// Whether the tree is one that [`StepWorkload::build`] puts below its root as a draft.
    pub fn is_draft(&self) -> bool {
        let drafts = &self.tokens[1..];
        let total: u64 = drafts.iter().map(|&t| u64::from(t)).sum();
        let inner = self.parents.iter().flatten().any(|&parent| parent > 0);
        inner
            && self.queries.len() == drafts.len()
            && !self.queries.contains(&0)
            && drafts.iter().all(|&tokens| (1..=8).contains(&tokens))
            && total <= u64::from(TokenForest::MAX_DRAFT_TOKENS)
    }

    fn build_draft(&self, forest: &mut TokenForest) -> Result<Vec<NodeKey>, ForestError> {
        let root = forest.insert_root(self.tokens[0])?;
        let nodes = self.parents.iter().zip(&self.tokens).skip(1);
        let draft: Vec<DraftNode> = nodes
            .map(|(parent, &tokens)| DraftNode {
                parent: parent.and_then(|parent| parent.checked_sub(1)),
                tokens,
            })
            .collect();
        let mut keys = vec![root];
        keys.extend(forest.insert_draft(root, &draft)?);
        Ok(keys)
    }

    fn build_forked(&self, forest: &mut TokenForest) -> Result<Vec<NodeKey>, ForestError> {
        let mut children = vec![Vec::new(); self.parents.len()];
        for (node, parent) in self.parents.iter().enumerate() {
            if let Some(parent) = parent {
                children[*parent as usize].push(node);
            }
        }
        let root = forest.insert_root(self.tokens[0])?;
        let mut keys = vec![root; self.parents.len()];
        for (node, children) in children.iter().enumerate() {
            if node > 0 && self.tokens[node] > 0 {
                forest.append(keys[node], self.tokens[node])?;
            }
            if !children.is_empty() {
                let made = forest.fork(keys[node], children.len())?;
                for (&child, key) in children.iter().zip(made) {
                    keys[child] = key;
                }
            }
        }
        Ok(keys)
    }
}

fn check_queries(at: &str, queries: &[u32], nodes: usize) -> Result<(), WorkloadError> {
    if queries.is_empty() {
        return Err(WorkloadError::Empty { at: at.to_owned(), what: "queries" });
    }
    let mut named = vec![false; nodes];
    for (query, &node) in queries.iter().enumerate() {
        let fresh = named.get_mut(node as usize).map(|n| !std::mem::replace(n, true));
        if fresh != Some(true) {
            return Err(WorkloadError::Query { at: at.to_owned(), query, node, nodes });
        }
    }
    Ok(())
}
