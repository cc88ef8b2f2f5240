//! A small vocabulary: 256 bytes, a few merges, control tokens.

use super::*;
use crate::TextCodec;
use crate::gguf::Value;

mod kinds;

/// Names of all bytes in order, as GPT-2 writes them.
fn byte_names() -> Vec<String> {
    let table = ByteTable::new();
    let mut names: Vec<(u8, char)> = table.0.iter().map(|(&name, &byte)| (byte, name)).collect();
    names.sort_unstable();
    names.into_iter().map(|(_, name)| name.to_string()).collect()
}

fn metadata(pre: &str) -> Metadata {
    let mut tokens = byte_names();
    let merges = ["h i", "Ġ hi", "1 2", "a b"];
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let ordinary = tokens.len();
    tokens.extend(["<|im_start|>", "<|im_end|>", "<|im_end|>x"].map(str::to_owned));
    let types = (0..tokens.len()).map(|at| if at < ordinary { 1 } else { 3 });
    let texts = |texts: Vec<String>| Value::Texts(texts);
    let text = |text: &str| Value::Text(text.to_owned());
    Metadata::from_iter([
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text(pre)),
        ("tokenizer.ggml.token_type", Value::Integers(types.collect())),
        ("tokenizer.ggml.tokens", texts(tokens)),
        ("tokenizer.ggml.merges", texts(merges.map(str::to_owned).to_vec())),
        ("tokenizer.ggml.bos_token_id", Value::Integer(260)),
        ("tokenizer.ggml.eos_token_id", Value::Integer(261)),
    ])
}

fn tokenizer(pre: &str) -> Tokenizer {
    Tokenizer::from_gguf(&metadata(pre)).unwrap()
}

/// What `small` is made of.
pub(crate) fn small_metadata() -> Metadata {
    metadata("smollm")
}

/// A tokenizer for tests elsewhere.
pub(crate) fn small() -> Tokenizer {
    tokenizer("smollm")
}

#[test]
fn any_text_comes_back() {
    for pre in ["smollm", "gpt-2", "llama-bpe", "smaug-bpe", "qwen2", "tekken"] {
        let tokenizer = tokenizer(pre);
        for text in ["", "hi hi", "naïve 12 😀\n\t\u{0} x", "<|im_end|>", "¡Ġ Ā!"] {
            for control in [Control::Text, Control::Recognized] {
                let tokens = tokenizer.encode(text, control).unwrap();
                assert_eq!(tokenizer.decode(&tokens), text);
            }
        }
    }
}

#[test]
fn merges_apply_and_digits_stay_apart_where_the_model_says_so() {
    let [hi, space_hi, twelve] = [256, 257, 258];
    let smollm = tokenizer("smollm");
    assert_eq!(smollm.encode("hi hi", Control::Text).unwrap(), [hi, space_hi]);
    let digits = [u32::from(b'1'), u32::from(b'2')];
    assert_eq!(smollm.encode("12", Control::Text).unwrap(), digits);
    assert_eq!(tokenizer("gpt-2").encode("12", Control::Text).unwrap(), [twelve]);
    assert_eq!(tokenizer("llama-bpe").encode("12", Control::Text).unwrap(), [twelve]);
}

#[test]
fn control_tokens_are_what_they_say_only_where_asked() {
    let tokenizer = tokenizer("smollm");
    let recognized = |text| tokenizer.encode(text, Control::Recognized).unwrap();
    assert_eq!(recognized("hi<|im_end|>hi"), [256, 261, 256]);
    assert_eq!(recognized("<|im_end|>x<|im_start|>"), [262, 260], "the longest is taken");
    let text = tokenizer.encode("hi<|im_end|>", Control::Text).unwrap();
    assert_eq!(text.len(), 1 + "<|im_end|>".len());
    let pieces = [("<|im_end|>a", Control::Recognized), ("b<|im_end|>", Control::Text)];
    let tokens = tokenizer.encode_pieces(&pieces).unwrap();
    assert_eq!(tokens[..2], [261, 259], "a word may cross pieces");
    assert!(!tokens[2..].contains(&261));
    assert!(tokenizer.is_end(261) && !tokenizer.is_end(260));
    assert_eq!(tokenizer.token("<|im_start|>"), Some(260));
}

