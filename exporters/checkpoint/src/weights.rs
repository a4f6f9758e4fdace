//! From a file's names to a component's: prefix, rename rules, comparison with the expected table, checked tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use camino::Utf8Path;
use dpar_export_spec::{ComponentKind, text};

use crate::error::{NameMismatch, Unmatched};
use crate::file::Unread;
use crate::rules::{Renamed, Rules};
use crate::{CheckpointError, ErrorKind, TensorFile, TensorRef};

/// A tensor that a component must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) name: String,
    pub(crate) shape: Vec<usize>,
}

/// Prefixes that training wrappers put before every name: `DataParallel` and `AveragedModel`, Lightning.
const WRAPPER_PREFIXES: [&str; 2] = ["module.", "model."];
/// Parts that wrappers put inside names: `torch.compile`, FSDP, activation checkpointing.
const WRAPPER_PARTS: [&str; 3] = ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];
/// Pairs of names that are compared at most when looking for the nearest ones.
const MAX_COMPARISONS: usize = 1 << 18;

/// The tensors of one component by their canonical names, checked against the expected table: nothing is missing,
/// nothing is left over, every shape fits, every element is a finite float.
#[derive(Debug, Clone)]
pub struct WeightSet {
    file: Arc<TensorFile>,
    /// Canonical name → name in the file.
    tensors: BTreeMap<String, String>,
    parameters: u64,
}

impl WeightSet {
    /// Canonical names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// A tensor by its canonical name; `None` when the component has none of that name.
    ///
    /// Everything was checked on loading, so the inner result is an error only if the file's table has changed.
    pub fn get(&self, name: &str) -> Option<Result<TensorRef<'_>, CheckpointError>> {
        let source = self.tensors.get(name)?;
        Some(self.file.get(source).ok_or_else(|| self.no_such(name)))
    }

    /// A tensor that must be there.
    ///
    /// # Errors
    /// [`ErrorKind::NoSuchTensor`] when the component has none of that name.
    pub fn require(&self, name: &str) -> Result<TensorRef<'_>, CheckpointError> {
        self.get(name).unwrap_or_else(|| Err(self.no_such(name)))
    }

    /// Number of elements of all tensors together.
    pub fn parameters(&self) -> u64 {
        self.parameters
    }

    /// The weight file.
    pub fn file(&self) -> &Utf8Path {
        self.file.path()
    }

    fn no_such(&self, name: &str) -> CheckpointError {
        CheckpointError::in_file(ErrorKind::NoSuchTensor, self.file()).tensor_named(name)
    }
}

/// A file's tensors under canonical names, not yet compared with what a component expects.
#[derive(Debug)]
pub(crate) struct CanonicalTensors {
    pub(crate) kind: ComponentKind,
    file: Arc<TensorFile>,
    tensors: BTreeMap<String, String>,
    /// What cannot be read as a tensor, by its canonical name.
    unread: BTreeMap<String, Unread>,
}

impl CanonicalTensors {
    /// The file's tensors as a component of that kind would name them.
    pub(crate) fn new(
        file: &Arc<TensorFile>,
        kind: ComponentKind,
        rules: Option<&Rules>,
    ) -> Result<Self, CheckpointError> {
        let mut tensors: BTreeMap<String, String> = BTreeMap::new();
        let bare = Bare::of(file);
        let unread = file.unread().iter();
        let unread = unread.filter_map(|(n, u)| Some((bare.rename(n, kind, rules)?, u.clone()))).collect();
        for (name, source) in renamed(file, kind, rules) {
            if let Some(first) = tensors.insert(name.clone(), source.to_owned()) {
                let kind = ErrorKind::RuleCollision { target: name, sources: [first, source.to_owned()] };
                return Err(CheckpointError::in_file(kind, file.path()).tensor_named(source));
            }
        }
        Ok(Self { kind, file: Arc::clone(file), tensors, unread })
    }

