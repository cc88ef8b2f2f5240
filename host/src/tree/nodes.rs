//! The nodes of one forest, and the keys that name them.

use std::fmt;
use std::ops::{Index, IndexMut};

use slotmap::{Key, KeyData, SlotMap};

use super::TokenForest;
use super::node::Node;

slotmap::new_key_type! {
    struct Place;
}

/// Bits of a place's index; the bits above it, up to 32, are the forest's tag.
const INDEX_BITS: u32 = 21;
const TAGS: u64 = 1 << (32 - INDEX_BITS);
const _: () = assert!(TokenForest::MAX_NODES < (1 << INDEX_BITS) - 1);

/// Names a node of one forest. A key whose node is gone stays invalid: it never names another node. Nor does it in
/// another forest, unless 2,048 or a multiple of that were made between the two.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeKey(
    /// From the high bits on: the version of the place (32), the forest's tag (11), the place's index (21).
    u64,
);

impl NodeKey {
    /// The key as a number, for callers in other languages.
    pub const fn to_bits(self) -> u64 {
        self.0
    }

    /// The key of [`NodeKey::to_bits`]; any other number is a key of no node, or of the one that it names.
    pub const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }

    fn new(place: Place, tag: u64) -> Self {
        Self(place.data().as_ffi() | tag << INDEX_BITS)
    }

    fn tag(self) -> u64 {
        self.0 >> INDEX_BITS & (TAGS - 1)
    }

    /// The same place and version in the forest of another tag.
    fn with_tag(self, tag: u64) -> Self {
        Self(self.0 & !((TAGS - 1) << INDEX_BITS) | tag << INDEX_BITS)
    }

    fn place(self) -> Place {
        KeyData::from_ffi(self.0 & !((TAGS - 1) << INDEX_BITS)).into()
    }
}

impl Default for NodeKey {
    /// A key that names no node of any forest.
    fn default() -> Self {
        Self(Place::null().data().as_ffi())
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::default() {
            return f.write_str("NodeKey(null)");
        }
        let index = self.0 & ((1 << INDEX_BITS) - 1);
        write!(f, "NodeKey({index}v{})", self.0 >> 32)
    }
}

/// Nodes by key; keys of other forests are looked up as those of nodes that are gone.
#[derive(Debug)]
pub(super) struct Nodes {
    tag: u64,
    map: SlotMap<Place, Node>,
}

impl Nodes {
    /// None yet, of the forest of this number.
    pub(super) fn new(forest: u64) -> Self {
        Self { tag: forest % TAGS, map: SlotMap::with_key() }
    }

    pub(super) fn insert(&mut self, node: Node) -> NodeKey {
        NodeKey::new(self.map.insert(node), self.tag)
    }

    pub(super) fn remove(&mut self, key: NodeKey) -> Option<Node> {
        self.is_ours(key).then(|| self.map.remove(key.place()))?
    }

    pub(super) fn get(&self, key: NodeKey) -> Option<&Node> {
        self.is_ours(key).then(|| self.map.get(key.place()))?
    }

    pub(super) fn get_mut(&mut self, key: NodeKey) -> Option<&mut Node> {
        self.is_ours(key).then(|| self.map.get_mut(key.place()))?
    }

    pub(super) fn len(&self) -> usize {
        self.map.len()
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &Node> {
        self.map.values()
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Node> {
        self.map.values_mut()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (NodeKey, &Node)> {
        let key = |(place, node)| (NodeKey::new(place, self.tag), node);
        self.map.iter().map(key)
    }

    /// What names here the node that `key` names in another forest of the same history.
    pub(super) fn same(&self, key: NodeKey) -> NodeKey {
        key.with_tag(self.tag)
    }

    fn is_ours(&self, key: NodeKey) -> bool {
        key.tag() == self.tag
    }
}

impl Index<NodeKey> for Nodes {
    type Output = Node;

    fn index(&self, key: NodeKey) -> &Node {
        self.get(key).expect("the forest's links name its nodes")
    }
}

impl IndexMut<NodeKey> for Nodes {
    fn index_mut(&mut self, key: NodeKey) -> &mut Node {
        self.get_mut(key).expect("the forest's links name its nodes")
    }
}
