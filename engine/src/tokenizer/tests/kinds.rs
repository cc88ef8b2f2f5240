//! `tokenizer.json` files and SentencePiece's vocabularies.

use super::*;

#[test]
fn a_user_s_token_is_whole_in_any_text_as_in_a_json_of_the_same() {
    let mut metadata = metadata("gpt-2");
    let Some(Value::Texts(tokens)) = metadata.0.get_mut("tokenizer.ggml.tokens") else {
        panic!("it is there");
    };
    tokens[260] = "<think>".to_owned();
    let vocabulary: Vec<String> = tokens.clone();
    let Some(Value::Integers(types)) = metadata.0.get_mut("tokenizer.ggml.token_type") else {
        panic!("it is there");
    };
    types[260] = 4;
    let gguf = Tokenizer::from_gguf(&metadata).unwrap();
    let vocab: serde_json::Map<String, serde_json::Value> =
        (0..).zip(vocabulary).map(|(id, name)| (name, u32::into(id))).collect();
    let json = serde_json::json!({
        "added_tokens": [{"id": 260, "content": "<think>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": false}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": ["h i", "Ġ hi", "1 2", "a b"]}
    });
    let json = Tokenizer::from_json(&json.to_string()).unwrap();
    for control in [Control::Text, Control::Recognized] {
        let tokens = gguf.encode("hi<think>hi", control).unwrap();
        assert_eq!(tokens, [256, 260, 256]);
        assert_eq!(json.encode("hi<think>hi", control).unwrap(), tokens);
    }
    assert_eq!(gguf.decode(&[256, 260]), "hi<think>");
}

/// A `tokenizer.json` with these members beside or instead of its own.
fn json_with(members: serde_json::Value) -> String {
    let mut json = serde_json::json!({
        "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"h": 0, "i": 1, "Ġ": 2, "hi": 3}, "merges": ["h i"]}
    });
    for (key, value) in members.as_object().unwrap() {
        json[key] = value.clone();
    }
    json.to_string()
}

#[test]
fn what_a_json_says_for_training_changes_no_text() {
    let expected = [3, 2, 3, 2, 3];
    for members in [
        serde_json::json!({}),
        serde_json::json!({"truncation": {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}}),
        serde_json::json!({"padding": {"strategy": {"Fixed": 9}, "direction": "Left", "pad_to_multiple_of": null,
            "pad_id": 1, "pad_type_id": 0, "pad_token": "i"}}),
        serde_json::json!({"model": {"type": "BPE", "dropout": 1.0, "vocab": {"h": 0, "i": 1, "Ġ": 2, "hi": 3},
            "merges": ["h i"]}}),
        serde_json::json!({"post_processor": {"type": "TemplateProcessing", "single": [
            {"SpecialToken": {"id": "h", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}], "pair": [
            {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"h": {"id": "h", "ids": [0], "tokens": ["h"]}}}}),
    ] {
        let tokenizer = Tokenizer::from_json(&json_with(members.clone())).unwrap();
        assert_eq!(tokenizer.encode("hi hi hi", Control::Text).unwrap(), expected, "{members}");
    }
}

#[test]
fn a_token_of_two_names_is_warned_of() {
    let model = serde_json::json!({"model": {"type": "BPE", "vocab": {"h": 0, "i": 1, "Ġ": 2, "j": 1}, "merges": []}});
    let tokenizer = Tokenizer::from_json(&json_with(model)).unwrap();
    let warnings = tokenizer.warnings();
    assert_eq!(warnings[0], "token 1 is called \"i\" and \"j\"");
    assert!(warnings[1].contains("bytes have no token"), "{warnings:?}");
}

#[test]
fn what_panics_below_is_an_error() {
    for json in [
        "{\"decoder\":{",
        "{\"decoder\":[",
        "{\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AAAA\"},",
        "{",
        "",
    ] {
        let error = Tokenizer::from_json(json).unwrap_err();
        assert!(error.to_string().starts_with("tokenizer: "), "{json}: {error}");
    }
    let whole = json_with(serde_json::json!({}));
    for end in (0..whole.len()).filter(|&end| whole.is_char_boundary(end)) {
        assert!(Tokenizer::from_json(&whole[..end]).is_err(), "{end}");
    }
    // Charsmaps that lie about their size, as they are taken or as they are used.
    for charsmap in ["", "AAAA", "//////////8=", "CAAAAAAAAAAAAAAA", "BAAAAP////8="] {
        let normalizer = serde_json::json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": charsmap}});
        if let Ok(tokenizer) = Tokenizer::from_json(&json_with(normalizer)) {
            let _ = tokenizer.encode("hi é", Control::Text);
        }
    }
}

const SP: &str = "\u{2581}";

/// Pieces with scores as SentencePiece has them: bytes, and some merges.
fn pieces(prefix: bool) -> Metadata {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".to_owned(), "</s>".to_owned()];
    tokens.extend((0..=255).map(|byte| format!("<0x{byte:02X}>")));
    let mut types = vec![2, 3, 3];
    types.extend([6; 256]);
    let mut scores = vec![0.0; tokens.len()];
    for (at, piece) in
        [&format!("{SP}h"), "hi", &format!("{SP}hi"), SP, "h", "i", "e"].into_iter().enumerate()
    {
        tokens.push(piece.to_owned());
        types.push(1);
        scores.push(-(at as f64));
    }
    let texts = |texts: Vec<String>| Value::Texts(texts);
    Metadata::from_iter([
        ("tokenizer.ggml.model", Value::Text("llama".to_owned())),
        ("tokenizer.ggml.tokens", texts(tokens)),
        ("tokenizer.ggml.scores", Value::Floats(scores)),
        ("tokenizer.ggml.token_type", Value::Integers(types)),
        ("tokenizer.ggml.add_space_prefix", Value::Bool(prefix)),
        ("tokenizer.ggml.bos_token_id", Value::Integer(1)),
        ("tokenizer.ggml.eos_token_id", Value::Integer(2)),
    ])
}

#[test]
fn pieces_merge_by_their_scores_and_bytes_stand_in() {
    let first = 3 + 256;
    let [space_hi, hi, space] = [first + 2, first + 1, first + 3];
    for prefix in [true, false] {
        let tokenizer = Tokenizer::from_gguf(&pieces(prefix)).unwrap();
        let encode = |text: &str| tokenizer.encode(text, Control::Recognized).unwrap();
        let begins = if prefix { space_hi } else { hi };
        assert_eq!(encode("hi hi"), [begins, space_hi]);
        assert_eq!(encode("hi</s>hi"), [begins, 2, begins]);
        let [high, low] = [0xc3, 0xa9].map(|byte: u32| 3 + byte);
        assert_eq!(encode(" \u{e9}")[usize::from(prefix)..], [space, high, low]);
        for text in ["", "hi hi", " hi", "na\u{ef}ve 12 \u{1f600}\n\t\u{0} x", "</s", "i  e"] {
            let tokens = tokenizer.encode(text, Control::Text).unwrap();
            assert_eq!(tokenizer.decode(&tokens), text, "{tokens:?}");
        }
        assert_eq!((tokenizer.begin(), tokenizer.bos()), (Some(1), Some(1)));
        assert!(tokenizer.is_end(2) && tokenizer.missing_bytes().is_empty());
        assert_eq!(tokenizer.bytes(3 + 0xa9), Some(vec![0xa9]));
    }
}

#[test]
fn pieces_without_scores_or_bytes_are_named() {
    let changed = |key: &str, value: Value| {
        let mut metadata = pieces(true);
        metadata.0.insert(key.to_owned(), value);
        Tokenizer::from_gguf(&metadata)
    };
    let key = "tokenizer.ggml.scores";
    let error = changed(key, Value::Floats(vec![1.0])).unwrap_err().to_string();
    assert_eq!(error, "the tokenizer's 266 tokens have 1 scores");
    let error = changed(key, Value::Floats(vec![f64::NAN; 266])).unwrap_err().to_string();
    assert_eq!(error, "the tokenizer's token 0, \"<unk>\", has NaN for a score");
    let mut metadata = pieces(true);
    let Some(Value::Texts(tokens)) = metadata.0.get_mut("tokenizer.ggml.tokens") else {
        panic!("it is there");
    };
    tokens[3 + 0x0a] = "no byte".to_owned();
    tokens[4] = "x".repeat(300);
    let error = Tokenizer::from_gguf(&metadata).unwrap_err().to_string();
    assert_eq!(error, "the tokenizer's token 4 has 300 bytes; the limit is 256");
}

#[test]
fn sentencepiece_as_json_is_the_same_tokens() {
    let sp_bpe = serde_json::json!({
        "normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": SP},
            {"type": "Replace", "pattern": {"String": " "}, "content": SP}]},
        "pre_tokenizer": null,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": SP}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "byte_fallback": true, "fuse_unk": true, "unk_token": "<unk>",
            "vocab": {"<unk>": 0, SP: 1, "h": 2, "i": 3, "hi": 4, format!("{SP}hi"): 5, "<0x0A>": 6},
            "merges": ["h i", format!("{SP} hi")]}
    });
    let bpe = Tokenizer::from_json(&json_with(sp_bpe)).unwrap();
    assert_eq!(bpe.encode("hi hi\n", Control::Text).unwrap(), [5, 5, 6]);
    assert_eq!(bpe.decode(&[5, 5, 6]), "hi hi\n");
    let unigram = |scheme: &str| {
        let members = serde_json::json!({
            "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}],
            "pre_tokenizer": {"type": "Metaspace", "replacement": SP, "prepend_scheme": scheme, "split": true},
            "decoder": {"type": "Metaspace", "replacement": SP, "prepend_scheme": scheme, "split": true},
            "model": {"type": "Unigram", "unk_id": 1, "vocab": [["<s>", 0.0], ["<unk>", -9.0],
                [format!("{SP}hi"), -1.0], ["hi", -2.0], ["h", -5.0], ["i", -5.0], [SP, -3.0]]}
        });
        Tokenizer::from_json(&json_with(members)).unwrap()
    };
    let tokens = |scheme, text| unigram(scheme).encode(text, Control::Recognized).unwrap();
    assert_eq!(tokens("always", "hi hi<s>hi"), [2, 2, 0, 2]);
    assert_eq!(tokens("first", "hi hi<s>hi"), [2, 2, 0, 3], "a space before the first word alone");
    assert_eq!(tokens("never", "hi hi<s>hi"), [3, 2, 0, 3]);
    assert_eq!(unigram("first").decode(&[2, 2]), "hi hi");
    let long = serde_json::json!({"model": {"type": "Unigram", "unk_id": 0, "vocab": [["x".repeat(257), 0.0]]}});
    let error = Tokenizer::from_json(&json_with(long)).unwrap_err().to_string();
    assert_eq!(error, "the tokenizer's token 0 has 257 bytes; the limit is 256");
}