    /// Canonical names, sorted.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    pub(crate) fn has_prefix(&self, prefix: &str) -> bool {
        self.tensors.range(prefix.to_owned()..).next().is_some_and(|(n, _)| n.starts_with(prefix))
    }

    /// Name of the weight file, for messages that name two places.
    pub(crate) fn label(&self) -> &str {
        self.path().file_name().unwrap_or("the weight file")
    }

    pub(crate) fn path(&self) -> &Utf8Path {
        self.file.path()
    }

    /// One dimension of a tensor; 0 when there is no such tensor or dimension.
    pub(crate) fn dim(&self, name: &str, axis: usize) -> usize {
        self.shape(name).and_then(|s| s.get(axis)).copied().unwrap_or(0)
    }

    pub(crate) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.file.shape(self.tensors.get(name)?)
    }

    /// Number of consecutive parts `{prefix}{0..n}.`, as the highest index says: a gap counts, so that it is
    /// reported as missing. Indexes of `limit` and more are not parts.
    pub(crate) fn parts(&self, prefix: &str, limit: usize) -> usize {
        self.tensors
            .range(prefix.to_owned()..)
            .map_while(|(n, _)| n.strip_prefix(prefix))
            .filter_map(|rest| rest.split_once('.')?.0.parse::<usize>().ok())
            .filter(|i| *i < limit)
            .max()
            .map_or(0, |i| i + 1)
    }

    /// An error about sizes, at one tensor.
    pub(crate) fn sizes(&self, tensor: &str, problem: String) -> CheckpointError {
        CheckpointError::in_file(ErrorKind::Sizes(problem), self.path()).tensor_named(tensor)
    }

    /// Compares the names with the table.
    pub(crate) fn check_names(&self, table: &[Expected]) -> Result<(), CheckpointError> {
        let wanted: BTreeSet<&str> = table.iter().map(|e| e.name.as_str()).collect();
        let missing: Vec<&str> = wanted.iter().filter(|n| !self.has(n)).copied().collect();
        if let Some((name, unread)) = missing.iter().find_map(|n| Some((*n, self.unread.get(*n)?))) {
            let kind = ErrorKind::UnreadTensor(unread.what.clone());
            return Err(CheckpointError::in_file(kind, self.path()).tensor_named(name));
        }
        let tensors = self.unread.iter().filter(|(_, u)| u.tensor).map(|(n, _)| n.as_str());
        let unused: Vec<&str> = self.names().chain(tensors).filter(|n| !wanted.contains(n)).collect();
        if missing.is_empty() && unused.is_empty() {
            return Ok(());
        }
        let mismatch = NameMismatch {
            component: self.kind,
            missing: unmatched(&missing, &unused),
            unused: unmatched(&unused, &missing),
        };
        Err(CheckpointError::in_file(ErrorKind::Names(mismatch), self.path()))
    }

    /// Checks that a tensor that sizes are read from has that many dimensions, none of them 0.
    pub(crate) fn check_rank(&self, name: &str, rank: usize) -> Result<(), CheckpointError> {
        self.check_float(name)?;
        let found = self.shape(name).unwrap_or_default();
        if found.len() == rank && !found.contains(&0) {
            return Ok(());
        }
        let kind = ErrorKind::Rank { rank, found: found.to_vec() };
        Err(CheckpointError::in_file(kind, self.path()).tensor_named(self.source(name)))
    }

    /// Checks the element type: a shape that does not fit may follow from it.
    fn check_float(&self, name: &str) -> Result<(), CheckpointError> {
        match self.file.dtype(self.source(name)) {
            Some(dtype) if !dtype.is_float() => {
                let kind = ErrorKind::NotFloat(dtype);
                Err(CheckpointError::in_file(kind, self.path()).tensor_named(self.source(name)))
            }
            _ => Ok(()),
        }
    }

    fn source<'n>(&'n self, name: &'n str) -> &'n str {
        self.tensors.get(name).map_or(name, String::as_str)
    }

    /// Checks types, shapes and every element: one pass over the file.
    pub(crate) fn bind(self, table: &[Expected]) -> Result<WeightSet, CheckpointError> {
        table.iter().try_for_each(|e| self.check_float(&e.name))?;
        let mut parameters = 0_u64;
        for Expected { name, shape } in table {
            let source = self.source(name);
            let fail = |kind| Err(CheckpointError::in_file(kind, self.path()).tensor_named(source));
            let Some(found) = self.file.shape(source) else {
                return fail(ErrorKind::NoSuchTensor);
            };
            if found != shape.as_slice() {
                return fail(ErrorKind::Shape { expected: shape.clone(), found: found.to_vec() });
            }
            let Some(tensor) = self.file.get(source) else {
                return fail(ErrorKind::NoSuchTensor);
            };
            if let Some((index, value)) = tensor.first_non_finite() {
                return fail(ErrorKind::NonFinite { index, value });
            }
            parameters += tensor.elements() as u64;
        }
        tracing::debug!(component = self.kind.name(), file = %self.path(), parameters, "weights checked");
        Ok(WeightSet { file: self.file, tensors: self.tensors, parameters })
    }
}

