//! Making a cache.

use super::{CacheConfig, CacheError, Device, TreeCache, next_id};
use crate::attention::Backend;
use crate::cache::{CacheShape, DType, LayerMap};
use crate::format::KvFormat;
use crate::plan::{Grouping, Plan, PlanConfig};
use crate::prefix::{PrefixError, PrefixIndex};
use crate::tree::{TokenForest, TreeView, ViewScratch};

/// What the caller does to the planner's settings.
pub(super) type Settings = Box<dyn Fn(&mut PlanConfig) + Send>;
/// What makes a backend of a shape.
type MakeBackend = Box<dyn FnOnce(CacheShape) -> Result<Box<dyn Backend>, CacheError>>;

/// A [`TreeCache`] to be made. Layers, heads, element type and capacity have to be given: no value is right for most.
///
/// ```
/// use deft::{DType, Device, TreeCache};
///
/// let cache = TreeCache::builder(&Device::best())
///     .layers(32)
///     .heads(32, 8, 128)
///     .dtype(DType::Bf16)
///     .capacity_bytes(1 << 30)
///     .build()?;
/// assert_eq!(cache.forest().pool().free(), 128);
/// # Ok::<(), deft::CacheError>(())
/// ```
#[must_use]
pub struct CacheBuilder {
    layers: Option<u32>,
    layer_map: Option<LayerMap>,
    heads: Option<[u32; 3]>,
    dtype: Option<DType>,
    capacity_bytes: Option<u64>,
    scale: Option<f32>,
    soft_cap: Option<f32>,
    prefix_bytes: Option<u64>,
    identity: u64,
    grouping: Grouping,
    settings: Settings,
    sealed_format: KvFormat,
    backend: MakeBackend,
}

impl std::fmt::Debug for CacheBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut fields = f.debug_struct("CacheBuilder");
        fields.field("layers", &self.layers);
        fields.field("heads", &self.heads);
        fields.field("dtype", &self.dtype);
        fields.field("capacity_bytes", &self.capacity_bytes);
        fields.finish_non_exhaustive()
    }
}

impl CacheBuilder {
    pub(super) fn new(device: &Device) -> Self {
        let device = device.clone();
        Self {
            layers: None,
            layer_map: None,
            heads: None,
            dtype: None,
            capacity_bytes: None,
            scale: None,
            soft_cap: None,
            prefix_bytes: None,
            identity: 0,
            grouping: Grouping::Flatten,
            settings: Box::new(|_| {}),
            sealed_format: KvFormat::Native,
            backend: Box::new(move |shape| device.backend(shape)),
        }
    }

    /// Layers, each with keys and values of its own.
    pub fn layers(mut self, layers: u32) -> Self {
        (self.layers, self.layer_map) = (Some(layers), None);
        self
    }

    /// Layers of which some read the keys and values of others, in the place of [`CacheBuilder::layers`]. Pages hold
    /// those that are not shared only; [`TreeCache::append`] refuses the others, [`TreeCache::attend`] takes all.
    pub fn layer_map(mut self, map: LayerMap) -> Self {
        (self.layers, self.layer_map) = (Some(map.layers()), Some(map));
        self
    }

    /// Heads of a layer: query heads, a multiple of the KV heads; KV heads; elements of a head (64, 128 or 256).
    pub fn heads(mut self, q_heads: u32, kv_heads: u32, head_dim: u32) -> Self {
        self.heads = Some([q_heads, kv_heads, head_dim]);
        self
    }

    /// Type of K and V as stored, of queries, and of outputs.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Bytes for pages: as many as fit, each of 64 tokens of all layers and KV heads.
    pub fn capacity_bytes(mut self, bytes: u64) -> Self {
        self.capacity_bytes = Some(bytes);
        self
    }

    /// What `q . k` is multiplied by; `1 / sqrt(head_dim)` if it is not given.
    pub fn scale(mut self, scale: f32) -> Self {
        self.scale = Some(scale);
        self
    }

    /// A scaled logit `s` becomes `cap * tanh(s / cap)`.
    pub fn soft_cap(mut self, cap: f32) -> Self {
        self.soft_cap = Some(cap);
        self
    }

