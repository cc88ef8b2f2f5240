//! What is done to a valid file.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Value, json};

/// A change of bytes.
#[derive(Clone, Debug)]
pub(crate) enum Edit {
    Flip(Index, u8),
    /// A little-endian number of so many bytes.
    Number(Index, u64, usize),
    Cut(Index),
    Remove(Index, usize),
    /// One byte, so many times.
    Insert(Index, u8, usize),
    /// Copies bytes to another place.
    Repeat(Index, Index, usize),
    /// Other bytes from here on.
    Noise(Index, Vec<u8>),
}

/// Numbers at which something ends or overflows.
fn number() -> impl Strategy<Value = u64> {
    let powers = (0u32..64, -1i64..2).prop_map(|(bits, by)| (1u64 << bits).wrapping_add_signed(by));
    prop_oneof![3 => powers, 1 => any::<u64>(), 2 => 0u64..300]
}

fn edit() -> impl Strategy<Value = Edit> {
    let at = any::<Index>;
    let width = prop_oneof![Just(1usize), Just(2), Just(4), Just(8)];
    let nesting = prop_oneof![Just(b'['), Just(b'{'), Just(b'"'), Just(b'('), any::<u8>()];
    prop_oneof![
        4 => (at(), 0u8..8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        8 => (at(), number(), width).prop_map(|(at, number, width)| Edit::Number(at, number, width)),
        1 => at().prop_map(Edit::Cut),
        2 => (at(), 1usize..40).prop_map(|(at, count)| Edit::Remove(at, count)),
        2 => (at(), nesting, prop_oneof![1usize..40, Just(100_000)])
            .prop_map(|(at, byte, count)| Edit::Insert(at, byte, count)),
        3 => (at(), at(), 1usize..200).prop_map(|(from, to, count)| Edit::Repeat(from, to, count)),
        1 => (at(), vec(any::<u8>(), 0..400)).prop_map(|(at, bytes)| Edit::Noise(at, bytes)),
    ]
}

pub(crate) fn edits() -> impl Strategy<Value = Vec<Edit>> {
    vec(edit(), 0..5)
}

/// The file after all edits.
pub(crate) fn edited(mut file: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        // One past the end is a place too.
        let place = |at: &Index| at.index(file.len() + 1);
        let end = |from: usize, count: usize| (from + count).min(file.len());
        match edit {
            Edit::Flip(at, bit) => {
                let at = place(at);
                file.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << bit);
            }
            Edit::Number(at, number, width) => {
                let at = place(at);
                let bytes = number.to_le_bytes();
                file.iter_mut().skip(at).zip(&bytes[..*width]).for_each(|(to, &from)| *to = from);
            }
            Edit::Cut(at) => file.truncate(place(at)),
            Edit::Remove(at, count) => drop(file.drain(place(at)..end(place(at), *count))),
            Edit::Insert(at, byte, count) => {
                let at = place(at);
                file.splice(at..at, std::iter::repeat_n(*byte, *count));
            }
            Edit::Repeat(from, to, count) => {
                let (from, to) = (place(from), place(to));
                let bytes = file[from..end(from, *count)].to_vec();
                file.splice(to..to, bytes);
            }
            Edit::Noise(at, bytes) => {
                file.truncate(place(at));
                file.extend(bytes);
            }
        }
    }
    file
}

/// A change of one value somewhere in a JSON.
#[derive(Clone, Debug)]
pub(crate) enum Swap {
    With(Index, Value),
    /// Takes the value of another place.
    Copy(Index, Index),
    /// Goes, or gets another name.
    Key(Index, Option<String>),
}

fn hostile() -> impl Strategy<Value = Value> {
    let nested = (1usize..120).prop_map(|depth| (0..depth).fold(json!(0), |all, _| json!([all])));
    let texts = prop_oneof!["\\PC{0,9}", Just("a".repeat(5000)), Just("\u{0}".to_owned())];
    let floats = prop_oneof![Just(1e308), Just(-1e-320), Just(0.5), any::<f64>()];
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        number().prop_map(Value::from),
        (-3i64..1).prop_map(Value::from),
        Just(json!(i64::MIN)),
        floats.prop_map(Value::from),
        texts.prop_map(Value::from),
        Just(json!([])),
        Just(json!({})),
        nested,
        vec(number(), 0..6).prop_map(Value::from),
    ]
}

fn swap() -> impl Strategy<Value = Swap> {
    let at = any::<Index>;
    let key = prop::option::of("[a-z_]{0,8}");
    prop_oneof![
        5 => (at(), hostile()).prop_map(|(at, value)| Swap::With(at, value)),
        2 => (at(), at()).prop_map(|(from, to)| Swap::Copy(from, to)),
        1 => (at(), key).prop_map(|(at, key)| Swap::Key(at, key)),
    ]
}

pub(crate) fn swaps() -> impl Strategy<Value = Vec<Swap>> {
    vec(swap(), 0..5)
}

/// The values below and with this one.
fn count(value: &Value) -> usize {
    1 + match value {
        Value::Array(all) => all.iter().map(count).sum::<usize>(),
        Value::Object(all) => all.values().map(count).sum(),
        _ => 0,
    }
}

/// The value that comes `at`th, depth first.
fn nth(value: &mut Value, mut at: usize) -> &mut Value {
    if at == 0 {
        return value;
    }
    at -= 1;
    let below: Vec<&mut Value> = match value {
        Value::Array(all) => all.iter_mut().collect(),
        Value::Object(all) => all.values_mut().collect(),
        _ => Vec::new(),
    };
    for below in below {
        match count(below) {
            below if below <= at => at -= below,
            _ => return nth(below, at),
        }
    }
    unreachable!("it was counted")
}

/// The JSON after all swaps.
pub(crate) fn swapped(mut json: Value, swaps: &[Swap]) -> Value {
    for swap in swaps {
        let values = count(&json);
        match swap {
            Swap::With(at, value) => *nth(&mut json, at.index(values)) = value.clone(),
            Swap::Copy(from, to) => {
                let value = nth(&mut json, from.index(values)).clone();
                // Copies into itself would double it every time.
                if count(&value) < 100 {
                    *nth(&mut json, to.index(values)) = value;
                }
            }
            Swap::Key(at, name) => {
                if let Value::Object(all) = nth(&mut json, at.index(values))
                    && let Some(key) = all.keys().nth(at.index(all.len().max(1))).cloned()
                    && let Some(value) = all.remove(&key)
                    && let Some(name) = name
                {
                    all.insert(name.clone(), value);
                }
            }
        }
    }
    json
}
