//! Rotary appends through [`TreeCache`]: a token's position is its path's length.

use deft::{CacheError, DType, Device, DraftNode, Kv, NodeKey, RotaryTable, TreeCache};

const HEADS: usize = 2;
const DIM: usize = 64;
const ROW: usize = HEADS * DIM;

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

    /// Does the same to both caches; their nodes have the same names.
    fn both<R: PartialEq + std::fmt::Debug>(
        &mut self,
        change: impl Fn(&mut TreeCache) -> Result<R, CacheError>,
    ) -> R {
        let result = change(&mut self.rotating).unwrap();
        assert_eq!(result, change(&mut self.plain).unwrap());
        result
    }

    /// Writes `positions.len()` tokens of a node, its first.
    fn write(&mut self, node: NodeKey, positions: std::ops::Range<u32>) {
        let tokens = [(node, positions.len() as u32)];
        let batch = self.rotating.batch(&tokens).unwrap();
        assert!(batch.positions().iter().copied().eq(positions.clone()));
        let plain = self.plain.batch(&tokens).unwrap();
        let (k, v) = (self.rows(positions.len()), self.rows(positions.len()));
        self.rotating
            .append(0, &batch, Kv::new(&k, &v).rotated(&self.table))
            .unwrap();
        let mut rotated = k;
        let positions: Vec<u32> = positions.collect();
        self.table.rotate(&positions, &mut rotated).unwrap();
        self.plain.append(0, &plain, Kv::new(&rotated, &v)).unwrap();
    }

    fn assert_same_attention(&mut self, nodes: &[NodeKey]) {
        let q = self.rows(2 * nodes.len());
        let outputs = [&mut self.rotating, &mut self.plain].map(|cache| {
            let ones: Vec<_> = nodes.iter().map(|&node| (node, 1)).collect();
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
    let root = pair.both(|cache| cache.insert_root());
    pair.write(root, 0..70);
    let leaves = pair.both(|cache| cache.fork(root, 2));
    pair.write(leaves[0], 70..73);
    let draft = [
        DraftNode {
            parent: None,
            tokens: 2,
        },
        DraftNode {
            parent: Some(0),
            tokens: 1,
        },
    ];
    let drafted = pair.both(|cache| cache.insert_draft(leaves[0], &draft));
    pair.write(drafted[0], 73..75);
    pair.write(drafted[1], 75..76);
    pair.assert_same_attention(&[root, leaves[0], drafted[0], drafted[1]]);
}

#[test]
fn a_decode_step_turns_each_leaf_by_its_own_position() {
    let mut pair = Pair::new();
    let root = pair.both(|cache| cache.insert_root());
    pair.write(root, 0..10);
    let leaves = pair.both(|cache| cache.fork(root, 2));
    pair.write(leaves[1], 10..15);
    // Not in the order of the tree.
    let asked = [leaves[1], leaves[0]];
    let [mut batch, mut plain] = [&mut pair.rotating, &mut pair.plain]
        .map(|cache| cache.batch(&asked.map(|leaf| (leaf, 1))).unwrap());
    for step in 0..4 {
        if step > 0 {
            pair.rotating.advance(&mut batch, 1).unwrap();
            pair.plain.advance(&mut plain, 1).unwrap();
        }
        let (mut k, v) = (pair.rows(2), pair.rows(2));
        pair.rotating
            .append(0, &batch, Kv::new(&k, &v).rotated(&pair.table))
            .unwrap();
        pair.table.rotate(&[15 + step, 10 + step], &mut k).unwrap();
        pair.plain.append(0, &plain, Kv::new(&k, &v)).unwrap();
    }
    pair.assert_same_attention(&asked);
}

#[test]
fn a_position_beyond_the_table_is_refused_and_nothing_written() {
    let mut pair = Pair::new();
    let root = pair.both(|cache| cache.insert_root());
    let batch = pair.rotating.batch(&[(root, 301)]).unwrap();
    pair.plain.batch(&[(root, 301)]).unwrap();
    let (k, v) = (pair.rows(301), pair.rows(301));
    let error = pair
        .rotating
        .append(0, &batch, Kv::new(&k, &v).rotated(&pair.table))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "positions[300] is 300, the rotary table has 300 positions"
    );
    let narrow = RotaryTable::new(32, 400, 10_000.0).unwrap();
    let error = pair
        .rotating
        .append(0, &batch, Kv::new(&k, &v).rotated(&narrow))
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "the rotary table is of head_dim 32, the cache of 64"
    );
    pair.assert_same_attention(&[root]);
}
