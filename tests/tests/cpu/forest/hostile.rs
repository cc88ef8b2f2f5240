//! Calls that have to be refused, each with an error that names what was wrong.

use deft::cache::{PagePool, PoolError};
use deft::tree::{DraftNode, ForestError, NodeKey, TokenForest};

fn forest(pages: u32) -> TokenForest {
    TokenForest::new(PagePool::new(pages).unwrap())
}

fn token(parent: Option<u32>) -> DraftNode {
    DraftNode { parent, tokens: 1 }
}

/// Runs `call`, which has to fail, and checks that the forest stays in order and that no page moved.
fn refused<T: std::fmt::Debug>(
    forest: &mut TokenForest,
    call: impl FnOnce(&mut TokenForest) -> Result<T, ForestError>,
) -> ForestError {
    let before = (forest.pool().free(), forest.shape_epoch(), forest.node_count());
    let error = call(forest).unwrap_err();
    forest.debug_assert_invariants();
    let after = (forest.pool().free(), forest.shape_epoch(), forest.node_count());
    assert_eq!(before, after, "{error} changes nothing");
    error
}

#[test]
fn pruned_and_foreign_keys_are_unknown() {
    let mut forest = forest(4);
    let root = forest.insert_root(1).unwrap();
    let pruned = forest.fork(root, 1).unwrap()[0];
    forest.prune(pruned).unwrap();
    // Takes the slot over that the pruned node had.
    let next = forest.fork(root, 1).unwrap()[0];
    assert_ne!(pruned, next);
    for node in [pruned, NodeKey::default()] {
        let unknown = ForestError::UnknownNode { node };
        assert_eq!(refused(&mut forest, |f| f.append(node, 1)), unknown);
        assert_eq!(refused(&mut forest, |f| f.extend(&[next, node], 1)), unknown);
        assert_eq!(refused(&mut forest, |f| f.fork(node, 1)), unknown);
        assert_eq!(refused(&mut forest, |f| f.prune(node)), unknown);
        assert_eq!(refused(&mut forest, |f| f.remove_tree(node)), unknown);
        assert_eq!(refused(&mut forest, |f| f.view(&[next, node])), unknown);
        assert_eq!(refused(&mut forest, |f| f.accept(node, &[])), unknown);
        let draft = [token(None)];
        assert_eq!(refused(&mut forest, |f| f.insert_draft(node, &draft)), unknown);
        assert_eq!(forest.leaves(node).unwrap_err(), unknown);
        let targets = &mut Vec::new();
        assert_eq!(forest.append_targets(node, 0..0, targets), Err(unknown));
        assert_eq!(forest.live_targets(&[node], targets), Err(unknown));
    }
    assert_eq!(forest.length(next), Ok(0));
}

#[test]
fn keys_and_cursors_of_another_forest_are_refused() {
    let (mut ours, mut theirs) = (forest(4), forest(4));
    let root = ours.insert_root(1).unwrap();
    let node = theirs.insert_root(1).unwrap();
    assert_eq!(ours.length(root), Ok(1));
    let unknown = ForestError::UnknownNode { node };
    assert_eq!(refused(&mut ours, |f| f.append(node, 1)), unknown);
    assert_eq!(refused(&mut ours, |f| f.extend(&[root, node], 1)), unknown);
    assert_eq!(refused(&mut ours, |f| f.fork(node, 1)), unknown);
    assert_eq!(refused(&mut ours, |f| f.prune(node)), unknown);
    assert_eq!(refused(&mut ours, |f| f.merge_chain(node)), unknown);
    assert_eq!(refused(&mut ours, |f| f.view(&[root, node])), unknown);
    assert!(unknown.to_string().ends_with("belongs to another forest"));
    assert_eq!(theirs.shape_epoch(), ours.shape_epoch());
    assert_eq!(ours.growth_since(theirs.growth_cursor()), None);
    assert!(ours.growth_since(ours.growth_cursor()).is_some());
}

#[test]
fn nothing_is_no_amount() {
    let mut forest = forest(4);
    let root = forest.insert_root(1).unwrap();
    let empty = |argument| ForestError::Empty { argument };
    assert_eq!(refused(&mut forest, |f| f.append(root, 0)), empty("k"));
    assert_eq!(refused(&mut forest, |f| f.extend(&[root], 0)), empty("k"));
    assert_eq!(refused(&mut forest, |f| f.extend(&[], 1)), empty("leaves"));
    assert_eq!(refused(&mut forest, |f| f.fork(root, 0)), empty("n"));
    assert_eq!(refused(&mut forest, |f| f.view(&[])), empty("queries"));
    let error = refused(&mut forest, |f| f.insert_draft(root, &[]));
    assert_eq!(error.to_string(), "draft is empty or 0");
}

