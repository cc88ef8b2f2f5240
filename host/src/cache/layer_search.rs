//! Looking for layers that may share keys and values.

use super::{LayerMap, ShapeError};

/// A search for a [`LayerMap`]: pairs of layers are tried one after the other, and each is kept whose map the model
/// stands. The procedure of KVSharer ([arXiv 2410.18517](https://arxiv.org/abs/2410.18517)), which tries the least alike
/// first and accepts from a cosine of 0.5 on. What a model stands has to be measured on it; a small one stands much
/// less.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LayerSearch {
    /// Layers that are to share another's keys and values.
    pub shared: usize,
    /// Least score of a map that is kept.
    pub least: f64,
    /// Which pairs are tried first.
    pub order: PairOrder,
}

/// Which pairs of layers are tried first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PairOrder {
    /// The most distant.
    Farthest,
    /// The nearest.
    Nearest,
}

/// A map that was tried.
#[derive(Clone, Debug, PartialEq)]
pub struct LayerTrial {
    /// The layer that was to share.
    pub layer: u32,
    /// Whose keys and values.
    pub source: u32,
    /// What the model scored with it.
    pub score: f64,
    /// Whether it was kept.
    pub kept: bool,
}

impl LayerSearch {
    /// Tries pairs of `layers` layers in the order of `distance(layer, earlier layer)`, and keeps a map if
    /// `score(map)` is at least [`LayerSearch::least`]: say, the mean cosine of the final hidden state to that of the
    /// model as it is. Returns the best that was kept and all that was tried, in order.
    ///
    /// # Errors
    /// [`ShapeError`] for a number of layers that no cache has; the score's.
    pub fn run<E: From<ShapeError>>(
        &self,
        layers: u32,
        distance: impl Fn(u32, u32) -> f64,
        mut score: impl FnMut(&LayerMap) -> Result<f64, E>,
    ) -> Result<(LayerMap, Vec<LayerTrial>), E> {
        super::shape::in_range("layers", u64::from(layers), u64::from(super::MAX_HEADS))?;
        let mut sources: Vec<u32> = (0..layers).collect();
        let mut trials = Vec::new();
        let mut shared = 0;
        for (layer, source) in self.pairs(layers, distance) {
            if shared == self.shared {
                break;
            }
            if sources[layer as usize] != layer {
                continue;
            }
            let map = with(&sources, layer, source)?;
            let score = score(&map)?;
            let kept = score >= self.least;
            if kept {
                sources = map.sources().to_vec();
                shared += 1;
            }
            trials.push(LayerTrial { layer, source, score, kept });
        }
        Ok((LayerMap::new(&sources)?, trials))
    }

    /// Pairs `(layer, earlier layer)` in the order in which they are tried.
    fn pairs(&self, layers: u32, distance: impl Fn(u32, u32) -> f64) -> Vec<(u32, u32)> {
        let all = (0..layers).flat_map(|layer| (0..layer).map(move |source| (layer, source)));
        let mut pairs: Vec<_> = all.map(|pair| (distance(pair.0, pair.1), pair)).collect();
        pairs.sort_by(|(a, _), (b, _)| match self.order {
            PairOrder::Farthest => b.total_cmp(a),
            PairOrder::Nearest => a.total_cmp(b),
        });
        pairs.into_iter().map(|(_, pair)| pair).collect()
    }
}

/// The map in which `layer`, too, reads what `source` reads; those that read `layer` go along.
fn with(sources: &[u32], layer: u32, source: u32) -> Result<LayerMap, ShapeError> {
    let mut sources = sources.to_vec();
    sources[layer as usize] = source;
    LayerMap::new(&sources)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn search(order: PairOrder, least: f64) -> LayerSearch {
        LayerSearch { shared: 2, least, order }
    }

    /// Layers at places on a line.
    const PLACES: [f64; 5] = [0.0, 10.0, 1.0, 12.0, 3.0];

    fn distance(a: u32, b: u32) -> f64 {
        (PLACES[a as usize] - PLACES[b as usize]).abs()
    }

    /// A model that loses a hundredth for each unit between a layer and what it reads.
    fn score(map: &LayerMap) -> Result<f64, ShapeError> {
        let layers = 0..map.layers();
        let lost: f64 = layers.map(|layer| distance(layer, map.source(layer))).sum();
        Ok(1.0 - lost / 100.0)
    }

    #[test]
    fn the_nearest_pairs_that_the_score_allows_are_kept() {
        let (map, trials) = search(PairOrder::Nearest, 0.9).run(5, distance, score).unwrap();
        assert_eq!(map.sources(), [0, 1, 0, 1, 4]);
        assert!(trials.iter().all(|trial| trial.kept) && trials.len() == 2);
    }

    #[test]
    fn pairs_that_cost_too_much_are_tried_and_left_out() {
        let farthest = search(PairOrder::Farthest, 0.885);
        let (map, trials) = farthest.run(5, distance, score).unwrap();
        let tried = trials.iter().map(|trial| (trial.layer, trial.source, trial.kept));
        let expected = [(3, 0, false), (3, 2, true), (1, 0, false), (2, 1, true)];
        assert_eq!(tried.collect::<Vec<_>>(), expected);
        // 3 follows 2 to layer 1, which is nearer to it.
        assert_eq!(map.sources(), [0, 1, 1, 1, 4]);
    }

    #[test]
    fn readers_of_a_layer_follow_it_to_what_it_reads() {
        let map = with(&[0, 1, 2, 2], 2, 1).unwrap();
        assert_eq!(map.sources(), [0, 1, 1, 1]);
    }

    #[test]
    fn a_score_that_fails_ends_the_search() {
        let fail = |_: &LayerMap| Err(ShapeError::HeadDim { head_dim: 3 });
        let result = search(PairOrder::Nearest, 0.0).run(5, distance, fail);
        assert_eq!(result.unwrap_err(), ShapeError::HeadDim { head_dim: 3 });
    }
}
