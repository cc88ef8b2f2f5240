//! A saved prefix, computed from the front while it is read from the back.

use std::ops::Range;
use std::thread;

use half::{bf16, f16};
use kernels_gpu::abi::{PAGE_TOKENS, TokenMove};

use super::demoted::RestoreFrom;
use super::{CacheError, TreeCache};
use crate::attention::{LoadedPage, PageLoader};
use crate::cache::{DType, KvElement};
use crate::prefix::{Opened, PrefixError};
use crate::restore::{Claim, RestoreNode, RestorePlan};
use crate::saved::{Header, Pages, SavedError};
use crate::tree::NodeKey;

/// Tokens that are read at a time, at most.
const LOAD_TOKENS: u32 = 256;

/// A prefix that [`TreeCache::restore`] brought back.
#[derive(Debug)]
pub struct Restored {
    /// An empty leaf below it, as [`TreeCache::seal`] gives.
    pub node: NodeKey,
    /// Tokens that the cache held already.
    pub held: u32,
    /// Tokens that were computed.
    pub computed: u32,
    /// Tokens that were read.
    pub loaded: u32,
    /// Why reading ended before it met computing; what was missing was computed then.
    pub fault: Option<SavedError>,
}

/// What computes tokens of a prefix: adds the ids to the leaf by [`TreeCache::batch`] and appends K and V in all layers.
type Compute<'a, O, E> = dyn FnMut(&mut O, NodeKey, &[u32]) -> Result<(), E> + 'a;

/// A part of the work that is under way.
struct Meeting {
    header: Header,
    opened: Opened,
    /// The first token of the pages of the file of which some are missing.
    first: u32,
    /// The first token of the opened leaf's own.
    own: u32,
    plan: RestorePlan,
}

/// Where a loader writes: a root with the tokens that the leaf is to have.
struct Tail {
    node: NodeKey,
    /// Where each token goes, from the leaf's first own one on.
    places: Vec<u32>,
    loader: Box<dyn PageLoader>,
}

