//! Reads the head of a GGUF file, trusting nothing in it.

use std::collections::HashMap;
use std::io::Read;

use super::value::{Metadata, Value};
use super::{GgufError, Header, TensorInfo};

/// Most bytes of a header: tokens and merges of a large vocabulary take some 20 MiB.
const MAX_HEADER_BYTES: u64 = 256 << 20;
const MAX_DIMS: u32 = 4;
const DEFAULT_ALIGNMENT: u32 = 32;
const ARRAY: u32 = 9;

/// Reads the header of a file of `file_bytes` bytes.
pub(super) fn parse(source: &mut impl Read, file_bytes: u64) -> Result<Header, GgufError> {
    let mut cursor = Cursor { source, offset: 0, end: file_bytes.min(MAX_HEADER_BYTES) };
    let magic: [u8; 4] = cursor.bytes("the magic number")?;
    if &magic != b"GGUF" {
        return Err(GgufError::Magic { found: magic });
    }
    let version = cursor.u32("the version")?;
    if !(2..=3).contains(&version) {
        return Err(GgufError::Version { found: version });
    }
    let tensors = cursor.u64("the number of tensors")?;
    let entries = cursor.u64("the number of metadata entries")?;
    let metadata = cursor.metadata(entries)?;
    let mut tensors = cursor.tensors(tensors)?;
    let key = "general.alignment";
    let alignment = metadata.u32(key)?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() {
        return Err(GgufError::Metadata {
            key: key.to_owned(),
            found: alignment.to_string(),
            expected: "a power of two".to_owned(),
        });
    }
    let data = cursor.offset.next_multiple_of(u64::from(alignment));
    for tensor in tensors.values_mut() {
        tensor.offset = tensor.offset.saturating_add(data);
    }
    Ok(Header { metadata, tensors, file_bytes: vec![file_bytes] })
}

struct Cursor<'a, R> {
    source: &'a mut R,
    offset: u64,
    end: u64,
}

impl<R: Read> Cursor<'_, R> {
    /// Whether `needed` bytes are left.
    fn check(&self, what: &'static str, needed: u64) -> Result<(), GgufError> {
        let left = self.end - self.offset;
        if needed > left {
            return Err(GgufError::Truncated { what, offset: self.offset, needed, left });
        }
        Ok(())
    }

    fn bytes<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], GgufError> {
        let mut bytes = [0; N];
        self.check(what, N as u64)?;
        self.source.read_exact(&mut bytes)?;
        self.offset += N as u64;
        Ok(bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.bytes(what)?))
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.bytes(what)?))
    }

    fn text(&mut self, what: &'static str) -> Result<String, GgufError> {
        let length = self.u64(what)?;
        self.check(what, length)?;
        let offset = self.offset;
        let mut bytes = vec![0; length as usize];
        self.source.read_exact(&mut bytes)?;
        self.offset += length;
        String::from_utf8(bytes).map_err(|_| GgufError::Utf8 { what, offset })
    }

    fn metadata(&mut self, entries: u64) -> Result<Metadata, GgufError> {
        let mut all = HashMap::new();
        for _ in 0..entries {
            let key = self.text("a metadata key")?;
            let kind = self.u32("a metadata type")?;
            let value = match kind {
                ARRAY => self.array()?,
                kind => self.scalar(kind)?,
            };
            if all.insert(key.clone(), value).is_some() {
                let (what, name) = ("metadata", key);
                return Err(GgufError::Duplicate { what, name });
            }
        }
        Ok(Metadata(all))
    }

    fn scalar(&mut self, kind: u32) -> Result<Value, GgufError> {
        const WHAT: &str = "a metadata value";
        Ok(match kind {
            0 => Value::Integer(u8::from_le_bytes(self.bytes(WHAT)?).into()),
            1 => Value::Integer(i8::from_le_bytes(self.bytes(WHAT)?).into()),
            2 => Value::Integer(u16::from_le_bytes(self.bytes(WHAT)?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.bytes(WHAT)?).into()),
            4 => Value::Integer(u32::from_le_bytes(self.bytes(WHAT)?).into()),
            5 => Value::Integer(i32::from_le_bytes(self.bytes(WHAT)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.bytes(WHAT)?).into()),
            7 => Value::Bool(self.bytes::<1>(WHAT)? != [0]),
            8 => Value::Text(self.text(WHAT)?),
            10 => Value::Integer(u64::from_le_bytes(self.bytes(WHAT)?).into()),
            11 => Value::Integer(i64::from_le_bytes(self.bytes(WHAT)?).into()),
            12 => Value::Float(f64::from_le_bytes(self.bytes(WHAT)?)),
            _ => return Err(self.unknown_kind(kind, "0 to 12 are known")),
        })
    }

    fn unknown_kind(&self, kind: u32, limit: &str) -> GgufError {
        GgufError::Value {
            what: "a metadata type",
            offset: self.offset - 4,
            value: kind.into(),
            limit: limit.to_owned(),
        }
    }

    fn array(&mut self) -> Result<Value, GgufError> {
        const WHAT: &str = "an array";
        let kind = self.u32("an array's type")?;
        // The least that an element takes, so that a length beyond the file is seen before it is used.
        let element = match kind {
            0 | 1 | 7 => 1,
            2 | 3 => 2,
            4..=6 => 4,
            8 | 10..=12 => 8,
            _ => return Err(self.unknown_kind(kind, "an array is of types 0 to 8 or 10 to 12")),
        };
        let length = self.u64(WHAT)?;
        self.check(WHAT, length.saturating_mul(element))?;
        let mut all = match kind {
            6 | 12 => Value::Floats(Vec::new()),
            8 => Value::Texts(Vec::new()),
            _ => Value::Integers(Vec::new()),
        };
        for _ in 0..length {
            let offset = self.offset;
            match (&mut all, self.scalar(kind)?) {
                (Value::Floats(all), Value::Float(value)) => all.push(value),
                (Value::Texts(all), Value::Text(value)) => all.push(value),
                (Value::Integers(all), Value::Bool(value)) => all.push(value.into()),
                (Value::Integers(all), Value::Integer(value)) => {
                    all.push(i64::try_from(value).map_err(|_| GgufError::Value {
                        what: "an array's element",
                        offset,
                        value: value as u64,
                        limit: format!("the limit is {}", i64::MAX),
                    })?);
                }
                _ => unreachable!("the array was made for its type"),
            }
        }
        Ok(all)
    }

    fn tensors(&mut self, count: u64) -> Result<HashMap<String, TensorInfo>, GgufError> {
        let mut all = HashMap::new();
        for _ in 0..count {
            let name = self.text("a tensor's name")?;
            let info = self.tensor()?;
            if all.insert(name.clone(), info).is_some() {
                let what = "tensor";
                return Err(GgufError::Duplicate { what, name });
            }
        }
        Ok(all)
    }

    fn tensor(&mut self) -> Result<TensorInfo, GgufError> {
        let count = self.u32("a tensor's number of dimensions")?;
        if count == 0 || count > MAX_DIMS {
            return Err(GgufError::Value {
                what: "a tensor's number of dimensions",
                offset: self.offset - 4,
                value: count.into(),
                limit: format!("it must be between 1 and {MAX_DIMS}"),
            });
        }
        let dims = (0..count).map(|_| self.u64("a tensor's dimension"));
        let dims = dims.collect::<Result<_, _>>()?;
        let kind = self.u32("a tensor's type")?;
        let offset = self.u64("a tensor's offset")?;
        Ok(TensorInfo { dims, kind, offset, file: 0 })
    }
}
