//! Bringing evicted tokens back: computed from the front, loaded from the back, until the two meet.
//!
//! K and V that were saved can be loaded, and they can be computed again. A token costs more to compute the later it is,
//! for it attends to more, and as much to load wherever it is. So the one who computes starts at the front, the one who
//! loads at the back, and each takes the next part when it is through with the last: whoever is faster does more, with
//! nobody knowing either speed. (Cake, [arXiv 2410.03065](https://arxiv.org/abs/2410.03065), for one sequence.)
//!
//! A [`RestorePlan`] does so for the nodes of a tree: a shared prefix is restored once for all that is below it.
//! Computing goes on only where everything above is there; loading takes what lies deepest.

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use kernels_gpu::abi::PAGE_TOKENS;

/// No part is more than this share of what nobody has claimed: so the sides end at about the same time.
const TAPER: usize = 8;

/// A node to be restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RestoreNode {
    /// Index of the node above it, which comes before it; `None` if everything above is there.
    pub parent: Option<usize>,
    /// Its tokens, at least one.
    pub tokens: u32,
}

/// A part of a node that somebody restores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    /// Index of the node.
    pub node: usize,
    /// Which of its tokens.
    pub tokens: Range<u32>,
}

/// Why there is no plan.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    /// A node's parent has to come before it.
    #[error("nodes[{index}] has parent {parent}, which does not precede it")]
    Order {
        /// The node.
        index: usize,
        /// The parent given.
        parent: usize,
    },
    /// A node without tokens.
    #[error("nodes[{index}] has 0 tokens")]
    Empty {
        /// The node.
        index: usize,
    },
    /// A part would be empty.
    #[error("{argument} is {tokens} tokens; it must be a positive multiple of 64")]
    Part {
        /// The argument.
        argument: &'static str,
        /// What it was.
        tokens: u32,
    },
}

/// Who restores what. Threads share it: a claim is taken under a lock, so no page is claimed twice.
#[derive(Debug)]
pub struct RestorePlan {
    compute_pages: usize,
    load_pages: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    nodes: Vec<Node>,
    closed: bool,
    /// Pages that nobody has claimed.
    open: usize,
    /// Pages that are not there yet.
    missing: usize,
    /// Pages that were claimed so far, to compute and to load.
    claimed: [usize; 2],
}

#[derive(Debug)]
struct Node {
    parent: Option<usize>,
    tokens: u32,
    /// Tokens before it on its path, as far as they are to be restored.
    position: u64,
    /// Leaves at or below it.
    leaves: u32,
    pages: Vec<Page>,
    /// Pages from the first on that are there.
    front: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Open,
    Claimed,
    There,
}

impl RestorePlan {
    /// A plan for `nodes`, none of whose tokens are there. At most `compute` tokens are computed at a time and `load`
    /// tokens loaded; both are multiples of 64. Towards the end parts become smaller, so that neither side waits long
    /// for the other.
    ///
    /// # Errors
    /// [`RestoreError`].
    pub fn new(nodes: &[RestoreNode], compute: u32, load: u32) -> Result<Self, RestoreError> {
        for (argument, tokens) in [("compute", compute), ("load", load)] {
            if tokens == 0 || !tokens.is_multiple_of(PAGE_TOKENS) {
                return Err(RestoreError::Part { argument, tokens });
            }
        }
        let nodes = list(nodes)?;
        let open = nodes.iter().map(|node| node.pages.len()).sum();
        let missing = open;
        Ok(Self {
            compute_pages: (compute / PAGE_TOKENS) as usize,
            load_pages: (load / PAGE_TOKENS) as usize,
            state: Mutex::new(State { closed: false, nodes, open, missing, claimed: [0; 2] }),
        })
    }

    /// The next part to compute: of those whose path is there up to it, the one that begins first. `None` if there is
    /// nothing to compute now: all is claimed ([`RestorePlan::is_claimed`]), or what comes next is being loaded.
    pub fn claim_compute(&self) -> Option<Claim> {
        let mut state = self.lock();
        let ready = |node: &&(usize, &Node)| {
            let next_is_open = node.1.pages.get(node.1.front) == Some(&Page::Open);
            next_is_open && state.path_is_there(node.1.parent)
        };
        let nodes = state.nodes.iter().enumerate();
        let first = nodes.filter(|node| ready(&node));
        let first = first.min_by_key(|(_, node)| node.position + 64 * node.front as u64);
        let (index, begin) = first.map(|(index, node)| (index, node.front))?;
        // Of what is open computing gets about the share that it has had so far. Half of that at a time is safe, and where
        // loading is slow more than a taper: a pass of few tokens takes hardly less than one of some more.
        let [computed, loaded] = state.claimed;
        let fair = state.open * computed / (computed + loaded).max(1) / 2;
        let most = self.compute_pages.min(fair.max(state.open / TAPER).max(1));
        let pages = &state.nodes[index].pages[begin..];
        let open = pages.iter().take_while(|&&page| page == Page::Open);
        let count = open.take(most).count();
        state.claimed[0] += count;
        Some(state.claim(index, begin..begin + count))
    }

