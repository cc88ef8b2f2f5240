//! A cache of several formats: what its pages should hold, by the codecs' definition.

use std::collections::HashMap;

use deft::cache::{PagedOrder, PagedTable};
use deft::format::{PageShape, choose_channels};
use deft::{CacheConfig, KvElement, KvFormat, NodeKey};
use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::layout::element_offset;
use rand::RngExt;

use crate::forests::pick;
use crate::reference::attention::KeyValue;
use crate::shadow::{Shadow, Token};
use crate::world::{Expected, Place, World, ask, grow};

const PAGE: usize = PAGE_TOKENS as usize;

/// A cache of which nodes are sealed in formats.
pub type Coded<T> = World<T, Decoded>;

/// What pages decode to.
#[derive(Debug)]
pub struct Decoded {
    shadow: Shadow,
    /// Kept channels of nodes, `[layer][kv head]`.
    channels: HashMap<NodeKey, (KvFormat, Vec<Vec<u8>>)>,
    head_dim: usize,
    /// Decoded elements are rounded to the element type, as exports are: tensor cores read them so.
    rounds: bool,
}

impl Expected for Decoded {
    const F16_TOLERANCE: f64 = 2e-3;

    fn new(config: &CacheConfig, place: &Place) -> Self {
        Self {
            shadow: Shadow::default(),
            channels: HashMap::new(),
            head_dim: config.head_dim as usize,
            rounds: !matches!(place, Place::Cpu),
        }
    }

    fn insert(&mut self, node: NodeKey, parent: Option<NodeKey>) {
        self.shadow.insert(node, parent);
    }

    fn push(&mut self, node: NodeKey, token: Token) {
        self.shadow.push(node, token);
    }

    fn path(&self, node: NodeKey, layer: usize, kv_head: usize) -> Vec<(KeyValue<'_>, f64)> {
        let own = kv_head * self.head_dim..(kv_head + 1) * self.head_dim;
        let path = self.shadow.path(node).into_iter();
        path.map(|token| {
            let [k, v] = &token[layer];
            ((&k[own.clone()], &v[own.clone()]), 0.0)
        })
        .collect()
    }
}

impl<T: KvElement> Coded<T> {
    /// A random forest of which some nodes are sealed in one of `formats`, growing ones as well; the nodes that ask.
    ///
    /// # Panics
    /// If the cache refuses.
    pub fn grow_sealed(&mut self, formats: &[KvFormat]) -> Vec<(NodeKey, u32)> {
        let nodes = grow(self, |world, node| {
            if world.rng().random_range(0..4) > 0 {
                let format = pick(world.rng(), formats);
                world.seal(node, format);
            }
        });
        ask(self, &nodes)
    }

    /// The shape of a page.
    pub fn page(&self) -> PageShape {
        self.cache.backend().shape().page()
    }

    /// Seals a node, here and in the shadow.
    pub fn seal(&mut self, node: NodeKey, format: KvFormat) -> u32 {
        let (_, before) = self.cache.forest().format(node).unwrap();
        let pages = self.cache.seal_as(node, format).unwrap();
        let before = before as usize / PAGE;
        match format {
            KvFormat::Native => {
                for page in 0..pages as usize {
                    self.each_row(node, page, |row| {
                        row.iter_mut().for_each(round::<T>);
                    });
                }
                self.expected.channels.remove(&node);
            }
            _ if pages > 0 => self.recode(node, before..before + pages as usize, format),
            _ => {}
        }
        pages
    }

    fn each_row(&mut self, node: NodeKey, page: usize, mut f: impl FnMut(&mut Vec<f64>)) {
        let tokens = &mut self.expected.shadow.tokens_mut(node)[page * PAGE..(page + 1) * PAGE];
        tokens.iter_mut().flatten().flatten().for_each(&mut f);
    }

