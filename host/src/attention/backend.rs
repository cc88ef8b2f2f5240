//! What the CPU and a GPU have in common.

use std::ops::Range;

use kernels_gpu::abi::{AppendTarget, PAGE_TOKENS, RowSource, RowTarget, TokenMove};

use super::memory::{ElasticMemory, HostBytes, PageLoader};
use super::staged::{self, PageMemory};
use super::{BackendError, Rotation, Score, rotary};
use crate::cache::{CacheShape, Directory, Elements, ElementsMut, PageId, PagedTable};
use crate::format::KvFormat;
use crate::plan::{Grouping, MAX_ROWS, Plan, PlanConfig};
use crate::tree::Residues;

/// A KV cache on some device, and attention over it.
///
/// [`CacheBuilder::backend`](crate::CacheBuilder::backend) takes one of your own. It knows pages and plans; trees, and
/// which page is whose, are the caller's. Of slices in the host's memory all work is done when a call returns; a
/// backend without a GPU refuses the others by [`BackendError::NotOnHost`]. Arguments are checked
/// ([`super::check_append`] and its like) before anything is written.
pub trait Backend: std::any::Any + std::fmt::Debug + Send {
    /// The cache's dimensions.
    fn shape(&self) -> &CacheShape;

    /// The dimensions of its pages, whose rows may be longer than those that come in and go out
    /// ([`CacheShape::padded`]).
    fn stored(&self) -> CacheShape {
        *self.shape()
    }

    /// A name for people: `CPU (AVX2, 8 threads)`.
    fn name(&self) -> String;

    /// Programs a KV head that a plan should be cut into to keep this device busy.
    fn shares(&self) -> u32;

    /// Most query heads a KV head, from 1 to 65,535.
    fn max_group_size(&self) -> u32 {
        MAX_ROWS
    }

    /// How to plan for this cache on this device, with `group_size` query heads a KV head.
    fn plan_config(&self, grouping: Grouping, group_size: u32) -> PlanConfig {
        let shape = self.shape();
        let mut config = PlanConfig::new(grouping, group_size, shape.head_dim, self.shares());
        config.element_bytes = shape.dtype.bytes() as u32;
        config
    }

    /// The same for score passes; `None` where the plan of attention is as good.
    fn score_plan_config(&self, _group_size: u32) -> Option<PlanConfig> {
        None
    }

    /// Writes K and V of new tokens of one layer: row `i` of `k` and `v`, both
    /// `[targets, kv_heads, head_dim]`, goes where `targets[i]` says. No place is named twice.
    ///
    /// Whoever sees a token with a NaN or an infinity gets NaN or infinity, nobody else does. A GPU's cache keeps eight
    /// dims of V that are not finite as zeros and those of K as NaN, so that all of the row and its LSE is NaN then,
    /// and [`Backend::export`] gives what is kept.
    ///
    /// # Errors
    /// Those of [`super::check_append`], and the device's own.
    fn append(
        &mut self,
        layer: u32,
        targets: &[AppendTarget],
        counters: Counters<'_>,
        k: Elements<'_>,
        v: Elements<'_>,
    ) -> Result<(), BackendError>;

    /// As [`Backend::append`], and rotates row `i` of `k` by `rotation.positions[i]` on its way: K lies
    /// in the cache as attention wants it, rounded once. V is written as it is.
    ///
    /// # Errors
    /// Those of [`super::check_append`], and the device's own.
    fn append_rotated(
        &mut self,
        layer: u32,
        targets: &[AppendTarget],
        counters: Counters<'_>,
        k: Elements<'_>,
        v: Elements<'_>,
        rotation: Rotation<'_>,
    ) -> Result<(), BackendError> {
        rotary::append_rotated(self, layer, targets, counters, [k, v], rotation)
    }

    /// Moves tokens of all layers, one after the other: a move may write where an *earlier* one has
    /// read.
    ///
    /// # Errors
    /// Those of [`super::check_moves`], and the device's own.
    fn copy(&mut self, moves: &[TokenMove]) -> Result<(), BackendError>;

