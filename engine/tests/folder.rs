//! A model's folder beside its weights: the tokenizer, what begins and ends a text, and the chat template.

#[path = "common/files.rs"]
#[allow(dead_code, reason = "other suites use the rest")]
mod files;

use deft_engine::{ChatTemplate, Message, Role, Tokenizer, chat};
use files::Folder;
use serde_json::{Value, json};

fn folder(name: &str, config: &Value) -> Folder {
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let tokenizer = json!({
        "added_tokens": [special(2, "<s>"), special(3, "</s>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": {"h": 0, "i": 1, "<s>": 2, "</s>": 3}, "merges": []}
    });
    let folder = Folder::new(name);
    folder.write("tokenizer.json", tokenizer.to_string());
    folder.write("tokenizer_config.json", config.to_string());
    folder
}

#[test]
fn the_configuration_says_what_begins_and_ends_a_text() {
    for (config, begin, bos, eos) in [
        (json!({}), None, None, None),
        (json!({"bos_token": "<s>", "eos_token": {"content": "</s>"}}), None, Some(2), Some(3)),
        (json!({"bos_token": "<s>", "add_bos_token": true}), Some(2), Some(2), None),
        (json!({"bos_token": "<s>", "add_bos_token": false}), None, Some(2), None),
        (json!({"bos_token": null, "eos_token": "no token"}), None, None, None),
    ] {
        let folder = folder("tokens", &config);
        let tokenizer = Tokenizer::open(&folder.0).unwrap();
        assert_eq!(
            (tokenizer.begin(), tokenizer.bos(), tokenizer.eos()),
            (begin, bos, eos),
            "{config}"
        );
        assert!(tokenizer.is_end(3), "known by its name");
    }
}

#[test]
fn templates_are_found_where_folders_have_them() {
    let text = "{{ bos_token + messages[0].content + eos_token }}";
    let named = json!([{"name": "tools", "template": "x"}, {"name": "default", "template": text}]);
    for template in [json!(text), named] {
        let config = json!({"bos_token": "<s>", "eos_token": "</s>", "chat_template": template});
        let folder = folder("template", &config);
        let tokenizer = Tokenizer::open(&folder.0).unwrap();
        let source = chat::template_of(&folder.0).unwrap().unwrap();
        let template = ChatTemplate::new(&source).unwrap();
        let (role, content) = (Role::User, "hi");
        let tokens = template.encode(&tokenizer, &[Message { role, content }]).unwrap();
        assert_eq!(tokens, [2, 0, 1, 3]);
        folder.write("chat_template.jinja", "of its own");
        assert_eq!(chat::template_of(&folder.0).unwrap().as_deref(), Some("of its own"));
    }
    assert_eq!(chat::template_of(&folder("no-template", &json!({})).0).unwrap(), None);
}

#[test]
fn files_that_are_missing_or_broken_are_named() {
    let folder = folder("broken-tokenizer", &json!({}));
    folder.write("tokenizer_config.json", "{");
    let error = Tokenizer::open(&folder.0).unwrap_err().to_string();
    assert!(error.contains("tokenizer_config.json: "), "{error}");
    assert!(chat::template_of(&folder.0).is_err());
    std::fs::remove_file(folder.0.join("tokenizer.json")).unwrap();
    let error = Tokenizer::open(&folder.0).unwrap_err().to_string();
    assert!(error.contains("tokenizer.json: "), "{error}");
}