#[test]
fn characters_stream_when_they_are_whole() {
    let tokenizer = tokenizer("smollm");
    let tokens = tokenizer.encode("a😀é", Control::Text).unwrap();
    let mut stream = TextStream::default();
    let parts: Vec<String> = tokens.iter().map(|&token| stream.push(&tokenizer, token)).collect();
    assert_eq!(parts, ["a", "", "", "", "😀", "", "é"]);
    assert_eq!(stream.finish(), "");

    let mut stream = TextStream::default();
    assert_eq!(stream.push(&tokenizer, 0xf0), "");
    assert_eq!(stream.push(&tokenizer, u32::from(b'a')), "\u{fffd}a", "broken off");
    assert_eq!(stream.push(&tokenizer, 0x80), "\u{fffd}", "begins no character");
    assert_eq!(stream.push(&tokenizer, 0xc3), "");
    assert_eq!(stream.finish(), "\u{fffd}");
}

#[test]
fn a_text_begins_only_where_the_model_says_so() {
    assert_eq!(tokenizer("smollm").begin(), None);
    let mut metadata = metadata("smollm");
    let key = "tokenizer.ggml.add_bos_token".to_owned();
    metadata.0.insert(key, Value::Bool(true));
    assert_eq!(Tokenizer::from_gguf(&metadata).unwrap().begin(), Some(260));
    // Llama 3's files say it by their pre-tokenizer, and may say no.
    for name in ["llama-bpe", "llama3", "llama-v3"] {
        assert_eq!(tokenizer(name).begin(), Some(260), "{name}");
    }
    let no = with("llama-bpe", "tokenizer.ggml.add_bos_token", Value::Bool(false));
    let no = Tokenizer::from_gguf(&no).unwrap();
    assert_eq!((no.begin(), no.bos(), no.eos()), (None, Some(260), Some(261)));
}

fn with(pre: &str, key: &str, value: Value) -> Metadata {
    let mut metadata = metadata(pre);
    metadata.0.insert(key.to_owned(), value);
    metadata
}

#[test]
fn a_missing_pre_tokenizer_is_guessed_and_warned_of() {
    let without = |sign: &str| {
        let mut metadata = metadata("smollm");
        metadata.0.remove("tokenizer.ggml.pre");
        let Some(Value::Texts(tokens)) = metadata.0.get_mut("tokenizer.ggml.tokens") else {
            panic!("it is there");
        };
        tokens[260] = sign.to_owned();
        Tokenizer::from_gguf(&metadata).unwrap()
    };
    assert!(tokenizer("smollm").warnings().is_empty());
    let llama = without("<|begin_of_text|>");
    assert_eq!(
        llama.warnings(),
        [
            "tokenizer.ggml.pre is missing; taken for \"llama-bpe\", by its token \"<|begin_of_text|>\""
        ]
    );
    assert_eq!(llama.begin(), Some(260));
    let unknown = without("<|im_start|>");
    assert!(unknown.warnings()[0].contains("taken for \"gpt-2\""));
}