    /// As [`Backend::copy`], of moves of which no target is a source: in any order.
    ///
    /// # Errors
    /// As there.
    fn copy_apart(&mut self, moves: &[TokenMove]) -> Result<(), BackendError> {
        self.copy(moves)
    }

    /// Copies a foreign sequence's first tokens of one layer into this cache, to places of which none is
    /// named twice. `foreign` are K and V: whole caches in the table's layout.
    ///
    /// # Errors
    /// Those of [`super::check_import`], and the device's own.
    fn import(
        &mut self,
        paged: PagedTokens<'_>,
        foreign: [Elements<'_>; 2],
    ) -> Result<(), BackendError>;

    /// Copies tokens of one layer out to a foreign cache, whose rest stays as it is. The table names no
    /// page twice.
    ///
    /// # Errors
    /// Those of [`super::check_export`], and the device's own.
    fn export(
        &mut self,
        paged: PagedTokens<'_>,
        foreign: [ElementsMut<'_>; 2],
    ) -> Result<(), BackendError>;

    /// Whether pages can be rewritten in `format` and read from it.
    ///
    /// # Errors
    /// [`BackendError::Format`] if not, as of a backend that has only native pages;
    /// [`BackendError::FormatShape`] for numbers that do not fit the cache's heads.
    fn check_format(&self, format: KvFormat) -> Result<(), BackendError> {
        match format {
            KvFormat::Native => Ok(()),
            _ => Err(BackendError::Format { format, backend: self.name() }),
        }
    }

    /// Zeroed memory of the host's, from which the device copies without a detour.
    ///
    /// # Errors
    /// [`ShapeError::OutOfMemory`](crate::cache::ShapeError::OutOfMemory), or the device's.
    fn host_bytes(&self, bytes: usize) -> Result<Box<dyn HostBytes>, BackendError> {
        let mut memory = Vec::new();
        let refused = crate::cache::ShapeError::OutOfMemory { bytes: bytes as u64 };
        memory.try_reserve_exact(bytes).map_err(|_| refused)?;
        memory.resize(bytes, 0);
        Ok(Box::new(memory))
    }

    /// What writes pages beside other work; `None` of a backend that has no such thing.
    ///
    /// # Errors
    /// The device's.
    fn page_loader(&mut self) -> Result<Option<Box<dyn PageLoader>>, BackendError> {
        Ok(None)
    }

    /// The memory that comes and goes, of a backend that was made for an elastic store.
    fn elastic(&mut self) -> Option<&mut dyn ElasticMemory> {
        None
    }

    /// The memory of pages, of a backend that has pages of formats and leaves their coding to the host
    /// ([`staged`]).
    fn page_memory(&mut self) -> Option<&mut dyn PageMemory> {
        None
    }

    /// Rewrites pages of all layers and KV heads: of native pages `from[i]` are made pages `to[i]` of another format.
    /// Both exist, and are as many.
    ///
    /// # Errors
    /// Those of [`Backend::check_format`]; [`BackendError::Unstorable`] for a NaN or an infinity; the device's own.
    /// Nobody reads `to` then.
    fn encode(
        &mut self,
        format: KvFormat,
        from: &[PageId],
        to: &[PageId],
        channels: Channels<'_>,
    ) -> Result<(), BackendError> {
        self.check_format(format)?;
        match self.page_memory() {
            Some(memory) => staged::encode(memory, format, from, to, channels),
            None => Err(BackendError::Format { format, backend: self.name() }),
        }
    }

    /// Writes pages of all layers and KV heads: native pages `to[i]` get what pages `from[i]` of another format say.
    ///
    /// # Errors
    /// Those of [`Backend::check_format`]; the device's own.
    fn decode(
        &mut self,
        format: KvFormat,
        from: &[PageId],
        to: &[PageId],
    ) -> Result<(), BackendError> {
        self.check_format(format)?;
        match self.page_memory() {
            Some(memory) => staged::decode(memory, format, from, to),
            None => Err(BackendError::Format { format, backend: self.name() }),
        }
    }

    /// Whether plans may have [residues](Plan::residues).
    fn has_residues(&self) -> bool {
        false
    }

    /// Reads K and V of whole cells of one layer ([`Cell`](kernels_gpu::abi::Cell) says what one is): `[cells, 64, head_dim]`
    /// each; a half whose slice is empty is left out.
    ///
    /// # Errors
    /// [`BackendError::Page`] for a cell beyond the cache; [`BackendError::Format`] of a backend that has no compacted pages;
    /// the device's own.
    fn read_cells(
        &mut self,
        layer: u32,
        cells: &[u32],
        rows: [&mut [f32]; 2],
    ) -> Result<(), BackendError> {
        super::check_cells(self.shape(), layer, cells, cells.len() * PAGE_TOKENS as usize)?;
        match self.page_memory() {
            Some(memory) => staged::read_cells(memory, layer, cells, rows),
            None => Err(BackendError::Format { format: KvFormat::Compacted, backend: self.name() }),
        }
    }

    /// Writes rows of one layer to cells that nobody reads yet, of rows in cells that nobody writes: what
    /// [`TreeCache::compact_node`](crate::TreeCache::compact_node) has instead of all. Scores move with their rows.
    ///
    /// # Errors
    /// [`BackendError::Format`] of a backend that has no compacted pages; those of [`super::check_compact`], and the
    /// device's own. Nobody reads the targets then.
    fn compact(&mut self, call: Compact<'_>) -> Result<(), BackendError> {
        let _ = call;
        Err(BackendError::Format { format: KvFormat::Compacted, backend: self.name() })
    }

    /// As [`Backend::export`] for tokens `tokens` of the foreign sequence only, which lie in pages of `format`: token
    /// `i` at `paged.places[i]`.
    ///
    /// # Errors
    /// Those of [`Backend::check_format`] and [`Backend::export`].
    fn export_part(
        &mut self,
        format: KvFormat,
        tokens: Range<usize>,
        paged: PagedTokens<'_>,
        foreign: [ElementsMut<'_>; 2],
    ) -> Result<(), BackendError> {
        self.check_format(format)?;
        match self.page_memory() {
            Some(memory) => staged::export(memory, format, tokens, paged, foreign),
            None => Err(BackendError::Format { format, backend: self.name() }),
        }
    }

    /// Attention of one layer.
    ///
    /// # Errors
    /// Those of [`super::check_attend`], and the device's own.
    fn attend(&mut self, call: Attend<'_>) -> Result<(), BackendError>;

    /// Scores the tokens of one layer: its plane takes up what this call's queries made of them. Planes are made, of
    /// zeros, when they are first written.
    ///
    /// # Errors
    /// [`BackendError::Scores`] from a backend without scores, those of [`super::check_score`], and the device's own.
    fn score(&mut self, _call: Score<'_>) -> Result<(), BackendError> {
        Err(BackendError::Scores { backend: self.name() })
    }

    /// Makes the scores of native pages 0, of all layers and KV heads: others have used the pages before.
    ///
    /// # Errors
    /// As [`Backend::score`]; [`BackendError::Page`].
    fn clear_scores(&mut self, _pages: &[PageId]) -> Result<(), BackendError> {
        Err(BackendError::Scores { backend: self.name() })
    }

    /// Reads scores of one layer: `[cells, 64]`, as bits; zeros if there is no plane yet.
    ///
    /// # Errors
    /// As [`Backend::score`]; those of [`super::check_cells`].
    fn read_scores(
        &mut self,
        _layer: u32,
        _cells: &[u32],
        _scores: &mut [u32],
    ) -> Result<(), BackendError> {
        Err(BackendError::Scores { backend: self.name() })
    }

    /// Writes scores of one layer: `[cells, 64]`, as bits.
    ///
    /// # Errors
    /// As [`Backend::read_scores`].
    fn write_scores(
        &mut self,
        _layer: u32,
        _cells: &[u32],
        _scores: &[u32],
    ) -> Result<(), BackendError> {
        Err(BackendError::Scores { backend: self.name() })
    }
}

/// Which channels of keys are kept by a format that keeps some: of all pages that are rewritten together the same.
#[derive(Clone, Copy, Debug)]
pub enum Channels<'a> {
    /// Those of a page that is of the format already.
    Of(PageId),
    /// By score: the sum of squares of the pages' keys, times a weight of each channel, which is the sum of squares of
    /// recent queries: `[layers, kv_heads, head_dim]`; empty for 1.
    Scored(&'a [f32]),
}

/// Tokens that a cache and a foreign, paged one have in common.
#[derive(Clone, Copy, Debug)]
pub struct PagedTokens<'a> {
    /// The layer of this cache.
    pub layer: u32,
    /// Where each token lies in this cache, `page * 64 + token`: `[tokens]`.
    pub places: &'a [u32],
    /// Which pages of the foreign cache hold them: token `i` of its sequence is the one at `places[i]`.
    pub table: PagedTable<'a>,
}

/// What a [`crate::tree::TokenForest`] counts, by length slot.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters<'a> {
    /// Tokens of each node: `[slots]`.
    pub lengths: &'a [u32],
    /// Page of each node's last token: `[slots]`.
    pub tail_pages: &'a [PageId],
    /// Where the rows of compacted nodes lie; `None` where there never was such a node.
    pub directory: Option<&'a Directory>,
    /// What is left of rows that were folded away; `None` without a feature map.
    pub residues: Option<&'a Residues>,
}

/// Rows of one layer that compaction writes. Cells are counted as in [`Cell`](kernels_gpu::abi::Cell).
#[derive(Clone, Copy, Debug)]
pub struct Compact<'a> {
    /// The layer.
    pub layer: u32,
    /// The rows, in the order of their sources. No row is named twice, nor is one also a source.
    pub targets: &'a [RowTarget],
    /// What they are made of.
    pub sources: &'a [RowSource],
    /// Whether a cell of the targets is [`CELL_BIASED`](kernels_gpu::abi::CELL_BIASED): then the biases of all targets
    /// are written, otherwise none. Room for biases is made at the first such call.
    pub biased: bool,
}

/// Numbers that belong to the model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionParams {
    /// What `q . k` is multiplied by.
    pub scale: f32,
    /// With `Some(cap)` a scaled logit `s` becomes `cap * tanh(s / cap)`.
    pub soft_cap: Option<f32>,
}

impl AttentionParams {
    /// Scale `1 / sqrt(head_dim)`, no soft cap.
    pub fn new(head_dim: u32) -> Self {
        Self { scale: 1.0 / (head_dim as f32).sqrt(), soft_cap: None }
    }
}

/// One attention call.
#[derive(Debug)]
pub struct Attend<'a> {
    /// The layer whose K and V are read.
    pub layer: u32,
    /// Which queries meet which pages.
    pub plan: &'a Plan,
    /// Lengths of the nodes that still grow.
    pub counters: Counters<'a>,
    /// `[queries, q_heads, head_dim]` in the order of the rows that the plan's view was asked for; `q_heads` =
    /// [`Plan::group_size`] x KV heads, query head `h` reads KV head `h / group_size`.
    pub q: Elements<'a>,
    /// As `q`. Zero for a query that sees no token.
    pub out: ElementsMut<'a>,
    /// `[queries, q_heads]`: natural logarithm of the sum of `exp(logit)`; -inf for a query that sees no
    /// token.
    pub lse: Option<ElementsMut<'a>>,
    /// Numbers of the model.
    pub params: AttentionParams,
}
