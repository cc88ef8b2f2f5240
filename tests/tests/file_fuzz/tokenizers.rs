//! `tokenizer.json`.

use deft_engine::{Control, Tokenizer};
use serde_json::{Value, json};

use crate::edits::{edited, edits, swapped, swaps};
use crate::fuzz;

/// Text to tokens and back, whatever comes of it.
pub(crate) fn used(tokenizer: &Tokenizer) {
    for control in [Control::Text, Control::Recognized] {
        if let Ok(tokens) = tokenizer.encode("hi <s>é\n\u{0} 12", control) {
            tokenizer.decode(&tokens);
        }
    }
    tokenizer.decode(&[0, 1, 5, u32::MAX]);
    tokenizer.token("hi").map(|token| tokenizer.bytes(token));
}

const SP: &str = "\u{2581}";

/// One of each kind.
fn valid() -> [Value; 3] {
    let special = json!({"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true});
    let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    let split = json!({"type": "Split", "pattern": {"Regex": "\\p{L}+|\\p{N}{1,3}|\\s+"}, "behavior": "Isolated",
        "invert": false});
    let space =
        json!({"type": "Metaspace", "replacement": SP, "prepend_scheme": "first", "split": true});
    [
        json!({"added_tokens": [special], "decoder": level,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]},
            "model": {"type": "BPE", "vocab": {"<s>": 0, "h": 1, "i": 2, "Ġ": 3, "hi": 4}, "merges": ["h i"]}}),
        json!({"added_tokens": [special], "pre_tokenizer": null,
            "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SP},
                {"type": "Replace", "pattern": {"String": " "}, "content": SP}]},
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": SP}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "byte_fallback": true, "fuse_unk": true, "unk_token": "<unk>",
                "vocab": {"<s>": 0, "<unk>": 7, SP: 1, "h": 2, "i": 3, "hi": 4, "<0x0A>": 6}, "merges": ["h i"]}}),
        json!({"added_tokens": [special], "pre_tokenizer": space, "decoder": space,
            "model": {"type": "Unigram", "unk_id": 1, "vocab": [["<s>", 0.0], ["<unk>", -9.0], ["hi", -2.0],
                ["h", -5.0], ["i", -5.0], [SP, -3.0]]}}),
    ]
}

#[test]
fn tokenizer() {
    let valid = valid();
    for json in &valid {
        Tokenizer::from_json(&json.to_string()).unwrap();
    }
    let make = |(kind, swaps, edits): &(usize, Vec<_>, Vec<_>)| match swaps.is_empty() {
        true => edited(valid[*kind].to_string().into_bytes(), edits),
        false => swapped(valid[*kind].clone(), swaps).to_string().into_bytes(),
    };
    fuzz(1.0, &(0usize..3, swaps(), edits()), make, |bytes| {
        let tokenizer = Tokenizer::from_json(&String::from_utf8_lossy(bytes))?;
        used(&tokenizer);
        Ok::<_, deft_engine::TokenizerError>(())
    });
}