#[test]
fn what_cannot_be_is_named() {
    let changed = |key: &str, value: Value| {
        let mut metadata = metadata("smollm");
        metadata.0.insert(key.to_owned(), value);
        Tokenizer::from_gguf(&metadata).unwrap_err().to_string()
    };
    let text = |text: &str| Value::Text(text.to_owned());
    assert_eq!(
        changed("tokenizer.ggml.model", text("t5")),
        "tokenizer.ggml.model is \"t5\"; it must be \"gpt2\", byte-level BPE, or \"llama\", SentencePiece's BPE"
    );
    assert!(
        changed("tokenizer.ggml.pre", text("falcon"))
            .starts_with("tokenizer.ggml.pre is \"falcon\"")
    );
    assert_eq!(
        changed("tokenizer.ggml.token_type", Value::Integers(vec![1])),
        "the tokenizer's 263 tokens have 1 types"
    );
    assert_eq!(
        changed("tokenizer.ggml.merges", Value::Texts(vec!["ab".to_owned()])),
        "the tokenizer's merge \"ab\" is not of two tokens"
    );
    let unknown = changed("tokenizer.ggml.merges", Value::Texts(vec!["hi zz".to_owned()]));
    assert!(unknown.starts_with("tokenizer: "), "{unknown}");
    let twice = Value::Texts(vec!["a".to_owned(); 263]);
    assert_eq!(
        changed("tokenizer.ggml.tokens", twice),
        "the tokenizer's tokens 0 and 1 are both \"a\""
    );
    assert!(Tokenizer::from_json("{").is_err());
}

#[test]
fn searches_see_the_tokenizer_s_text_and_ends_and_no_control_tokens() {
    let tokenizer = small();
    let codec: &dyn TextCodec = &tokenizer;
    let written = "hi<|im_end|> hi";
    let tokens = codec.encode(written).unwrap();
    let [hi, space_hi, end] = [256, 257, 261];
    assert_eq!((tokens[0], tokens[tokens.len() - 1]), (hi, space_hi));
    assert!(tokens.iter().all(|&token| !codec.is_end(token)));
    assert_eq!(codec.decode(&tokens), written);
    assert!(codec.is_end(end) && !codec.is_end(hi));
    assert_eq!(codec.decode(&[hi, end]), "hi<|im_end|>");
    // The first two of the four bytes of a character.
    let character = codec.encode("\u{1f600}").unwrap();
    assert_eq!(character.len(), 4);
    assert_eq!(codec.decode(&character[..2]), "\u{fffd}");
}

#[test]
fn the_vocabulary_ends_after_the_largest_token() {
    let tokenizer = tokenizer("smollm");
    assert_eq!(tokenizer.vocabulary(), 263);
    let json = r#"{
        "added_tokens": [{"id": 900, "content": "<s>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true}],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"a": 0, "b": 7, "<s>": 900}, "merges": []}
    }"#;
    let sparse = Tokenizer::from_json(json).unwrap();
    assert_eq!(sparse.vocabulary(), 901);
    assert_eq!(sparse.encode("ab<s>", Control::Recognized).unwrap(), [0, 7, 900]);
}

#[test]
fn bytes_that_no_token_stands_for_are_named() {
    assert!(tokenizer("smollm").missing_bytes().is_empty());
    let mut metadata = metadata("smollm");
    let Some(Value::Texts(tokens)) = metadata.0.get_mut("tokenizer.ggml.tokens") else {
        panic!("it is there");
    };
    tokens[usize::from(b'q')] = "qq".to_owned();
    tokens[0xf5] = "no text has this byte".to_owned();
    let lossy = Tokenizer::from_gguf(&metadata).unwrap();
    assert_eq!(lossy.missing_bytes(), b"q");
}

#[test]
fn a_text_of_control_tokens_takes_time_in_proportion() {
    let tokenizer = tokenizer("smollm");
    // As many tokens, in one text or in twenty; other programs run too.
    let time = |texts: usize, repeats: usize| {
        let text = "<|im_end|>".repeat(repeats);
        let started = std::time::Instant::now();
        for _ in 0..texts {
            let tokens = tokenizer.encode(&text, Control::Recognized).unwrap();
            assert_eq!(tokens, vec![261; repeats]);
        }
        started.elapsed()
    };
    time(1, 10);
    let (short, long) = (time(20, 5_000), time(1, 100_000));
    assert!(long < 5 * short, "{short:?}, then {long:?}");
}
