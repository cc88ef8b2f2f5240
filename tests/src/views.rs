//! Views to plan without a forest: from arrays, and random ones.

use deft::KvFormat;
use deft::tree::{Run, TreeView};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// A node of a tree given by arrays.
#[derive(Clone, Debug)]
pub struct Node {
    /// Index of the parent within the slice; parents come first. `None` for a root.
    pub parent: Option<usize>,
    /// Tokens it holds.
    pub tokens: u32,
    /// Whether it has a query.
    pub query: bool,
    /// Whether it may grow.
    pub live: bool,
}

/// The view of `nodes` in depth-first order; pages are numbered in that order, and the length counter
/// of a live node is its index in `nodes`.
pub fn from_nodes(nodes: &[Node]) -> TreeView {
    let mut children = vec![Vec::new(); nodes.len()];
    let mut stack = Vec::new();
    for (i, node) in nodes.iter().enumerate() {
        match node.parent {
            Some(parent) => children[parent].push(i),
            None => stack.push((i, None)),
        }
    }
    stack.reverse();
    let mut view = TreeView::default();
    while let Some((i, parent)) = stack.pop() {
        let run = view.runs.len() as u32;
        let first = view.pages.len() as u32;
        let end = first + nodes[i].tokens.div_ceil(64);
        view.pages.extend(first..end);
        let query = view.queries;
        view.queries += u32::from(nodes[i].query);
        view.runs.push(Run {
            parent,
            queries: query..view.queries,
            tokens: nodes[i].tokens,
            format: KvFormat::Native,
            first_token: 0,
            pages: first..end,
            length_slot: nodes[i].live.then_some(i as u32),
            mask: None,
            causal: 0,
        });
        stack.extend(children[i].iter().rev().map(|&child| (child, Some(run))));
    }
    for i in (0..view.runs.len()).rev() {
        let end = view.runs[i].queries.end;
        if let Some(parent) = view.runs[i].parent {
            let above = &mut view.runs[parent as usize].queries;
            above.end = above.end.max(end);
        }
    }
    view.query_order = (0..view.queries).collect();
    view
}

/// A root and `width` leaves with a query each.
pub fn star(root_tokens: u32, width: usize, leaf_tokens: u32) -> TreeView {
    let root = Node { parent: None, tokens: root_tokens, query: false, live: false };
    let leaf = Node { parent: Some(0), tokens: leaf_tokens, query: true, live: true };
    let nodes: Vec<_> = std::iter::once(root).chain(std::iter::repeat_n(leaf, width)).collect();
    from_nodes(&nodes)
}

/// A random forest with up to `max_queries` queries (at least one): trees of all shapes, empty nodes,
/// lengths about a page's edges, pages in random order, live nodes, and masked runs.
pub fn random(seed: u64, max_queries: u32) -> TreeView {
    let mut rng = SmallRng::seed_from_u64(seed);
    let target = rng.random_range(1..=max_queries);
    let fan = rng.random_range(1..=12);
    let scale = *pick(&mut rng, &[1u32, 1, 4, 20]);
    let mut nodes: Vec<Node> = Vec::new();
    let mut queries = 0;
    let mut forked = Vec::new();
    while queries < target {
        let parent = (!nodes.is_empty() && rng.random_range(0..20) > 0)
            .then(|| nodes.len() - 1 - rng.random_range(0..nodes.len().min(fan)));
        let query = rng.random_range(0..4) > 0;
        queries += u32::from(query);
        if let Some(parent) = parent {
            forked[parent] = true;
        }
        forked.push(false);
        nodes.push(Node {
            parent,
            tokens: *pick(&mut rng, &[0, 0, 1, 7, 8, 17, 63, 64, 65, 128, 200]) * scale,
            query,
            live: rng.random(),
        });
    }
    for (node, forked) in nodes.iter_mut().zip(forked) {
        node.live &= !forked;
    }
    let mut view = from_nodes(&nodes);
    mask_some_runs(&mut view, &mut rng);
    shuffle_pages(&mut view, &mut rng);
    view
}

fn pick<'a, T>(rng: &mut SmallRng, from: &'a [T]) -> &'a T {
    &from[rng.random_range(0..from.len())]
}

/// Makes masked runs of some that have nothing below and do not grow.
fn mask_some_runs(view: &mut TreeView, rng: &mut SmallRng) {
    for i in 0..view.runs.len() {
        if rng.random_range(0..4) > 0 || view.runs[i].length_slot.is_some() {
            continue;
        }
        let run = &mut view.runs[i];
        run.mask = Some(view.masks.len() as u32);
        for page in 0..run.pages.end - run.pages.start {
            let tokens = (run.tokens - page * 64).min(64);
            for _ in run.queries.clone() {
                let bits: u64 = if rng.random() { rng.random() } else { 0 };
                view.masks.push(bits & (u64::MAX >> (64 - tokens)));
            }
        }
    }
}

fn shuffle_pages(view: &mut TreeView, rng: &mut SmallRng) {
    for i in (1..view.pages.len()).rev() {
        view.pages.swap(i, rng.random_range(0..=i));
    }
}