#[test]
fn a_node_counts_once() {
    let mut forest = forest(4);
    let root = forest.insert_root(1).unwrap();
    let twice = ForestError::DuplicateNode { node: root, index: 1 };
    assert_eq!(refused(&mut forest, |f| f.view(&[root, root])), twice);
    assert_eq!(refused(&mut forest, |f| f.extend(&[root, root], 1)), twice);
    assert_eq!(forest.length(root), Ok(1));
}

#[test]
fn forked_nodes_and_drafts_do_not_grow() {
    let mut forest = forest(8);
    let root = forest.insert_root(1).unwrap();
    let leaf = forest.fork(root, 1).unwrap()[0];
    let sealed = ForestError::Sealed { node: root };
    assert_eq!(refused(&mut forest, |f| f.append(root, 1)), sealed);
    assert_eq!(refused(&mut forest, |f| f.extend(&[leaf, root], 1)), sealed);
    let draft = [token(None)];
    assert_eq!(refused(&mut forest, |f| f.insert_draft(root, &draft)), sealed);
    let targets = &mut Vec::new();
    assert_eq!(forest.live_targets(&[root], targets), Err(sealed));
    let no_token = ForestError::EmptyNode { node: leaf };
    assert_eq!(forest.live_targets(&[leaf], targets), Err(no_token));

    let node = forest.insert_draft(leaf, &draft).unwrap()[0];
    let is_draft = ForestError::Draft { node };
    assert_eq!(refused(&mut forest, |f| f.append(node, 1)), is_draft);
    assert_eq!(refused(&mut forest, |f| f.fork(node, 1)), is_draft);
    assert_eq!(refused(&mut forest, |f| f.insert_draft(node, &draft)), is_draft);
    assert_eq!(refused(&mut forest, |f| f.accept(node, &[])), is_draft);
    let pending = ForestError::DraftPending { node: leaf };
    assert_eq!(refused(&mut forest, |f| f.append(leaf, 1)), pending);
    assert_eq!(refused(&mut forest, |f| f.fork(leaf, 1)), pending);
    assert_eq!(refused(&mut forest, |f| f.insert_draft(leaf, &draft)), pending);
    assert!(targets.is_empty());

    forest.prune(leaf).unwrap();
    assert_eq!(
        refused(&mut forest, |f| f.append(root, 1)),
        sealed,
        "a forked node stays sealed when its children are gone"
    );
}

#[test]
fn a_draft_with_a_bad_tree_is_refused() {
    let mut forest = forest(128);
    let root = forest.insert_root(1).unwrap();
    let error = |forest: &mut TokenForest, draft: &[DraftNode]| {
        refused(forest, |f| f.insert_draft(root, draft)).to_string()
    };
    let own_parent = [token(None), token(Some(1))];
    assert_eq!(error(&mut forest, &own_parent), "draft[1] has parent 1, which does not precede it");
    let cycle = [token(Some(1)), token(Some(0))];
    assert_eq!(error(&mut forest, &cycle), "draft[0] has parent 1, which does not precede it");
    let hollow = [DraftNode { parent: None, tokens: 0 }];
    assert_eq!(error(&mut forest, &hollow), "draft[0] has 0 tokens");
    let long = [DraftNode { parent: None, tokens: u32::MAX }; 3];
    assert_eq!(error(&mut forest, &long), "the draft has 12884901885 tokens, the limit is 4096");
}

#[test]
fn a_path_goes_from_parent_to_child() {
    let mut forest = forest(8);
    let root = forest.insert_root(1).unwrap();
    assert_eq!(refused(&mut forest, |f| f.accept(root, &[])), ForestError::NoDraft { node: root });
    let draft = [token(None), token(Some(0)), token(None)];
    let nodes = forest.insert_draft(root, &draft).unwrap();
    let broken = [vec![nodes[1]], vec![nodes[0], nodes[2]], vec![nodes[0], nodes[0]], vec![root]];
    for path in broken {
        let index = path.len() - 1;
        let node = path[index];
        assert_eq!(
            refused(&mut forest, |f| f.accept(root, &path)),
            ForestError::NotAPath { index, node }
        );
    }
    forest.accept(root, &[nodes[0], nodes[1]]).unwrap();
    assert_eq!(forest.length(root), Ok(3));
    assert_eq!(forest.append(root, 1), Ok(3..4), "the trunk grows again");
}

