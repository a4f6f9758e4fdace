//! What calls and references mean: tensors, storages, dictionaries, and objects that stay opaque.

use super::globals::{Global, Rebuild, StorageClass, describe, dotted};
use super::machine::PickleMachine;
use super::{MAX_RANK, MAX_VALUES, PickleError, PickleValue, Storage, TensorDesc, ValueId};
use crate::WeightDType;

/// Most arguments that any known call has.
const MAX_ARGS: usize = 8;

impl<'a> PickleMachine<'a> {
    /// REDUCE and NEWOBJ: replaces a callable and its arguments by the data they mean.
    pub(super) fn call(&mut self, mut callable: ValueId, mut args: ValueId) -> Result<(), PickleError> {
        loop {
            let global = match self.values[callable as usize] {
                PickleValue::Global(global) => global,
                PickleValue::Object { module, name } => {
                    return self.push(PickleValue::Object { module, name });
                }
                _ => return self.fail("a call of something that is not a name"),
            };
            match global {
                Global::Hostile { module, name } => return Err(PickleError::Hostile(dotted(module, name))),
                Global::Object { module, name } => return self.push(PickleValue::Object { module, name }),
                _ => {}
            }
            let given: [Option<ValueId>; MAX_ARGS] = match &self.values[args as usize] {
                PickleValue::Tuple(args) => std::array::from_fn(|i| args.get(i).copied()),
                _ => return self.fail("a call without an argument tuple"),
            };
            match global {
                // A tuple is younger than its parts, so this ends.
                Global::RebuildFromType => match given {
                    [Some(function), _, Some(inner), ..] => (callable, args) = (function, inner),
                    _ => return self.fail("a wrapper without contents"),
                },
                known => return self.known_call(known, given),
            }
        }
    }

    fn known_call(
        &mut self,
        global: Global<'a>,
        args: [Option<ValueId>; MAX_ARGS],
    ) -> Result<(), PickleError> {
        match global {
            Global::RebuildParameter | Global::Size => match args[0] {
                Some(inner) => self.push_id(inner),
                None => self.fail("a wrapper without contents"),
            },
            Global::OrderedDict => {
                let items = args[0].filter(|id| {
                    matches!(self.values[*id as usize], PickleValue::List(_) | PickleValue::Tuple(_))
                });
                // `defaultdict` begins with what makes its values.
                let pairs = match (items, args[0].map(|id| &self.values[id as usize])) {
                    (Some(source), _) => self.items_of(source)?,
                    (
                        None,
                        None
                        | Some(PickleValue::Global(_) | PickleValue::Opaque | PickleValue::Object { .. }),
                    ) => Vec::new(),
                    (None, Some(_)) => {
                        return self.fail("a dictionary made from something that is not a list");
                    }
                };
                self.push(PickleValue::Dict(pairs))
            }
            Global::RebuildTensor(version) => {
                let value = self.tensor(version, args)?;
                self.push(value)
            }
            _ => self.fail("a storage or an element type is created by a call instead of being referred to"),
        }
    }

    /// INST and OBJ: an instance of a class.
    pub(super) fn instance(&self, class: Global<'a>) -> Result<PickleValue<'a>, PickleError> {
        match class {
            Global::Hostile { module, name } => Err(PickleError::Hostile(dotted(module, name))),
            Global::Object { module, name } => Ok(PickleValue::Object { module, name }),
            Global::OrderedDict => Ok(PickleValue::Dict(Vec::new())),
            _ => self.fail("a tensor made by an opcode that no checkpoint uses for one"),
        }
    }

    fn tensor(
        &mut self,
        version: Rebuild,
        args: [Option<ValueId>; MAX_ARGS],
    ) -> Result<PickleValue<'a>, PickleError> {
        let [Some(storage_id), Some(offset), Some(size), Some(stride), _, _, sixth, seventh] = args else {
            return self.fail("a tensor with too few arguments");
        };
        let PickleValue::Int(offset) = self.values[offset as usize] else {
            return self.fail("a tensor's storage offset is not an integer");
        };
        let (size, stride) = (self.dimensions(size)?, self.dimensions(stride)?);
        let class = match &self.values[storage_id as usize] {
            PickleValue::Storage(storage) if storage.view => {
                return Ok(PickleValue::Unread("a tensor on a storage that is a view of another one".into()));
            }
            PickleValue::Storage(storage) => storage.class,
            PickleValue::Object { module, name } => {
                let what = format!("a tensor on {}", describe(module, name));
                return Ok(PickleValue::Unread(what.into()));
            }
            _ => return self.fail("a tensor without a storage"),
        };
        let (typed, metadata) = match version {
            Rebuild::V1 => (None, None),
            Rebuild::V2 => (None, sixth),
            Rebuild::V3 => match sixth.map(|id| &self.values[id as usize]) {
                Some(PickleValue::Global(Global::DType(dtype, name))) => (Some((*dtype, *name)), seventh),
                _ => return self.fail("a tensor's element type is not one of torch's"),
            },
        };
        let dtype = match (typed, class) {
            (Some((Some(dtype), _)), _) | (None, StorageClass::Known(dtype)) => dtype,
            (Some((None, name)), _) => {
                return Ok(PickleValue::Unread(format!("a tensor of torch.{name}").into()));
            }
            (None, StorageClass::Other(name, _)) => {
                return Ok(PickleValue::Unread(format!("a tensor on a {name}").into()));
            }
        };
        match self.view_bits(metadata, dtype) {
            Ok(negated) => {
                let desc = TensorDesc { storage: storage_id, offset, size, stride, dtype, negated };
                Ok(PickleValue::Tensor(Box::new(desc)))
            }
            Err(why) => Ok(PickleValue::Unread(why.into())),
        }
    }