    /// The shadow's tokens of some pages through the codec.
    fn recode(&mut self, node: NodeKey, pages: std::ops::Range<usize>, format: KvFormat) {
        let shape = self.page();
        let config = *self.cache.config();
        let channels = self.choose(node, pages.clone(), format);
        for page in pages {
            for layer in 0..config.layers as usize {
                for head in 0..config.kv_heads as usize {
                    let kept = channels.get(layer * config.kv_heads as usize + head);
                    let tokens =
                        &mut self.expected.shadow.tokens_mut(node)[page * PAGE..(page + 1) * PAGE];
                    recode_page(shape, format, tokens, (layer, head), kept.map_or(&[], |c| c));
                    if self.expected.rounds {
                        let dims = shape.head_dim as usize;
                        let rows = tokens.iter_mut().flat_map(|token| &mut token[layer]);
                        rows.flat_map(|row| &mut row[head * dims..(head + 1) * dims])
                            .for_each(round::<T>);
                    }
                }
            }
        }
        self.expected.channels.insert(node, (format, channels));
    }

    /// The channels that a node's pages keep: its own or its nearest ancestor's, or those of the largest keys.
    fn choose(
        &self,
        node: NodeKey,
        pages: std::ops::Range<usize>,
        format: KvFormat,
    ) -> Vec<Vec<u8>> {
        let Some(keep) = format.kept_channels() else {
            return Vec::new();
        };
        let mut above =
            std::iter::successors(Some(node), |&node| self.expected.shadow.parent(node));
        let found = above
            .find_map(|node| self.expected.channels.get(&node).filter(|(of, _)| *of == format));
        if let Some((_, channels)) = found {
            return channels.clone();
        }
        let config = self.cache.config();
        let dims = config.head_dim as usize;
        let tokens = &self.expected.shadow.tokens(node)[pages.start * PAGE..pages.end * PAGE];
        let heads = (0..config.layers as usize)
            .flat_map(|layer| (0..config.kv_heads as usize).map(move |head| (layer, head)));
        let chosen = heads.map(|(layer, head)| {
            let score = |dim: usize| {
                let keys = tokens.iter().map(|token| token[layer][0][head * dims + dim]);
                keys.map(|key| key * key).sum::<f64>()
            };
            choose_channels(&(0..dims).map(score).collect::<Vec<_>>(), keep)
        });
        chosen.collect()
    }

    /// Accepts a path, here and in the shadow.
    pub fn accept(&mut self, trunk: NodeKey, path: &[NodeKey]) {
        self.cache.accept(trunk, path).unwrap();
        for &node in path {
            let tokens = self.expected.shadow.tokens(node).to_vec();
            self.expected.shadow.tokens_mut(trunk).extend(tokens);
        }
    }

    /// Merges a chain, here and in the shadow: what was of a format below `top` is of the element type after.
    pub fn merge_chain(&mut self, top: NodeKey) {
        let mut last = top;
        loop {
            let children: Vec<_> = self.cache.forest().children(last).unwrap().collect();
            let [child] = children[..] else { break };
            let (_, tokens) = self.cache.forest().format(child).unwrap();
            for page in 0..tokens as usize / PAGE {
                self.each_row(child, page, |row| {
                    row.iter_mut().for_each(round::<T>);
                });
            }
            let tokens = self.expected.shadow.tokens(child).to_vec();
            self.expected.shadow.tokens_mut(top).extend(tokens);
            last = child;
        }
        let below: Vec<_> = self.cache.forest().children(last).unwrap().collect();
        for child in below {
            self.expected.shadow.move_below(child, top);
        }
        self.cache.merge_chain(top).unwrap();
    }

