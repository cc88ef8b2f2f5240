//! Where a step of a whole model goes, by grouping.

use super::super::axis::{Scale, number, rounded};
use super::super::figure::{Figure, MARGIN, Sign, Size};
use super::super::suites::{Engine, title};

const BAR: f64 = 14.0;
const ROW: f64 = 20.0;
const NAME: f64 = 24.0;

/// Draws `rows`, those of a model and task together.
pub(in super::super) fn draw(rows: &[Engine], size: Size) -> Figure {
    let mut figure = Figure::new(
        "engine",
        "A whole model: where the time of a decode step goes",
        "Stacked bars of milliseconds a step, one for each grouping of each model and task: attention, gaps in which the GPU \
         waits for the host, and the rest. The table below has the numbers."
            .to_owned(),
        size,
    );
    figure.legend(&[
        (Sign::Box, "ours", "attention"),
        (Sign::Box, "deft", "gaps, the GPU waits for the host"),
        (Sign::Box, "peer", "the rest of the model"),
    ]);
    let range = [MARGIN + 70.0, size.width() - 110.0];
    let longest = rows.iter().map(|row| row.step_ms).fold(0.0, f64::max);
    let scale = Scale::linear(longest, range);
    let top = figure.top + 4.0;
    let groups: Vec<&[Engine]> = rows.chunk_by(|a, b| key(a) == key(b)).collect();
    let bottom = top + groups.len() as f64 * NAME + rows.len() as f64 * ROW;
    scale.draw_x(&mut figure, [top + NAME, bottom]);
    let mut y = top;
    for group in groups {
        figure.text("strong", MARGIN, y + 16.0, &heading(&group[0]));
        y += NAME;
        for row in group {
            bar(&mut figure, row, y, &scale);
            y += ROW;
        }
    }
    figure.text(
        "small middle",
        (range[0] + range[1]) / 2.0,
        bottom + 32.0,
        "milliseconds a step",
    );
    figure.top = bottom + 44.0;
    figure
}

fn key(row: &Engine) -> (&str, &str, Option<u32>) {
    (&row.model, &row.task, row.prompt_tokens)
}

fn heading(row: &Engine) -> String {
    let mut text = format!("{}, {}", row.model, row.task);
    if let Some(tokens) = row.prompt_tokens {
        text += &format!(", prompt {}", number(tokens.into()));
    }
    text
}

fn bar(figure: &mut Figure, row: &Engine, y: f64, scale: &Scale) {
    figure.text(
        "small end",
        scale.at(0.0) - 6.0,
        y + 11.0,
        title(&row.grouping),
    );
    let (attention, gap) = (
        row.attention_ms.unwrap_or(0.0),
        row.host_gap_ms.unwrap_or(0.0),
    );
    let mut from = 0.0;
    for (class, ms) in [
        ("ours", attention),
        ("deft", gap),
        ("peer", row.step_ms - attention - gap),
    ] {
        if ms > 0.0 {
            let [left, right] = [from, from + ms].map(|ms| scale.at(ms));
            figure.rect(class, [left, y], [right - left, BAR]);
            from += ms;
        }
    }
    let label = match row.tokens_per_s {
        Some(rate) => format!("{} tokens/s", number(rate.round())),
        None => format!("{} ms", rounded(row.step_ms)),
    };
    figure.text("small end", figure.width() - MARGIN, y + 11.0, &label);
}

/// Two groupings of one model for tests.
#[cfg(test)]
pub(in super::super) fn example() -> Vec<Engine> {
    [("flatten", 12.0, 3.0), ("per-query", 20.0, 11.0)]
        .map(|(grouping, step_ms, attention_ms)| Engine {
            model: "a-model-7b".to_owned(),
            task: "few-shot-50".to_owned(),
            grouping: grouping.to_owned(),
            prompt_tokens: Some(4000),
            queries: Some(50.0),
            step_ms,
            attention_ms: Some(attention_ms),
            host_gap_ms: None,
            tokens_per_s: Some(50.0 * 1e3 / step_ms),
            memory_gb: Some(17.5),
            attention_share: Some(attention_ms / step_ms),
        })
        .into()
}

#[cfg(test)]
mod tests {
    use super::super::check;
    use super::*;

    #[test]
    fn a_bar_is_made_of_its_parts() {
        for size in Size::BOTH {
            let svg = draw(&example(), size).inline();
            check(&svg);
            // Nobody measured gaps: the legend's sign is the only one.
            assert_eq!(svg.matches("class=\"deft\"").count(), 1);
            assert_eq!(svg.matches("class=\"ours\"").count(), 3);
        }
    }
}
