//! The stack machine itself.

use std::collections::HashMap;

use super::globals::{Global, dotted, lookup};
use super::{Heap, MAX_LEN, MAX_VALUES, PickleError, PickleValue, ValueId};

/// Builds the values of a pickle; also its length. `bytes` may be longer than the program: reading stops at STOP.
pub(crate) fn run(bytes: &[u8]) -> Result<(Heap<'_>, usize), PickleError> {
    let mut m = PickleMachine {
        bytes,
        at: 0,
        op_at: 0,
        values: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        copied: 0,
        skipped: 0,
        number: None,
    };
    loop {
        if let Some(root) = m.step()? {
            return Ok((Heap { values: m.values, root }, m.at));
        }
    }
}

pub(super) struct PickleMachine<'a> {
    bytes: &'a [u8],
    at: usize,
    op_at: usize,
    pub(super) values: Vec<PickleValue<'a>>,
    stack: Vec<ValueId>,
    /// Stack heights at the open MARKs.
    marks: Vec<usize>,
    memo: HashMap<u32, ValueId>,
    /// Items copied out of containers by calls; the memo could make one container be copied again and again.
    pub(super) copied: usize,
    /// Bytes of the program that were strings of bytes.
    skipped: usize,
    /// The one value that stands for all floats.
    number: Option<ValueId>,
}

