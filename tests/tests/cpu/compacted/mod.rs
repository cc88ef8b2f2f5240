//! Nodes of fewer rows than tokens: attention on the CPU over what is left, against f64, and everything that trees do.

mod life;
mod refusals;
mod residue;

use deft::cache::HEAD_DIMS;
use deft::plan::HeadShape;
use deft::retain::{Compaction, HeadCompaction, Source};
use deft::{Grouping, KvElement, bf16, f16};
use deft_tests::compacted::{Compacted, Thinning};
use deft_tests::problem::{GROUPINGS, heads};
use deft_tests::world::{Place, decode_behind};

fn check_forest<T: KvElement>(heads: HeadShape, thinning: Thinning, seed: u64) {
    let mut world = Compacted::<T>::on(&Place::Cpu, heads, 2, 400, seed);
    let asked = world.grow_thinned(thinning);
    world.check_counters();
    for grouping in GROUPINGS {
        let context = format!("seed {seed}, {heads:?}, {} with {thinning:?}", T::DTYPE);
        world.check(&asked, grouping, &context);
    }
}

#[test]
fn random_forests_of_every_head_dim_and_ratio_agree_with_what_is_left_of_them() {
    for head_dim in HEAD_DIMS {
        for (at, heads) in
            (0..).zip([heads(1, 1, head_dim), heads(4, 1, head_dim), heads(6, 2, head_dim)])
        {
            for seed in at * 100 + u64::from(head_dim)..at * 100 + u64::from(head_dim) + 9 {
                let thinning = Thinning { keep: 15 * (seed % 5) as u32, merges: seed % 2 == 0 };
                match seed % 3 {
                    0 => check_forest::<f32>(heads, thinning, seed),
                    1 => check_forest::<bf16>(heads, thinning, seed),
                    _ => check_forest::<f16>(heads, thinning, seed),
                }
            }
        }
    }
}

#[test]
fn a_leaf_grows_behind_rows_without_a_new_plan() {
    let mut world = Compacted::<f32>::on(&Place::Cpu, heads(2, 1, 64), 1, 200, 1);
    decode_behind(&mut world, "behind rows", |world, leaf| {
        let of = Compaction { tokens: 128, heads: vec![HeadCompaction::keep((0..128).step_by(3))] };
        // 43 rows take one page.
        assert_eq!(world.compact(leaf, &of).unwrap(), 1);
    });
}

#[test]
fn pages_are_as_many_as_the_fullest_layer_takes() {
    let mut world = Compacted::<bf16>::on(&Place::Cpu, heads(4, 2, 64), 2, 200, 7);
    let root = world.root(10 * 64);
    // Cells: 1 + 1 in the first layer, 3 + 2 in the second.
    let keep = |rows: u32| HeadCompaction::keep((0..rows).map(|row| row * 3));
    let heads = [64, 1, 190, 65].map(keep).to_vec();
    assert_eq!(world.compact(root, &Compaction { tokens: 640, heads }).unwrap(), 10 - 3);
    world.check_counters();
    let leaf = world.fork(root, 1)[0];
    world.push(leaf, 5);
    world.check(&[(leaf, 3)], Grouping::Flatten, "ragged");
    // Nothing is left of it.
    let heads = vec![HeadCompaction::default(); 4];
    assert_eq!(world.compact(root, &Compaction { tokens: 640, heads }).unwrap(), 3);
    assert_eq!(world.cache.forest().pool().live(), 1);
    for grouping in GROUPINGS {
        world.check(&[(leaf, 3)], grouping, "nothing above");
    }
    world.check_counters();
}

/// Bits of attention at three leaves of a root of 192 tokens, of which `compaction` may have its say.
fn bits(compaction: Option<Compaction>) -> (Vec<u16>, Vec<u32>, u64) {
    let mut world = Compacted::<bf16>::on(&Place::Cpu, heads(8, 2, 128), 1, 100, 11);
    let root = world.root(192);
    let leaves = world.fork(root, 3);
    leaves.iter().for_each(|&leaf| world.push(leaf, 3));
    let epoch = world.cache.forest().shape_epoch();
    if let Some(compaction) = compaction {
        world.compact(root, &compaction).unwrap();
    }
    let nodes: Vec<_> = leaves.iter().map(|&leaf| (leaf, 1)).collect();
    let batch = world.cache.batch_held(&nodes).unwrap();
    let q: Vec<bf16> = (0..3 * 8 * 128).map(|i| bf16::from_f32((i % 37) as f32 / 40.0)).collect();
    let (mut out, mut lse) = (vec![bf16::NAN; q.len()], vec![f32::NAN; 24]);
    let results = deft::Out::with_lse(&mut out, &mut lse);
    world.cache.attend(0, &batch, &q, results).unwrap();
    let changes = world.cache.forest().shape_epoch() - epoch;
    (bytemuck::cast_vec(out), bytemuck::cast_vec(lse), changes)
}

#[test]
fn a_compaction_that_keeps_all_rows_changes_no_bit() {
    let all = Compaction { tokens: 192, heads: vec![HeadCompaction::keep(0..192); 2] };
    let (out, lse, _) = bits(None);
    assert_eq!(bits(Some(all.clone())), (out.clone(), lse, 0));
    let mut one_less = all;
    one_less.heads[1] = HeadCompaction::keep(1..192);
    let (other, _, changes) = bits(Some(one_less));
    assert!(other != out && changes == 1);
}

#[test]
fn eight_equal_keys_are_one_row_with_the_bias_ln_8_and_not_without() {
    let error = |bias: f32| {
        let mut world = Compacted::<f32>::on(&Place::Cpu, heads(4, 1, 64), 1, 100, 3);
        let root = world.cache.insert_root().unwrap();
        let batch = world.cache.batch(&[(root, 128)]).unwrap();
        let row = |token: usize| {
            (0..64).map(move |dim| ((token * 31 + dim * 17) % 29) as f32 / 20.0 - 0.7)
        };
        // Tokens 40 to 47 have the same key.
        let k: Vec<f32> = (0..128)
            .flat_map(|token| row(if (40..48).contains(&token) { 40 } else { token }))
            .collect();
        let v: Vec<f32> = (0..128).flat_map(|token| row(token + 5)).collect();
        world.cache.append(0, &batch, deft::Kv::new(&k, &v)).unwrap();
        let q: Vec<f32> = (0..4).flat_map(|head| row(head + 99)).collect();
        let attend = |world: &mut Compacted<f32>| {
            let leaf = world.cache.fork(root, 1).unwrap()[0];
            let batch = world.cache.batch(&[(leaf, 1)]).unwrap();
            let own: Vec<f32> = row(77).collect();
            world.cache.append(0, &batch, deft::Kv::new(&own, &own)).unwrap();
            let mut out = vec![f32::NAN; q.len()];
            world.cache.attend(0, &batch, &q, &mut out).unwrap();
            out
        };
        let before = attend(&mut world);
        let mut head = HeadCompaction::keep((0..40).chain(48..128));
        let eighth = |row| Source { row, k: 0.125, v: 0.125 };
        head.push(&(40..48).map(eighth).collect::<Vec<_>>(), bias);
        let of = Compaction { tokens: 128, heads: vec![head] };
        world.cache.compact_node(root, &of).unwrap();
        let after = attend(&mut world);
        let right: Vec<f64> = before.iter().map(|&x| x.into()).collect();
        deft_tests::oracle::relative_l2(&after, &right)
    };
    assert!(error(8.0f32.ln()) < 1e-5, "{}", error(8.0f32.ln()));
    assert!(error(0.0) > 1e-2, "{}", error(0.0));
}