impl TreeCache {
    /// As [`TreeCache::load_from`] or [`TreeCache::promote`], in less time than reading or computing alone: `compute` starts
    /// at the front, a thread reads from the back, until they meet ([`RestorePlan`]). `compute(cache, leaf, ids)` adds
    /// the next tokens to `leaf`, by [`TreeCache::batch`], and appends their K and V in all layers, and returns when
    /// that is done on the device too; it gets at most `part` tokens at a time, a multiple of 64.
    ///
    /// Computed K and V may differ from saved ones in rounding. If the file fails on the way the rest is computed, and
    /// [`Restored::fault`] says why. On a GPU with as many pages free as the prefix takes once more, what is read goes
    /// there beside the passes; otherwise it waits in the host's memory until the two have met.
    ///
    /// # Errors
    /// [`CacheError::Saved`] for a header that is torn or of another cache, [`CacheError::Restore`] for a bad `part`,
    /// those of [`TreeCache::open`], and those of `compute`. Then nothing has been sealed.
    pub fn restore<'a, E: From<CacheError>>(
        &mut self,
        from: impl Into<RestoreFrom<'a>>,
        salt: u64,
        part: u32,
        compute: impl FnMut(&mut Self, NodeKey, &[u32]) -> Result<(), E>,
    ) -> Result<Restored, E> {
        Self::restore_for(self, |cache| cache, from, salt, part, compute)
    }

    /// As [`TreeCache::restore`] for the owner of a cache, say a model, which computes.
    ///
    /// # Errors
    /// As [`TreeCache::restore`].
    pub fn restore_for<'a, O, E: From<CacheError>>(
        owner: &mut O,
        cache: fn(&mut O) -> &mut Self,
        from: impl Into<RestoreFrom<'a>>,
        salt: u64,
        part: u32,
        mut compute: impl FnMut(&mut O, NodeKey, &[u32]) -> Result<(), E>,
    ) -> Result<Restored, E> {
        Self::bring(owner, cache, from.into(), salt, Some(part), &mut compute)
    }

    /// Opens, brings what is missing, and seals; without a `part` nothing is computed.
    pub(super) fn bring<O, E: From<CacheError>>(
        owner: &mut O,
        cache: fn(&mut O) -> &mut Self,
        mut from: RestoreFrom<'_>,
        salt: u64,
        part: Option<u32>,
        compute: &mut Compute<'_, O, E>,
    ) -> Result<Restored, E> {
        let held = cache(owner);
        let header = from.header(held)?;
        let opened = held.open(&header.tokens, salt)?;
        let tokens = header.tokens.clone();
        let restored = match opened.matched == header.all().end {
            true => Ok((0, 0, None)),
            false => meet(owner, cache, from, header, opened, part, compute),
        };
        let held = cache(owner);
        let sealed = restored.and_then(|(computed, loaded, fault)| {
            let node = held.seal(opened.node, &tokens, salt)?;
            Ok(Restored { node, held: opened.matched, computed, loaded, fault })
        });
        if sealed.is_err() {
            held.prune(opened.node)?;
        }
        sealed
    }

    /// A place for a loader to write to, if the device has loaders and the pages are there.
    fn tail(&mut self, meeting: &Meeting) -> Result<Option<Tail>, CacheError> {
        let tokens = meeting.header.all().end - meeting.own;
        let pages = tokens.div_ceil(PAGE_TOKENS);
        // Twice: what is computed takes pages too, until they have met.
        if self.map_for(2 * pages).is_err() || self.forest.pool().ready() < 2 * pages {
            return Ok(None);
        }
        let Some(loader) = self.backend.page_loader()? else {
            return Ok(None);
        };
        let node = self.forest.insert_root(tokens)?;
        let mut places = Vec::new();
        self.forest.append_targets(node, 0..tokens, &mut places)?;
        Ok(Some(Tail { node, places, loader }))
    }

    /// Joins what a loader wrote to the tokens that were computed.
    fn join_tail(&mut self, meeting: &Meeting, tail: &Tail) -> Result<(), CacheError> {
        let leaf = meeting.opened.node;
        let (held, all) = (self.forest.length(leaf)?, tail.places.len() as u32);
        // Of a page that both have the rest is moved to the leaf's.
        let shared = held..held.next_multiple_of(PAGE_TOKENS).min(all);
        if !shared.is_empty() {
            self.forest.append(leaf, shared.end - shared.start)?;
            let mut to = Vec::new();
            self.forest.append_targets(leaf, shared.clone(), &mut to)?;
            let from = &tail.places[shared.start as usize..shared.end as usize];
            let moves = from.iter().zip(to).map(|(&from, to)| TokenMove { from, to });
            self.backend.copy(&moves.collect::<Vec<_>>())?;
        }
        self.forest.take_over(leaf, tail.node)?;
        Ok(())
    }

    /// Writes what was read and waited in the host's memory.
    fn write_runs(&mut self, meeting: &Meeting, runs: Runs) -> Result<(), CacheError> {
        match meeting.header.dtype {
            DType::F16 => self.write_typed::<f16>(meeting, runs),
            DType::Bf16 => self.write_typed::<bf16>(meeting, runs),
            DType::F32 => self.write_typed::<f32>(meeting, runs),
        }
    }

    fn write_typed<T: KvElement>(
        &mut self,
        meeting: &Meeting,
        mut runs: Runs,
    ) -> Result<(), CacheError> {
        let (opened, header) = (meeting.opened, &meeting.header);
        // Last read, first in the sequence.
        while let Some((tokens, bytes)) = runs.pop() {
            let mut page = vec![T::default(); tokens.len() * header.token_elements()];
            bytemuck::cast_slice_mut(&mut page).copy_from_slice(&bytes);
            self.import_page(opened, header, tokens, &page)?;
        }
        Ok(())
    }

    /// Whether the path to `leaf` has so many tokens now.
    fn check_computed(&self, leaf: NodeKey, tokens: u32) -> Result<(), CacheError> {
        let held = self.forest.context_length(leaf)?;
        if held != u64::from(tokens) {
            let (node, ids) = (leaf, tokens as usize);
            return Err(PrefixError::Count { node, ids, held }.into());
        }
        Ok(())
    }
}

