//! The cached level of the contract: graphs whose keys and values stay with the engine between calls.
//!
//! A graph has a cache where an input `past_X` `[past, rows, heads, head_dim]` comes with an output `new_X`
//! `[new, batch, heads, head_dim]`. The caller of a [`CachedSession`] sees neither, nor the mask and the cache rows that
//! such a graph takes: it gives the other inputs, says for each row of the call which row of the cache it is and how many
//! slots that has, and gets the other outputs. Every row has a length of its own.

use std::collections::BTreeMap;

use dpar_export_spec::{DType, Dim, GraphSpec, Port, Role};
use serde::{Deserialize, Serialize};

use crate::validate::{bad, check_input_shapes};
use crate::{EngineError, EngineErrorKind, Tensor, TensorData, TensorView};

/// The additive mask value of a slot that may not be looked at: exp underflows to 0 after softmax's shift, and
/// a fully masked (padding) line stays finite.
pub const MASKED: f32 = -1e9;

/// One row of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallRow {
    /// Row of the cache; none twice in a call.
    pub row: usize,
    /// Slots of that row before the call. The new ones follow them; what the row had beyond them is dropped, so that a
    /// row begins again with 0.
    pub past: usize,
    /// The first slot that is looked at: new slot k sees slots `from..=past + k` of its own row.
    pub from: usize,
}

impl CallRow {
    /// A row whose new slots see all slots before them.
    pub fn new(row: usize, past: usize) -> Self {
        Self { row, past, from: 0 }
    }

    /// The first `rows` rows of a cache, which have `past` slots each.
    pub fn all(rows: usize, past: usize) -> Vec<Self> {
        (0..rows).map(|row| Self::new(row, past)).collect()
    }
}

/// How the keys and values of earlier slots reach a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CacheForm {
    /// Each row attends over memory of its own, into which its new slots are written.
    InPlace,
    /// They are inputs, joined with the new slots at each call: the graph as it was exported.
    Joined,
    /// Joined, in the memory of the device that runs the graph.
    OnDevice,
}

impl CacheForm {
    /// In words.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InPlace => "in place",
            Self::Joined => "joined",
            Self::OnDevice => "joined on the device",
        }
    }
}

