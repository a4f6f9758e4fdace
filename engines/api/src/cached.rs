//! The cached level of the contract: graphs whose keys and values stay with the engine between calls.
//!
//! A graph has a cache where an input `past_X` `[past, rows, heads, head_dim]` comes with an output `new_X`
//! `[new, batch, heads, head_dim]`. The caller of a [`CachedSession`] sees neither: it gives the other inputs, says how
//! many earlier slots the call looks at and where its new ones go, and gets the other outputs.

use std::collections::BTreeMap;

use dpar_export_spec::{DType, Dim, GraphSpec, Port, Role};

use crate::validate::{bad, check_input_shapes};
use crate::{EngineError, EngineErrorKind, Tensor, TensorData, TensorView};

/// Where the new slots of a call go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Append<'a> {
    /// The call has all rows of the cache; they take its new slots from this time on, in place of any that are there.
    At(usize),
    /// The call's rows are these cache rows; row i takes its one new slot at `times[i]`. Slots that a row skips hold
    /// zeros until they are filled: the caller masks them.
    Rows {
        /// Cache row of each row of the call, none twice.
        rows: &'a [usize],
        /// Time at which it is appended.
        times: &'a [usize],
    },
}

/// A prepared graph that keeps its KV cache. Without cache ports it is a session like any other, run with
/// `step(inputs, 0, Append::At(0))`.
pub trait CachedSession: Send {
    /// The interface of the graph, cache ports included.
    fn spec(&self) -> &GraphSpec;

    /// Empties the cache for `rows` rows.
    fn reset(&mut self, rows: usize);

    /// Keeps the first `rows` rows of the cache with all their slots.
    ///
    /// # Errors
    /// [`EngineErrorKind::Input`] when the cache has fewer; what the device says.
    fn keep_rows(&mut self, rows: usize) -> Result<(), EngineError>;

    /// Runs the graph on the first `past` slots of the cache and appends the new ones. `inputs` are those of the graph
    /// without the cache's.
    ///
    /// # Errors
    /// [`EngineErrorKind::Input`], with the cache as it was, for inputs that [`Session::run`](crate::Session::run)
    /// would refuse, for a `past` beyond what is filled, and for an append that leaves a gap, overwrites what the call
    /// looks at or names rows that are not there. After any other error the cache must be [reset](Self::reset).
    fn step(
        &mut self,
        inputs: &[(&str, TensorView<'_>)],
        past: usize,
        append: Append<'_>,
    ) -> Result<Outputs, EngineError>;
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
    /// Rows of the call.
    pub batch: usize,
    /// New slots of each row; 0 for a graph without a cache.
    pub new: usize,
}

/// The books of a cache, the same for every engine: its ports, how many rows it has, how many slots are filled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheState {
    ports: Vec<CachePort>,
    /// Axes of the new slots: how many, and of how many rows.
    fresh_axes: Option<[Dim; 2]>,
    rows: usize,
    length: usize,
}

impl CacheState {
    /// The empty cache of a graph.
    ///
    /// # Errors
    /// [`EngineErrorKind::Graph`] when its cache ports do not come in matching pairs.
    pub fn new(spec: &GraphSpec) -> Result<Self, EngineError> {
        let mut state = Self { ports: Vec::new(), fresh_axes: None, rows: 0, length: 0 };
        for past in &spec.inputs {
            let Role::Cache(part, layer) = past.role() else { continue };
            let Some(new) = part.new_slots().map(|part| part.port(layer)) else { continue };
            let refuse = || {
                let message = format!("`{}` has no `{new}` of its type and slots", past.name);
                bad(spec, EngineErrorKind::Graph, message)
            };
            let fresh = spec.output_index(&new).ok_or_else(refuse)?;
            let output = &spec.outputs[fresh];
            let ([_, _, slot @ ..], [new, batch, tail @ ..]) = (&past.dims[..], &output.dims[..]) else {
                return Err(refuse());
            };
            let axes = state.fresh_axes.get_or_insert_with(|| [new.clone(), batch.clone()]);
            let fixed = |d: &Dim| if let Dim::Fixed(n) = d { Some(*n) } else { None };
            let same = slot == tail && output.dtype == past.dtype && axes[..] == output.dims[..2];
            let slot: Option<Vec<usize>> = slot.iter().map(fixed).collect();
            let slot = slot.filter(|_| same).ok_or_else(refuse)?;
            state.ports.push(CachePort { past: past.clone(), fresh, slot });
        }
        let lonely = |(i, p): &(usize, &Port)| {
            p.role().is_new_slots() && state.ports.iter().all(|port| port.fresh != *i)
        };
        match spec.outputs.iter().enumerate().find(lonely) {
            Some((_, port)) => {
                let message = format!("`{}` has no input to go with it", port.name);
                Err(bad(spec, EngineErrorKind::Graph, message))
            }
            None => Ok(state),
        }
    }