/// Computes and reads the tokens that `opened` lacks: how many of each, and why reading ended.
fn meet<O, E: From<CacheError>>(
    owner: &mut O,
    cache: fn(&mut O) -> &mut TreeCache,
    from: RestoreFrom<'_>,
    header: Header,
    opened: Opened,
    part: Option<u32>,
    compute: &mut Compute<'_, O, E>,
) -> Result<(u32, u32, Option<SavedError>), E> {
    let held = cache(owner);
    let first = opened.matched - opened.matched % PAGE_TOKENS;
    let copied = held.forest.length(opened.node).map_err(CacheError::from)?;
    let node = RestoreNode { parent: None, tokens: header.all().end - first };
    let plan = RestorePlan::new(&[node], part.unwrap_or(PAGE_TOKENS), LOAD_TOKENS);
    let plan = plan.map_err(CacheError::from)?;
    let own = opened.matched - copied;
    let meeting = Meeting { header, opened, first, own, plan };
    let mut pages = from.pages(held, &meeting.header, LOAD_TOKENS)?;
    let mut tail = held.tail(&meeting)?;
    let (computed, read) = thread::scope(|scope| {
        if part.is_none() {
            return (Ok(()), meeting.read(&mut pages, tail.as_mut()));
        }
        let reader = scope.spawn(|| meeting.read(&mut pages, tail.as_mut()));
        let computed = meeting.compute_parts(owner, cache, compute);
        (computed, reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    });
    let (runs, fault) = read;
    let computed = computed.and_then(|()| match (part, &fault) {
        // A reader that failed has left some open.
        (Some(_), Some(_)) => meeting.compute_parts(owner, cache, compute),
        _ => Ok(()),
    });
    let fault = match (part, fault) {
        (None, Some(fault)) => Err(CacheError::from(fault).into()),
        (_, fault) => Ok(fault),
    };
    let held = cache(owner);
    let met = computed.and(fault).and_then(|fault| {
        let (computed, loaded) = held.join(&meeting, tail.as_ref(), runs)?;
        Ok((computed, loaded, fault))
    });
    if let (Err(_), Some(tail)) = (&met, &tail) {
        held.prune(tail.node)?;
    }
    met
}

impl TreeCache {
    /// Puts together what was computed and what was read; tokens of both.
    fn join(
        &mut self,
        meeting: &Meeting,
        tail: Option<&Tail>,
        runs: Runs,
    ) -> Result<(u32, u32), CacheError> {
        let (leaf, all) = (meeting.opened.node, meeting.header.all().end);
        let end = self.forest.context_length(leaf)? as u32;
        let loaded = all - end;
        match tail {
            Some(tail) if loaded > 0 => self.join_tail(meeting, tail)?,
            Some(tail) => drop(self.forest.prune(tail.node)?),
            None => {
                if loaded > 0 {
                    self.extend(&[leaf], loaded)?;
                }
                self.write_runs(meeting, runs)?;
            }
        }
        self.settle();
        Ok((end - meeting.opened.matched, loaded))
    }
}

/// What was read and waits: pages with their tokens, from the back.
type Runs = Vec<(Range<u32>, Vec<u8>)>;

impl Meeting {
    /// Computes from the front until all is claimed.
    fn compute_parts<O, E: From<CacheError>>(
        &self,
        owner: &mut O,
        cache: fn(&mut O) -> &mut TreeCache,
        compute: &mut Compute<'_, O, E>,
    ) -> Result<(), E> {
        while let Some(claim) = self.plan.claim_compute() {
            let tokens = self.tokens(&claim);
            let new = tokens.start.max(self.opened.matched)..tokens.end;
            let ids = &self.header.tokens[new.start as usize..new.end as usize];
            let computed = compute(owner, self.opened.node, ids);
            let checked =
                computed.and_then(|()| Ok(cache(owner).check_computed(self.opened.node, new.end)?));
            if checked.is_err() {
                // So that the reader, too, comes to an end.
                self.plan.close();
                return checked;
            }
            self.plan.complete(claim);
        }
        Ok(())
    }

    /// Reads what the plan gives, until all is claimed or a read fails; to the tail, if there is one.
    fn read(
        &self,
        pages: &mut Pages<'_>,
        mut tail: Option<&mut Tail>,
    ) -> (Runs, Option<SavedError>) {
        let mut runs = Vec::new();
        while let Some(claim) = self.plan.claim_load() {
            match self.read_claim(pages, tail.as_deref_mut(), &claim) {
                Ok(read) => runs.extend(read),
                Err(error) => {
                    self.plan.give_back(claim);
                    return (runs, Some(error));
                }
            }
            self.plan.complete(claim);
        }
        (runs, None)
    }

    fn read_claim(
        &self,
        pages: &mut Pages<'_>,
        tail: Option<&mut Tail>,
        claim: &Claim,
    ) -> Result<Runs, SavedError> {
        let read = pages.run(&self.header, self.tokens(claim))?;
        let Some(tail) = tail else {
            let keep = |(tokens, bytes): (Range<u32>, &[u8])| (tokens, bytes.to_vec());
            return Ok(read.into_iter().rev().map(keep).collect());
        };
        let pages: Vec<_> = read
            .into_iter()
            .map(|(tokens, rows)| {
                let own = tokens.start.max(self.own)..tokens.end;
                let places = own.start - self.own..own.end - self.own;
                LoadedPage {
                    rows,
                    tokens: tokens.end - tokens.start,
                    skip: own.start - tokens.start,
                    places: &tail.places[places.start as usize..places.end as usize],
                }
            })
            .collect();
        let loaded = tail.loader.load(&pages);
        loaded.map_err(|source| SavedError::Device { source: Box::new(source) })?;
        Ok(Vec::new())
    }

    fn tokens(&self, claim: &Claim) -> Range<u32> {
        claim.tokens.start + self.first..claim.tokens.end + self.first
    }
}
