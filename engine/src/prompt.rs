//! Prompts that begin like those of the past: what models on the CPU and on GPUs have in common.

use deft::abi::PAGE_TOKENS;
use deft::{CacheError, Demoted, NodeKey, Opened, TreeCache};

use crate::ModelError;
use crate::ranks::Shard;

/// A model has a cache of its own, so prompts need nothing to keep them apart.
pub(crate) const SALT: u64 = 0;

/// A leaf below what is held of `tokens`, all but the last, which is run for its logits; with room for the others.
pub(crate) fn open(cache: &mut TreeCache, tokens: &[u32]) -> Result<Opened, ModelError> {
    let opened = match &tokens[..tokens.len() - 1] {
        [] => Opened { node: cache.insert_root()?, matched: 0 },
        before => cache.open(before, SALT)?,
    };
    let room = room_for(cache, opened, tokens.len() as u32);
    if room.is_err() {
        cache.prune(opened.node)?;
    }
    Ok(room.map(|()| opened)?)
}

/// Whether a prompt of `tokens` tokens fits where it was opened, before any of it is run.
fn room_for(cache: &mut TreeCache, opened: Opened, tokens: u32) -> Result<(), CacheError> {
    let copied = cache.forest().length(opened.node)?;
    let own = copied + tokens - opened.matched;
    let pages = own.div_ceil(PAGE_TOKENS) - copied.div_ceil(PAGE_TOKENS);
    cache.make_room(pages)?;
    let fits = cache.forest().pool().check_free(u64::from(pages));
    fits.map_err(|error| CacheError::Forest(error.into()))
}

/// Prunes the leaf of a prompt that was kept, and moves the prompt to the host's memory.
pub(crate) fn demote(cache: &mut TreeCache, leaf: NodeKey) -> Result<Demoted, ModelError> {
    let forest = cache.forest();
    let length = forest.length(leaf).map_err(CacheError::from)?;
    match forest.parent(leaf).map_err(CacheError::from)? {
        Some(sealed) if length == 0 => {
            cache.prune(leaf)?;
            Ok(cache.demote(sealed)?)
        }
        // Of no prompt that was kept: the cache says so.
        _ => Ok(cache.demote(leaf)?),
    }
}

/// Refuses to restore on one of several ranks: each would meet what it loads at another token.
pub(crate) fn check_restore(shard: &Shard) -> Result<(), ModelError> {
    if shard.ranks() == 1 {
        return Ok(());
    }
    Err(ModelError::Option {
        option: "restore_prompt",
        value: format!("on one of {} ranks", shard.ranks()),
        expected: "on a model of one rank".to_owned(),
    })
}

/// A number for a model's shape, the rank that has this part of it, its rotation and its weights, of which `sample` stands
/// for all. FNV-1a.
pub(crate) fn identity(shard: &Shard, sample: impl Iterator<Item = f32>) -> u64 {
    let rank = match shard.ranks() {
        1 => String::new(),
        ranks => format!("{} of {ranks}", shard.rank()),
    };
    let shape = format!("{:?}{rank}", shard.whole()).into_bytes();
    let weights = sample.flat_map(|weight| weight.to_bits().to_le_bytes());
    let mix = |hash: u64, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    shape.into_iter().chain(weights).fold(0xcbf2_9ce4_8422_2325, mix)
}