#[test]
fn lengths_that_overflow_are_refused() {
    let mut forest = forest(4);
    let root = forest.insert_root(5).unwrap();
    let overflow = ForestError::LengthOverflow { node: root, length: 5, added: u32::MAX - 4 };
    assert_eq!(refused(&mut forest, |f| f.append(root, u32::MAX - 4)), overflow);
    let error = refused(&mut forest, |f| f.append(root, u32::MAX - 5));
    let pages_out = PoolError::OutOfPages { wanted: 67_108_863, free: 3, capacity: 4 };
    assert_eq!(error, ForestError::Pool(pages_out));
    let other = forest.insert_root(0).unwrap();
    let error = refused(&mut forest, |f| f.extend(&[root, other], u32::MAX - 5));
    assert_eq!(
        error.to_string(),
        "out of pages: 134217727 wanted, 3 free of 4",
        "a batch is counted as a whole, beyond 32 bits of tokens"
    );
    let error = refused(&mut forest, |f| f.insert_root(u32::MAX));
    assert_eq!(error.to_string(), "out of pages: 67108864 wanted, 3 free of 4");
}

#[test]
fn counts_beyond_the_limits_are_refused() {
    let mut forest = forest(4);
    let root = forest.insert_root(1).unwrap();
    assert_eq!(
        refused(&mut forest, |f| f.fork(root, usize::MAX)),
        ForestError::TooManyNodes { added: usize::MAX, held: 1 }
    );
    let queries = vec![root; TokenForest::MAX_QUERIES + 1];
    let error = refused(&mut forest, |f| f.view(&queries));
    assert_eq!(error.to_string(), "65536 queries, the limit is 65535");
    if !cfg!(miri) {
        let leaves = forest.fork(root, TokenForest::MAX_QUERIES).unwrap();
        assert_eq!(forest.view(&leaves).unwrap().queries, 65_535);
    }
}

#[test]
fn a_batch_that_does_not_fit_grows_no_leaf() {
    let mut forest = forest(3);
    let root = forest.insert_root(64).unwrap();
    let leaves = forest.fork(root, 3).unwrap();
    let error = refused(&mut forest, |f| f.extend(&leaves, 1));
    assert_eq!(error.to_string(), "out of pages: 3 wanted, 2 free of 3");
    assert!(leaves.iter().all(|&leaf| forest.length(leaf) == Ok(0)));
    assert_eq!(forest.extend(&leaves[..2], 1), Ok(2));
    assert_eq!(forest.extend(&leaves[..2], 63), Ok(0));
}

#[test]
fn token_ranges_stay_within_their_node() {
    let mut forest = forest(4);
    let root = forest.insert_root(70).unwrap();
    let mut targets = vec![7];
    let (begin, end) = (69, 71);
    assert_eq!(
        forest.append_targets(root, begin..end, &mut targets),
        Err(ForestError::TokenRange { node: root, begin, end, length: 70 })
    );
    #[expect(clippy::reversed_empty_ranges, reason = "hostile on purpose")]
    let reversed = forest.append_targets(root, 5..4, &mut targets);
    assert!(matches!(reversed, Err(ForestError::TokenRange { .. })));
    assert_eq!(targets, [7]);
    forest.append_targets(root, 63..65, &mut targets).unwrap();
    let pages = forest.pages(root).unwrap();
    assert_eq!(targets, [7, pages[0] * 64 + 63, pages[1] * 64]);
}

#[test]
fn a_chain_with_a_draft_stays() {
    let mut forest = forest(8);
    let root = forest.insert_root(1).unwrap();
    let leaf = forest.fork(root, 1).unwrap()[0];
    forest.append(leaf, 1).unwrap();
    let draft = forest.insert_draft(leaf, &[token(None)]).unwrap()[0];
    assert_eq!(
        refused(&mut forest, |f| f.merge_chain(root)),
        ForestError::DraftPending { node: leaf }
    );
    assert_eq!(refused(&mut forest, |f| f.merge_chain(draft)), ForestError::Draft { node: draft });
    forest.accept(leaf, &[]).unwrap();
    assert_eq!(forest.merge_chain(root).unwrap().len(), 1);
    assert_eq!(forest.append(root, 1), Ok(2..3), "it grows as the leaf did");
    assert_eq!(
        refused(&mut forest, |f| f.append(leaf, 1)),
        ForestError::UnknownNode { node: leaf }
    );
}
