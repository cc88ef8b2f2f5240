//! Drafts that grow in the CPU's model: what follows all beams, against the definition over their paths.

mod common;

use common::{assert_rows, definition, tiny, tokens};
use deft_engine::{CpuModel, CpuOptions, GrownToken, ModelError, TreeModel, Weights};

/// Log-softmax of a row.
fn log_softmax(row: &[f64]) -> Vec<f64> {
    let sum: f64 = row.iter().map(|x| x.exp()).sum();
    row.iter().map(|x| x - sum.ln()).collect()
}

#[test]
fn what_follows_beams_is_what_follows_their_paths() {
    let weights = Weights::synthetic(tiny(false), 11).unwrap();
    let reference = definition(&weights);
    let mut model = CpuModel::load(&weights, CpuOptions::default(), |_, _| {}).unwrap();
    let prompt = tokens(1, 70);
    let mut logits = Vec::new();
    let trunk = model.insert_prompt(&prompt, &mut logits).unwrap();
    assert_rows(&logits, [&reference.logits(&prompt).pop().unwrap()]);
    let mut beams = vec![(trunk, prompt)];
    for step in 0..4u32 {
        let width = [3, 9, 5, 7][step as usize];
        let parents = (0..width).map(|beam| beam * beams.len() / width);
        let parents: Vec<usize> = parents.filter(|beam| beam % 3 != 1).collect();
        let lost = (0..beams.len()).filter(|beam| step > 0 && !parents.contains(beam));
        let lost: Vec<_> = lost.map(|beam| beams[beam].0).collect();
        model.prune_draft(&lost).unwrap();
        let new = tokens(10 + step, parents.len());
        let grown = parents.iter().zip(&new).zip(1..).map(|((&parent, &token), at)| GrownToken {
            parent: beams[parent].0,
            token,
            score: -f64::from(at % 4) / 8.0,
        });
        let grown: Vec<GrownToken> = grown.collect();
        let found = model.grow_draft(trunk, &grown, 20).unwrap();
        assert_eq!((found.nodes.len(), found.undefined), (grown.len(), None));
        let paths = parents.iter().zip(&new).map(|(&parent, &token)| {
            let mut path = beams[parent].1.clone();
            path.push(token);
            path
        });
        let paths: Vec<Vec<u32>> = paths.collect();
        let rows = paths.iter().map(|path| log_softmax(&reference.logits(path).pop().unwrap()));
        let rows: Vec<Vec<f64>> = rows.collect();
        let totals = rows.iter().zip(&grown);
        let mut totals: Vec<f64> =
            totals.flat_map(|(row, one)| row.iter().map(|x| x + one.score)).collect();
        totals.sort_by(|a, b| b.total_cmp(a));
        assert_eq!(found.best.len(), 20.min(totals.len()));
        for (one, total) in found.best.iter().zip(totals) {
            let right = rows[one.row as usize][one.token as usize];
            assert!((one.log_prob - right).abs() < 1e-4, "{} for {right}", one.log_prob);
            let own = one.log_prob + grown[one.row as usize].score;
            assert!((own - total).abs() < 2e-4, "{own} for {total}");
        }
        beams = found.nodes.into_iter().zip(paths).collect();
    }
    model.prune(trunk).unwrap();
    assert_eq!(model.forest().pool().live(), 0);
}

#[test]
fn a_step_that_is_refused_leaves_the_draft_as_it_was() {
    let weights = Weights::synthetic(tiny(false), 11).unwrap();
    let mut model = CpuModel::load(&weights, CpuOptions::default(), |_, _| {}).unwrap();
    let context = model.context();
    let trunk = model.insert_prompt(&tokens(1, context - 1), &mut Vec::new()).unwrap();
    let token = |parent, token, score| GrownToken { parent, token, score };
    let first = model.grow_draft(trunk, &[token(trunk, 1, 0.0), token(trunk, 2, 0.0)], 2).unwrap();
    let leaf = first.nodes[0];
    let vocabulary = model.vocabulary() as u32;
    let mut refuse = |grown: &[GrownToken], k| {
        let before = (model.forest().node_count(), model.forest().pool().free(), model.traffic());
        let error = model.grow_draft(trunk, grown, k).unwrap_err();
        let after = (model.forest().node_count(), model.forest().pool().free(), model.traffic());
        assert_eq!(before, after, "{error}");
        error
    };
    assert!(matches!(refuse(&[], 1), ModelError::Empty { argument: "grown" }));
    let error = refuse(&[token(leaf, 1, 0.0)], 1);
    assert!(matches!(error, ModelError::Context { .. }), "{error}");
    let error = refuse(&[token(trunk, vocabulary, 0.0)], 1);
    assert!(matches!(error, ModelError::Token { .. }), "{error}");
    let error = refuse(&[token(trunk, 1, 0.0)], 0).to_string();
    assert_eq!(error, "k is 0; it must be at least 1");
    let error = refuse(&[token(trunk, 1, f64::NAN)], 1).to_string();
    assert_eq!(error, "score is NaN; it must be finite");
    let error = model.prune_draft(&[trunk]).unwrap_err().to_string();
    assert!(error.contains("is not a draft's node without children"), "{error}");
    model.prune_draft(&first.nodes).unwrap();
    assert!(model.gather_draft(trunk).unwrap_err().to_string().contains("carries no draft"));
    model.prune(trunk).unwrap();
}
