//! Layers that have no keys and values of their own.

use super::ShapeError;

/// Which layer's keys and values each layer reads: its own, or those of a layer before it, so that pages hold fewer
/// layers than the model has.
///
/// For models made so (cross-layer attention), and for maps found afterwards
/// ([`LayerSearch`](super::LayerSearch); KVSharer, [arXiv 2410.18517](https://arxiv.org/abs/2410.18517)). Layers that
/// share have to rotate keys alike and see the same tokens.
///
/// ```
/// use deft::cache::LayerMap;
///
/// let map = LayerMap::new(&[0, 1, 1, 3, 2])?; // 4 reads what 2 reads: layer 1
/// assert_eq!((map.layers(), map.stored()), (5, 3));
/// assert_eq!((map.source(4), map.is_own(4), map.is_own(3)), (1, false, true));
/// # Ok::<(), deft::cache::ShapeError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LayerMap {
    /// By layer, the layer it reads, which reads itself.
    sources: Vec<u32>,
    /// By layer, where its keys and values are stored.
    planes: Vec<u32>,
    stored: u32,
}

impl LayerMap {
    /// Layer `i` reads what layer `sources[i]` reads; `sources[i] = i` for a layer of its own.
    ///
    /// # Errors
    /// [`ShapeError::LayerSource`] for a layer that would read a later one's, [`ShapeError::OutOfRange`] for a map
    /// without layers or with more than [`MAX_HEADS`](super::MAX_HEADS).
    pub fn new(sources: &[u32]) -> Result<Self, ShapeError> {
        super::shape::in_range("layers", sources.len() as u64, u64::from(super::MAX_HEADS))?;
        let mut map = Self {
            sources: Vec::with_capacity(sources.len()),
            planes: Vec::with_capacity(sources.len()),
            stored: 0,
        };
        for (layer, &source) in (0..).zip(sources) {
            if source > layer {
                return Err(ShapeError::LayerSource { layer, of: source });
            }
            match source == layer {
                true => {
                    map.sources.push(layer);
                    map.planes.push(map.stored);
                    map.stored += 1;
                }
                false => {
                    map.sources.push(map.sources[source as usize]);
                    map.planes.push(map.planes[source as usize]);
                }
            }
        }
        Ok(map)
    }

    /// Layers of the model.
    pub fn layers(&self) -> u32 {
        self.sources.len() as u32
    }

    /// Layers with keys and values of their own: what pages hold.
    pub fn stored(&self) -> u32 {
        self.stored
    }

    /// The layer whose keys and values `layer` reads: itself, or an earlier one.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn source(&self, layer: u32) -> u32 {
        self.sources[layer as usize]
    }

    /// By layer, the layer it reads: `[layers]`.
    pub fn sources(&self) -> &[u32] {
        &self.sources
    }

    /// Whether `layer` has keys and values of its own.
    ///
    /// # Panics
    /// If there is no such layer.
    pub fn is_own(&self, layer: u32) -> bool {
        self.source(layer) == layer
    }

    /// Where a cache of [`LayerMap::stored`] layers has what `layer` reads.
    pub(crate) fn plane(&self, layer: u32) -> Result<u32, ShapeError> {
        let layers = self.layers();
        let plane = self.planes.get(layer as usize).copied();
        plane.ok_or(ShapeError::Layer { layer, layers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_end_at_the_layer_that_stores() {
        let map = LayerMap::new(&[0, 0, 1, 3, 2, 3]).unwrap();
        assert_eq!(map.sources(), [0, 0, 0, 3, 0, 3]);
        let planes = (0..6).map(|layer| map.plane(layer));
        assert_eq!(planes.collect::<Result<Vec<_>, _>>().unwrap(), [0, 0, 0, 1, 0, 1]);
        assert_eq!(map.stored(), 2);
        let layer = 6;
        assert_eq!(map.plane(6), Err(ShapeError::Layer { layer, layers: 6 }));
    }

    #[test]
    fn a_layer_does_not_read_what_a_later_one_will_write() {
        let error = LayerMap::new(&[0, 2, 2]).unwrap_err().to_string();
        assert_eq!(error, "layer 1 reads layer 2; it must be itself or an earlier one");
        let error = LayerMap::new(&[]).unwrap_err().to_string();
        assert!(error.starts_with("layers is 0"), "{error}");
    }
}