/// Rows of a call: the first axis of its first input, which every graph of the loop has outermost.
pub fn call_rows(inputs: &[(&str, TensorView<'_>)]) -> usize {
    inputs.first().and_then(|(_, view)| view.shape().first()).copied().unwrap_or(0)
}

/// A prepared graph that keeps its KV cache. Without cache ports it is a session like any other, run with
/// `step(inputs, &[])`.
pub trait CachedSession: Send {
    /// The interface of the graph, with the ports that the caller does not see.
    fn spec(&self) -> &GraphSpec;

    /// How its cache reaches a step; `None` for a graph without one.
    fn form(&self) -> Option<CacheForm>;

    /// Bytes that its cache takes, wherever it is kept.
    fn cache_bytes(&self) -> u64;

    /// Empties the cache for `rows` rows; for none, its memory is given back.
    fn reset(&mut self, rows: usize);

    /// Runs the graph on these rows of the cache, in this order along the graph's batch axis, and appends the new slots.
    /// `inputs` are those of the graph without the cache's, `mask` and `rows`.
    ///
    /// # Errors
    /// [`EngineErrorKind::Input`], with the cache as it was, for inputs that [`Session::run`](crate::Session::run)
    /// would refuse, for rows that are not there or are given twice, and for a `past` beyond what a row has. After any
    /// other error the cache must be [reset](Self::reset).
    fn step(&mut self, inputs: &[(&str, TensorView<'_>)], rows: &[CallRow]) -> Result<Outputs, EngineError>;
}

impl std::fmt::Debug for dyn CachedSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CachedSession").field("graph", &self.spec().name).finish_non_exhaustive()
    }
}

/// The outputs of a step by name, without the cache's.
#[derive(Debug, Clone, PartialEq)]
pub struct Outputs {
    graph: String,
    tensors: Vec<(String, Tensor)>,
}

impl Outputs {
    /// Takes an output.
    ///
    /// # Errors
    /// [`EngineErrorKind::Graph`] when the graph has none of that name, or it was taken before.
    pub fn take(&mut self, name: &str) -> Result<Tensor, EngineError> {
        match self.tensors.iter().position(|(n, _)| n == name) {
            Some(at) => Ok(self.tensors.swap_remove(at).1),
            None => Err(self.fail(EngineErrorKind::Graph, format!("there is no output `{name}`"))),
        }
    }

    /// Takes the elements of an output of 32-bit floats.
    ///
    /// # Errors
    /// As [`take`](Self::take); [`EngineErrorKind::Output`] when it holds something else.
    pub fn floats(&mut self, name: &str) -> Result<Vec<f32>, EngineError> {
        match self.take(name)?.into_data() {
            TensorData::F32(values) => Ok(values),
            _ => Err(self.fail(EngineErrorKind::Output, format!("output `{name}` holds no 32-bit floats"))),
        }
    }

    /// All that are left, in the order of the graph.
    pub fn into_tensors(self) -> Vec<(String, Tensor)> {
        self.tensors
    }

    fn fail(&self, kind: EngineErrorKind, message: String) -> EngineError {
        EngineError::new(kind, "engine contract", message).in_graph(&self.graph)
    }
}

/// One tensor of a cache: the keys or the values of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CachePort {
    /// Input with the earlier slots, `[past, rows, heads, head_dim]`.
    pub past: Port,
    /// Index of the output with the new slots, `[new, batch, heads, head_dim]`.
    pub fresh: usize,
    /// Sizes of one slot of one row: heads and head_dim.
    pub slot: Vec<usize>,
}

impl CachePort {
    /// Elements of one slot of one row.
    pub fn slot_len(&self) -> usize {
        self.slot.iter().product()
    }

    /// Shape of `times` slots of `rows` rows.
    pub fn shape(&self, times: usize, rows: usize) -> Vec<usize> {
        [times, rows].into_iter().chain(self.slot.iter().copied()).collect()
    }
}

/// A step that was found to fit the graph and the cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckedStep {
    /// Size of every named axis.
    pub axes: BTreeMap<String, usize>,
    /// New slots of each row; 0 for a graph without a cache.
    pub new: usize,
    /// Slots before them of the row that has most.
    pub past: usize,
}

/// The mask of a graph with a cache: which slots each row of a call sees.
const MASK: &str = "mask";
/// Which rows of the cache a call has, in graphs that pick them.
const ROWS: &str = "rows";

/// The books of a cache, the same for every engine: its ports, and how many slots each row has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheState {
    ports: Vec<CachePort>,
    /// Axes of the new slots: how many, and of how many rows.
    fresh_axes: Option<[Dim; 2]>,
    /// Whether the graph has the input [`MASK`].
    masked: bool,
    /// Whether the graph has the input [`ROWS`], and its caches all rows; if not, a call's caches have the call's rows.
    picks: bool,
    lengths: Vec<usize>,
}

