//! A pickle machine that builds data and executes nothing.
//!
//! The format is a program for a stack machine (opcodes as in CPython's `pickletools`, protocols 2 to 5). Python runs
//! it with arbitrary callables; this machine knows a fixed list of names ([`globals`]) and gives each a meaning as
//! data. An unknown name may lie in the pickle, but calling it is an error.
//!
//! Values live in an arena and refer to each other by index: cycles are harmless, nesting costs no call stack,
//! and dropping is flat. Every opcode adds at most one value, so memory is bounded by the pickle's length, which
//! [`MAX_LEN`] bounds.

mod globals;
mod machine;

use crate::WeightDType;

pub(crate) use machine::run;

/// Longest accepted pickle in bytes. A checkpoint's pickle holds names and shapes, not weights.
pub(crate) const MAX_LEN: usize = 64 << 20;
/// Most values one pickle may build; more than any checkpoint by orders of magnitude.
const MAX_VALUES: usize = 1 << 20;
/// Most dimensions of a tensor.
const MAX_RANK: usize = 8;

/// Index of a value in the arena.
pub(crate) type Id = u32;

/// Why a pickle is refused.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum PickleError {
    /// The program ends in the middle of something.
    Truncated,
    /// The program is wrong at this byte.
    Malformed(usize, String),
    /// It calls something that is not on the list.
    Hostile(String),
}

/// A storage in the archive: record `data/{key}` with `elements` elements.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Storage {
    pub(crate) dtype: WeightDType,
    pub(crate) key: String,
    pub(crate) elements: i64,
}

/// A view of a storage; nothing here is checked against the storage yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorDesc {
    /// The storage value.
    pub(crate) storage: Id,
    /// First element.
    pub(crate) offset: i64,
    /// Dimensions.
    pub(crate) size: Vec<i64>,
    /// Elements from one index to the next, per dimension.
    pub(crate) stride: Vec<i64>,
}

/// A value that a pickle builds.
#[derive(Debug)]
pub(crate) enum Value<'a> {
    /// None, numbers beyond i64, bytes, sets, and objects whose contents do not matter here.
    Opaque,
    Int(i64),
    Str(&'a str),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(globals::Global<'a>),
    Storage(Box<Storage>),
    Tensor(Box<TensorDesc>),
}

/// The finished heap: all values and the root.
#[derive(Debug)]
pub(crate) struct Heap<'a> {
    pub(crate) values: Vec<Value<'a>>,
    pub(crate) root: Id,
}

impl<'a> Heap<'a> {
    /// The value of that index.
    pub(crate) fn get(&self, id: Id) -> &Value<'a> {
        self.values.get(id as usize).unwrap_or(&Value::Opaque)
    }

    /// The pairs of a dictionary.
    pub(crate) fn dict(&self, id: Id) -> Option<&[(Id, Id)]> {
        match self.get(id) {
            Value::Dict(pairs) => Some(pairs),
            _ => None,
        }
    }

    /// A string.
    pub(crate) fn str(&self, id: Id) -> Option<&'a str> {
        match self.get(id) {
            Value::Str(s) => Some(s),
            _ => None,
        }
    }
}
