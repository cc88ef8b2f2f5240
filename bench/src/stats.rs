//! Order statistics of repeated measurements.

/// Median and the 20th and 80th percentile.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) p20: f64,
    pub(crate) p80: f64,
}

impl Spread {
    /// Of at least one measurement.
    pub(crate) fn of(mut samples: Vec<f64>) -> Self {
        samples.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let place = part * (samples.len() - 1) as f64;
            let (below, above) = (place.floor() as usize, place.ceil() as usize);
            samples[below] + (samples[above] - samples[below]) * (place - below as f64)
        };
        Self { median: at(0.5), p20: at(0.2), p80: at(0.8) }
    }
}

/// Geometric mean of positive numbers; `None` of no numbers.
pub(crate) fn geometric_mean(values: &[f64]) -> Option<f64> {
    let sum: f64 = values.iter().map(|value| value.ln()).sum();
    (!values.is_empty()).then(|| (sum / values.len() as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_the_samples_they_fall_between() {
        let spread = Spread::of(vec![40.0, 10.0, 30.0, 20.0]);
        assert_eq!(spread.median, 25.0);
        assert!((spread.p20 - 16.0).abs() < 1e-9, "{spread:?}");
        assert!((spread.p80 - 34.0).abs() < 1e-9, "{spread:?}");
        assert_eq!(Spread::of(vec![7.0]).p80, 7.0);
    }

    #[test]
    fn ratios_average_geometrically() {
        assert!((geometric_mean(&[0.5, 2.0, 8.0]).unwrap() - 2.0).abs() < 1e-12);
        assert_eq!(geometric_mean(&[]), None);
    }
}
