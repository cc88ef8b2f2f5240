//! Rotary appends through [`TreeCache`]: a token's position is its path's length.

use deft::{CacheError, DType, Device, DraftNode, Kv, NodeKey, RotaryTable, TreeCache};

const HEADS: usize = 2;
const DIM: usize = 64;
const ROW: usize = HEADS * DIM;

/// A node's keys in a [`Pair`]'s caches: each cache refuses the other's.
type Node = [NodeKey; 2];

/// A cache that rotates, and one whose keys come rotated.
struct Pair {
    table: RotaryTable,
    rotating: TreeCache,
    plain: TreeCache,
    next: u32,
}

impl Pair {
    fn new() -> Self {
        let cache = || {
            TreeCache::builder(&Device::cpu())
                .layers(1)
                .heads(4, HEADS as u32, DIM as u32)
                .dtype(DType::F32)
                .capacity_bytes(8 << 20)
                .build()
                .unwrap()
        };
        Self {
            table: RotaryTable::new(DIM as u32, 300, 10_000.0).unwrap(),
            rotating: cache(),
            plain: cache(),
            next: 0,
        }
    }

    fn rows(&mut self, count: usize) -> Vec<f32> {
        let values = (0..count * ROW).map(|_| {
            self.next += 1;
            (self.next as f32 * 0.37).sin()
        });
        values.collect()
    }

    fn root(&mut self) -> Node {
        [&mut self.rotating, &mut self.plain].map(|cache| cache.insert_root().unwrap())
    }

    /// Does the same to a node of both caches; returns each new node's keys.
    fn grow(
        &mut self,
        node: Node,
        change: impl Fn(&mut TreeCache, NodeKey) -> Result<Vec<NodeKey>, CacheError>,
    ) -> Vec<Node> {
        let rotating = change(&mut self.rotating, node[0]).unwrap();
        let plain = change(&mut self.plain, node[1]).unwrap();
        assert_eq!(rotating.len(), plain.len());
        let keys = rotating.into_iter().zip(plain);
        keys.map(|(rotating, plain)| [rotating, plain]).collect()
    }

    /// Writes `positions.len()` tokens of a node, its first.
    fn write(&mut self, node: Node, positions: std::ops::Range<u32>) {
        let tokens = node.map(|key| [(key, positions.len() as u32)]);
        let batch = self.rotating.batch(&tokens[0]).unwrap();
        assert!(batch.positions().iter().copied().eq(positions.clone()));
        let plain = self.plain.batch(&tokens[1]).unwrap();
        let (k, v) = (self.rows(positions.len()), self.rows(positions.len()));
        self.rotating.append(0, &batch, Kv::new(&k, &v).rotated(&self.table)).unwrap();
        let mut rotated = k;
        let positions: Vec<u32> = positions.collect();
        self.table.rotate(&positions, &mut rotated).unwrap();
        self.plain.append(0, &plain, Kv::new(&rotated, &v)).unwrap();
    }

    fn assert_same_attention(&mut self, nodes: &[Node]) {
        let q = self.rows(2 * nodes.len());
        let caches = [(0, &mut self.rotating), (1, &mut self.plain)];
        let outputs = caches.map(|(which, cache)| {
            let ones: Vec<_> = nodes.iter().map(|node| (node[which], 1)).collect();
            let batch = cache.batch_held(&ones).unwrap();
            let mut out = vec![f32::NAN; q.len()];
            cache.attend(0, &batch, &q, &mut out).unwrap();
            out
        });
        assert!(outputs[0] == outputs[1]);
        assert!(outputs[0].iter().all(|x| x.is_finite()));
    }
}

#[test]
fn a_token_turns_by_the_length_of_its_path() {
    let mut pair = Pair::new();
    let root = pair.root();
    pair.write(root, 0..70);
    let leaves = pair.grow(root, |cache, root| cache.fork(root, 2));
    pair.write(leaves[0], 70..73);
    let draft = [DraftNode { parent: None, tokens: 2 }, DraftNode { parent: Some(0), tokens: 1 }];
    let drafted = pair.grow(leaves[0], |cache, leaf| cache.insert_draft(leaf, &draft));
    pair.write(drafted[0], 73..75);
    pair.write(drafted[1], 75..76);
    pair.assert_same_attention(&[root, leaves[0], drafted[0], drafted[1]]);
}

#[test]
fn a_decode_step_turns_each_leaf_by_its_own_position() {
    let mut pair = Pair::new();
    let root = pair.root();
    pair.write(root, 0..10);
    let leaves = pair.grow(root, |cache, root| cache.fork(root, 2));
    pair.write(leaves[1], 10..15);
    // Not in the order of the tree.
    let asked = [leaves[1], leaves[0]];
    let [mut batch, mut plain] = [(0, &mut pair.rotating), (1, &mut pair.plain)]
        .map(|(which, cache)| cache.batch(&asked.map(|leaf| (leaf[which], 1))).unwrap());
    for step in 0..4 {
        if step > 0 {
            pair.rotating.advance(&mut batch, 1).unwrap();
            pair.plain.advance(&mut plain, 1).unwrap();
        }
        let (mut k, v) = (pair.rows(2), pair.rows(2));
        pair.rotating.append(0, &batch, Kv::new(&k, &v).rotated(&pair.table)).unwrap();
        pair.table.rotate(&[15 + step, 10 + step], &mut k).unwrap();
        pair.plain.append(0, &plain, Kv::new(&k, &v)).unwrap();
    }
    pair.assert_same_attention(&asked);
}

#[test]
fn a_position_beyond_the_table_is_refused_and_nothing_written() {
    let mut pair = Pair::new();
    let root = pair.root();
    let batch = pair.rotating.batch(&[(root[0], 301)]).unwrap();
    pair.plain.batch(&[(root[1], 301)]).unwrap();
    let (k, v) = (pair.rows(301), pair.rows(301));
    let error = pair.rotating.append(0, &batch, Kv::new(&k, &v).rotated(&pair.table)).unwrap_err();
    assert_eq!(error.to_string(), "positions[300] is 300, the rotary table has 300 positions");
    let narrow = RotaryTable::new(32, 400, 10_000.0).unwrap();
    let error = pair.rotating.append(0, &batch, Kv::new(&k, &v).rotated(&narrow)).unwrap_err();
    assert_eq!(error.to_string(), "the rotary table is of head_dim 32, the cache of 64");
    pair.assert_same_attention(&[root]);
}