impl CacheState {
    /// The empty cache of a graph.
    ///
    /// # Errors
    /// [`EngineErrorKind::Graph`] when its cache ports do not come in matching pairs, or its mask or rows are not theirs.
    pub fn new(spec: &GraphSpec) -> Result<Self, EngineError> {
        let mut state =
            Self { ports: Vec::new(), fresh_axes: None, masked: false, picks: false, lengths: Vec::new() };
        let mut past_axes = None;
        for past in &spec.inputs {
            let Role::Cache(part, layer) = past.role() else { continue };
            let Some(new) = part.new_slots().map(|part| part.port(layer)) else { continue };
            let refuse = || {
                let message = format!("`{}` has no `{new}` of its type and slots", past.name);
                bad(spec, EngineErrorKind::Graph, message)
            };
            let fresh = spec.output_index(&new).ok_or_else(refuse)?;
            let output = &spec.outputs[fresh];
            let ([time, rows, slot @ ..], [new, batch, tail @ ..]) = (&past.dims[..], &output.dims[..])
            else {
                return Err(refuse());
            };
            let axes = state.fresh_axes.get_or_insert_with(|| [new.clone(), batch.clone()]);
            let old = past_axes.get_or_insert_with(|| [time.clone(), rows.clone()]);
            let fixed = |d: &Dim| if let Dim::Fixed(n) = d { Some(*n) } else { None };
            let same = slot == tail
                && output.dtype == past.dtype
                && axes[..] == output.dims[..2]
                && old[..] == past.dims[..2];
            let slot: Option<Vec<usize>> = slot.iter().map(fixed).collect();
            let slot = slot.filter(|_| same).ok_or_else(refuse)?;
            state.ports.push(CachePort { past: past.clone(), fresh, slot });
        }
        let lonely = |(i, p): &(usize, &Port)| {
            p.role().is_new_slots() && state.ports.iter().all(|port| port.fresh != *i)
        };
        if let Some((_, port)) = spec.outputs.iter().enumerate().find(lonely) {
            let message = format!("`{}` has no input to go with it", port.name);
            return Err(bad(spec, EngineErrorKind::Graph, message));
        }
        if let (Some([new, batch]), Some([past, rows])) = (&state.fresh_axes, &past_axes) {
            let keys = Dim::sum(&past.to_string(), &new.to_string());
            let is = |name: &str, dims: &[Dim]| match spec.input(name) {
                Some(port) if port.dims == dims => Ok(true),
                Some(_) => {
                    let message = format!("`{name}` is not that of its cache");
                    Err(bad(spec, EngineErrorKind::Graph, message))
                }
                None => Ok(false),
            };
            state.masked = is(MASK, &[batch.clone(), Dim::Fixed(1), new.clone(), keys])?;
            state.picks = is(ROWS, std::slice::from_ref(batch))?;
            if !state.picks && rows != batch {
                let message =
                    format!("its caches have `{rows}` rows and a call `{batch}`, and nothing picks them");
                return Err(bad(spec, EngineErrorKind::Graph, message));
            }
        }
        Ok(state)
    }

    /// The tensors of the cache, in the order of the graph's inputs.
    pub fn ports(&self) -> &[CachePort] {
        &self.ports
    }

    /// `form`, if the graph has a cache.
    pub fn kept(&self, form: CacheForm) -> Option<CacheForm> {
        (!self.ports.is_empty()).then_some(form)
    }

