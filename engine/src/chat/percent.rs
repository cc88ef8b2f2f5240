//! Python's `'%s: %d' % values`, which Jinja takes over and minijinja does not have: rewritten to a filter.

/// The filter that formats.
pub(super) const FILTER: &str = "percent_format";

/// The template with `'text' % operand` as `('text'|percent_format(operand))`.
pub(super) fn to_filters(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    // A tag begins with `{{` or `{%`; what is between tags stays.
    while let Some(at) = rest.find("{{").into_iter().chain(rest.find("{%")).min() {
        out.push_str(&rest[..at + 2]);
        rest = &rest[at + 2..];
        while !rest.is_empty() && !rest.starts_with("}}") && !rest.starts_with("%}") {
            let part = item(rest);
            match formatted(rest, part) {
                Some((operand, length)) => {
                    let text = &rest[..part];
                    out.push_str(&format!("({text}|{FILTER}({operand}))"));
                    rest = &rest[length..];
                }
                None => {
                    out.push_str(&rest[..part]);
                    rest = &rest[part..];
                }
            }
        }
    }
    out + rest
}

/// Bytes of a quoted text, or of a character.
pub(super) fn item(text: &str) -> usize {
    let first = text.chars().next().map_or(0, char::len_utf8);
    let Some(quote @ ('\'' | '"')) = text.chars().next() else {
        return first;
    };
    let mut escaped = false;
    for (at, character) in text.char_indices().skip(1) {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            character if character == quote => return at + 1,
            _ => {}
        }
    }
    text.len()
}

/// The operand after a text of `part` bytes and a `%`, and the bytes of all three.
fn formatted(text: &str, part: usize) -> Option<(&str, usize)> {
    if !text.starts_with(['\'', '"']) {
        return None;
    }
    let after = text[part..].trim_start().strip_prefix('%')?;
    if after.starts_with('}') {
        return None;
    }
    let operand = after.trim_start();
    let mut length = primary(operand);
    if length == 0 {
        return None;
    }
    // Attributes, items, calls and filters are part of it.
    loop {
        let more = &operand[length..];
        let next = match more.chars().next() {
            Some('[' | '(') => bracketed(more),
            Some('.') => 1 + primary(&more[1..]),
            _ => match more.trim_start().strip_prefix('|') {
                Some(filter) => {
                    let name = filter.trim_start();
                    more.len() - name.len() + primary(name)
                }
                None => 0,
            },
        };
        if next == 0 {
            break;
        }
        length += next;
    }
    Some((&operand[..length], text.len() - operand.len() + length))
}

/// Bytes of a name, a number, a quoted text or what is in brackets.
fn primary(text: &str) -> usize {
    match text.chars().next() {
        Some('\'' | '"') => item(text),
        Some('[' | '(') => bracketed(text),
        _ => {
            let is_word = |c: char| c.is_alphanumeric() || c == '_';
            text.find(|c| !is_word(c)).unwrap_or(text.len())
        }
    }
}

/// Bytes up to the bracket that closes the first one.
fn bracketed(text: &str) -> usize {
    let (mut at, mut open) = (0, 0_usize);
    while at < text.len() {
        match text.as_bytes()[at] {
            b'(' | b'[' => open += 1,
            b')' | b']' => open -= 1,
            _ => {}
        }
        at += item(&text[at..]);
        if open == 0 {
            return at;
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_texts_before_a_percent_sign_become_filters() {
        for (source, expected) in [
            ("{{ '%s' % x }}", "{{ ('%s'|percent_format(x)) }}"),
            (
                "{{ \"%d%%\" % (a, b[')']) ~ 1 }}",
                "{{ (\"%d%%\"|percent_format((a, b[')']))) ~ 1 }}",
            ),
            ("{{ '%s'%m.x['y'](1)|upper }}", "{{ ('%s'|percent_format(m.x['y'](1)|upper)) }}"),
            ("{%- set a = '%s' % b -%}", "{%- set a = ('%s'|percent_format(b)) -%}"),
        ] {
            assert_eq!(to_filters(source), expected);
        }
        for same in [
            "'%s' % x",
            "{{ 'a' }}% x",
            "{% if a == 'b' %}x{% endif %}",
            "{{ 7 % 2 }}",
            "{{ '",
            "{{ 'a\\'b' }}",
            "{{ '%s' % ",
            "é{{ 'é' ~ x }}",
        ] {
            assert_eq!(to_filters(same), same);
        }
    }
}