    /// The tensors of the cache, in the order of the graph's inputs.
    pub fn ports(&self) -> &[CachePort] {
        &self.ports
    }

    /// Rows of the cache.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Slots that the longest row has.
    pub fn length(&self) -> usize {
        self.length
    }

    /// Empties the cache for `rows` rows.
    pub fn reset(&mut self, rows: usize) {
        (self.rows, self.length) = (rows, 0);
    }

    /// Checks that there are so many rows to keep.
    ///
    /// # Errors
    /// [`EngineErrorKind::Input`] with both numbers.
    pub fn check_keep(&self, spec: &GraphSpec, rows: usize) -> Result<(), EngineError> {
        if rows <= self.rows {
            return Ok(());
        }
        let message = format!("{rows} rows of the cache cannot be kept: it has {}", self.rows);
        Err(bad(spec, EngineErrorKind::Input, message))
    }

    /// Notes that only the first `rows` rows are left.
    pub fn kept(&mut self, rows: usize) {
        self.rows = rows;
    }

    /// Checks a step as [`CachedSession::step`] promises it.
    ///
    /// # Errors
    /// [`EngineErrorKind::Input`] with what does not fit.
    pub fn check(
        &self,
        spec: &GraphSpec,
        inputs: &[(&str, TensorView<'_>)],
        past: usize,
        append: Append<'_>,
    ) -> Result<CheckedStep, EngineError> {
        let refuse = |message: String| Err(bad(spec, EngineErrorKind::Input, message));
        if past > self.length {
            return refuse(format!("the step looks at {past} past slots, the cache has {}", self.length));
        }
        let given: Vec<(&str, DType, &[usize])> =
            inputs.iter().map(|(name, view)| (*name, view.dtype(), view.shape())).collect();
        let shapes: Vec<Vec<usize>> = self.ports.iter().map(|p| p.shape(past, self.rows)).collect();
        let cached = self.ports.iter().zip(&shapes);
        let cached = cached.map(|(p, shape)| (p.past.name.as_str(), p.past.dtype, shape.as_slice()));
        let axes = check_input_shapes(spec, &given.into_iter().chain(cached).collect::<Vec<_>>())?;
        let Some(fresh) = &self.fresh_axes else { return Ok(CheckedStep { axes, batch: 0, new: 0 }) };
        let size = |dim: &Dim| match dim {
            Dim::Fixed(n) => *n,
            Dim::Axis(name) => axes.get(name).copied().unwrap_or_default(),
            Dim::Sum(a, b) => [a, b].into_iter().filter_map(|n| axes.get(n)).sum(),
        };
        let [new, batch] = [size(&fresh[0]), size(&fresh[1])];
        match append {
            Append::At(time) if time < past || time > self.length => {
                return refuse(format!(
                    "new slots at {time} leave a gap or overwrite what the step looks at: it looks at {past} of {}",
                    self.length
                ));
            }
            Append::At(_) if batch != self.rows => {
                return refuse(format!("the step has {batch} rows, the cache {}", self.rows));
            }
            Append::At(_) => {}
            Append::Rows { rows, times } => {
                if new != 1 || rows.len() != batch || times.len() != batch {
                    return refuse(format!(
                        "{} rows and {} times are given for {batch} rows of {new} new slots",
                        rows.len(),
                        times.len()
                    ));
                }
                for (i, (row, time)) in rows.iter().zip(times).enumerate() {
                    if *row >= self.rows || *time > self.length || rows[..i].contains(row) {
                        return refuse(format!(
                            "row {row} cannot take a slot at {time}: the cache has {} rows of {} slots, and a row \
                             takes one slot in a step",
                            self.rows, self.length
                        ));
                    }
                }
            }
        }
        Ok(CheckedStep { axes, batch, new })
    }

    /// Slots that will be filled after a checked step.
    pub fn length_after(&self, step: &CheckedStep, append: Append<'_>) -> usize {
        match append {
            _ if self.ports.is_empty() => 0,
            Append::At(time) => time + step.new,
            Append::Rows { times, .. } => times.iter().map(|t| t + 1).max().unwrap_or(0).max(self.length),
        }
    }

    /// Notes that a checked step has run and its slots are stored.
    pub fn appended(&mut self, step: &CheckedStep, append: Append<'_>) {
        self.length = self.length_after(step, append);
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
        GraphSpec {
            name: "g".into(),
            component: "c".into(),
            inputs: vec![
                Port::new("x", DType::F32, vec![Dim::axis("batch"), Dim::axis("new")]),
                Port::new("past_key_0", DType::F32, dims("past", "rows")),
                Port::new("past_value_0", DType::F32, dims("past", "rows")),
            ],
            outputs: vec![
                Port::new("new_value_0", DType::F32, dims("new", "batch")),
                Port::new("y", DType::F32, vec![Dim::axis("batch")]),
                Port::new("new_key_0", DType::F32, dims("new", "batch")),
            ],
            axes: vec![axis("batch", 1, 4), axis("rows", 1, 4), axis("new", 1, 4), axis("past", 0, 5)],
        }
    }

    fn check(
        state: &CacheState,
        batch: usize,
        new: usize,
        past: usize,
        append: Append<'_>,
    ) -> Result<CheckedStep, String> {
        let data = vec![0.0; batch * new];
        let inputs = [("x", TensorView::f32([batch, new], &data))];
        state.check(&spec(), &inputs, past, append).map_err(|e| {
            assert_eq!(e.kind, EngineErrorKind::Input);
            e.to_string()
        })
    }

    fn ok(state: &mut CacheState, batch: usize, new: usize, past: usize, append: Append<'_>) {
        let step = check(state, batch, new, past, append).unwrap();
        assert_eq!((step.batch, step.new), (batch, new));
        state.appended(&step, append);
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
        refused(|s| s.inputs[1].dims[2] = Dim::axis("heads"), "`past_key_0`");
        refused(|s| s.inputs[1].dims.truncate(1), "`past_key_0`");
        refused(|s| drop(s.outputs.remove(0)), "`past_value_0` has no `new_value_0`");
        refused(|s| drop(s.inputs.remove(1)), "`new_key_0` has no input");
    }

    #[test]
    fn steps_that_do_not_fit_the_cache_are_refused() {
        let mut state = CacheState::new(&spec()).unwrap();
        state.reset(2);
        ok(&mut state, 2, 3, 0, Append::At(0));
        ok(&mut state, 2, 1, 3, Append::At(3));
        assert_eq!((state.rows(), state.length()), (2, 4));
        ok(&mut state, 1, 1, 4, Append::Rows { rows: &[1], times: &[4] });
        assert_eq!(state.length(), 5);
        let refused = |batch, new, past, append: Append<'_>, text: &str| {
            let e = check(&state, batch, new, past, append).unwrap_err();
            assert!(e.contains(text), "{e}");
        };
        refused(2, 1, 6, Append::At(5), "looks at 6 past slots, the cache has 5");
        refused(2, 1, 5, Append::At(6), "at 6 leave a gap");
        refused(2, 1, 5, Append::At(4), "overwrite what the step looks at");
        refused(1, 1, 5, Append::At(5), "has 1 rows, the cache 2");
        refused(9, 1, 5, Append::At(5), "axis `batch` is 9");
        refused(2, 2, 5, Append::Rows { rows: &[0, 1], times: &[4, 5] }, "2 rows of 2 new slots");
        refused(2, 1, 5, Append::Rows { rows: &[0], times: &[4, 5] }, "1 rows and 2 times");
        refused(1, 1, 5, Append::Rows { rows: &[2], times: &[0] }, "row 2 cannot take");
        refused(1, 1, 5, Append::Rows { rows: &[0], times: &[6] }, "row 0 cannot take a slot at 6");
        refused(2, 1, 5, Append::Rows { rows: &[1, 1], times: &[4, 5] }, "row 1 cannot take");
        let e = state.check_keep(&spec(), 3).unwrap_err();
        assert!(e.to_string().contains("3 rows of the cache cannot be kept: it has 2"), "{e}");
        // Earlier slots may be taken again: what follows them is dropped.
        ok(&mut state, 2, 1, 2, Append::At(2));
        assert_eq!(state.length(), 3);
        let given = TensorView::f32([0, 2, 2, 3], &[]);
        let x = TensorView::f32([2, 1], &[0.0; 2]);
        let e = state.check(&spec(), &[("x", x), ("past_key_0", given)], 3, Append::At(3)).unwrap_err();
        assert!(e.to_string().contains("`past_key_0` is given twice"), "{e}");
    }

    #[test]
    fn a_graph_without_a_cache_has_no_past() {
        let mut spec = spec();
        spec.inputs.truncate(1);
        spec.outputs = vec![spec.outputs[1].clone()];
        let mut state = CacheState::new(&spec).unwrap();
        let x = || [("x", TensorView::f32([1, 1], &[0.0]))];
        let step = state.check(&spec, &x(), 0, Append::At(0)).unwrap();
        state.appended(&step, Append::At(0));
        assert_eq!(state.length(), 0);
        assert!(state.check(&spec, &x(), 1, Append::At(1)).is_err());
    }
}
