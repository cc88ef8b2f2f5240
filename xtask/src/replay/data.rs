//! Made-up keys, values and queries: a function of who they belong to, so that nothing has to be kept.

use deft::KvElement;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// Values lie between minus and plus this; queries are larger, so that softmax prefers some tokens.
const KV: f32 = 1.0;
const QUERY: f32 = 6.0;

/// What a vector is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Key = 1,
    Value,
    Query,
}

/// Fills `row`, `[heads, head_dim]`, for one token or query.
pub(crate) fn fill<T: KvElement>(kind: Kind, id: u64, head_dim: usize, row: &mut [T]) {
    for (head, vector) in row.chunks_exact_mut(head_dim).enumerate() {
        fill_head(kind, id, head, vector);
    }
}

/// Fills `vector`, `[head_dim]`, for one head of a token or query.
pub(crate) fn fill_head<T: KvElement>(kind: Kind, id: u64, head: usize, vector: &mut [T]) {
    let seed = (kind as u64) << 60 ^ id << 16 ^ head as u64;
    let mut random = SmallRng::seed_from_u64(seed);
    let limit = if kind == Kind::Query { QUERY } else { KV };
    for element in vector {
        *element = T::from_f32(random.random_range(-limit..limit));
    }
}

/// One head's vector, exactly as it was stored.
pub(crate) fn exact<T: KvElement>(kind: Kind, id: u64, head: usize, head_dim: usize) -> Vec<f64> {
    let mut vector = vec![T::default(); head_dim];
    fill_head(kind, id, head, &mut vector);
    vector.iter().map(|x| f64::from(x.to_f32())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use deft::bf16;

    #[test]
    fn a_row_holds_the_heads_in_order_and_no_two_alike() {
        let mut row = vec![bf16::ZERO; 3 * 64];
        fill(Kind::Key, 7, 64, &mut row);
        for head in 0..3 {
            let stored: Vec<f64> = row[head * 64..][..64].iter().map(|x| (*x).into()).collect();
            assert_eq!(stored, exact::<bf16>(Kind::Key, 7, head, 64));
            for (kind, id, other) in [
                (Kind::Value, 7, head),
                (Kind::Key, 8, head),
                (Kind::Key, 7, head + 1),
            ] {
                assert_ne!(stored, exact::<bf16>(kind, id, other, 64));
            }
        }
    }
}
