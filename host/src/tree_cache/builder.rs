//! Making a cache.

use super::score::ScorePlans;
use super::{CacheConfig, CacheError, Device, TreeCache, next_id};
use crate::attention::Backend;
use crate::cache::{CacheShape, DType, LayerMap, SLAB_PAGES, Store};
use crate::format::KvFormat;
use crate::plan::{Grouping, Plan, PlanConfig};
use crate::prefix::{PrefixError, PrefixIndex};
use crate::tree::{TokenForest, TreeView, ViewScratch};

/// What the caller does to the planner's settings.
pub(super) type Settings = Box<dyn Fn(&mut PlanConfig) + Send>;
/// What makes a backend of a shape.
type MakeBackend = Box<dyn FnOnce(CacheShape) -> Result<Box<dyn Backend>, CacheError>>;

/// Where the backend is from.
enum Source {
    Device(Device),
    Own(MakeBackend),
}

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
    store: Option<Store>,
    scale: Option<f32>,
    soft_cap: Option<f32>,
    prefix_bytes: Option<u64>,
    identity: u64,
    grouping: Grouping,
    settings: Settings,
    sealed_format: KvFormat,
    backend: Source,
}

impl std::fmt::Debug for CacheBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut fields = f.debug_struct("CacheBuilder");
        fields.field("layers", &self.layers);
        fields.field("heads", &self.heads);
        fields.field("dtype", &self.dtype);
        fields.field("store", &self.store);
        fields.finish_non_exhaustive()
    }
}

impl CacheBuilder {
    pub(super) fn new(device: &Device) -> Self {
        Self {
            layers: None,
            layer_map: None,
            heads: None,
            dtype: None,
            store: None,
            scale: None,
            soft_cap: None,
            prefix_bytes: None,
            identity: 0,
            grouping: Grouping::Flatten,
            settings: Box::new(|_| {}),
            sealed_format: KvFormat::Native,
            backend: Source::Device(device.clone()),
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

    /// Heads of a layer: query heads, a multiple of the KV heads; KV heads; elements of a head
    /// ([`HEAD_DIMS`](crate::cache::HEAD_DIMS)).
    pub fn heads(mut self, q_heads: u32, kv_heads: u32, head_dim: u32) -> Self {
        self.heads = Some([q_heads, kv_heads, head_dim]);
        self
    }

    /// Type of K and V as stored, of queries, and of outputs.
    pub fn dtype(mut self, dtype: DType) -> Self {
        self.dtype = Some(dtype);
        self
    }

    /// Bytes for pages, taken at once: as many as fit, each of 64 tokens of all layers and KV heads.
    pub fn capacity_bytes(self, bytes: u64) -> Self {
        self.store(Store::Fixed { bytes })
    }

    /// Where pages get their memory, in the place of [`CacheBuilder::capacity_bytes`]: from an elastic store as they are
    /// taken.
    ///
    /// ```
    /// use deft::cache::Store;
    /// use deft::{DType, Device, TreeCache};
    ///
    /// let store = Store::Elastic { reserve: 1 << 30, initial: 0 };
    /// let mut cache = TreeCache::builder(&Device::cpu())
    ///     .layers(32).heads(32, 8, 128).dtype(DType::Bf16).store(store).build()?;
    /// let root = cache.insert_root()?;
    /// cache.extend(&[root], 1000)?;
    /// assert_eq!(cache.store_bytes().memory, 1 << 27); // 16 pages of 8 MiB
    /// cache.extend(&[root], 1000)?;
    /// assert_eq!(cache.store_bytes().memory, 1 << 28);
    /// # Ok::<(), deft::CacheError>(())
    /// ```
    pub fn store(mut self, store: Store) -> Self {
        self.store = Some(store);
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

    /// Takes a backend of your own in the place of the device's: what `make` makes of the cache's shape. For an elastic
    /// store it has to have extents of 16 pages ([`Backend::elastic`]).
    pub fn backend(
        mut self,
        make: impl FnOnce(CacheShape) -> Result<Box<dyn Backend>, CacheError> + 'static,
    ) -> Self {
        self.backend = Source::Own(Box::new(make));
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
        let store = self.store.ok_or(missing("capacity_bytes(bytes)"))?;
        let config = CacheConfig {
            layers: self.layers.ok_or(missing("layers(n)"))?,
            q_heads,
            kv_heads,
            head_dim,
            dtype: self.dtype.ok_or(missing("dtype(type)"))?,
            capacity_bytes: store.bytes(),
            scale: self.scale,
            soft_cap: self.soft_cap,
        };
        let layers = self.layer_map.as_ref().map_or(config.layers, LayerMap::stored);
        let elastic = matches!(store, Store::Elastic { .. });
        let extent_pages = |shape: &CacheShape| match &self.backend {
            Source::Device(device) => device.extent_pages(shape),
            Source::Own(_) => Ok(SLAB_PAGES),
        };
        let stored = |shape: &CacheShape| match &self.backend {
            Source::Device(device) => device.stored(shape),
            Source::Own(_) => *shape,
        };
        let (shape, pool) = config.resolve(layers, store, stored, extent_pages)?;
        let prefix = prefix_index(self.prefix_bytes, &stored(&shape))?;
        let mut backend = match self.backend {
            Source::Device(device) => device.backend(shape, elastic)?,
            Source::Own(make) => make(shape)?,
        };
        let found = *backend.shape();
        if found != shape {
            let expected = shape;
            return Err(CacheError::BackendShape { found, expected });
        }
        let extents = backend.elastic().map(|memory| memory.extent_pages());
        if elastic && extents != pool.extent_pages() {
            return Err(CacheError::NotElastic { backend: backend.name(), extents });
        }
        super::seal::check_sealing(&*backend, self.sealed_format)?;
        if config.group_size() > backend.max_group_size() {
            return Err(CacheError::TooManyHeads {
                q_heads: config.q_heads,
                kv_heads: config.kv_heads,
                most: u64::from(config.kv_heads) * u64::from(backend.max_group_size()),
            });
        }
        let mut cache = TreeCache {
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
            scored: None,
            score_plans: ScorePlans::default(),
            prepared: None,
        };
        cache.map_initial()?;
        Ok(cache)
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
