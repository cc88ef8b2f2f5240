//! README.md quotes no number that nobody measured.
//!
//! The rule: a number with one of [`UNITS`] stands in a generated block, in a code block, or in [`QUOTES`] with the
//! file of docs/benchmarks that has it.

use crate::data;

/// What makes a number a claim.
const UNITS: &[&str] = &[
    "us", "µs", "ms", "x", "times", "%", "percent", "MB", "GB", "TB", "GB/s", "TB/s", "TFLOP/s",
    "tokens/s",
];

/// Numbers that README.md may quote outside generated blocks: the number and its unit, a file of docs/benchmarks, and
/// what is written there.
const QUOTES: &[(&str, &str, &str)] = &[
    // The bound's definition.
    ("3,088 GB/s", "peers-h100.json", "3088 GB/s"),
    ("660 TFLOP/s", "peers-h100.json", "660 TFLOP/s"),
    // The speedup before the cost model was fitted: step h of the notebook.
    ("1.62 times", "attend-steps.txt", "h  1.62"),
    ("37.0 ms", "h100-beams.txt", "qwen3-0.6b    5000   37.012"),
    ("67.3 us", "h100-doors.txt", "deft, in place                       67.3"),
];

/// Numbers with a unit in the prose of `page`, one blank between them, in order.
fn quoted(page: &str) -> Vec<String> {
    let mut quoted = Vec::new();
    let (mut code, mut generated) = (false, false);
    let mut words: Vec<&str> = Vec::new();
    for line in page.lines() {
        if line.starts_with("```") {
            code = !code;
        } else if line.starts_with("<!-- report: ") {
            generated = true;
        } else if line.starts_with("<!-- report end") {
            generated = false;
        } else if !code && !generated {
            words.extend(line.split_whitespace());
        }
    }
    for (at, word) in words.iter().enumerate() {
        let word = word.trim_matches(|c: char| !c.is_alphanumeric() && c != '%');
        let end = word.find(|c: char| !c.is_ascii_digit() && !",.".contains(c));
        let (number, attached) = word.split_at(end.unwrap_or(word.len()));
        if !number.starts_with(|c: char| c.is_ascii_digit()) {
            continue;
        }
        let next = words
            .get(at + 1)
            .map_or("", |next| next.trim_matches(|c: char| !c.is_alphanumeric() && c != '%'));
        let unit = if attached.is_empty() { next } else { attached };
        // "8 x 8" is a size, "8x" a claim.
        let is_product = attached.is_empty() && unit == "x";
        if UNITS.contains(&unit) && !is_product {
            quoted.push(format!("{} {unit}", number.trim_end_matches(['.', ','])));
        }
    }
    quoted
}

#[test]
fn the_readme_quotes_only_numbers_that_are_in_the_measurements() {
    let quoted = quoted(&data::read("README.md").unwrap());
    for number in &quoted {
        let known = QUOTES.iter().any(|(quote, ..)| quote == number);
        assert!(
            known,
            "README.md says \"{number}\", which no generated block has: write it by `cargo xtask report`, or add it to \
             QUOTES in docs/report/src/quotes.rs with the file that it is from"
        );
    }
    for (quote, file, written) in QUOTES {
        let text = data::read(&format!("docs/benchmarks/{file}")).unwrap();
        assert!(text.contains(written), "{quote}: {file} does not say {written:?}");
        assert!(quoted.iter().any(|number| number == quote), "README.md no longer says {quote:?}");
    }
}

#[test]
fn numbers_with_a_unit_are_found_wherever_they_stand_in_prose() {
    let page = "It takes 21.1 us (1.5x), 92.5 %.\n- **3,088\n  GB/s**: `660 TFLOP/s`; 14 trees, 99% of sm_90, 2 GB, 8 x 8.\n\
                ```\n5 us\n```\n<!-- report: x -->\n7 us\n<!-- report end -->\n8 us.";
    let numbers =
        ["21.1 us", "1.5 x", "92.5 %", "3,088 GB/s", "660 TFLOP/s", "99 %", "2 GB", "8 us"];
    assert_eq!(quoted(page), numbers);
}