impl<'a> PickleMachine<'a> {
    /// Executes one opcode; the root when it was STOP.
    fn step(&mut self) -> Result<Option<ValueId>, PickleError> {
        self.op_at = self.at;
        if self.at - self.skipped > MAX_LEN {
            return self
                .fail(format!("more than {MAX_LEN} bytes of program; a checkpoint's holds names only"));
        }
        let op = self.array::<1>()?[0];
        match op {
            // PROTO, FRAME: the lengths are only announcements.
            0x80 => {
                let version = self.array::<1>()?[0];
                if version > 5 {
                    return self.fail(format!("pickle protocol {version} is unknown"));
                }
            }
            0x95 => drop(self.array::<8>()?),
            b'.' => return self.pop().map(Some),
            b'(' => {
                if self.marks.len() >= MAX_VALUES {
                    return self.fail("too many marks");
                }
                self.marks.push(self.stack.len());
            }
            b'0' => self.discard()?,
            b'1' => drop(self.pop_mark()?),
            b'2' => {
                let top = self.top()?;
                self.push_id(top)?;
            }
            // None, True, False, and numbers.
            b'N' => self.push(PickleValue::Opaque)?,
            0x88 => self.push(PickleValue::Int(1))?,
            0x89 => self.push(PickleValue::Int(0))?,
            b'J' => {
                let v = i32::from_le_bytes(self.array()?);
                self.push(PickleValue::Int(v.into()))?;
            }
            b'K' => {
                let v = self.array::<1>()?[0];
                self.push(PickleValue::Int(v.into()))?;
            }
            b'M' => {
                let v = u16::from_le_bytes(self.array()?);
                self.push(PickleValue::Int(v.into()))?;
            }
            0x8a => {
                let n = self.array::<1>()?[0];
                self.long(n.into())?;
            }
            0x8b => {
                let n = u32::from_le_bytes(self.array()?);
                self.long(n.into())?;
            }
            b'G' => {
                self.array::<8>()?;
                match self.number {
                    Some(id) => self.push_id(id)?,
                    None => {
                        self.push(PickleValue::Opaque)?;
                        self.number = self.stack.last().copied();
                    }
                }
            }
            // Strings and bytes.
            b'X' => {
                let n = u32::from_le_bytes(self.array()?);
                self.string(n.into())?;
            }
            0x8c => {
                let n = self.array::<1>()?[0];
                self.string(n.into())?;
            }
            0x8d => {
                let n = u64::from_le_bytes(self.array()?);
                self.string(n)?;
            }
            b'U' => {
                let n = self.array::<1>()?[0];
                self.old_string(n.into())?;
            }
            b'T' => {
                let n = u32::from_le_bytes(self.array()?);
                self.old_string(n.into())?;
            }
            b'C' => {
                let n = self.array::<1>()?[0];
                self.opaque_bytes(n.into())?;
            }
            b'B' => {
                let n = u32::from_le_bytes(self.array()?);
                self.opaque_bytes(n.into())?;
            }
            // BINBYTES8, BYTEARRAY8
            0x8e | 0x96 => {
                let n = u64::from_le_bytes(self.array()?);
                self.opaque_bytes(n)?;
            }
            // Containers.
            b'}' => self.push(PickleValue::Dict(Vec::new()))?,
            b']' => self.push(PickleValue::List(Vec::new()))?,
            b')' => self.push(PickleValue::Tuple(Vec::new()))?,
            b't' => {
                let items = self.pop_mark()?;
                self.push(PickleValue::Tuple(items))?;
            }
            b'l' => {
                let items = self.pop_mark()?;
                self.push(PickleValue::List(items))?;
            }
            b'd' => {
                let items = self.pop_mark()?;
                let pairs = self.pairs(&items)?;
                self.push(PickleValue::Dict(pairs))?;
            }
            0x85..=0x87 => {
                let n = usize::from(op - 0x84);
                let items = self.pop_n(n)?;
                self.push(PickleValue::Tuple(items))?;
            }
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])?;
            }
            b'e' => {
                let items = self.pop_mark()?;
                self.extend(items)?;
            }
            b's' => {
                let items = self.pop_n(2)?;
                self.set_items(&items)?;
            }
            b'u' => {
                let items = self.pop_mark()?;
                self.set_items(&items)?;
            }
            // EMPTY_SET, ADDITEMS, FROZENSET
            0x8f => self.push(PickleValue::Opaque)?,
            0x90 => {
                self.pop_mark()?;
                self.top()?;
            }
            0x91 => {
                self.pop_mark()?;
                self.push(PickleValue::Opaque)?;
            }
            // The memo.
            b'q' => {
                let k = self.array::<1>()?[0];
                self.remember(k.into())?;
            }
            b'r' => {
                let k = u32::from_le_bytes(self.array()?);
                self.remember(k)?;
            }
            0x94 => {
                let k = u32::try_from(self.memo.len()).unwrap_or(u32::MAX);
                self.remember(k)?;
            }
            b'h' => {
                let k = self.array::<1>()?[0];
                self.recall(k.into())?;
            }
            b'j' => {
                let k = u32::from_le_bytes(self.array()?);
                self.recall(k)?;
            }
            // Names and everything that would call them.
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.push(PickleValue::Global(lookup(module, name)))?;
            }
            0x93 => {
                let [module, name] = self.strings()?;
                self.push(PickleValue::Global(lookup(module, name)))?;
            }
            b'R' | 0x81 => {
                let (args, callable) = (self.pop()?, self.pop()?);
                self.call(callable, args)?;
            }
            // NEWOBJ_EX
            0x92 => {
                let (_keywords, args, callable) = (self.pop()?, self.pop()?, self.pop()?);
                self.call(callable, args)?;
            }
            // INST, OBJ: instances in old protocols; never of tensors.
            b'i' => {
                let (module, name) = (self.line()?, self.line()?);
                self.pop_mark()?;
                let made = self.instance(lookup(module, name))?;
                self.push(made)?;
            }
            b'o' => {
                let items = self.pop_mark()?;
                let Some(PickleValue::Global(class)) = items.first().map(|i| &self.values[*i as usize])
                else {
                    return self.fail("an OBJ opcode without a class");
                };
                let made = self.instance(*class)?;
                self.push(made)?;
            }
            b'b' => {
                self.pop()?;
                let target = self.top()?;
                // State of data is metadata (a state dict's `_metadata`, a parameter's attributes): dropped.
                if let PickleValue::Global(Global::Hostile { module, name }) = &self.values[target as usize] {
                    return Err(PickleError::Hostile(dotted(module, name)));
                }
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = self.storage(id)?;
                self.push(storage)?;
            }
            other => return self.fail(format!("opcode 0x{other:02x} is not one that PyTorch writes")),
        }
        Ok(None)
    }

    pub(super) fn fail<T>(&self, why: impl Into<String>) -> Result<T, PickleError> {
        Err(PickleError::Malformed(self.op_at, why.into()))
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8], PickleError> {
        let end =
            usize::try_from(n).ok().and_then(|n| self.at.checked_add(n)).ok_or(PickleError::Truncated)?;
        let part = self.bytes.get(self.at..end).ok_or(PickleError::Truncated)?;
        self.at = end;
        Ok(part)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], PickleError> {
        let part =
            self.bytes.get(self.at..).and_then(|r| r.first_chunk::<N>()).ok_or(PickleError::Truncated)?;
        self.at += N;
        Ok(*part)
    }

    /// Text up to the next line feed, which is consumed.
    fn line(&mut self) -> Result<&'a str, PickleError> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let n = rest.iter().position(|b| *b == b'\n').ok_or(PickleError::Truncated)?;
        self.at += n + 1;
        std::str::from_utf8(&rest[..n]).or_else(|_| self.fail("a name is not UTF-8"))
    }

    pub(super) fn push(&mut self, value: PickleValue<'a>) -> Result<(), PickleError> {
        if self.values.len() >= MAX_VALUES {
            return self.fail("more values than any checkpoint holds");
        }
        let id = self.values.len() as ValueId;
        self.values.push(value);
        self.push_id(id)
    }

    pub(super) fn push_id(&mut self, id: ValueId) -> Result<(), PickleError> {
        if self.stack.len() >= MAX_VALUES {
            return self.fail("the stack is deeper than any checkpoint needs");
        }
        self.stack.push(id);
        Ok(())
    }

    /// Lowest stack height that may be popped to: nothing below the last MARK.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn pop(&mut self) -> Result<ValueId, PickleError> {
        if self.stack.len() <= self.floor() {
            return self.fail("the stack is empty");
        }
        self.stack.pop().ok_or(PickleError::Truncated)
    }

    fn top(&self) -> Result<ValueId, PickleError> {
        match self.stack.last() {
            Some(id) if self.stack.len() > self.floor() => Ok(*id),
            _ => self.fail("the stack is empty"),
        }
    }

    fn pop_n(&mut self, n: usize) -> Result<Vec<ValueId>, PickleError> {
        match self.stack.len().checked_sub(n) {
            Some(from) if from >= self.floor() => Ok(self.stack.split_off(from)),
            _ => self.fail("the stack is empty"),
        }
    }

    /// POP: the top value, or an open MARK when nothing lies on it.
    fn discard(&mut self) -> Result<(), PickleError> {
        if self.marks.last() == Some(&self.stack.len()) {
            self.marks.pop();
            return Ok(());
        }
        self.pop().map(drop)
    }

    fn pop_mark(&mut self) -> Result<Vec<ValueId>, PickleError> {
        match self.marks.pop() {
            Some(mark) if mark <= self.stack.len() => Ok(self.stack.split_off(mark)),
            _ => self.fail("there is no mark"),
        }
    }

    fn long(&mut self, n: u64) -> Result<(), PickleError> {
        let raw = self.take(n)?;
        let value = if raw.len() <= 8 {
            let sign = if raw.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
            let mut wide = [sign; 8];
            wide[..raw.len()].copy_from_slice(raw);
            PickleValue::Int(i64::from_le_bytes(wide))
        } else {
            PickleValue::Opaque
        };
        self.push(value)
    }

    fn string(&mut self, n: u64) -> Result<(), PickleError> {
        let raw = self.take(n)?;
        // `surrogatepass` strings are legal in Python and never tensor names.
        self.push(std::str::from_utf8(raw).map_or(PickleValue::Opaque, PickleValue::Str))
    }

    /// Python 2 strings: names when they are ASCII.
    fn old_string(&mut self, n: u64) -> Result<(), PickleError> {
        let raw = self.take(n)?;
        let text = std::str::from_utf8(raw).ok().filter(|s| s.is_ascii());
        self.push(text.map_or(PickleValue::Opaque, PickleValue::Str))
    }

    fn opaque_bytes(&mut self, n: u64) -> Result<(), PickleError> {
        self.skipped += self.take(n)?.len();
        self.push(PickleValue::Opaque)
    }

    fn strings(&mut self) -> Result<[&'a str; 2], PickleError> {
        let name = self.pop()?;
        let module = self.pop()?;
        match (&self.values[module as usize], &self.values[name as usize]) {
            (PickleValue::Str(m), PickleValue::Str(n)) => Ok([m, n]),
            _ => self.fail("a name that is not a string"),
        }
    }

    fn remember(&mut self, key: u32) -> Result<(), PickleError> {
        let top = self.top()?;
        if self.memo.len() >= MAX_VALUES {
            return self.fail("the memo is larger than any checkpoint needs");
        }
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), PickleError> {
        match self.memo.get(&key) {
            Some(&id) => self.push_id(id),
            None => self.fail(format!("memo entry {key} is read before it is written")),
        }
    }

    fn pairs(&self, items: &[ValueId]) -> Result<Vec<(ValueId, ValueId)>, PickleError> {
        let (pairs, rest) = items.as_chunks::<2>();
        if !rest.is_empty() {
            return self.fail("a key without a value");
        }
        Ok(pairs.iter().map(|[k, v]| (*k, *v)).collect())
    }

    fn extend(&mut self, items: Vec<ValueId>) -> Result<(), PickleError> {
        let target = self.top()?;
        match &mut self.values[target as usize] {
            PickleValue::List(list) => list.extend(items),
            PickleValue::Opaque | PickleValue::Object { .. } => {}
            _ => return self.fail("items are appended to something that is not a list"),
        }
        Ok(())
    }

    fn set_items(&mut self, items: &[ValueId]) -> Result<(), PickleError> {
        let pairs = self.pairs(items)?;
        let target = self.top()?;
        match &mut self.values[target as usize] {
            PickleValue::Dict(dict) => dict.extend(pairs),
            // An object with items is a dictionary of some class of its own.
            object @ PickleValue::Object { .. } => *object = PickleValue::Dict(pairs),
            PickleValue::Opaque => {}
            _ => return self.fail("keys are set on something that is not a dictionary"),
        }
        Ok(())
    }
}