    /// The metadata of a tensor: whether it shows its elements negated; why it cannot be read.
    fn view_bits(&self, metadata: Option<ValueId>, dtype: WeightDType) -> Result<bool, String> {
        let pairs = match metadata.map(|id| &self.values[id as usize]) {
            None | Some(PickleValue::Opaque) => return Ok(false),
            Some(PickleValue::Dict(pairs)) => pairs,
            Some(_) => return Err("a tensor whose metadata is not understood".to_owned()),
        };
        let mut negated = false;
        for (key, value) in pairs {
            match (&self.values[*key as usize], &self.values[*value as usize]) {
                (PickleValue::Str("neg" | "conj"), PickleValue::Int(0)) => {}
                // Real numbers are their own conjugates.
                (PickleValue::Str("conj"), PickleValue::Int(1)) if dtype.is_float() => {}
                (PickleValue::Str("neg"), PickleValue::Int(1)) if dtype.is_float() => negated = true,
                (PickleValue::Str(key), _) => {
                    let key: String = key.chars().take(40).collect();
                    return Err(format!("a view with the metadata `{}`", key.escape_debug()));
                }
                _ => return Err("a tensor whose metadata is not understood".to_owned()),
            }
        }
        Ok(negated)
    }

    /// The pairs of a list of two-element tuples or lists.
    fn items_of(&mut self, source: ValueId) -> Result<Vec<(ValueId, ValueId)>, PickleError> {
        let list = match &self.values[source as usize] {
            PickleValue::List(list) | PickleValue::Tuple(list) => list,
            _ => return self.fail("a dictionary made from something that is not a list"),
        };
        self.copied += list.len();
        if self.copied > MAX_VALUES {
            return self.fail("more copies of items than any checkpoint needs");
        }
        list.iter()
            .map(|item| match &self.values[*item as usize] {
                PickleValue::List(kv) | PickleValue::Tuple(kv) => match kv.as_slice() {
                    &[k, v] => Ok((k, v)),
                    _ => self.fail("a dictionary item that is not a pair"),
                },
                _ => self.fail("a dictionary item that is not a pair"),
            })
            .collect()
    }

    fn dimensions(&mut self, id: ValueId) -> Result<Vec<i64>, PickleError> {
        let items = match &self.values[id as usize] {
            PickleValue::Tuple(items) | PickleValue::List(items) => items,
            _ => return self.fail("a tensor's sizes are not a tuple"),
        };
        if items.len() > MAX_RANK {
            return self.fail(format!("a tensor with {} dimensions", items.len()));
        }
        self.copied += items.len();
        if self.copied > MAX_VALUES {
            return self.fail("more tensor sizes than any checkpoint holds");
        }
        items
            .iter()
            .map(|i| match self.values[*i as usize] {
                PickleValue::Int(v) => Ok(v),
                _ => self.fail("a tensor's sizes are not integers"),
            })
            .collect()
    }

    /// BINPERSID: `('storage', class, key, location, elements)`; before PyTorch 1.6 with a sixth part, None unless the
    /// storage was a view of another one. A storage of a class that is not known is opaque.
    pub(super) fn storage(&self, id: ValueId) -> Result<PickleValue<'a>, PickleError> {
        let PickleValue::Tuple(items) = &self.values[id as usize] else {
            return self.fail("a persistent reference that is not a tuple");
        };
        let &[kind, class, key, _location, elements, ref rest @ ..] = items.as_slice() else {
            return self.fail("a persistent reference that is not a storage");
        };
        if !matches!(self.values[kind as usize], PickleValue::Str("storage")) {
            return self.fail("a persistent reference that is not a storage");
        }
        let view = match rest {
            [] => false,
            [id] => !matches!(self.values[*id as usize], PickleValue::Opaque),
            _ => return self.fail("a persistent reference that is not a storage"),
        };
        let class = match self.values[class as usize] {
            PickleValue::Global(Global::StorageType(class)) => class,
            PickleValue::Global(Global::Object { module, name }) => {
                return Ok(PickleValue::Object { module, name });
            }
            _ => return self.fail("a storage without a class"),
        };
        match (&self.values[key as usize], &self.values[elements as usize]) {
            (PickleValue::Str(key), PickleValue::Int(n)) => {
                if key.len() > 64 {
                    return self.fail("a storage key longer than 64 bytes");
                }
                Ok(PickleValue::Storage(Box::new(Storage {
                    class,
                    key: (*key).to_owned(),
                    view,
                    elements: *n,
                })))
            }
            _ => self.fail("a storage without a key or a size"),
        }
    }
}
