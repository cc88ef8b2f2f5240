//! Beams as the newest tokens of one draft below the prompt, which grows.
//!
//! A step of `n` beams takes at most `ceil(n / 64)` pages, and beams cost the host little each: no node is forked or
//! merged, no row comes back but the best continuations of all, and tokens are kept once for all beams that share them.

use super::super::answer::rank;
use super::super::error::is_out_of_pages;
use super::super::{Answer, BranchId, Event, PruneReason, SearchError, SearchTree, Stop};
use super::{BeamSearch, Beams, Candidate, best};
use deft::NodeKey;
use deft::abi::PAGE_TOKENS;
use deft_engine::{BestToken, Grown, GrownToken};

/// Tokens of a draft are moved together when it has this many times the pages that they fill, and
const SPREAD: u32 = 2;
/// so many more.
const SPARE_PAGES: u32 = 8;

#[derive(Clone, Copy)]
struct Beam {
    node: NodeKey,
    /// Its last token in [`Front::trail`]; `None` of the prompt.
    last: Option<u32>,
    log_prob: f64,
    id: BranchId,
    /// Its place among the beams of its step, the best first.
    rank: u32,
}

/// The beams, in the order in which they lie in the draft.
struct Front {
    /// The prompt's node, which carries the draft.
    trunk: NodeKey,
    beams: Vec<Beam>,
    length: usize,
    /// Tokens of all beams there were, each with the one before it.
    trail: Vec<(Option<u32>, u32)>,
}

impl Beams for Front {
    fn length(&self) -> usize {
        self.length
    }

    fn tokens(&self, beam: usize) -> Vec<u32> {
        self.tokens_to(self.beams[beam].last)
    }

    fn branch(&self, beam: usize) -> BranchId {
        self.beams[beam].id
    }
}

impl Front {
    fn tokens_to(&self, last: Option<u32>) -> Vec<u32> {
        let mut tokens = Vec::with_capacity(self.length);
        let mut next = last;
        while let Some(at) = next {
            let (before, token) = self.trail[at as usize];
            tokens.push(token);
            next = before;
        }
        tokens.reverse();
        tokens
    }
}

/// A continuation that goes on, and its place among those, the best first.
#[derive(Clone, Copy)]
struct Growing {
    rank: u32,
    of: Candidate,
}

impl BeamSearch {
    pub(super) fn search_draft(
        &self,
        tree: &mut SearchTree<'_>,
    ) -> Result<Vec<Answer>, SearchError> {
        let root = tree.root();
        let branch = tree.branch(root)?;
        let (trunk, row) = (branch.node, branch.row.clone());
        let first = Beam { node: trunk, last: None, log_prob: 0.0, id: root, rank: 0 };
        let mut front = Front { trunk, beams: vec![first], length: 0, trail: Vec::new() };
        let top = row.top(self.looked_at()).into_iter();
        let mut candidates: Vec<Candidate> =
            top.map(|(token, log_prob)| Candidate { beam: 0, token, log_prob }).collect();
        best(&mut candidates, self.looked_at());
        let mut answers = Vec::new();
        loop {
            let growth = self.divide(tree, &candidates, &front, &mut answers);
            let decided = growth.is_empty() || self.is_decided(tree, &growth, &answers);
            let mut growing: Vec<Growing> =
                (0..).zip(growth).map(|(rank, of)| Growing { rank, of }).collect();
            growing.sort_by_key(|one| one.of.beam);
            front.release(tree, &mut growing, PruneReason::Lost)?;
            if decided {
                break;
            }
            candidates = self.step(tree, &mut front, growing)?;
            if tree.stop().is_some() {
                for beam in &front.beams {
                    let beam = (beam.id, front.tokens_to(beam.last), beam.log_prob);
                    self.interrupt(tree, beam, &mut answers);
                }
                rank(&mut answers);
                break;
            }
        }
        Ok(answers)
    }

