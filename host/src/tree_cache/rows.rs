//! Rows brought from one order into another.

use crate::cache::KvElement;

/// Memory for rows of any element type, kept from call to call.
#[derive(Debug, Default)]
pub(super) struct Rows {
    words: Vec<u64>,
}

impl Rows {
    /// `count` elements of whatever was there before.
    pub(super) fn take<T: KvElement>(&mut self, count: usize) -> &mut [T] {
        let words = (count * size_of::<T>()).div_ceil(size_of::<u64>());
        self.words.resize(words.max(self.words.len()), 0);
        &mut bytemuck::cast_slice_mut(&mut self.words[..words])[..count]
    }
}

/// `target[i] = source[order[i]]`, row by row.
pub(super) fn gather<T: Copy>(order: &[u32], source: &[T], target: &mut [T]) {
    let width = width(order, target.len());
    for (target, &row) in target.chunks_exact_mut(width).zip(order) {
        let begin = row as usize * width;
        target.copy_from_slice(&source[begin..begin + width]);
    }
}

/// `target[order[i]] = source[i]`, row by row.
pub(super) fn scatter<T: Copy>(order: &[u32], source: &[T], target: &mut [T]) {
    let width = width(order, source.len());
    for (source, &row) in source.chunks_exact(width).zip(order) {
        let begin = row as usize * width;
        target[begin..begin + width].copy_from_slice(source);
    }
}

fn width(order: &[u32], len: usize) -> usize {
    (len / order.len().max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scattering_undoes_gathering() {
        let order = [2, 0, 1];
        let source = [10.0, 11.0, 20.0, 21.0, 30.0, 31.0];
        let mut rows = Rows::default();
        let gathered = rows.take::<f32>(6);
        gather(&order, &source, gathered);
        assert_eq!(gathered, [30.0, 31.0, 10.0, 11.0, 20.0, 21.0]);
        let mut back = [0.0; 6];
        scatter(&order, gathered, &mut back);
        assert_eq!(back, source);
    }
}