    /// The next part to load: what lies deepest, and of equals what most leaves are below. `None` if all is claimed.
    pub fn claim_load(&self) -> Option<Claim> {
        let mut state = self.lock();
        let last_open = |node: &Node| node.pages.iter().rposition(|&page| page == Page::Open);
        let nodes = state.nodes.iter().enumerate();
        let open = nodes.filter_map(|(index, node)| Some((index, last_open(node)?)));
        let deepest = open.max_by_key(|&(index, page)| {
            let node = &state.nodes[index];
            (node.position + 64 * page as u64, node.leaves)
        });
        let (index, last) = deepest?;
        let most = self.load_pages.min((state.open / TAPER).max(1));
        let before = state.nodes[index].pages[..=last].iter().rev();
        let count = before.take_while(|&&page| page == Page::Open).take(most).count();
        state.claimed[1] += count;
        Some(state.claim(index, last + 1 - count..last + 1))
    }

    /// The part is there, with K and V of all layers.
    pub fn complete(&self, claim: Claim) {
        let mut state = self.lock();
        let pages = pages(&claim.tokens);
        state.missing -= pages.len();
        let node = &mut state.nodes[claim.node];
        node.pages[pages].fill(Page::There);
        let there = node.pages[node.front..].iter();
        node.front += there.take_while(|&&page| page == Page::There).count();
    }

    /// The part could not be restored: a load that failed, a pass that was refused. It is to be claimed again.
    pub fn give_back(&self, claim: Claim) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        let pages = pages(&claim.tokens);
        state.open += pages.len();
        state.nodes[claim.node].pages[pages].fill(Page::Open);
    }

    /// Ends it: nothing can be claimed any more, or given back.
    pub fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.open = 0;
        for node in &mut state.nodes {
            let open = node.pages.iter_mut().filter(|page| **page == Page::Open);
            open.for_each(|page| *page = Page::Claimed);
        }
    }

    /// Whether everything is claimed or there.
    pub fn is_claimed(&self) -> bool {
        self.lock().open == 0
    }

    /// Whether everything is there.
    pub fn is_done(&self) -> bool {
        self.lock().missing == 0
    }

    /// A panic of another thread leaves no change half done.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether `node` and all above it are there.
    fn path_is_there(&self, node: Option<usize>) -> bool {
        let above = |&node: &usize| self.nodes[node].parent;
        std::iter::successors(node, above).all(|node| {
            let node = &self.nodes[node];
            node.front == node.pages.len()
        })
    }

    fn claim(&mut self, node: usize, pages: Range<usize>) -> Claim {
        self.open -= pages.len();
        let record = &mut self.nodes[node];
        record.pages[pages.clone()].fill(Page::Claimed);
        let end = (pages.end as u32 * PAGE_TOKENS).min(record.tokens);
        let tokens = pages.start as u32 * PAGE_TOKENS..end;
        Claim { node, tokens }
    }
}

fn pages(tokens: &Range<u32>) -> Range<usize> {
    (tokens.start / PAGE_TOKENS) as usize..tokens.end.div_ceil(PAGE_TOKENS) as usize
}

fn list(nodes: &[RestoreNode]) -> Result<Vec<Node>, RestoreError> {
    let mut list: Vec<Node> = Vec::with_capacity(nodes.len());
    for (index, node) in nodes.iter().enumerate() {
        let position = match node.parent {
            Some(parent) => match list.get(parent) {
                Some(above) => above.position + u64::from(above.tokens),
                None => return Err(RestoreError::Order { index, parent }),
            },
            None => 0,
        };
        if node.tokens == 0 {
            return Err(RestoreError::Empty { index });
        }
        list.push(Node {
            parent: node.parent,
            tokens: node.tokens,
            position,
            leaves: 0,
            pages: vec![Page::Open; node.tokens.div_ceil(PAGE_TOKENS) as usize],
            front: 0,
        });
    }
    for index in (0..list.len()).rev() {
        list[index].leaves = list[index].leaves.max(1);
        if let Some(parent) = list[index].parent {
            list[parent].leaves += list[index].leaves;
        }
    }
    Ok(list)
}
