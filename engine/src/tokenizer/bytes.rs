//! Bytes as GPT-2 writes them: each as one printable character.

use std::collections::HashMap;

/// From characters to bytes.
#[derive(Debug)]
pub(super) struct ByteTable(pub(super) HashMap<char, u8>);

impl ByteTable {
    /// Bytes that print as themselves in Latin-1 stand for themselves, the others in order for the
    /// characters from U+0100 on.
    pub(super) fn new() -> Self {
        let mut table = HashMap::new();
        let mut next = 0x100;
        for byte in 0..=u8::MAX {
            let printable = matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
            let character = if printable {
                char::from(byte)
            } else {
                next += 1;
                char::from_u32(next - 1).expect("far below the surrogates")
            };
            table.insert(character, byte);
        }
        Self(table)
    }

    /// The bytes of a token's name; characters that stand for none are themselves.
    pub(super) fn decode(&self, name: &str) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(name.len());
        for character in name.chars() {
            match self.0.get(&character) {
                Some(&byte) => bytes.push(byte),
                None => bytes.extend(character.encode_utf8(&mut [0; 4]).bytes()),
            }
        }
        bytes
    }
}
