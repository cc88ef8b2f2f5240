//! Axes: where a value goes, and where the ticks are.

use super::figure::Figure;

/// From values to places.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scale {
    kind: Kind,
    domain: [f64; 2],
    range: [f64; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Linear,
    /// Logarithmic, ticks at powers of ten or 1, 2, 5 of each.
    Decades,
    /// Logarithmic, ticks at powers of two.
    Octaves,
}

impl Scale {
    /// From 0 to at least `end`.
    pub(super) fn linear(end: f64, range: [f64; 2]) -> Self {
        let domain = [0.0, if end > 0.0 { end } else { 1.0 }];
        Self {
            kind: Kind::Linear,
            domain,
            range,
        }
    }

    /// Over all of `values` that are above 0, rounded outwards to 1, 2 or 5 times a power of ten.
    pub(super) fn decades(values: impl Iterator<Item = f64>, range: [f64; 2]) -> Self {
        let [low, high] = extent(values);
        let (low, high) = (round_down(low), round_up(high));
        let domain = if low < high {
            [low, high]
        } else {
            [low / 2.0, high * 2.0]
        };
        Self {
            kind: Kind::Decades,
            domain,
            range,
        }
    }

    /// Over all of `values` that are above 0, rounded outwards to powers of two.
    pub(super) fn octaves(values: impl Iterator<Item = f64>, range: [f64; 2]) -> Self {
        let [low, high] = extent(values);
        let (low, high) = (low.log2().floor().exp2(), high.log2().ceil().exp2());
        let domain = if low < high {
            [low, high]
        } else {
            [low / 2.0, high * 2.0]
        };
        Self {
            kind: Kind::Octaves,
            domain,
            range,
        }
    }

    /// Where `value` is.
    pub(super) fn at(&self, value: f64) -> f64 {
        let [low, high] = self.domain;
        let part = match self.kind {
            Kind::Linear => (value - low) / (high - low),
            Kind::Decades | Kind::Octaves => (value / low).ln() / (high / low).ln(),
        };
        self.range[0] + part * (self.range[1] - self.range[0])
    }

    pub(super) fn domain(&self) -> [f64; 2] {
        self.domain
    }

    /// Ticks, at least `room` apart.
    fn ticks(&self, room: f64) -> Vec<f64> {
        let [low, high] = self.domain;
        let length = (self.range[1] - self.range[0]).abs();
        let most = (length / room).max(1.0);
        let steps: Vec<f64> = match self.kind {
            Kind::Linear => {
                let step = round_up((high - low) / most);
                let count = ((high - low) / step + 1e-9) as u32;
                return (0..=count).map(|i| low + f64::from(i) * step).collect();
            }
            Kind::Octaves => {
                let octaves = (high / low).log2().round();
                let stride = (octaves / most).ceil().max(1.0);
                let count = (octaves / stride) as i32;
                return (0..=count)
                    .map(|i| low * (f64::from(i) * stride).exp2())
                    .collect();
            }
            Kind::Decades => {
                let decade = length / (high / low).log10();
                // The closest of 1, 2, 5, 10 are 0.3 decades apart.
                match decade {
                    _ if decade * 0.3 >= room => vec![1.0, 2.0, 5.0],
                    _ => vec![1.0],
                }
            }
        };
        let first = low.log10().floor() as i32;
        let last = high.log10().ceil() as i32;
        let all =
            (first..=last).flat_map(|power| steps.iter().map(move |step| step * 10f64.powi(power)));
        all.filter(|&tick| tick >= low * 0.999 && tick <= high * 1.001)
            .collect()
    }

    fn label(&self, tick: f64) -> String {
        if self.kind == Kind::Octaves && tick >= 1024.0 {
            return format!("{}k", number(tick / 1024.0));
        }
        number(tick)
    }

    /// Grid lines from `y[0]` to `y[1]`, and the ticks' names under them.
    pub(super) fn draw_x(&self, figure: &mut Figure, y: [f64; 2]) {
        for tick in self.ticks(46.0) {
            let x = self.at(tick);
            figure.line("grid", [x, y[0]], [x, y[1]]);
            figure.text("small middle", x, y[1] + 15.0, &self.label(tick));
        }
    }