    /// Checks the forest's invariants and what its pages take.
    pub fn check_counters(&self) {
        let forest = self.cache.forest();
        forest.debug_assert_invariants();
        let mut pages = HashMap::<KvFormat, u32>::new();
        let mut nodes: Vec<NodeKey> = forest.roots().collect();
        let mut native = std::collections::HashSet::new();
        while let Some(node) = nodes.pop() {
            nodes.extend(forest.children(node).unwrap());
            let (format, tokens) = forest.format(node).unwrap();
            let coded = (tokens / PAGE_TOKENS) as usize;
            *pages.entry(format).or_default() += coded as u32;
            let mut places = Vec::new();
            let length = forest.length(node).unwrap();
            forest.append_targets(node, tokens..length, &mut places).unwrap();
            native.extend(places.into_iter().map(|place| place / PAGE_TOKENS));
        }
        for used in self.cache.bytes() {
            let shape = self.cache.backend().shape();
            let heads = u64::from(shape.layers * shape.kv_heads);
            let page = self.cache.backend().stored().page();
            let bytes = used.format.page_bytes(page) as u64 * heads;
            let expected = match used.format {
                KvFormat::Native => native.len() as u32,
                format => pages.get(&format).copied().unwrap_or(0),
            };
            assert_eq!(used.pages, expected, "{}", used.format);
            assert_eq!(used.bytes, u64::from(expected) * bytes, "{}", used.format);
            assert!(used.held_bytes >= used.bytes);
        }
    }

    /// Exports a node's path and compares it with the shadow, rounded to the element type.
    pub fn check_export(&mut self, node: NodeKey, tokens: std::ops::Range<u32>) {
        let config = *self.cache.config();
        let width = (config.kv_heads * config.head_dim) as usize;
        let count = (tokens.end - tokens.start) as usize;
        let page_size = 16;
        let pages: Vec<u32> = (0..count.div_ceil(page_size) as u32).rev().collect();
        let table =
            PagedTable { order: PagedOrder::Nhd, page_size: page_size as u32, pages: &pages };
        for layer in 0..config.layers {
            let poison = T::from_f32(f32::NAN);
            let [mut k, mut v] = [(); 2].map(|()| vec![poison; pages.len() * page_size * width]);
            self.cache.export(layer, node, tokens.clone(), &table, &mut k, &mut v).unwrap();
            let path = self.expected.shadow.path(node);
            for (i, token) in path[tokens.start as usize..tokens.end as usize].iter().enumerate() {
                let row = pages[i / page_size] as usize * page_size + i % page_size;
                for (out, right) in [&k, &v].into_iter().zip(&token[layer as usize]) {
                    for (out, right) in out[row * width..][..width].iter().zip(right) {
                        let right = T::from_f32(*right as f32).to_f32();
                        assert_eq!(out.to_f32(), right, "token {i} of layer {layer}");
                    }
                }
            }
        }
    }
}

/// Rounds to the element type.
fn round<T: KvElement>(x: &mut f64) {
    *x = T::from_f32(*x as f32).to_f32().into();
}

fn recode_page(
    shape: PageShape,
    format: KvFormat,
    tokens: &mut [Token],
    (layer, head): (usize, usize),
    channels: &[u8],
) {
    let dims = shape.head_dim as usize;
    let at = |token: usize, dim: usize| element_offset(shape.head_dim, token as u32, dim as u32);
    let mut halves = [(); 2].map(|()| vec![0.0f32; shape.half_elements()]);
    for (token, record) in tokens.iter().enumerate() {
        for (half, row) in halves.iter_mut().zip(&record[layer]) {
            for dim in 0..dims {
                half[at(token, dim) as usize] = row[head * dims + dim] as f32;
            }
        }
    }
    let [k, v] = &mut halves;
    let mut page = vec![0; format.page_bytes(shape)];
    format.encode(shape, [k, v], channels, &mut page).unwrap();
    format.decode(shape, &page, [k, v]);
    for (token, record) in tokens.iter_mut().enumerate() {
        for (half, row) in halves.iter().zip(&mut record[layer]) {
            for dim in 0..dims {
                row[head * dims + dim] = half[at(token, dim) as usize].into();
            }
        }
    }
}