    /// Runs what of `growing`, in the order of its beams, there is room for, the best; the continuations of the beams that
    /// come of it. Where tokens have run out the front has the others too, as they were.
    fn step(
        &self,
        tree: &mut SearchTree<'_>,
        front: &mut Front,
        mut growing: Vec<Growing>,
    ) -> Result<Vec<Candidate>, SearchError> {
        if tree.is_over() {
            return Ok(Vec::new());
        }
        let left = usize::try_from(tree.tokens_left()).unwrap_or(usize::MAX);
        let mut idle = Vec::new();
        if left < growing.len() {
            growing.retain(|one| (one.rank as usize) < left);
            let grows = |beam: usize| growing.iter().any(|one| one.of.beam == beam);
            let beams = front.beams.iter().enumerate();
            idle = beams.filter(|&(beam, _)| !grows(beam)).map(|(_, beam)| *beam).collect();
            tree.stop = Some(Stop::Budget);
        }
        front.gather_if_spread(tree)?;
        let step = self.grow(tree, front, &mut growing)?;
        front.take_over(tree, &growing, &step.nodes);
        let candidate = |one: &BestToken| {
            let beam = one.row as usize;
            let log_prob = front.beams[beam].log_prob + one.log_prob;
            Candidate { beam, token: one.token, log_prob }
        };
        let mut candidates: Vec<Candidate> = step.best.iter().map(candidate).collect();
        candidates.sort_by_key(|one| front.beams[one.beam].rank);
        best(&mut candidates, self.looked_at());
        front.beams.extend(idle);
        Ok(candidates)
    }

    /// Grows the draft; where pages are short by fewer tokens, the best.
    fn grow(
        &self,
        tree: &mut SearchTree<'_>,
        front: &mut Front,
        growing: &mut Vec<Growing>,
    ) -> Result<Grown, SearchError> {
        loop {
            let tokens = growing.iter().map(|Growing { of, .. }| GrownToken {
                parent: front.beams[of.beam].node,
                token: of.token,
                score: of.log_prob,
            });
            let tokens: Vec<GrownToken> = tokens.collect();
            match tree.model.grow_draft(front.trunk, &tokens, self.looked_at()) {
                Ok(Grown { undefined: Some(row), .. }) => {
                    let beam = growing[row as usize].of.beam;
                    return Err(SearchError::Logits { branch: front.beams[beam].id });
                }
                Ok(step) => return Ok(step),
                Err(source) if is_out_of_pages(&source) => {
                    if !front.make_room(tree, growing)? {
                        return Err(SearchError::OutOfPages { source });
                    }
                }
                Err(source) => return Err(source.into()),
            }
        }
    }
}

impl Front {
    /// Drops the beams that none of `growing`, which is in the order of beams, goes on from.
    fn release(
        &mut self,
        tree: &mut SearchTree<'_>,
        growing: &mut [Growing],
        reason: PruneReason,
    ) -> Result<(), SearchError> {
        let (mut next, mut kept) = (0, Vec::with_capacity(self.beams.len()));
        let mut lost = Vec::new();
        for (at, beam) in self.beams.iter().enumerate() {
            let first = next;
            while growing.get(next).is_some_and(|one| one.of.beam == at) {
                growing[next].of.beam = kept.len();
                next += 1;
            }
            if next > first {
                kept.push(*beam);
                continue;
            }
            if beam.node != self.trunk {
                lost.push(beam.node);
            }
            tree.emit(&Event::Pruned { branch: beam.id, reason });
        }
        self.beams = kept;
        if !lost.is_empty() {
            tree.model.prune_draft(&lost)?;
        }
        Ok(())
    }

