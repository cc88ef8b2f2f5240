//! A cache of several formats with its shadow: what each operation should leave, by the codecs' definition.

mod grow;
mod place;

use std::collections::HashMap;

use deft::attention::RotaryTable;
use deft::cache::{PagedOrder, PagedTable};
use deft::format::{PageShape, choose_channels};
use deft::plan::HeadShape;
use deft::{Batch, DraftNode, Grouping, Kv, KvElement, KvFormat, NodeKey, Out, TreeCache};
use kernels_gpu::abi::PAGE_TOKENS;
use kernels_gpu::layout::element_offset;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

use crate::oracle::{reference_params, relative_l2};
use crate::reference::attention::attend_row;
use crate::shadow::{Shadow, Token};

pub use self::grow::{ask, grow};
pub use self::place::Place;

const PAGE: usize = PAGE_TOKENS as usize;

/// How far a row may be from f64 over the decoded cache.
const fn tolerance(dtype: deft::DType) -> f64 {
    match dtype {
        deft::DType::F32 => 1e-5,
        deft::DType::Bf16 => 5e-3,
        _ => 2e-3,
    }
}

/// A cache and what it should hold.
#[derive(Debug)]
pub struct Coded<T> {
    /// The cache.
    pub cache: TreeCache,
    shadow: Shadow,
    rng: SmallRng,
    /// Kept channels of nodes, `[layer][kv head]`.
    channels: HashMap<NodeKey, (KvFormat, Vec<Vec<u8>>)>,
    /// Decoded elements are rounded to the element type, as exports are: tensor cores read them so.
    rounds: bool,
    element: std::marker::PhantomData<T>,
}

impl<T: KvElement> Coded<T> {
    /// An empty cache of `pages` native pages.
    ///
    /// # Panics
    /// If the heads are none.
    pub fn new(heads: HeadShape, pages: u64, seed: u64) -> Self {
        Self::on(Place::Cpu, heads, pages, seed)
    }

    /// The same at another place.
    ///
    /// # Panics
    /// If the heads are none, or that place cannot have them.
    pub fn on(place: Place, heads: HeadShape, pages: u64, seed: u64) -> Self {
        let layers = if matches!(place, Place::Cpu) { 2 } else { 1 };
        let page = 2 * PAGE as u64 * u64::from(heads.kv_heads * heads.head_dim * layers);
        let cache = place
            .builder(seed)
            .layers(layers)
            .heads(heads.q_heads, heads.kv_heads, heads.head_dim)
            .dtype(T::DTYPE)
            .capacity_bytes(pages * page * T::DTYPE.bytes() as u64)
            .build()
            .unwrap();
        Self {
            cache,
            shadow: Shadow::default(),
            rng: SmallRng::seed_from_u64(seed),
            channels: HashMap::new(),
            rounds: !matches!(place, Place::Cpu),
            element: std::marker::PhantomData,
        }
    }

    /// Random numbers.
    pub fn rng(&mut self) -> &mut SmallRng {
        &mut self.rng
    }

    /// The shape of a page.
    pub fn page(&self) -> PageShape {
        self.cache.backend().shape().page()
    }

    /// A root of `tokens` random tokens.
    pub fn root(&mut self, tokens: u32) -> NodeKey {
        let root = self.cache.insert_root().unwrap();
        self.shadow.insert(root, None);
        self.push(root, tokens);
        root
    }

    /// `n` children of a node.
    pub fn fork(&mut self, node: NodeKey, n: usize) -> Vec<NodeKey> {
        let children = self.cache.fork(node, n).unwrap();
        for &child in &children {
            self.shadow.insert(child, Some(node));
        }
        children
    }

    /// A draft below a node, with its tokens.
    pub fn draft(&mut self, trunk: NodeKey, draft: &[DraftNode]) -> Vec<NodeKey> {
        let keys = self.cache.insert_draft(trunk, draft).unwrap();
        for (&key, node) in keys.iter().zip(draft) {
            let parent = node.parent.map_or(trunk, |parent| keys[parent as usize]);
            self.shadow.insert(key, Some(parent));
            self.push(key, node.tokens);
        }
        keys
    }

    /// Writes new tokens of a node, or all that a draft's node has.
    pub fn push(&mut self, node: NodeKey, tokens: u32) {
        if tokens > 0 {
            let batch = self.cache.batch(&[(node, tokens)]).unwrap();
            self.write(&batch);
        }
    }

