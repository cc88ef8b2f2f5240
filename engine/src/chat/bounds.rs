//! Values in values: fuel counts what a list has, not what that has. So a list that is put into itself over and over
//! is soon too large to be written or compared, and a namespace in itself has no end. Every list, tuple, dictionary and
//! `set` value of a template goes through a filter that measures all that is in it.

use minijinja::value::{Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

use super::percent::item;

/// The filter that measures.
pub(super) const FILTER: &str = "bounded";
/// Deepest nesting of values.
const MAX_DEPTH: usize = 64;
/// Bytes that count for each value, beside its text.
const VALUE_BYTES: usize = 64;

/// `value`, if all that is in it takes at most `most` bytes. One that becomes part of a namespace has none in it.
pub(super) fn bounded(
    state: &State<'_, '_>,
    value: Value,
    of_namespace: bool,
    most: usize,
) -> Result<Value, Error> {
    let mut left = most;
    let fits = take(&value, MAX_DEPTH, of_namespace, &mut left);
    state.consume_fuel(((most - left) / 4096) as u64)?;
    match fits {
        Ok(()) => Ok(value),
        Err(what) => {
            let limits = format!("the limits are {MAX_DEPTH} and {most} bytes");
            Err(Error::new(ErrorKind::InvalidOperation, format!("a value {what}; {limits}")))
        }
    }
}

fn take(
    value: &Value,
    depth: usize,
    of_namespace: bool,
    left: &mut usize,
) -> Result<(), &'static str> {
    let bytes = VALUE_BYTES + value.as_str().map_or(0, str::len);
    *left = left.checked_sub(bytes).ok_or("has too much in it")?;
    let is_namespace = value.as_object().is_some_and(|of| of.type_name().ends_with("Namespace"));
    if of_namespace && is_namespace {
        return Err("of a namespace has a namespace in it");
    }
    let kind = value.kind();
    if !matches!(kind, ValueKind::Seq | ValueKind::Iterable | ValueKind::Map) {
        return Ok(());
    }
    let below = depth.checked_sub(1).ok_or("nests too deep")?;
    for one in value.try_iter().into_iter().flatten() {
        take(&one, below, of_namespace, left)?;
        if kind == ValueKind::Map
            && let Ok(one) = value.get_item(&one)
        {
            take(&one, below, of_namespace, left)?;
        }
    }
    Ok(())
}

/// The template with [`FILTER`] behind every literal that holds values, and every value that is set.
pub(super) fn measured(source: &str) -> String {
    let mut out = String::with_capacity(2 * source.len());
    let mut rest = source;
    while let Some(at) = rest.find('{') {
        let (text, tag) = rest.split_at(at);
        out.push_str(text);
        let end = match tag.get(..2) {
            Some("{#") => tag.find("#}").map(|at| at + 2),
            Some("{{" | "{%") => Some(2 + length(&tag[2..])),
            _ => Some(1),
        };
        let (tag, after) = tag.split_at(end.unwrap_or(tag.len()));
        rest = after;
        let Some(inside) = tag.strip_prefix("{%").or(tag.strip_prefix("{{")) else {
            out.push_str(tag);
            continue;
        };
        let sign = inside.len() - inside.trim_start_matches(['-', '+']).len();
        let (start, inside) = tag.split_at(2 + sign);
        let trimmed = inside.trim_end_matches(['-', '+']);
        let (inside, end) = (trimmed, &inside[trimmed.len()..]);
        out.push_str(start);
        out.push_str(&tag_measured(inside, start.starts_with("{%")));
        out.push_str(end);
        if inside.trim() == "raw" {
            let end = rest.find("endraw").unwrap_or(rest.len());
            out.push_str(&rest[..end]);
            rest = &rest[end..];
        }
    }
    out + rest
}