    /// Rows of the cache.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// Slots of the longest row.
    pub fn length(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// Empties the cache for `rows` rows.
    pub fn reset(&mut self, rows: usize) {
        self.lengths = vec![0; rows];
    }

    /// Whether the graph picks its rows from caches that have all of them.
    pub fn picks(&self) -> bool {
        self.picks
    }

    /// Whether the graph takes caches that lie as they are kept, all rows together: it picks its rows from them, or the
    /// call has all rows in their order.
    pub fn whole(&self, rows: &[CallRow]) -> bool {
        self.picks || (rows.len() == self.rows() && rows.iter().enumerate().all(|(i, r)| r.row == i))
    }

    /// Rows that the caches of a call have.
    pub fn cache_rows(&self, rows: &[CallRow]) -> usize {
        if self.picks { self.rows() } else { rows.len() }
    }

    /// The dimension of a call's rows; `None` for a graph without a cache.
    pub fn batch(&self) -> Option<&Dim> {
        self.fresh_axes.as_ref().map(|[_, batch]| batch)
    }

    /// Checks a step as [`CachedSession::step`] promises it.
    ///
    /// # Errors
    /// [`EngineErrorKind::Input`] with what does not fit.
    pub fn check(
        &self,
        spec: &GraphSpec,
        inputs: &[(&str, TensorView<'_>)],
        rows: &[CallRow],
    ) -> Result<CheckedStep, EngineError> {
        let refuse = |message: String| Err(bad(spec, EngineErrorKind::Input, message));
        for (i, CallRow { row, past, from }) in rows.iter().copied().enumerate() {
            let Some(length) = self.lengths.get(row) else {
                return refuse(format!("there is no row {row}: the cache has {}", self.rows()));
            };
            if past > *length || from > past {
                return refuse(format!("row {row} has {length} slots: the step looks at {from} to {past}"));
            }
            if rows[..i].iter().any(|r| r.row == row) {
                return refuse(format!("row {row} is there twice"));
            }
        }
        let past = rows.iter().map(|r| r.past).max().unwrap_or(0);
        let own: Vec<&str> = self.own_inputs().collect();
        if let Some((name, _)) = inputs.iter().find(|(name, _)| own.contains(name)) {
            return refuse(format!(
                "`{name}` is not given by the caller: it follows from the rows of the step"
            ));
        }
        let given: Vec<(&str, DType, &[usize])> =
            inputs.iter().map(|(name, view)| (*name, view.dtype(), view.shape())).collect();
        let shapes: Vec<Vec<usize>> =
            self.ports.iter().map(|p| p.shape(past, self.cache_rows(rows))).collect();
        let cached = self.ports.iter().zip(&shapes);
        let cached = cached.map(|(p, shape)| (p.past.name.as_str(), p.past.dtype, shape.as_slice()));
        let all: Vec<_> = given.into_iter().chain(cached).collect();
        // Mask and rows are made from the axes that the others bind, so they fit.
        let axes = check_input_shapes(spec, &all, &own)?;
        let Some(fresh) = &self.fresh_axes else {
            return match rows {
                [] => Ok(CheckedStep { axes, new: 0, past: 0 }),
                _ => refuse("rows are given, and the graph has no cache".to_owned()),
            };
        };
        let size = |dim: &Dim| match dim {
            Dim::Fixed(n) => *n,
            Dim::Axis(name) => axes.get(name).copied().unwrap_or_default(),
            Dim::Sum(a, b) => [a, b].into_iter().filter_map(|n| axes.get(n)).sum(),
        };
        let [new, batch] = [size(&fresh[0]), size(&fresh[1])];
        if rows.len() != batch {
            return refuse(format!("{} rows are given for inputs of {batch}", rows.len()));
        }
        Ok(CheckedStep { axes, new, past })
    }

    /// Whether an input of the graph follows from the rows of a step, and is not given by the caller.
    pub fn gives(&self, input: &str) -> bool {
        self.own_inputs().any(|own| own == input)
    }

    /// The inputs that the cache gives itself.
    fn own_inputs(&self) -> impl Iterator<Item = &str> {
        let caches = self.ports.iter().map(|p| p.past.name.as_str());
        caches.chain(self.masked.then_some(MASK)).chain(self.picks.then_some(ROWS))
    }

    /// The mask and the rows of a checked step, as the graph takes them.
    pub fn placement(&self, step: &CheckedStep, rows: &[CallRow]) -> Vec<(&'static str, Tensor)> {
        let mut inputs = Vec::new();
        if self.masked {
            let (keys, new) = (step.past + step.new, step.new);
            let mut mask = vec![MASKED; rows.len() * new * keys];
            let lines = rows.iter().flat_map(|row| (0..new).map(move |k| (row, k)));
            for (line, (row, k)) in mask.chunks_exact_mut(keys).zip(lines) {
                let (old, fresh) = line.split_at_mut(step.past);
                old[row.from..row.past].fill(0.0);
                fresh[..=k].fill(0.0);
            }
            inputs.push((MASK, Tensor::f32([rows.len(), 1, new, keys], mask)));
        }
        if self.picks {
            inputs.push((ROWS, Tensor::i64([rows.len()], rows.iter().map(|r| r.row as i64).collect())));
        }
        inputs
    }

    /// Slots that the longest row will have after a checked step.
    pub fn length_after(&self, step: &CheckedStep) -> usize {
        match self.ports.is_empty() {
            true => 0,
            false => self.length().max(step.past + step.new),
        }
    }

    /// Notes that a checked step has run and its slots are stored.
    pub fn appended(&mut self, step: &CheckedStep, rows: &[CallRow]) {
        for row in rows {
            self.lengths[row.row] = row.past + step.new;
        }
    }

    /// The outputs that the caller gets: those that are there and not the cache's. `tensors` are in the graph's order.
    pub fn outputs(&self, spec: &GraphSpec, tensors: impl IntoIterator<Item = Option<Tensor>>) -> Outputs {
        let mine = |i: usize| self.ports.iter().any(|p| p.fresh == i);
        let named = spec.outputs.iter().zip(tensors).enumerate();
        let tensors = named.filter(|(i, _)| !mine(*i)).filter_map(|(_, (p, t))| Some((p.name.clone(), t?)));
        Outputs { graph: spec.name.clone(), tensors: tensors.collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use dpar_export_spec::AxisRange;

    fn spec() -> GraphSpec {
        let axis = |name: &str, min, max| AxisRange { name: name.into(), min, opt: min, max };
        let dims =
            |time: &str, rows: &str| vec![Dim::axis(time), Dim::axis(rows), Dim::Fixed(2), Dim::Fixed(3)];
        let mask = vec![Dim::axis("batch"), Dim::Fixed(1), Dim::axis("new"), Dim::sum("past", "new")];
        GraphSpec {
            name: "g".into(),
            component: "c".into(),
            inputs: vec![
                Port::new("x", DType::F32, vec![Dim::axis("batch"), Dim::axis("new")]),
                Port::new("past_key_0", DType::F32, dims("past", "all")),
                Port::new("past_value_0", DType::F32, dims("past", "all")),
                Port::new("mask", DType::F32, mask),
                Port::new("rows", DType::I64, vec![Dim::axis("batch")]),
            ],
            outputs: vec![
                Port::new("new_value_0", DType::F32, dims("new", "batch")),
                Port::new("y", DType::F32, vec![Dim::axis("batch")]),
                Port::new("new_key_0", DType::F32, dims("new", "batch")),
            ],
            axes: vec![axis("batch", 1, 4), axis("all", 1, 4), axis("new", 1, 4), axis("past", 0, 5)],
        }
    }

    fn check(state: &CacheState, batch: usize, new: usize, rows: &[CallRow]) -> Result<CheckedStep, String> {
        let data = vec![0.0; batch * new];
        let inputs = [("x", TensorView::f32([batch, new], &data))];
        state.check(&spec(), &inputs, rows).map_err(|e| {
            assert_eq!(e.kind, EngineErrorKind::Input);
            e.to_string()
        })
    }

    fn ok(state: &mut CacheState, new: usize, rows: &[CallRow]) -> CheckedStep {
        let step = check(state, rows.len(), new, rows).unwrap();
        assert_eq!(step.new, new);
        state.appended(&step, rows);
        step
    }

    #[test]
    fn ports_are_paired_by_name_and_their_outputs_are_kept_back() {
        let spec = spec();
        let state = CacheState::new(&spec).unwrap();
        let fresh: Vec<usize> = state.ports().iter().map(|p| p.fresh).collect();
        assert_eq!(fresh, [2, 0]);
        assert_eq!((state.ports()[0].slot_len(), state.ports()[0].shape(4, 2)), (6, vec![4, 2, 2, 3]));
        let tensors = [None, Some(Tensor::f32([1], vec![7.0])), None];
        let mut outputs = state.outputs(&spec, tensors);
        assert_eq!(outputs.floats("y").unwrap(), [7.0]);
        assert!(outputs.take("y").unwrap_err().to_string().contains("no output `y`"));
        let tensors = [None, Some(Tensor::i64([1], vec![7])), None];
        let e = state.outputs(&spec, tensors).floats("y").unwrap_err();
        assert_eq!(e.kind, EngineErrorKind::Output);
    }

    #[test]
    fn ports_that_do_not_match_are_refused() {
        let refused = |edit: fn(&mut GraphSpec), text: &str| {
            let mut spec = spec();
            edit(&mut spec);
            let e = CacheState::new(&spec).unwrap_err();
            assert!(e.kind == EngineErrorKind::Graph && e.message.contains(text), "{e}");
        };
        refused(|s| s.outputs[2].dtype = DType::I64, "`past_key_0` has no `new_key_0` of its type");
        refused(|s| s.outputs[0].dims[3] = Dim::Fixed(9), "`past_value_0`");
        refused(|s| s.outputs[0].dims[0] = Dim::axis("other"), "`past_value_0`");
        refused(|s| s.inputs[2].dims[1] = Dim::axis("other"), "`past_value_0`");
        refused(|s| s.inputs[1].dims[2] = Dim::axis("heads"), "`past_key_0`");
        refused(|s| s.inputs[1].dims.truncate(1), "`past_key_0`");
        refused(|s| drop(s.outputs.remove(0)), "`past_value_0` has no `new_value_0`");
        refused(|s| drop(s.inputs.remove(1)), "`new_key_0` has no input");
        refused(|s| s.inputs[3].dims[3] = Dim::axis("past"), "`mask` is not that of its cache");
        refused(|s| s.inputs[4].dims[0] = Dim::axis("all"), "`rows` is not that of its cache");
        refused(|s| drop(s.inputs.pop()), "`all` rows and a call `batch`");
    }

    #[test]
    fn steps_that_do_not_fit_the_cache_are_refused() {
        let mut state = CacheState::new(&spec()).unwrap();
        state.reset(2);
        ok(&mut state, 3, &CallRow::all(2, 0));
        ok(&mut state, 1, &[CallRow::new(1, 3)]);
        assert_eq!((state.rows(), state.length()), (2, 4));
        let row = CallRow::new;
        let refused = |batch, new, rows: &[CallRow], text: &str| {
            let e = check(&state, batch, new, rows).unwrap_err();
            assert!(e.contains(text), "{e}");
        };
        refused(2, 1, &[row(0, 3), row(1, 5)], "row 1 has 4 slots: the step looks at 0 to 5");
        refused(1, 1, &[CallRow { row: 0, past: 2, from: 3 }], "row 0 has 3 slots: the step looks at 3 to 2");
        refused(1, 1, &[row(2, 0)], "there is no row 2: the cache has 2");
        refused(2, 1, &[row(1, 4), row(1, 4)], "row 1 is there twice");
        refused(1, 1, &[row(0, 3), row(1, 4)], "2 rows are given for inputs of 1");
        refused(9, 1, &[row(0, 3)], "axis `batch` is 9");
        refused(1, 1, &[], "0 rows are given for inputs of 1");
        let x = || ("x", TensorView::f32([2, 1], &[0.0; 2]));
        for (name, given) in [
            ("past_key_0", TensorView::f32([0, 2, 2, 3], &[])),
            ("mask", TensorView::f32([2, 1, 1, 1], &[0.0; 2])),
            ("rows", TensorView::i64([2], &[0, 1])),
        ] {
            let e = state.check(&spec(), &[x(), (name, given)], &CallRow::all(2, 3)).unwrap_err();
            assert!(e.to_string().contains(&format!("`{name}` is not given by the caller")), "{e}");
        }
        // A row may go back: what followed is dropped.
        ok(&mut state, 1, &[row(1, 1)]);
        assert_eq!(state.length(), 3);
        let e = check(&state, 1, 1, &[row(1, 3)]).unwrap_err();
        assert!(e.contains("row 1 has 2 slots"), "{e}");
    }

    #[test]
    fn each_row_sees_its_own_slots() {
        let mut state = CacheState::new(&spec()).unwrap();
        state.reset(3);
        ok(&mut state, 3, &CallRow::all(3, 0));
        let rows = [CallRow::new(2, 1), CallRow { row: 0, past: 3, from: 2 }];
        assert!(state.whole(&rows) && state.picks());
        let step = ok(&mut state, 2, &rows);
        assert_eq!((step.past, state.length_after(&step)), (3, 5));
        let inputs = state.placement(&step, &rows);
        let o = 0.0;
        let x = MASKED;
        let seen = vec![o, x, x, o, x, o, x, x, o, o, x, x, o, o, x, x, x, o, o, o];
        assert_eq!(
            inputs,
            [("mask", Tensor::f32([2, 1, 2, 5], seen)), ("rows", Tensor::i64([2], vec![2, 0]))]
        );
    }

    #[test]
    fn a_graph_without_a_cache_has_no_past() {
        let mut spec = spec();
        spec.inputs.truncate(1);
        spec.outputs = vec![spec.outputs[1].clone()];
        let mut state = CacheState::new(&spec).unwrap();
        let x = || [("x", TensorView::f32([1, 1], &[0.0]))];
        let step = state.check(&spec, &x(), &[]).unwrap();
        state.appended(&step, &[]);
        assert_eq!((state.length(), state.length_after(&step)), (0, 0));
        state.reset(1);
        let e = state.check(&spec, &x(), &CallRow::all(1, 0)).unwrap_err();
        assert!(e.to_string().contains("the graph has no cache"), "{e}");
    }
}
