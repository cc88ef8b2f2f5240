//! Conversations as a model was trained to see them: its own chat template.

mod bounds;
mod guard;
mod jinja;
mod percent;

use std::collections::BTreeSet;
use std::path::Path;

use minijinja::value::Value;

use self::guard::Guard;
use self::jinja::Program;
use crate::tokenizer::{Tokenizer, TokenizerError, json_of, read_of};

/// What a message counts beside its content, where a template's values are measured.
const MESSAGE_BYTES: usize = 512;

/// The chat template in a model's folder: `chat_template.jinja`, or that of `tokenizer_config.json`, of several the one
/// called `default`.
///
/// # Errors
/// A file cannot be read, or is no JSON.
pub fn template_of(folder: &Path) -> Result<Option<String>, TokenizerError> {
    if let Some(template) = read_of(folder, "chat_template.jinja")? {
        return Ok(Some(template));
    }
    let config = json_of(folder, "tokenizer_config.json")?;
    let template = &config["chat_template"];
    let named = template.as_array().and_then(|all| {
        let default = all.iter().find(|one| one["name"] == "default");
        default?["template"].as_str()
    });
    Ok(template.as_str().or(named).map(str::to_owned))
}

/// Who says something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Whoever sets the model up.
    System,
    /// Whoever asks.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// As templates name it.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// One part of a conversation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: &'a str,
}

/// Why a conversation did not become tokens.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The template is broken, takes too long, or refuses these messages.
    #[error("chat template: {0}")]
    Template(#[from] minijinja::Error),
    /// The tokenizer refused.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Content that contains what stands for another character while a template is applied.
    #[error("messages[{index}] contains U+{:04X}, which is reserved", u32::from(*character))]
    Reserved {
        /// Index of the message.
        index: usize,
        /// The character, a noncharacter of Unicode.
        character: char,
    },
    /// Control tokens whose names begin and end with too many different characters.
    #[error("control tokens begin and end with more than 66 different characters")]
    Names,
}

/// A model's chat template, in the language of Jinja.
///
/// It has what templates for transformers use: loop controls, `{% generation %}`, methods of Python's strings and
/// dictionaries, `'%s' % x`, `tojson`, `strftime_now` and `raise_exception`; `messages`, `add_generation_prompt`,
/// `bos_token` and `eos_token`. A run ends with an error after some million instructions; what it makes
/// counts too, 64 bytes as an instruction, so memory is limited as well.
#[derive(Debug)]
pub struct ChatTemplate {
    program: Program,
    /// Texts that the template may look for.
    constants: BTreeSet<String>,
}

impl ChatTemplate {
    /// Takes a template over from a model, such as `tokenizer.chat_template` of a GGUF file.
    ///
    /// # Errors
    /// [`ChatError::Template`] if it is none, or is longer than 64 KiB.
    pub fn new(source: &str) -> Result<Self, ChatError> {
        Ok(Self { program: Program::new(source)?, constants: jinja::constants(source) })
    }

    /// The tokens of a conversation up to where the model answers. Only the template makes control
    /// tokens; in what users write they are text, whatever the template does to it.
    ///
    /// # Errors
    /// [`ChatError`].
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message<'_>],
    ) -> Result<Vec<u32>, ChatError> {
        let names = tokenizer.control_names();
        let guard = Guard::new(&self.constants, names).ok_or(ChatError::Names)?;
        for (index, message) in messages.iter().enumerate() {
            if let Some(character) = guard.reserved(message.content) {
                return Err(ChatError::Reserved { index, character });
            }
        }
        let text = |token: Option<u32>| {
            let bytes = token.and_then(|token| tokenizer.bytes(token));
            String::from_utf8_lossy(&bytes.unwrap_or_default()).into_owned()
        };
        let (bos, eos) = (text(tokenizer.bos()), text(tokenizer.eos()));
        let context = || {
            let all = messages.iter().map(|message| {
                let content = guard.hide(message.content);
                Value::from_pairs([("role", message.role.name().to_owned()), ("content", content)])
            });
            Value::from_pairs([
                ("messages", all.collect::<Value>()),
                ("add_generation_prompt", Value::from(true)),
                ("bos_token", Value::from(bos.clone())),
                ("eos_token", Value::from(eos.clone())),
                ("tools", Value::from(())),
                ("documents", Value::from(())),
            ])
        };
        let bytes = messages.iter().map(|message| MESSAGE_BYTES + message.content.len()).sum();
        let pieces = guard.pieces(&self.program.run(context, bytes)?);
        let pieces: Vec<_> = pieces.iter().map(|(text, control)| (&**text, *control)).collect();
        Ok(tokenizer.encode_pieces(&pieces)?)
    }
}

#[cfg(test)]
mod tests;
