//! Cost models of GPUs by their datasheets.
//!
//! Other GPUs have the H100's constants in the ratio of their datasheets, an SM against an SM:
//!
//! | GPU | SMs | GB/s | dense 16-bit TFLOP/s | cache, MB | clock, MHz |
//! |---|---|---|---|---|---|
//! | H100 SXM | 132 | 3,350 | 989 | 50 | 1,980 |
//! | H200 SXM | 132 | 4,800 | 989 | 50 | 1,980 |
//! | A100 SXM 80 GB | 108 | 2,039 | 312 | 40 | 1,410 |
//! | L40S | 142 | 864 | 362 | 96 | 2,520 |
//!
//! Memory rates go by the bandwidth, products by the TFLOP/s, rates from the cache and fixed costs by the clock.
//! Nothing has been timed on those three.

use super::CostModel;

/// A GPU's datasheet: SMs, GB/s, dense 16-bit TFLOP/s, MB of L2, boost clock in MHz.
struct Datasheet {
    sms: f64,
    gb_per_s: f64,
    tflop_per_s: f64,
    cache_mb: f64,
    mhz: f64,
}

const H100_SHEET: Datasheet =
    Datasheet { sms: 132.0, gb_per_s: 3_350.0, tflop_per_s: 989.0, cache_mb: 50.0, mhz: 1_980.0 };

impl CostModel {
    /// An H200, by its datasheet.
    const H200: Self = Self::scaled(Datasheet { gb_per_s: 4_800.0, ..H100_SHEET });
    /// An A100 of 80 GB, by its datasheet.
    const A100: Self = Self::scaled(Datasheet {
        sms: 108.0,
        gb_per_s: 2_039.0,
        tflop_per_s: 312.0,
        cache_mb: 40.0,
        mhz: 1_410.0,
    });
    /// An L40S, by its datasheet.
    const L40S: Self = Self::scaled(Datasheet {
        sms: 142.0,
        gb_per_s: 864.0,
        tflop_per_s: 362.0,
        cache_mb: 96.0,
        mhz: 2_520.0,
    });

    /// The model of the GPU that calls itself `name`, such as `NVIDIA H100 80GB HBM3`; the H100's if it is none
    /// of the table's, since shares are even by ratios that GPUs have nearly in common.
    pub fn of_gpu(name: &str) -> Self {
        let known = [("H200", Self::H200), ("A100", Self::A100), ("L40S", Self::L40S)];
        let found = known.into_iter().find(|(part, _)| name.contains(part));
        found.map_or(Self::H100, |(_, model)| model)
    }

    const fn scaled(sheet: Datasheet) -> Self {
        let one = H100_SHEET;
        let memory = sheet.gb_per_s / sheet.sms / (one.gb_per_s / one.sms);
        let products = sheet.tflop_per_s / sheet.sms / (one.tflop_per_s / one.sms);
        let clock = sheet.mhz / one.mhz;
        Self {
            bytes_per_ns: Self::H100.bytes_per_ns * memory,
            flops_per_ns: Self::H100.flops_per_ns * products,
            item_ns: Self::H100.item_ns / clock,
            cache_bytes_per_ns: Self::H100.cache_bytes_per_ns * clock,
            partial_bytes_per_ns: Self::H100.partial_bytes_per_ns * clock,
            memory_bytes_per_ns: Self::H100.memory_bytes_per_ns * memory,
            cache_bytes: Self::H100.cache_bytes * (sheet.cache_mb / sheet.sms)
                / (one.cache_mb / one.sms),
            launch_ns: Self::H100.launch_ns / clock,
            merge_ns: Self::H100.merge_ns / clock,
            merge_slot_ns: Self::H100.merge_slot_ns / clock,
            decode_bytes_per_ns: Self::H100.decode_bytes_per_ns * clock,
            tail_tokens: Self::H100.tail_tokens,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gpus_are_known_by_their_names_and_scaled_an_sm_against_an_sm() {
        assert_eq!(CostModel::of_gpu("NVIDIA H100 80GB HBM3"), CostModel::H100);
        assert_eq!(CostModel::of_gpu("NVIDIA H200"), CostModel::H200);
        assert_eq!(CostModel::of_gpu("NVIDIA A100-SXM4-80GB"), CostModel::A100);
        assert_eq!(CostModel::of_gpu("NVIDIA L40S"), CostModel::L40S);
        assert_eq!(CostModel::of_gpu("of years to come"), CostModel::H100);
        assert_eq!(CostModel::H200.flops_per_ns, CostModel::H100.flops_per_ns);
        // 4.8 TB/s against 3.35, both over 132 SMs.
        let faster = CostModel::H200.bytes_per_ns / CostModel::H100.bytes_per_ns;
        assert!((faster - 4.8 / 3.35).abs() < 1e-9);
        // 312 TFLOP/s over 108 SMs against 989 over 132.
        let slower = CostModel::A100.flops_per_ns / CostModel::H100.flops_per_ns;
        assert!((slower - 312.0 / 108.0 / (989.0 / 132.0)).abs() < 1e-9);
        let larger = CostModel::L40S.cache_bytes / CostModel::H100.cache_bytes;
        assert!((larger - 96.0 / 142.0 / (50.0 / 132.0)).abs() < 1e-9);
    }
}
