//! Which steps stand for all, and the sum over all steps from them.

use std::ops::Range;

/// Steps to look at within `steps`, in which a tree keeps its shape: at most `stride` apart, both ends
/// among them; or the one in the middle of a span no longer than `stride`.
pub(crate) fn samples(steps: Range<u32>, stride: u32) -> Vec<u32> {
    let count = steps.len() as u32;
    if count <= stride {
        return (count > 0).then_some(steps.start + count / 2).into_iter().collect();
    }
    let gaps = u64::from((count - 1).div_ceil(stride));
    let place = |gap| (u64::from(count - 1) * gap / gaps) as u32;
    (0..=gaps).map(|gap| steps.start + place(gap)).collect()
}

/// Sum over `steps` of a quantity known at `known`, linear in between (the trapezoid rule, for whole
/// steps) and constant beyond the first and last.
pub(crate) fn integrate(steps: Range<u32>, known: &[(u32, f64)]) -> f64 {
    let (Some(&first), Some(&last)) = (known.first(), known.last()) else {
        return 0.0;
    };
    let before = f64::from(first.0 - steps.start) + 1.0;
    let after = f64::from(steps.end - 1 - last.0);
    let between = known.windows(2).map(|pair| {
        let steps = f64::from(pair[1].0 - pair[0].0);
        // Steps after the first of the pair, up to and with the second.
        let mean = (pair[0].1 + pair[1].1) / 2.0;
        steps * mean + (pair[1].1 - pair[0].1) / 2.0
    });
    before * first.1 + between.sum::<f64>() + after * last.1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum_from_samples(steps: Range<u32>, stride: u32, value: impl Fn(u32) -> f64) -> f64 {
        let known: Vec<_> =
            samples(steps.clone(), stride).into_iter().map(|step| (step, value(step))).collect();
        integrate(steps, &known)
    }

    #[test]
    fn samples_have_both_ends_and_are_a_stride_apart_at_most() {
        for (steps, stride) in [(0..400, 50), (7..8, 1), (3..60, 10), (5..7, 1)] {
            let samples = samples(steps.clone(), stride);
            assert_eq!(samples[0], steps.start);
            assert_eq!(*samples.last().unwrap(), steps.end - 1);
            let gaps = samples.windows(2).map(|pair| pair[1] - pair[0]);
            assert!(gaps.clone().all(|gap| (1..=stride).contains(&gap)), "{samples:?}");
        }
        assert_eq!(samples(10..20, 10), [15], "a short span has its middle");
        assert!(samples(4..4, 10).is_empty());
    }

    #[test]
    fn what_is_linear_is_summed_exactly() {
        let value = |step: u32| 3.0 + 0.25 * f64::from(step);
        for (steps, stride) in [(0..400, 50), (13..14, 5), (100..1257, 97)] {
            let exact: f64 = steps.clone().map(value).sum();
            let ours = sum_from_samples(steps, stride, value);
            assert!((ours / exact - 1.0).abs() < 1e-12, "{ours}, exactly {exact}");
        }
    }

    #[test]
    fn with_every_step_known_any_sum_is_exact() {
        let value = |step: u32| f64::from(step * step % 17);
        let exact: f64 = (20..90).map(value).sum();
        assert!((sum_from_samples(20..90, 1, value) - exact).abs() < 1e-9);
    }

    #[test]
    fn a_short_span_is_as_long_as_it_is() {
        assert_eq!(integrate(10..20, &[(15, 2.0)]), 20.0);
        assert_eq!(integrate(0..0, &[]), 0.0);
    }
}