    /// Has the beams that come of `growing`, whose tokens are `nodes`.
    fn take_over(&mut self, tree: &mut SearchTree<'_>, growing: &[Growing], nodes: &[NodeKey]) {
        let mut beams = Vec::with_capacity(growing.len());
        let mut nodes = nodes.iter();
        for siblings in growing.chunk_by(|a, b| a.of.beam == b.of.beam) {
            let above = self.beams[siblings[0].of.beam];
            let first = beams.len();
            for (&Growing { rank, of }, &node) in siblings.iter().zip(&mut nodes) {
                let id = if siblings.len() > 1 { tree.new_id() } else { above.id };
                let last = Some(self.trail.len() as u32);
                self.trail.push((above.last, of.token));
                beams.push(Beam { node, last, log_prob: of.log_prob, id, rank });
            }
            if tree.is_observed() {
                announce(tree, &above, siblings, &beams[first..]);
            }
        }
        self.beams = beams;
        self.length += 1;
        tree.stepped(growing.len());
    }

    /// Moves the draft's tokens together where many pages hold few, if there is room for that.
    fn gather_if_spread(&self, tree: &mut SearchTree<'_>) -> Result<(), SearchError> {
        let draft = tree.forest_result(tree.model.forest().draft_use(self.trunk))?;
        let packed = draft.tokens.div_ceil(PAGE_TOKENS);
        let free = tree.model.forest().pool().free();
        if draft.pages > SPREAD * packed + SPARE_PAGES && packed <= free {
            self.gather(tree, draft.tokens)?;
        }
        Ok(())
    }

    /// Moves the draft's tokens together; whether there was memory for that.
    fn gather(&self, tree: &mut SearchTree<'_>, tokens: u32) -> Result<bool, SearchError> {
        match tree.model.gather_draft(self.trunk) {
            Ok(()) => {
                tree.stats.moved += u64::from(tokens);
                Ok(true)
            }
            Err(error) if is_out_of_pages(&error) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes room for some of `growing`, at the cost of the worst; whether there may be enough now.
    fn make_room(
        &mut self,
        tree: &mut SearchTree<'_>,
        growing: &mut Vec<Growing>,
    ) -> Result<bool, SearchError> {
        let draft = tree.forest_result(tree.model.forest().draft_use(self.trunk))?;
        let packed = draft.tokens.div_ceil(PAGE_TOKENS);
        let free = tree.model.make_room(packed)?;
        if packed < draft.pages && packed <= free && self.gather(tree, draft.tokens)? {
            return Ok(true);
        }
        loop {
            let worst = growing.iter().enumerate().max_by_key(|(_, one)| one.rank);
            let Some((worst, _)) = worst.filter(|_| growing.len() > 1) else {
                return self.accept_last(tree);
            };
            growing.remove(worst);
            tree.stats.pruned_for_pages += 1;
            self.release(tree, growing, PruneReason::OutOfPages)?;
            let draft = tree.forest_result(tree.model.forest().draft_use(self.trunk))?;
            let missing = (growing.len() as u32).saturating_sub(draft.room);
            if missing.div_ceil(PAGE_TOKENS) <= tree.model.forest().pool().free() {
                return Ok(true);
            }
        }
    }
}

impl Front {
    /// Has the tokens of the only beam join the prompt's node, which takes no page; whether there were any.
    fn accept_last(&mut self, tree: &mut SearchTree<'_>) -> Result<bool, SearchError> {
        let mut path = Vec::new();
        let mut node = self.beams[0].node;
        while node != self.trunk {
            path.push(node);
            node = tree.parent(node)?.unwrap_or(self.trunk);
        }
        if path.is_empty() {
            return Ok(false);
        }
        path.reverse();
        tree.model.accept(self.trunk, &path)?;
        tree.stats.moved += path.len() as u64;
        self.beams[0].node = self.trunk;
        Ok(true)
    }
}

/// Tells the observer what has become of a beam.
fn announce(tree: &mut SearchTree<'_>, above: &Beam, growing: &[Growing], beams: &[Beam]) {
    if beams.len() > 1 {
        let children: Vec<BranchId> = beams.iter().map(|beam| beam.id).collect();
        tree.emit(&Event::Forked { parent: above.id, children: &children });
    }
    for (one, beam) in growing.iter().zip(beams) {
        let (token, log_prob) = (one.of.token, beam.log_prob - above.log_prob);
        tree.emit(&Event::Token { branch: beam.id, token, log_prob });
    }
}
