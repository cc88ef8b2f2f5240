//! What users write must not become control tokens, whatever a template does to it.
//!
//! While a template runs, characters of contents that begin or end a control token's name are replaced by
//! noncharacters, one for one. So no name can be put together out of contents, by any cutting, joining or
//! replacing, unless the template writes the name's first and last character itself. Otherwise it sees contents as they
//! are. Where a template itself looks for a text
//! with such characters, `</think>` say, that text stays in contents, unless it is part of a control token's name.

use std::collections::{BTreeMap, BTreeSet};

use crate::tokenizer::Control;

/// Noncharacters: no text has them.
fn stand_ins() -> impl Iterator<Item = char> {
    let arabic = '\u{fdd0}'..='\u{fdef}';
    let last = (0..=16_u32).flat_map(|plane| [0xfffe, 0xffff].map(|low| plane << 16 | low));
    arabic.chain(last.filter_map(char::from_u32))
}

/// Which characters of contents are replaced, and where they stay.
#[derive(Debug)]
pub(super) struct Guard {
    /// From characters to their stand-ins.
    replaced: BTreeMap<char, char>,
    /// Texts that stay, the longest first.
    kept: Vec<String>,
}

impl Guard {
    /// For contents in a template with these string constants, and control tokens of these names. `None` if the
    /// names begin and end with more different characters than there are stand-ins.
    pub(super) fn new<'a>(
        constants: &BTreeSet<String>,
        names: impl Iterator<Item = &'a str> + Clone,
    ) -> Option<Self> {
        let ends = names
            .clone()
            .flat_map(|name| name.chars().next().into_iter().chain(name.chars().last()));
        let ends: BTreeSet<char> = ends.collect();
        if ends.len() > stand_ins().count() {
            return None;
        }
        let replaced: BTreeMap<char, char> = ends.into_iter().zip(stand_ins()).collect();
        let is_kept = |text: &&String| {
            text.contains(|c| replaced.contains_key(&c))
                && !names.clone().any(|name| meets(text, name))
        };
        let mut kept: Vec<String> = constants.iter().filter(is_kept).cloned().collect();
        kept.sort_by_key(|text| std::cmp::Reverse(text.len()));
        Some(Self { replaced, kept })
    }

    /// The first character of a content that stands in for another while the template runs.
    pub(super) fn reserved(&self, content: &str) -> Option<char> {
        let is_mark = |c: &char| self.replaced.values().any(|mark| mark == c);
        content.chars().find(is_mark)
    }

    /// A content as the template may see it.
    pub(super) fn hide(&self, content: &str) -> String {
        let mut out = String::with_capacity(content.len());
        let mut rest = content;
        while let Some(character) = rest.chars().next() {
            let length = match self.kept.iter().find(|text| rest.starts_with(&***text)) {
                Some(text) => {
                    out.push_str(text);
                    text.len()
                }
                None => {
                    out.push(*self.replaced.get(&character).unwrap_or(&character));
                    character.len_utf8()
                }
            };
            rest = &rest[length..];
        }
        out
    }

    /// What a template made, in pieces: what it wrote itself, and what was replaced, as it was.
    pub(super) fn pieces(&self, rendered: &str) -> Vec<(String, Control)> {
        let back: BTreeMap<char, char> =
            self.replaced.iter().map(|(&c, &mark)| (mark, c)).collect();
        let mut pieces: Vec<(String, Control)> = Vec::new();
        for character in rendered.chars() {
            let (character, control) = match back.get(&character) {
                Some(&hidden) => (hidden, Control::Text),
                None => (character, Control::Recognized),
            };
            match pieces.last_mut() {
                Some((text, last)) if *last == control => text.push(character),
                _ => pieces.push((character.to_string(), control)),
            }
        }
        pieces
    }
}

/// Whether one has the other in it, or one's end is the other's beginning: then a name could be put together with what
/// stays.
fn meets(text: &str, name: &str) -> bool {
    let mut cuts = text.char_indices().map(|(at, _)| text.split_at(at)).skip(1);
    text.contains(name)
        || name.contains(text)
        || cuts.any(|(begin, end)| name.starts_with(end) || name.ends_with(begin))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 3] = ["<|end|>", "</s>", "[INST]"];

    fn guard(constants: &[&str]) -> Guard {
        let constants = constants.iter().map(|&text| text.to_owned()).collect();
        Guard::new(&constants, NAMES.iter().copied()).unwrap()
    }

    #[test]
    fn hidden_contents_have_as_many_characters_and_come_back() {
        let guard = guard(&["</think>", "<", "x"]);
        for content in ["a <|end|> b", "</s></think>[INST]]", "<<", "é\u{10ffff}x"] {
            let hidden = guard.hide(content);
            assert_eq!(hidden.chars().count(), content.chars().count());
            assert!(NAMES.iter().all(|name| !hidden.contains(name)), "{hidden:?}");
            let pieces = guard.pieces(&hidden);
            let text: String = pieces.iter().map(|(text, _)| &**text).collect();
            assert_eq!(text, content);
        }
    }

    #[test]
    fn texts_that_a_template_looks_for_stay_unless_they_are_of_a_name() {
        let of_names = ["</s>", "</", "end|>", "x<|e", "nd|>y", "a<|end|>b"];
        let guard = guard(&[&of_names[..], &["</think>"]].concat());
        assert_eq!(guard.hide("a</think>b"), "a</think>b");
        for part in of_names {
            assert!(!guard.hide(part).contains(['<', '>']), "{part}");
        }
    }

    #[test]
    fn more_ends_than_stand_ins_are_refused() {
        let many: Vec<String> =
            ('a'..='z').chain('A'..='Z').chain('α'..='ω').map(String::from).collect();
        assert!(Guard::new(&BTreeSet::new(), many.iter().map(|name| &**name)).is_none());
    }
}