/// Bytes up to the end of a tag: `}}` or `%}` that is in no brackets and no text.
fn length(tag: &str) -> usize {
    let (mut at, mut open) = (0, 0_usize);
    while at < tag.len() {
        match tag.as_bytes()[at] {
            b'(' | b'[' | b'{' => open += 1,
            b'%' if tag[at..].starts_with("%}") => return at,
            b'}' if open == 0 => return at,
            b')' | b']' | b'}' => open = open.saturating_sub(1),
            _ => {}
        }
        at += item(&tag[at..]);
    }
    tag.len()
}

/// What is in a tag; `block`: it begins with a keyword.
fn tag_measured(inside: &str, block: bool) -> String {
    let word = |text: &str| text.trim_start().split(|c| !is_word(c)).next().map(str::to_owned);
    match word(inside).filter(|_| block).as_deref() {
        // Names of parameters and targets are no expressions.
        Some("macro" | "call" | "raw") => inside.to_owned(),
        Some("for") => match inside.split_once(" in ") {
            Some((targets, values)) => format!("{targets} in {}", literals(values)),
            None => inside.to_owned(),
        },
        Some("set") => match inside.split_once('=') {
            // Without a `=` of its own it is the beginning of a text.
            Some((targets, value)) if !targets.contains('|') => {
                let of_namespace = if targets.contains('.') { "(true)" } else { "" };
                format!("{targets}= ({})|{FILTER}{of_namespace} ", literals(value))
            }
            _ => inside.to_owned(),
        },
        _ => literals(inside),
    }
}

/// An expression with the filter behind every bracket that is no call's and no index's.
fn literals(expression: &str) -> String {
    const OPERATORS: [&str; 9] = ["and", "or", "not", "in", "is", "if", "else", "elif", "filter"];
    let mut out = String::with_capacity(2 * expression.len());
    let mut ends = Vec::new();
    let mut at = 0;
    while at < expression.len() {
        let part = &expression[at..][..item(&expression[at..])];
        at += part.len();
        match part {
            "(" | "[" | "{" => {
                let before = out.trim_end();
                let word = before.rsplit(|c| !is_word(c)).next().unwrap_or_default();
                let of_value = before.ends_with([')', ']', '}', '\'', '"'])
                    || !word.is_empty() && !OPERATORS.contains(&word);
                ends.push(!of_value);
                out.push_str(if of_value { "" } else { "(" });
                out.push_str(part);
            }
            ")" | "]" | "}" => {
                out.push_str(part);
                if ends.pop() == Some(true) {
                    out.push_str(&format!("|{FILTER})"));
                }
            }
            _ => out.push_str(part),
        }
    }
    out
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_and_what_is_set_are_measured_and_nothing_else() {
        for (source, expected) in [
            ("{{ [a, 'b]'] }}", "{{ ([a, 'b]']|bounded) }}"),
            ("{{ {'a': {}} }}", "{{ ({'a': ({}|bounded)}|bounded) }}"),
            ("{%- if x in ['a', \"b\"] -%}", "{%- if x in (['a', \"b\"]|bounded) -%}"),
            ("{% for a, (b, c) in [d] %}", "{% for a, (b, c) in ([d]|bounded) %}"),
            ("{% set ns.x = ns.x[1:] -%}", "{% set ns.x = ( ns.x[1:] )|bounded(true) -%}"),
            ("{% set x = a == b %}", "{% set x = ( a == b )|bounded %}"),
            (
                "{% raw %}{{ [x] }}{% endraw %}{{ [x] }}",
                "{% raw %}{{ [x] }}{% endraw %}{{ ([x]|bounded) }}",
            ),
        ] {
            assert_eq!(measured(source), expected);
        }
        for same in [
            "[a] {b} (c) {",
            "{# don't [x] #}",
            "{{ a[0]['b'](c)[d] }}",
            "{{ 'a'[0] }}{{ messages[0].content | trim }}",
            "{% macro m(a=[1]) %}{% call m() %}",
            "{% set x %}[1]{% endset %}",
            "{% set x | replace(old='a', new='b') %}",
            "{{ '",
        ] {
            assert_eq!(measured(same), same);
        }
    }
}
