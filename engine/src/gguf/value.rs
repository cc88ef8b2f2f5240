//! Metadata of a GGUF file.

use std::collections::HashMap;

use super::GgufError;

/// A value of a GGUF file's metadata.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// Any integer.
    Integer(i128),
    /// Any float.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A string.
    Text(String),
    /// An array of integers or truth values.
    Integers(Vec<i64>),
    /// An array of floats.
    Floats(Vec<f64>),
    /// An array of strings.
    Texts(Vec<String>),
}

impl Value {
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Text(value) => format!("{:?}", value.chars().take(40).collect::<String>()),
            Self::Integers(values) => format!("an array of {} integers", values.len()),
            Self::Floats(values) => format!("an array of {} floats", values.len()),
            Self::Texts(values) => format!("an array of {} strings", values.len()),
        }
    }
}

/// Keys and values. Getters return `None` for a key that there is not, and an error for a value of another
/// kind than asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata(pub(crate) HashMap<String, Value>);

impl<K: Into<String>> FromIterator<(K, Value)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, Value)>>(entries: I) -> Self {
        let entries = entries.into_iter();
        Self(entries.map(|(key, value)| (key.into(), value)).collect())
    }
}

impl Metadata {
    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key)
    }

    /// An integer that fits 32 bits.
    ///
    /// # Errors
    /// [`GgufError::Metadata`].
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.take(key, "an integer of 32 bits", |value| match value {
            Value::Integer(value) => u32::try_from(*value).ok(),
            _ => None,
        })
    }

    /// A number.
    ///
    /// # Errors
    /// [`GgufError::Metadata`].
    pub fn f64(&self, key: &str) -> Result<Option<f64>, GgufError> {
        self.take(key, "a number", |value| match value {
            Value::Float(value) => Some(*value),
            Value::Integer(value) => Some(*value as f64),
            _ => None,
        })
    }

    /// A truth value.
    ///
    /// # Errors
    /// [`GgufError::Metadata`].
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.take(key, "true or false", |value| match value {
            Value::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// A string.
    ///
    /// # Errors
    /// [`GgufError::Metadata`].
    pub fn text(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.take(key, "a string", |value| match value {
            Value::Text(value) => Some(value.as_str()),
            _ => None,
        })
    }

    /// An array of strings.
    ///
    /// # Errors
    /// [`GgufError::Metadata`].
    pub fn texts(&self, key: &str) -> Result<Option<&[String]>, GgufError> {
        self.take(key, "an array of strings", |value| match value {
            Value::Texts(values) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// An array of integers.
    ///
    /// # Errors
    /// [`GgufError::Metadata`].
    pub fn integers(&self, key: &str) -> Result<Option<&[i64]>, GgufError> {
        self.take(key, "an array of integers", |value| match value {
            Value::Integers(values) => Some(values.as_slice()),
            _ => None,
        })
    }

    /// An array of floats.
    ///
    /// # Errors
    /// [`GgufError::Metadata`].
    pub fn floats(&self, key: &str) -> Result<Option<&[f64]>, GgufError> {
        self.take(key, "an array of floats", |value| match value {
            Value::Floats(values) => Some(values.as_slice()),
            _ => None,
        })
    }

    fn take<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        of: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else {
            return Ok(None);
        };
        of(value).map(Some).ok_or_else(|| GgufError::Metadata {
            key: key.to_owned(),
            found: value.describe(),
            expected: expected.to_owned(),
        })
    }
}

/// The value of a key that has to be there.
pub(crate) fn required<T>(value: Option<T>, key: &str) -> Result<T, GgufError> {
    value.ok_or_else(|| GgufError::Missing { key: key.to_owned() })
}
