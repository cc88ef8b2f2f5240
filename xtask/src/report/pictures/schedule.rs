//! Plans laid over the SMs: who works when, by the planner's cost model.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::super::axis::Scale;
use super::super::figure::{Figure, MARGIN, Sign, Size, n};
use super::super::laid_out::{LaidOut, Schedule, What};
use super::super::suites::title;
use crate::style;

/// Height of an SM's line; the style's `bar` is a little less.
const ROW: f64 = 9.0;

/// Draws the schedules of `laid_out`, one below the other on the same axis.
pub(in super::super) fn draw(laid_out: &LaidOut, size: Size) -> Figure {
    let schedules = &laid_out.schedules;
    let ends: Vec<String> = schedules
        .iter()
        .map(|schedule| {
            format!(
                "{} ends after {:.1} us",
                title(schedule.grouping),
                schedule.end_ns() * 1e-3
            )
        })
        .collect();
    let mut figure = Figure::new(
        &format!("schedule-{}", laid_out.workload.name),
        &format!("{}: the plan laid over the SMs", laid_out.workload.name),
        format!(
            "For each grouping a line an SM, over time by the planner's cost model. {}.",
            ends.join(", ")
        ),
        size,
    );
    let shades = style::shades(laid_out.view.queries);
    let mut legend = vec![(Sign::None, "", "reads a node shared by so many queries:")];
    legend.extend(
        shades
            .iter()
            .map(|(class, range)| (Sign::Box, class.as_str(), range.as_str())),
    );
    figure.legend(&legend);
    figure.legend(&[
        (Sign::Box, "fixed", "fixed cost of a work item"),
        (Sign::Box, "partial", "partial results, written and read"),
        (
            Sign::Tick,
            "bound-dash",
            "perfect balance: the mean of the SMs",
        ),
    ]);
    let range = [MARGIN + 40.0, size.width() - MARGIN - 8.0];
    let longest = schedules.iter().map(Schedule::end_ns).fold(1.0, f64::max) * 1e-3;
    let scale = Scale::linear(longest * 1.02, range);
    for schedule in schedules {
        panel(&mut figure, schedule, &scale);
    }
    figure.top += 6.0;
    figure.text(
        "small middle",
        (range[0] + range[1]) / 2.0,
        figure.top + 14.0,
        "microseconds by the cost model",
    );
    figure.top += 36.0;
    let heads = laid_out.workload.heads.kv_heads;
    let shares = schedules
        .first()
        .map_or(0, |schedule| schedule.shares.len() as u32);
    figure.note(&format!(
        "{}, {shares} SMs of one KV head; the other {} heads look the same ({} of an H100's 132 SMs).",
        laid_out.workload.name,
        heads - 1,
        heads * shares,
    ));
    figure
}

/// One grouping.
fn panel(figure: &mut Figure, schedule: &Schedule, scale: &Scale) {
    let [end, mean] = [schedule.end_ns(), schedule.mean_ns()].map(|ns| ns * 1e-3);
    figure.top += 8.0;
    figure.text("strong", MARGIN, figure.top + 8.0, title(schedule.grouping));
    let words = format!(
        "last SM ends at {:.2}x the mean; {:.1} us measured",
        end / mean,
        schedule.measured_us
    );
    if figure.size().is_narrow() {
        figure.top += 16.0;
        figure.text("small", MARGIN, figure.top + 8.0, &words);
    } else {
        let right = figure.width() - MARGIN;
        figure.text("small end", right, figure.top + 8.0, &words);
    }
    let top = figure.top + 16.0;
    let bottom = top + ROW * schedule.shares.len() as f64;
    scale.draw_x(figure, [top, bottom]);
    for (i, _) in schedule
        .shares
        .iter()
        .enumerate()
        .filter(|(i, _)| i % 5 == 0)
    {
        let name = format!("SM {}", i + 1);
        figure.text(
            "small end",
            scale.at(0.0) - 6.0,
            top + ROW * i as f64 + 8.0,
            &name,
        );
    }
    // One line a colour, as thick as a bar is high, keeps the page small.
    let mut lines: BTreeMap<String, Bars> = BTreeMap::new();
    for (i, parts) in schedule.shares.iter().enumerate() {
        let y = top + ROW * (i as f64 + 0.5);
        let mut at = 0.0;
        for part in parts {
            let [left, right] = [at, at + part.ns].map(|ns| scale.at(ns * 1e-3));
            let class = match part.what {
                What::Fixed => "fixed".to_owned(),
                What::Partial => "partial".to_owned(),
                What::Read(sharers) => style::shade(sharers),
            };
            let width = (right - left).max(0.3);
            lines.entry(class).or_default().push([left, y], width);
            at += part.ns;
        }
    }
    for (class, line) in &lines {
        figure.path(&format!("bar {class}"), &line.path);
    }
    let x = scale.at(mean);
    figure.line("bound-dash", [x, top - 3.0], [x, bottom + 3.0]);
    figure.top = bottom + 20.0;
}

/// A path of level strokes.
#[derive(Default)]
struct Bars {
    path: String,
    /// Where it ends, as it was written.
    end: [f64; 2],
}

impl Bars {
    /// Adds a stroke from `[x, y]` to the right. It is said from the end of the one before, which takes fewer digits.
    fn push(&mut self, [x, y]: [f64; 2], width: f64) {
        let [x, y, width] = [x, y, width].map(n);
        let _ = write!(
            self.path,
            "m{} {}h{width}",
            n(x - self.end[0]),
            n(y - self.end[1])
        );
        self.end = [x + width, y];
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::laid_out::{self, TREE};
    use super::super::check;
    use super::*;

    #[test]
    fn all_groupings_are_drawn_to_the_same_scale() {
        let laid_out = laid_out::example(TREE);
        for size in Size::BOTH {
            let svg = draw(&laid_out, size).inline();
            check(&svg);
            assert_eq!(svg.matches("<path class=\"bar q6\"").count(), 3);
            assert_eq!(svg.matches("<path class=\"bar fixed\"").count(), 3);
        }
    }

    #[test]
    fn strokes_are_said_from_the_end_of_the_one_before() {
        let mut bars = Bars::default();
        for (start, width) in [([2.04, 4.5], 3.0), ([9.96, 4.5], 0.31), ([1.0, 13.5], 2.0)] {
            bars.push(start, width);
        }
        assert_eq!(bars.path, "m2 4.5h3m5 0h0.3m-9.3 9h2");
    }
}