    /// Writes a batch's tokens. Channels differ in scale, as a model's do.
    pub fn write(&mut self, batch: &Batch) {
        let config = *self.cache.config();
        let width = (config.kv_heads * config.head_dim) as usize;
        let mut layers: Vec<[Vec<T>; 2]> = Vec::new();
        for _ in 0..config.layers {
            layers.push([(); 2].map(|()| {
                let elements = 0..batch.rows() * width;
                let value = |i: usize| {
                    let scale = [1.0, 0.3, 2.0, 0.1, 0.7][i % width % 5];
                    T::from_f32(scale * self.rng.random_range(-1.5..1.5f32))
                };
                elements.map(value).collect()
            }));
        }
        for (layer, [k, v]) in (0..).zip(&layers) {
            let rope = None::<&RotaryTable>;
            let kv = Kv { rope, ..Kv::new(k, v) };
            self.cache.append(layer, batch, kv).unwrap();
        }
        let nodes = batch.nodes().iter();
        let nodes = nodes.flat_map(|&(node, tokens)| std::iter::repeat_n(node, tokens as usize));
        for (row, node) in nodes.enumerate() {
            let exact = |values: &Vec<T>| {
                let values = values[row * width..(row + 1) * width].iter();
                values.map(|value| value.to_f32().into()).collect()
            };
            let token = layers.iter().map(|[k, v]| [exact(k), exact(v)]).collect();
            self.shadow.push(node, token);
        }
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
                        row.iter_mut().for_each(|x| *x = T::from_f32(*x as f32).to_f32().into());
                    });
                }
                self.channels.remove(&node);
            }
            _ if pages > 0 => self.recode(node, before..before + pages as usize, format),
            _ => {}
        }
        pages
    }

    fn each_row(&mut self, node: NodeKey, page: usize, mut f: impl FnMut(&mut Vec<f64>)) {
        let tokens = &mut self.shadow.tokens_mut(node)[page * PAGE..(page + 1) * PAGE];
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
                    let tokens = &mut self.shadow.tokens_mut(node)[page * PAGE..(page + 1) * PAGE];
                    recode_page(shape, format, tokens, (layer, head), kept.map_or(&[], |c| c));
                    if self.rounds {
                        let dims = shape.head_dim as usize;
                        let rows = tokens.iter_mut().flat_map(|token| &mut token[layer]);
                        for x in rows.flat_map(|row| &mut row[head * dims..(head + 1) * dims]) {
                            *x = T::from_f32(*x as f32).to_f32().into();
                        }
                    }
                }
            }
        }
        self.channels.insert(node, (format, channels));
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
        let mut above = std::iter::successors(Some(node), |&node| self.shadow.parent(node));
        let found = above.find_map(|node| self.channels.get(&node).filter(|(of, _)| *of == format));
        if let Some((_, channels)) = found {
            return channels.clone();
        }
        let config = self.cache.config();
        let dims = config.head_dim as usize;
        let tokens = &self.shadow.tokens(node)[pages.start * PAGE..pages.end * PAGE];
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
            let tokens = self.shadow.tokens(node).to_vec();
            self.shadow.tokens_mut(trunk).extend(tokens);
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
                    row.iter_mut().for_each(|x| *x = T::from_f32(*x as f32).to_f32().into());
                });
            }
            let tokens = self.shadow.tokens(child).to_vec();
            self.shadow.tokens_mut(top).extend(tokens);
            last = child;
        }
        let below: Vec<_> = self.cache.forest().children(last).unwrap().collect();
        for child in below {
            self.shadow.move_below(child, top);
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
            let bytes = used.format.page_bytes(self.page()) as u64 * heads;
            let expected = match used.format {
                KvFormat::Native => native.len() as u32,
                format => pages.get(&format).copied().unwrap_or(0),
            };
            assert_eq!(used.pages, expected, "{}", used.format);
            assert_eq!(used.bytes, u64::from(expected) * bytes, "{}", used.format);
            assert!(used.held_bytes >= used.bytes);
        }
    }

    /// Attends at the last tokens of nodes and compares with f64 over the decoded tokens.
    pub fn check(&mut self, nodes: &[(NodeKey, u32)], grouping: Grouping, context: &str) {
        self.cache.set_grouping(grouping);
        let batch = self.cache.batch_held(nodes).unwrap();
        self.check_batch(&batch, context);
    }

    /// The same of a batch.
    pub fn check_batch(&mut self, batch: &Batch, context: &str) {
        let config = *self.cache.config();
        let heads = HeadShape {
            q_heads: config.q_heads,
            kv_heads: config.kv_heads,
            head_dim: config.head_dim,
        };
        let params = reference_params(heads, &config.params());
        let (dims, q_heads) = (config.head_dim as usize, config.q_heads as usize);
        for layer in 0..config.layers {
            let elements = batch.rows() * q_heads * dims;
            let q: Vec<T> =
                (0..elements).map(|_| T::from_f32(self.rng.random_range(-2.0..2.0))).collect();
            let mut out = vec![T::from_f32(f32::NAN); elements];
            let mut lse = vec![f32::NAN; batch.rows() * q_heads];
            let results = Out::with_lse(&mut out, &mut lse);
            self.cache.attend(layer, batch, &q, results).unwrap();
            let rows = batch.nodes().iter().flat_map(|&(node, tokens)| {
                (0..tokens as usize).map(move |row| (node, tokens as usize - 1 - row))
            });
            for (row, (node, hidden)) in rows.enumerate() {
                let path = self.shadow.path(node);
                let seen = &path[..path.len() - hidden];
                for head in 0..q_heads {
                    let kv_head = head / heads.group_size() as usize;
                    let own = kv_head * dims..(kv_head + 1) * dims;
                    let seen: Vec<_> = seen
                        .iter()
                        .map(|token| {
                            let [k, v] = &token[layer as usize];
                            (&k[own.clone()], &v[own.clone()])
                        })
                        .collect();
                    let at = row * q_heads + head;
                    let exact: Vec<f64> =
                        q[at * dims..][..dims].iter().map(|x| x.to_f32().into()).collect();
                    let (right, right_lse) = attend_row(&params, &exact, &seen);
                    let error = relative_l2(&out[at * dims..][..dims], &right);
                    let context = format!(
                        "{context}, {:?}, layer {layer}, row {row}, head {head}",
                        batch.grouping()
                    );
                    assert!(error <= tolerance(T::DTYPE), "{context}: off by {error}");
                    let error = (f64::from(lse[at]) - right_lse).abs();
                    assert!(
                        error <= 1e-4 * right_lse.abs().max(1.0),
                        "{context}: LSE off by {error}"
                    );
                }
            }
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
            let path = self.shadow.path(node);
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
