//! A saved prefix, computed from the front while it is read from the back.

use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::thread;

use half::{bf16, f16};
use kernels_gpu::abi::PAGE_TOKENS;

use super::{CacheError, TreeCache};
use crate::cache::{DType, KvElement};
use crate::prefix::{Opened, PrefixError};
use crate::restore::{Claim, RestoreNode, RestorePlan};
use crate::saved::{Checked, Header, SavedError, pages};
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
type Compute<'a, E> = dyn FnMut(&mut TreeCache, NodeKey, &[u32]) -> Result<(), E> + 'a;

impl TreeCache {
    /// As [`TreeCache::load_from`], in less time than reading or computing alone: `compute` starts at the front, a
    /// thread reads from the back, until they meet ([`RestorePlan`]). `compute(cache, leaf, ids)` adds the next tokens
    /// to `leaf`, by [`TreeCache::batch`], and appends their K and V in all layers; it gets at most `part` tokens at a
    /// time, a multiple of 64.
    ///
    /// Computed K and V may differ from saved ones in rounding. If the file fails on the way the rest is computed, and
    /// [`Restored::fault`] says why. What was read waits in the host's memory until the two have met.
    ///
    /// # Errors
    /// [`CacheError::Saved`] for a header that is torn or of another cache, [`CacheError::Restore`] for a bad `part`,
    /// those of [`TreeCache::open`], and those of `compute`. Then nothing has been sealed.
    pub fn restore<E: From<CacheError>>(
        &mut self,
        input: &mut (impl Read + Seek + Send),
        salt: u64,
        part: u32,
        mut compute: impl FnMut(&mut Self, NodeKey, &[u32]) -> Result<(), E>,
    ) -> Result<Restored, E> {
        let header = self.read_header(input)?;
        let opened = self.open(&header.tokens, salt)?;
        let restored = match header.dtype {
            DType::F16 => self.meet::<f16, E>(input, &header, opened, part, &mut compute),
            DType::Bf16 => self.meet::<bf16, E>(input, &header, opened, part, &mut compute),
            DType::F32 => self.meet::<f32, E>(input, &header, opened, part, &mut compute),
        };
        let sealed = restored.and_then(|restored| {
            let node = self.seal(opened.node, &header.tokens, salt)?;
            Ok(Restored { node, ..restored })
        });
        if sealed.is_err() {
            self.prune(opened.node)?;
        }
        sealed
    }

    fn read_header(&self, input: &mut dyn Read) -> Result<Header, CacheError> {
        let header = Header::read(&mut Checked::new(input))?;
        header.check(&self.header(Vec::new()))?;
        Ok(header)
    }

    /// Computes and reads the tokens that `opened` lacks.
    fn meet<T: KvElement, E: From<CacheError>>(
        &mut self,
        input: &mut (impl Read + Seek + Send),
        header: &Header,
        opened: Opened,
        part: u32,
        compute: &mut Compute<'_, E>,
    ) -> Result<Restored, E> {
        let mut restored = Restored {
            node: opened.node,
            held: opened.matched,
            computed: 0,
            loaded: 0,
            fault: None,
        };
        // Pages of the file; of the first one some tokens may be there.
        let first = opened.matched - opened.matched % PAGE_TOKENS;
        let missing = header.all().end - first;
        if missing == 0 || opened.matched == header.all().end {
            return Ok(restored);
        }
        let parent = None;
        let node = RestoreNode { parent, tokens: missing };
        let plan = RestorePlan::new(&[node], part, LOAD_TOKENS).map_err(CacheError::from)?;
        let (computed, read) = thread::scope(|scope| {
            let reader = scope.spawn(|| read::<T>(&plan, input, header, first));
            let computed = self.compute_parts(&plan, header, opened, compute);
            (computed, reader.join())
        });
        computed?;
        let (mut runs, fault) = read.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        // A reader that failed has left some open.
        self.compute_parts(&plan, header, opened, compute)?;
        let tokens = self.forest.context_length(opened.node);
        let end = tokens.map_err(CacheError::from)? as u32;
        restored.computed = end - opened.matched;
        restored.loaded = header.all().end - end;
        restored.fault = fault;
        if restored.loaded > 0 {
            self.extend(&[opened.node], restored.loaded)?;
        }
        // Last read, first in the sequence.
        while let Some((tokens, elements)) = runs.pop() {
            let mut rest = &elements[..];
            for page in pages(tokens) {
                let (page_elements, after) = rest.split_at(page.len() * header.token_elements());
                self.import_page(opened, header, page, page_elements)?;
                rest = after;
            }
        }
        Ok(restored)
    }