/// New and old name of every tensor: what wrappers add taken off, the rules applied, training buffers left out.
pub(crate) fn renamed<'f>(
    file: &'f TensorFile,
    kind: ComponentKind,
    rules: Option<&'f Rules>,
) -> impl Iterator<Item = (String, &'f str)> {
    let bare = Bare::of(file);
    file.names().filter_map(move |source| Some((bare.rename(source, kind, rules)?, source)))
}

/// What training wrappers added to the names of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Bare {
    /// Parts inside names.
    parts: BTreeSet<&'static str>,
    /// Prefixes of all names, outermost first.
    prefixes: Vec<&'static str>,
}

impl Bare {
    pub(crate) fn of(file: &TensorFile) -> Self {
        let parts = WRAPPER_PARTS.into_iter().filter(|p| file.names().any(|n| n.split('.').any(|s| s == *p)));
        let mut bare = Self { parts: parts.collect(), prefixes: Vec::new() };
        let names: Vec<String> = file.names().filter(|n| !is_buffer(n)).map(|n| bare.strip(n)).collect();
        let mut at = 0;
        while let Some(p) = WRAPPER_PREFIXES.into_iter().find(|p| {
            !names.is_empty()
                && names.iter().all(|n| n.get(at..).is_some_and(|r| r.len() > p.len() && r.starts_with(*p)))
        }) {
            bare.prefixes.push(p);
            at += p.len();
        }
        bare
    }

    /// A name without them.
    fn strip(&self, name: &str) -> String {
        let parts: Vec<&str> = name.split('.').filter(|s| !self.parts.contains(s)).collect();
        let name = parts.join(".");
        let rest = self.prefixes.iter().try_fold(name.as_str(), |rest, p| rest.strip_prefix(p));
        rest.map_or_else(|| name.clone(), str::to_owned)
    }

    /// The canonical name; `None` for what is left out. Rules see the name without wrappers, then as it is in the file.
    fn rename(&self, source: &str, kind: ComponentKind, rules: Option<&Rules>) -> Option<String> {
        let bare = self.strip(source);
        let apply = |name: &str| rules.map_or(Renamed::Same, |r| r.rename(kind, name));
        let renamed = match apply(&bare) {
            Renamed::Same if bare != source => apply(source),
            other => other,
        };
        let name = match renamed {
            Renamed::Same => bare,
            Renamed::To(name) => name,
            Renamed::Dropped => return None,
        };
        (!is_buffer(&name)).then_some(name)
    }

    /// What was taken off, for a note; `None` where it is nothing.
    pub(crate) fn note(&self) -> Option<String> {
        let prefixes = self.prefixes.iter().map(|p| format!("`{p}`"));
        let parts = self.parts.iter().map(|p| format!("`{p}.`"));
        let all: Vec<String> = prefixes.chain(parts).collect();
        (!all.is_empty()).then(|| format!("{} taken off the tensor names", all.join(" and ")))
    }
}

/// Buffers that hold no weights: rotary tables, the tokenizer's usage counter, a batch norm's count of batches, the number
/// of models that an `AveragedModel` has seen.
fn is_buffer(name: &str) -> bool {
    matches!(name, "quantize.codebook_used" | "n_averaged")
        || name.ends_with(".num_batches_tracked")
        || name.split('.').any(|part| part == "freqs_cis" || part.starts_with("rotary"))
}

fn unmatched(names: &[&str], others: &[&str]) -> Vec<Unmatched> {
    let compare = names.len().saturating_mul(others.len()) <= MAX_COMPARISONS;
    names
        .iter()
        .map(|name| {
            let nearest = if compare { text::nearest(name, others) } else { None }.map(str::to_owned);
            Unmatched { name: (*name).to_owned(), nearest }
        })
        .collect()
}
