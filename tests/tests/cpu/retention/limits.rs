//! Policies at the limit where they keep all.

use deft::retain::{Budget, Corm, H2o, MergeBias, Merger, Policy, SnapKv};

use crate::retention::world::World;

#[test]
fn policies_that_keep_all_leave_every_bit() {
    let merger = Merger {
        threshold: 1.0,
        recent: 0,
        top: 0.0,
        sigma: 5.0,
        bias: MergeBias::LogN,
        window: u32::MAX,
    };
    for mut policy in [
        Policy::Corm(Corm { window: u32::MAX, recent: 0 }),
        Policy::Corm(Corm { window: 0, recent: u32::MAX }),
        Policy::H2o(H2o { recent: u32::MAX, window: 8 }),
        Policy::SnapKv(SnapKv { window: u32::MAX, pool: 7 }),
        Policy::Merger(merger),
    ] {
        let run = |maintained: bool, policy: &mut Policy| {
            let mut world = World::new(32);
            let observe = deft::retain::Retention::observe(policy);
            let prompt = world.cache.insert_root().unwrap();
            world.run(&[(prompt, 150)], observe, 1.0);
            let leaves = world.cache.fork(prompt, 3).unwrap();
            let nodes: Vec<_> = leaves.iter().map(|&leaf| (leaf, 1)).collect();
            world.run(&nodes, observe, 1.0);
            if maintained {
                let done = world.cache.maintain(policy, Budget::Tokens(0)).unwrap();
                assert_eq!(done.nodes, 0, "{policy}");
                let all = world.cache.select(policy, prompt, 1.0).unwrap().unwrap();
                assert!(all.is_identity(&[128; 4]), "{policy}");
                assert_eq!(world.cache.compact_node(prompt, &all).unwrap(), 0);
            }
            world.run(&nodes, observe, 1.0)
        };
        assert!(run(true, &mut policy) == run(false, &mut policy), "{policy}");
    }
}