    /// Grid lines from `x[0]` to `x[1]`, and the ticks' names to their left.
    pub(super) fn draw_y(&self, figure: &mut Figure, x: [f64; 2]) {
        for tick in self.ticks(36.0) {
            let y = self.at(tick);
            figure.line("grid", [x[0], y], [x[1], y]);
            figure.text("small end", x[0] - 6.0, y + 4.0, &self.label(tick));
        }
    }
}

/// The least and the largest of what is above 0; [1, 1] if nothing is.
fn extent(values: impl Iterator<Item = f64>) -> [f64; 2] {
    let positive = values.filter(|value| *value > 0.0 && value.is_finite());
    let [low, high] = positive.fold([f64::INFINITY, 0.0], |[low, high], value| {
        [low.min(value), high.max(value)]
    });
    if high > 0.0 { [low, high] } else { [1.0, 1.0] }
}

/// The next of 1, 2 and 5 times a power of ten from `value` on.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0];
    let step = steps
        .iter()
        .find(|&step| step * power >= value * (1.0 - 1e-9));
    step.unwrap_or(&10.0) * power
}

fn round_down(value: f64) -> f64 {
    let power = 10f64.powf((value.log10() + 1e-12).floor());
    let steps = [5.0, 2.0, 1.0];
    let step = steps
        .iter()
        .find(|&step| step * power <= value * (1.0 + 1e-9));
    step.unwrap_or(&1.0) * power
}

/// With commas, and as many decimals as it has, three at most.
pub(super) fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    let (whole, decimals) = text.split_once('.').unwrap_or((&text, ""));
    let decimals = decimals.trim_end_matches('0');
    let mut grouped = String::new();
    let digits = whole.trim_start_matches('-');
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let sign = if value < 0.0 { "-" } else { "" };
    let point = if decimals.is_empty() { "" } else { "." };
    format!("{sign}{grouped}{point}{decimals}")
}

/// With about three digits that count.
pub(super) fn rounded(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => number(value.round()),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        _ => number(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linear_ticks_are_round_numbers_and_not_too_close() {
        let scale = Scale::linear(151.0, [0.0, 300.0]);
        assert_eq!(scale.ticks(46.0), [0.0, 50.0, 100.0, 150.0]);
        assert_eq!(scale.at(151.0), 300.0);
    }

    #[test]
    fn a_logarithmic_axis_holds_all_values_and_has_even_decades() {
        let scale = Scale::decades([3.0, 0.0, 720.0].into_iter(), [0.0, 100.0]);
        assert_eq!(scale.domain(), [2.0, 1000.0]);
        assert!((scale.at(1000.0) - 100.0).abs() < 1e-9);
        let step = scale.at(100.0) - scale.at(10.0);
        assert!((scale.at(1000.0) - scale.at(100.0) - step).abs() < 1e-9);
        assert_eq!(scale.ticks(30.0), [10.0, 100.0, 1000.0]);
        assert_eq!(
            scale.ticks(10.0),
            [2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]
        );
    }

    #[test]
    fn octaves_are_thinned_out_where_there_is_no_room() {
        let scale = Scale::octaves([1.0, 4096.0].into_iter(), [0.0, 300.0]);
        let labels: Vec<String> = scale
            .ticks(46.0)
            .into_iter()
            .map(|tick| scale.label(tick))
            .collect();
        assert_eq!(labels, ["1", "4", "16", "64", "256", "1k", "4k"]);
    }

    #[test]
    fn numbers_are_grouped_and_short() {
        let shown = [0.5, 12.0, 1234567.25, -2000.0].map(number);
        assert_eq!(shown, ["0.5", "12", "1,234,567.25", "-2,000"]);
        let shown = [0.123, 1.006, 21.04, 733.4, 1044.1].map(rounded);
        assert_eq!(shown, ["0.123", "1.01", "21.0", "733", "1,044"]);
    }
}
