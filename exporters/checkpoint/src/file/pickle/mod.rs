//! A pickle machine that builds data and executes nothing.
//!
//! The format is a program for a stack machine (opcodes as in CPython's `pickletools`, protocols 2 to 5). Python runs
//! it with arbitrary callables; this machine knows a list of names ([`globals`]) and gives each a meaning as data. A call
//! of any other name makes an opaque object, which is an error only where it stands in a weight's place; calling a
//! function of Python's own library is an error everywhere.
//!
//! Values live in an arena and refer to each other by index: cycles are harmless, nesting costs no call stack,
//! and dropping is flat. Every opcode adds at most one value, so memory is bounded by the pickle's length without its
//! strings of bytes, which are skipped; [`MAX_LEN`] bounds it.

mod globals;
mod machine;
mod rebuild;

use crate::WeightDType;

pub(crate) use globals::{StorageClass, describe};
pub(crate) use machine::run;

/// Longest accepted pickle in bytes, strings of bytes apart. A checkpoint's pickle holds names and shapes, not weights.
const MAX_LEN: usize = 64 << 20;
/// Most values one pickle may build: room for the order of a whole data set beside a checkpoint.
const MAX_VALUES: usize = 1 << 22;
/// Most dimensions of a tensor.
const MAX_RANK: usize = 8;

/// Index of a value in the arena.
pub(crate) type ValueId = u32;

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
    pub(crate) class: StorageClass,
    pub(crate) key: String,
    /// The elements are a part of another storage's, which is not looked up.
    pub(crate) view: bool,
    pub(crate) elements: i64,
}

/// A view of a storage; nothing here is checked against the storage yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TensorDesc {
    /// The storage value.
    pub(crate) storage: ValueId,
    /// First element.
    pub(crate) offset: i64,
    /// Dimensions.
    pub(crate) size: Vec<i64>,
    /// Elements from one index to the next, per dimension.
    pub(crate) stride: Vec<i64>,
    /// Element type of the view; that of the storage unless the storage is one of bytes.
    pub(crate) dtype: WeightDType,
    /// The view shows the storage's elements with the other sign.
    pub(crate) negated: bool,
}

/// A value that a pickle builds.
#[derive(Debug)]
pub(crate) enum PickleValue<'a> {
    /// None, numbers beyond i64, bytes and sets.
    Opaque,
    /// An object whose contents do not matter here, by what made it.
    Object {
        module: &'a str,
        name: &'a str,
    },
    /// A tensor that no weight can be read from: what it is.
    Unread(Box<str>),
    Int(i64),
    Str(&'a str),
    List(Vec<ValueId>),
    Tuple(Vec<ValueId>),
    Dict(Vec<(ValueId, ValueId)>),
    Global(globals::Global<'a>),
    Storage(Box<Storage>),
    Tensor(Box<TensorDesc>),
}

/// The finished heap: all values and the root.
#[derive(Debug)]
pub(crate) struct Heap<'a> {
    pub(crate) values: Vec<PickleValue<'a>>,
    pub(crate) root: ValueId,
}

impl<'a> Heap<'a> {
    /// The value of that index.
    pub(crate) fn get(&self, id: ValueId) -> &PickleValue<'a> {
        self.values.get(id as usize).unwrap_or(&PickleValue::Opaque)
    }

    /// The pairs of a dictionary.
    pub(crate) fn dict(&self, id: ValueId) -> Option<&[(ValueId, ValueId)]> {
        match self.get(id) {
            PickleValue::Dict(pairs) => Some(pairs),
            _ => None,
        }
    }

    /// A string.
    pub(crate) fn str(&self, id: ValueId) -> Option<&'a str> {
        match self.get(id) {
            PickleValue::Str(s) => Some(s),
            _ => None,
        }
    }
}
