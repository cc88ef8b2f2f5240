//! How many rows a captured step has.

/// The rows of the graph that serves `rows` of them: few enough sizes that graphs are used again, and above 16
/// at most 7 rows or a quarter more than asked for. Rows without a token are inert: their append target is
/// [`NONE`](deft::abi::NONE), so nothing of theirs is written to pages, counted, or fed to the next step.
pub(super) fn bucket(rows: u32) -> u32 {
    if rows <= 16 {
        return rows.next_power_of_two();
    }
    let below = 1 << (rows - 1).ilog2();
    rows.next_multiple_of((below / 4).max(8))
}

#[cfg(test)]
mod tests {
    use super::bucket;

    #[test]
    fn every_count_has_a_bucket_that_holds_it_and_is_its_own() {
        for rows in 1..5000 {
            let size = bucket(rows);
            assert!(size >= rows && bucket(size) == size, "{rows} {size}");
            assert!(rows <= 16 || size - rows <= (rows / 4).max(7), "{rows} {size}");
        }
    }

    #[test]
    fn buckets_are_few() {
        let mut sizes: Vec<u32> = (1..=256).map(bucket).collect();
        sizes.dedup();
        let expected =
            [1, 2, 4, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256];
        assert_eq!(sizes, expected);
    }
}
