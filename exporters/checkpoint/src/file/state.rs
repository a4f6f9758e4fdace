//! Which dictionary of a pickle is the state dict, and what lies in it.

use std::collections::{HashMap, HashSet, VecDeque};

use super::WeightFormat;
use super::pickle::{self, Heap, PickleValue, TensorDesc, ValueId};
use crate::{CheckpointError, ErrorKind};

pub(super) fn malformed(problem: impl Into<String>) -> ErrorKind {
    ErrorKind::Malformed { format: WeightFormat::Torch, problem: problem.into() }
}
/// Keys under which a state dict may lie, in the order they are tried; after them the root itself.
const WRAPPERS: [&str; 3] = ["model", "module", "state_dict"];
/// Dictionaries in dictionaries that are looked at, and how many in all.
const DEPTH: usize = 3;
const MOST: usize = 1 << 12;

/// The tensors of one state dict.
#[derive(Debug, Default)]
pub(super) struct StateDict<'h> {
    /// Keys to it, joined by dots; empty for the root.
    pub(super) key: String,
    /// Names and places of the tensors.
    pub(super) tensors: Vec<(&'h str, &'h TensorDesc)>,
    /// What stands there and cannot be read as a tensor: its name, what it is, whether it is a tensor.
    pub(super) unread: Vec<(&'h str, String, bool)>,
    /// Other keys with about as many tensors.
    pub(super) others: Vec<String>,
}

/// The state dict under `wanted`, else under one of the wrappers, else at the root.
pub(super) fn find<'h>(heap: &'h Heap<'_>, wanted: Option<&str>) -> Result<StateDict<'h>, CheckpointError> {
    let Some(root) = heap.dict(heap.root) else {
        let what = match heap.get(heap.root) {
            PickleValue::Object { module, name } => {
                let problem =
                    format!("the saved object is {}, not a dictionary", pickle::describe(module, name));
                return Err(CheckpointError::new(malformed(problem))
                    .with_hint("save its tensors alone: torch.save({'model': m.state_dict()}, FILE)"));
            }
            PickleValue::List(_) | PickleValue::Tuple(_) => "a list, not a dictionary",
            PickleValue::Tensor(_) => "one tensor, not a dictionary",
            _ => "not a dictionary",
        };
        return Err(malformed(format!("the saved object is {what}")).into());
    };
    let all = state_dicts(heap);
    let under = |key: &str| all.iter().find(|d| d.key == key);
    let chosen = match wanted {
        None => WRAPPERS.iter().chain(&[""]).find_map(|key| under(key)),
        Some(wanted) => {
            let inner = WRAPPERS.iter().find_map(|w| under(&format!("{wanted}.{w}")));
            let found = under(wanted).filter(|d| !d.key.is_empty()).or(inner);
            Some(found.ok_or_else(|| not_under(wanted, &all))?)
        }
    };
    let Some(chosen) = chosen else {
        let keys: Vec<String> = all.iter().map(|d| d.key.clone()).collect();
        if !keys.is_empty() {
            return Err(ErrorKind::NoStateDict { keys }.into());
        }
        // The tensors that are there, if any, cannot be read.
        let pairs = WRAPPERS.iter().find_map(|w| {
            let (_, value) = root.iter().rev().find(|(k, _)| heap.str(*k) == Some(w))?;
            heap.dict(*value)
        });
        let first = [pairs, Some(root)]
            .into_iter()
            .flatten()
            .find_map(|p| contents(heap, p).unread.into_iter().next());
        return Err(match first {
            Some((name, what, _)) => {
                malformed(format!("`{}` is {what}, no tensor can be read", name.escape_debug()))
            }
            None => malformed("no state dict under `model`, `module` or `state_dict`, nor at the top"),
        }
        .into());
    };
    let others = all
        .iter()
        .filter(|d| d.key != chosen.key && 2 * d.tensors.len() >= chosen.tensors.len())
        .map(|d| d.key.clone())
        .collect();
    Ok(StateDict {
        key: chosen.key.clone(),
        tensors: chosen.tensors.clone(),
        unread: chosen.unread.clone(),
        others,
    })
}

fn not_under(wanted: &str, all: &[StateDict<'_>]) -> CheckpointError {
    let problem = format!("there are no tensors under `{}`", wanted.escape_debug());
    let keys: Vec<String> =
        all.iter().filter(|d| !d.key.is_empty()).map(|d| format!("`{}`", d.key)).collect();
    let hint = if keys.is_empty() {
        "the file holds one state dict, at its top; leave `--weights` out".to_owned()
    } else {
        format!("there are tensors under {}", keys.join(", "))
    };
    CheckpointError::new(ErrorKind::Option { option: "--weights", problem }).with_hint(hint)
}

/// All dictionaries with tensors in them, the root first, then by depth.
fn state_dicts<'h>(heap: &'h Heap<'_>) -> Vec<StateDict<'h>> {
    let mut found = Vec::new();
    let mut seen: HashSet<ValueId> = HashSet::from([heap.root]);
    let mut queue = VecDeque::from([(String::new(), heap.root, 0)]);
    while let Some((key, id, depth)) = queue.pop_front() {
        let Some(pairs) = heap.dict(id) else { continue };
        let own = contents(heap, pairs);
        // A key that is there twice has the later value.
        let last: HashMap<&str, ValueId> =
            pairs.iter().filter_map(|(k, v)| Some((heap.str(*k)?, *v))).collect();
        for (k, v) in pairs.iter().filter(|_| depth < DEPTH) {
            if let (Some(name), Some(_)) = (heap.str(*k), heap.dict(*v))
                && last.get(name) == Some(v)
                && name.len() <= 64
                && seen.len() < MOST
                && seen.insert(*v)
            {
                let name = name.escape_debug();
                let key = if key.is_empty() { name.to_string() } else { format!("{key}.{name}") };
                queue.push_back((key, *v, depth + 1));
            }
        }
        if !own.tensors.is_empty() {
            found.push(StateDict { key, ..own });
        }
    }
    found
}

/// What lies directly in a dictionary.
fn contents<'h>(heap: &'h Heap<'_>, pairs: &'h [(ValueId, ValueId)]) -> StateDict<'h> {
    let mut own = StateDict::default();
    for (k, v) in pairs {
        let Some(name) = heap.str(*k) else { continue };
        match heap.get(*v) {
            PickleValue::Tensor(desc) => own.tensors.push((name, desc)),
            PickleValue::Unread(what) => own.unread.push((name, what.to_string(), true)),
            PickleValue::Object { module, name: class } => {
                own.unread.push((name, pickle::describe(module, class), false))
            }
            _ => {}
        }
    }
    own
}
