//! Drafts that grow.

use std::collections::HashMap;

use deft::{DType, NodeKey};
use rand::RngExt;

use super::{Pair, ones};

#[test]
fn beams_are_attended_to_as_their_paths() {
    let mut pair = Pair::new(DType::F32, 10);
    for (width, steps) in [(1usize, 70), (7, 30), (90, 9), (300, 4)] {
        let trunk = pair.root::<f32>(70);
        let mut beams = vec![trunk];
        let mut paths = HashMap::from([(trunk, Vec::new())]);
        for step in 0..steps {
            // The best beams have most of those that follow.
            let mut parents: Vec<usize> = (0..width)
                .map(|_| pair.rng.random_range(0..pair.rng.clone().random_range(1..=beams.len())))
                .collect();
            parents.sort_unstable();
            if step > 0 {
                let lost = (0..beams.len()).filter(|beam| !parents.contains(beam));
                let lost: Vec<NodeKey> = lost.map(|beam| beams[beam]).collect();
                pair.cache.prune_draft(&lost).unwrap();
            }
            if step % 4 == 3 {
                pair.cache.gather_draft(trunk).unwrap();
                assert!(
                    pair.cache.forest().draft_use(trunk).unwrap().pages as usize
                        <= 1 + width * step / 64
                );
            }
            let parents: Vec<NodeKey> = parents.iter().map(|&beam| beams[beam]).collect();
            beams = pair.cache.grow_draft(trunk, &parents).unwrap();
            for (&beam, &parent) in beams.iter().zip(&parents) {
                pair.shadow.insert(beam, Some(parent));
                paths.insert(beam, [&paths[&parent][..], &[beam]].concat());
            }
            let batch = pair.cache.batch(&ones(&beams)).unwrap();
            assert!(batch.positions().iter().all(|&position| position == 70 + step as u32));
            pair.write::<f32>(&batch);
            if step % 3 == 0 || step + 1 == steps {
                let mut queries = beams.clone();
                queries.extend(&paths[&beams[0]][..step / 2]);
                pair.check::<f32>(&batch, &format!("width {width}, step {step}"));
                pair.check_groupings::<f32>(
                    &queries,
                    &format!("width {width}, step {step}, above"),
                );
            }
            pair.cache.forest().debug_assert_invariants();
        }
        let best = pair.rng.random_range(0..beams.len());
        let path = &paths[&beams[best]];
        pair.cache.accept(trunk, path).unwrap();
        for key in path {
            let token = pair.shadow.tokens(*key)[0].clone();
            pair.shadow.push(trunk, token);
        }
        pair.check_groupings::<f32>(&[trunk], &format!("width {width}, accepted"));
        pair.cache.prune(trunk).unwrap();
        assert_eq!(pair.cache.forest().pool().live(), 0);
    }
}
