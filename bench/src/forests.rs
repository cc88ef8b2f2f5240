//! Random forests with odd sizes on purpose.

use anyhow::Result;
use deft::cache::PagePool;
use deft::tree::{DraftNode, NodeKey, TokenForest};

use crate::random::Random;

/// Pages of a forest's pool; no forest made here needs as many.
const PAGES: u32 = 1024;
const ROOT_TOKENS: [u32; 10] = [1, 17, 37, 63, 64, 65, 128, 200, 511, 1500];
const NODE_TOKENS: [u32; 9] = [0, 1, 7, 17, 37, 63, 64, 65, 130];

/// A forest and the nodes that ask.
#[derive(Debug)]
pub(crate) struct Asked {
    pub(crate) forest: TokenForest,
    pub(crate) nodes: Vec<NodeKey>,
}

/// A random forest: up to three trees, deep or wide, empty nodes, draft blocks, queries at inner nodes.
pub(crate) fn random_forest(random: &mut Random) -> Result<Asked> {
    let mut forest = shuffled_forest(PAGES, random)?;
    let mut growing = Vec::new();
    let mut nodes = Vec::new();
    for _ in 0..random.between(1, 3) {
        growing.push(forest.insert_root(random.pick(&ROOT_TOKENS))?);
    }
    for _ in 0..random.between(0, 12) {
        let parent = growing.swap_remove(random.between(0, growing.len() as u32 - 1) as usize);
        if random.between(0, 3) == 0 {
            nodes.push(parent);
        }
        for child in forest.fork(parent, random.between(1, 5) as usize)? {
            let tokens = random.pick(&NODE_TOKENS);
            if tokens > 0 {
                forest.append(child, tokens)?;
            }
            growing.push(child);
        }
    }
    for leaf in growing {
        match random.between(0, 5) {
            0 => {
                let draft = random_draft(random);
                nodes.extend(forest.insert_draft(leaf, &draft)?);
            }
            1 => {}
            _ => nodes.push(leaf),
        }
    }
    if nodes.is_empty() {
        nodes.extend(forest.roots().take(1));
    }
    Ok(Asked { forest, nodes })
}

fn random_draft(random: &mut Random) -> Vec<DraftNode> {
    let nodes = random.between(1, 90);
    (0..nodes)
        .map(|node| DraftNode {
            parent: match random.between(0, node) {
                0 => None,
                parent => Some(parent - 1),
            },
            tokens: random.between(1, 3),
        })
        .collect()
}

/// An empty forest that takes its `pages` pages in random order: that in which trees of a page each gave them back.
pub(crate) fn shuffled_forest(pages: u32, random: &mut Random) -> Result<TokenForest> {
    let mut forest = TokenForest::new(PagePool::new(pages)?);
    let roots = (0..pages).map(|_| forest.insert_root(1));
    let mut roots = roots.collect::<Result<Vec<_>, _>>()?;
    random.shuffle(&mut roots);
    for root in roots {
        forest.prune(root)?;
    }
    Ok(forest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forests_are_varied_and_can_be_viewed() {
        let mut random = Random::new(7);
        let (mut masked, mut empty, mut inner) = (0, 0, 0);
        for _ in 0..60 {
            let Asked { forest, nodes } = random_forest(&mut random).unwrap();
            let view = forest.view(&nodes).unwrap();
            assert_eq!(view.queries as usize, nodes.len());
            masked += u32::from(view.runs.iter().any(|run| run.mask.is_some()));
            empty += u32::from(nodes.iter().any(|&node| forest.length(node).unwrap() == 0));
            inner += u32::from(nodes.iter().any(|&node| forest.is_sealed(node).unwrap()));
        }
        assert!(
            masked > 10 && empty > 5 && inner > 10,
            "{masked} {empty} {inner}"
        );
    }

    #[test]
    fn a_shuffled_forest_has_every_page_but_not_in_order() {
        let mut forest = shuffled_forest(50, &mut Random::new(1)).unwrap();
        let root = forest.insert_root(50 * 64).unwrap();
        let mut pages = forest.pages(root).unwrap().to_vec();
        assert!(!pages.is_sorted());
        pages.sort_unstable();
        assert_eq!(pages, (0..50).collect::<Vec<_>>());
    }
}
