//! Model files written here: tensors by the names that transformers gives them, as safetensors or GGUF.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// A tensor: `[rows, columns]`, or `[columns]` with one row.
#[derive(Clone, Debug)]
pub(crate) struct Written {
    pub(crate) shape: Vec<usize>,
    pub(crate) values: Vec<f32>,
}

/// A tensor of this shape, all 0.5.
pub(crate) fn written(shape: &[usize]) -> Written {
    Written { shape: shape.to_vec(), values: vec![0.5; shape.iter().product()] }
}

pub(crate) type Tensors = BTreeMap<String, Written>;

/// A folder that goes away with its value.
pub(crate) struct Folder(pub(crate) PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("deft-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A safetensors file, in F32.
pub(crate) fn safetensors(tensors: &Tensors) -> Vec<u8> {
    let mut header = serde_json::Map::new();
    let mut data = Vec::new();
    for (name, tensor) in tensors {
        let begin = data.len();
        data.extend(tensor.values.iter().flat_map(|x| x.to_le_bytes()));
        let info = serde_json::json!({
            "dtype": "F32", "shape": tensor.shape, "data_offsets": [begin, data.len()]
        });
        header.insert(name.clone(), info);
    }
    let header = Value::Object(header).to_string().into_bytes();
    [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()
}

/// What a GGUF file is made of; its types are ggml's numbers.
#[derive(Clone, Default)]
pub(crate) struct GgufFile {
    pub(crate) entries: Vec<(String, Vec<u8>)>,
    /// Name, dimensions (columns first), type, bytes.
    pub(crate) tensors: Vec<(String, Vec<u64>, u32, Vec<u8>)>,
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
    bytes.extend(text.as_bytes());
    bytes
}

impl GgufFile {
    pub(crate) fn set(&mut self, key: &str, kind: u32, bytes: &[u8]) {
        self.entries.retain(|(other, _)| other != key);
        let value = [&kind.to_le_bytes(), bytes].concat();
        self.entries.push((key.to_owned(), value));
    }

    pub(crate) fn set_text(&mut self, key: &str, value: &str) {
        self.set(key, 8, &text(value));
    }

    pub(crate) fn set_u32(&mut self, key: &str, value: u32) {
        self.set(key, 4, &value.to_le_bytes());
    }

    pub(crate) fn set_f32(&mut self, key: &str, value: f32) {
        self.set(key, 6, &value.to_le_bytes());
    }

    pub(crate) fn set_texts(&mut self, key: &str, values: &[&str]) {
        let mut bytes = [&8_u32.to_le_bytes()[..], &(values.len() as u64).to_le_bytes()].concat();
        bytes.extend(values.iter().flat_map(|value| text(value)));
        self.set(key, 9, &bytes);
    }

    pub(crate) fn add(&mut self, name: &str, tensor: &Written) {
        let dims = tensor.shape.iter().rev().map(|&size| size as u64).collect();
        let bytes = tensor.values.iter().flat_map(|x| x.to_le_bytes()).collect();
        self.tensors.push((name.to_owned(), dims, 0, bytes));
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend((self.tensors.len() as u64).to_le_bytes());
        bytes.extend((self.entries.len() as u64).to_le_bytes());
        for (key, value) in &self.entries {
            bytes.extend(text(key));
            bytes.extend(value);
        }
        let mut offset = 0;
        for (name, dims, kind, data) in &self.tensors {
            bytes.extend(text(name));
            bytes.extend((dims.len() as u32).to_le_bytes());
            bytes.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
            bytes.extend(kind.to_le_bytes());
            bytes.extend((offset as u64).to_le_bytes());
            offset += data.len().next_multiple_of(32);
        }
        for (.., data) in &self.tensors {
            bytes.resize(bytes.len().next_multiple_of(32), 0);
            bytes.extend(data);
        }
        bytes
    }
}

/// Every file of a folder's, for messages.
pub(crate) fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}