    /// Most bytes of pages that sealed prefixes hold, used or not ([`TreeCache::seal`]): all of them if it is not given,
    /// since what nobody uses goes when pages are short. 0 keeps nothing.
    pub fn prefix_bytes(mut self, bytes: u64) -> Self {
        self.prefix_bytes = Some(bytes);
        self
    }

    /// A number for all that K and V depend on and the cache does not know: the model's weights, its rotary settings.
    /// [`TreeCache::load`] takes only what was saved by a cache of the same number. 0 if it is not given.
    pub fn identity(mut self, identity: u64) -> Self {
        self.identity = identity;
        self
    }

    /// How batches are grouped: [`Grouping::Flatten`] if it is not given.
    pub fn grouping(mut self, grouping: Grouping) -> Self {
        self.grouping = grouping;
        self
    }

    /// Changes the planner's settings, which come from the backend: shares, cost model, room for growth.
    pub fn planner(mut self, settings: impl Fn(&mut PlanConfig) + Send + 'static) -> Self {
        self.settings = Box::new(settings);
        self
    }

    /// The format that full pages of nodes go into once they are forked or sealed as prefixes, as by
    /// [`TreeCache::seal_as`]; native if it is not given. A node stays native if there is no room for its new pages or
    /// if it holds a NaN or an infinity.
    pub fn sealed_format(mut self, format: KvFormat) -> Self {
        self.sealed_format = format;
        self
    }

    /// Takes a backend of your own in the place of the device's: what `make` makes of the cache's shape.
    pub fn backend(
        mut self,
        make: impl FnOnce(CacheShape) -> Result<Box<dyn Backend>, CacheError> + 'static,
    ) -> Self {
        self.backend = Box::new(make);
        self
    }

    /// Makes the cache, empty.
    ///
    /// # Errors
    /// [`CacheError::Missing`] for what has to be given; [`CacheError`] naming what is out of range or more than the
    /// backend takes; the device's.
    pub fn build(self) -> Result<TreeCache, CacheError> {
        let missing = |call| CacheError::Missing { call };
        let [q_heads, kv_heads, head_dim] =
            self.heads.ok_or(missing("heads(q_heads, kv_heads, head_dim)"))?;
        let config = CacheConfig {
            layers: self.layers.ok_or(missing("layers(n)"))?,
            q_heads,
            kv_heads,
            head_dim,
            dtype: self.dtype.ok_or(missing("dtype(type)"))?,
            capacity_bytes: self.capacity_bytes.ok_or(missing("capacity_bytes(bytes)"))?,
            scale: self.scale,
            soft_cap: self.soft_cap,
        };
        let stored = self.layer_map.as_ref().map(LayerMap::stored);
        let (shape, pool) = config.resolve(stored.unwrap_or(config.layers))?;
        let prefix = prefix_index(self.prefix_bytes, &shape)?;
        let backend = (self.backend)(shape)?;
        let found = *backend.shape();
        if found != shape {
            let expected = shape;
            return Err(CacheError::BackendShape { found, expected });
        }
        backend.check_format(self.sealed_format)?;
        if config.group_size() > backend.max_group_size() {
            return Err(CacheError::TooManyHeads {
                q_heads: config.q_heads,
                kv_heads: config.kv_heads,
                most: u64::from(config.kv_heads) * u64::from(backend.max_group_size()),
            });
        }
        Ok(TreeCache {
            id: next_id(),
            params: config.params(),
            config,
            layer_map: self.layer_map,
            identity: self.identity,
            grouping: self.grouping,
            settings: self.settings,
            sealed_format: self.sealed_format,
            forest: TokenForest::new(pool),
            prefix,
            backend,
            planners: Vec::new(),
            view: TreeView::default(),
            view_scratch: ViewScratch::default(),
            spare: Plan::empty(),
            targets: Vec::new(),
            dirty: Vec::new(),
        })
    }
}

/// An index whose nodes hold `bytes` at most, or all pages.
fn prefix_index(bytes: Option<u64>, shape: &CacheShape) -> Result<PrefixIndex, PrefixError> {
    let (all, page_bytes) = (u64::from(shape.pages), shape.page_bytes());
    let pages = match bytes {
        None => all,
        Some(bytes) if bytes > 0 && bytes < page_bytes => {
            return Err(PrefixError::BudgetBelowPage { bytes, page_bytes });
        }
        Some(bytes) => all.min(bytes / page_bytes),
    };
    Ok(PrefixIndex::new(pages as u32))
}