    /// Computes from the front until all is claimed.
    fn compute_parts<E: From<CacheError>>(
        &mut self,
        plan: &RestorePlan,
        header: &Header,
        opened: Opened,
        compute: &mut Compute<'_, E>,
    ) -> Result<(), E> {
        let first = opened.matched - opened.matched % PAGE_TOKENS;
        while let Some(claim) = plan.claim_compute() {
            let tokens = shifted(&claim, first);
            let new = tokens.start.max(opened.matched)..tokens.end;
            let ids = &header.tokens[new.start as usize..new.end as usize];
            let computed = compute(self, opened.node, ids);
            let computed = computed.and_then(|()| Ok(self.check_computed(opened.node, new.end)?));
            if computed.is_err() {
                // So that the reader, too, comes to an end.
                plan.close();
                return computed;
            }
            plan.complete(claim);
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

/// What was read: runs of pages, from the back, and why it ended before its time.
type Runs<T> = (Vec<(Range<u32>, Vec<T>)>, Option<SavedError>);

/// Reads what `plan` gives, until all is claimed or a read fails.
fn read<T: KvElement>(
    plan: &RestorePlan,
    input: &mut (impl Read + Seek),
    header: &Header,
    first: u32,
) -> Runs<T> {
    let mut runs = Vec::new();
    while let Some(claim) = plan.claim_load() {
        let tokens = shifted(&claim, first);
        match read_run(input, header, tokens.clone()) {
            Ok(elements) => runs.push((tokens, elements)),
            Err(error) => {
                plan.give_back(claim);
                return (runs, Some(error));
            }
        }
        plan.complete(claim);
    }
    (runs, None)
}

/// Reads pages that follow one another.
fn read_run<T: KvElement>(
    input: &mut (impl Read + Seek),
    header: &Header,
    tokens: Range<u32>,
) -> Result<Vec<T>, SavedError> {
    const SUM_BYTES: usize = 4;
    let count = pages(tokens.clone()).count();
    let elements = tokens.len() * header.token_elements();
    let bytes = elements * size_of::<T>() + count * SUM_BYTES;
    let before = tokens.start as usize * header.token_elements() * size_of::<T>()
        + (tokens.start / PAGE_TOKENS) as usize * SUM_BYTES;
    let at = header.bytes() + before as u64;
    input.seek(SeekFrom::Start(at)).map_err(SavedError::io("read"))?;
    let mut run = Vec::with_capacity(bytes);
    let read = input.take(bytes as u64).read_to_end(&mut run);
    read.map_err(SavedError::io("read"))?;
    let mut run = &run[..];
    let mut run = Checked::new(&mut run as &mut dyn Read);
    let mut all = vec![T::default(); elements];
    let mut rest = &mut all[..];
    for page in pages(tokens) {
        let (page, after) = rest.split_at_mut(page.len() * header.token_elements());
        run.read_page(bytemuck::cast_slice_mut(page))?;
        rest = after;
    }
    Ok(all)
}

/// The claim's tokens, counted from the sequence's first.
fn shifted(claim: &Claim, first: u32) -> Range<u32> {
    claim.tokens.start + first..claim.tokens.end + first
}
