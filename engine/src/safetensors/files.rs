//! Which files of a folder are the model's.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use serde_json::Value;

use crate::weights::WeightsError;

/// A file, and which of its tensors are the model's: all, where nothing says so.
pub(super) struct Shard {
    pub(super) name: String,
    pub(super) tensors: Option<HashSet<String>>,
}

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

pub(super) fn of(folder: &Path) -> Result<Vec<Shard>, WeightsError> {
    let index = folder.join(INDEX);
    if index.is_file() {
        return of_index(folder, &index);
    }
    let whole = |name: String| Shard { name, tensors: None };
    if folder.join(SINGLE).is_file() {
        return Ok(vec![whole(SINGLE.to_owned())]);
    }
    let entries = std::fs::read_dir(folder).map_err(|error| WeightsError::io(folder, error))?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let is_data = |name: &String| {
        let hidden = name.starts_with('.') || name.starts_with("adapter");
        name.ends_with(".safetensors") && !hidden
    };
    let mut names: Vec<String> = names.filter(is_data).collect();
    if names.is_empty() {
        let what = format!("there is no {INDEX}, no {SINGLE} and no other file of weights");
        return Err(WeightsError::file(folder, what));
    }
    names.sort();
    Ok(names.into_iter().map(whole).collect())
}

fn of_index(folder: &Path, index: &Path) -> Result<Vec<Shard>, WeightsError> {
    let broken = |what: String| WeightsError::file(index, what);
    let text = std::fs::read(index).map_err(|error| WeightsError::io(index, error))?;
    let json: Value = serde_json::from_slice(&text).map_err(|error| broken(error.to_string()))?;
    let map = json["weight_map"].as_object();
    let map =
        map.ok_or_else(|| broken("weight_map, from tensors to files, is missing".to_owned()))?;
    let mut shards: BTreeMap<&str, HashSet<String>> = BTreeMap::new();
    for (tensor, file) in map {
        let file = file.as_str().filter(|name| !name.contains(['/', '\\']));
        let file = file.ok_or_else(|| {
            broken(format!("the file of tensor {tensor:?} is {}; it must be a name", map[tensor]))
        })?;
        shards.entry(file).or_default().insert(tensor.clone());
    }
    if let Some(missing) = shards.keys().find(|name| !folder.join(name).is_file()) {
        let tensors = shards[*missing].len();
        return Err(broken(format!("{missing:?}, which has {tensors} of the tensors, is missing")));
    }
    let shards = shards
        .into_iter()
        .map(|(name, tensors)| Shard { name: name.to_owned(), tensors: Some(tensors) });
    Ok(shards.collect())
}
