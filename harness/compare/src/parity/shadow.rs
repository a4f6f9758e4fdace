//! Every call of a run, made on other engines too: the same inputs, so that each output's difference is the engine's own
//! and not what built up before.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use dpar_engine_api::{ArithmeticKind, EngineError, Session, Tensor, TensorView};
use dpar_export_spec::{GraphName, GraphSpec, Numbers, Precision};

use crate::stats::{Accumulator, TensorStats};
use crate::tolerance::{Limit, Quantity, Rounding, SAME_ENGINE};

/// One output over all calls.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) graph: String,
    pub(crate) name: String,
    /// Whether it is integers: codes, which are equal or not.
    pub(crate) codes: bool,
    pub(crate) sums: Accumulator,
}

impl Output {
    /// Its figures, held against the limit of its kind.
    pub(crate) fn finish(&self, limits: &Limits) -> TensorStats {
        let stats = match self.codes {
            true => self.sums.share(&self.name, limits.codes),
            false => self.sums.scaled(&self.name, limits.of(&self.graph)),
        };
        TensorStats { graph: Some(self.graph.clone()), ..stats }
    }
}

/// What two outputs on the same inputs may differ by.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    numbers: Numbers,
    /// What the two compute with.
    kinds: [ArithmeticKind; 2],
    /// The part of what two engines may differ by.
    part: f64,
    /// Share of codes.
    pub(crate) codes: Limit,
}

impl Limits {
    /// Of two engines that compute graphs of this precision so.
    pub(crate) fn new(numbers: Numbers, kinds: [ArithmeticKind; 2]) -> Self {
        let codes = Rounding::engines(numbers.clone()).limit(Quantity::CodeShare);
        Self { numbers, kinds, part: 1.0, codes }
    }

    /// The same for two bundles on one engine.
    pub(crate) fn on_one_engine(self) -> Self {
        Self { part: SAME_ENGINE, ..self }
    }

    /// Of the floats of this graph, whose own weights count: those of others are in its inputs, which are the same.
    pub(crate) fn of(&self, graph: &str) -> Limit {
        let numbers = self.numbers.of_graph(graph);
        let limit = match GraphName::VqDecode == *graph {
            true => {
                let picture =
                    |kind| Rounding::between(Precision::Fp32, numbers.clone(), kind).limit(Quantity::Picture);
                picture(self.kinds[0]).max(picture(self.kinds[1]))
            }
            false => Rounding::engines(numbers).limit(Quantity::Output),
        };
        limit.scaled(self.part)
    }
}

/// What the shadows of one engine came to.
#[derive(Debug, Default)]
pub(crate) struct ShadowOutputs {
    /// By `graph/output`, in the order of first use.
    pub(crate) outputs: Vec<Output>,
    /// The first error; nothing is run afterwards.
    pub(crate) error: Option<EngineError>,
    index: BTreeMap<String, usize>,
}

impl ShadowOutputs {
    fn add(&mut self, spec: &GraphSpec, baseline: &[Tensor], outputs: &[Tensor]) {
        for (port, (a, b)) in spec.outputs.iter().zip(baseline.iter().zip(outputs)) {
            let name = format!("{}/{}", spec.name, port.name);
            let index = *self.index.entry(name.clone()).or_insert_with(|| {
                let codes = a.as_i64().is_some();
                let (graph, sums) = (spec.name.clone(), Accumulator::default());
                self.outputs.push(Output { graph, name, codes, sums });
                self.outputs.len() - 1
            });
            self.outputs[index].sums.add(&numbers(a), &numbers(b));
        }
    }
}

/// A tensor's elements as float32; integers of this project are exact in it.
pub(crate) fn numbers(tensor: &Tensor) -> Vec<f32> {
    if let Some(values) = tensor.to_f32() {
        return values;
    }
    tensor.as_i64().map(|v| v.iter().map(|v| *v as f32).collect()).unwrap_or_default()
}

/// Shared by the sessions of one engine.
pub(crate) type SharedOutputs = Arc<Mutex<ShadowOutputs>>;

/// A session with shadows on other engines.
pub(crate) struct Shadowed {
    session: Box<dyn Session>,
    shadows: Vec<(Box<dyn Session>, SharedOutputs)>,
}

impl Shadowed {
    pub(crate) fn new(session: Box<dyn Session>, shadows: Vec<(Box<dyn Session>, SharedOutputs)>) -> Self {
        Self { session, shadows }
    }
}

impl Session for Shadowed {
    fn spec(&self) -> &GraphSpec {
        self.session.spec()
    }

    fn run_unchecked(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, EngineError> {
        let outputs = self.session.run_unchecked(inputs)?;
        for (shadow, sink) in &mut self.shadows {
            let Ok(mut sink) = sink.lock() else { continue };
            if sink.error.is_some() {
                continue;
            }
            match shadow.run(inputs) {
                Ok(others) => sink.add(self.session.spec(), &outputs, &others),
                Err(e) => sink.error = Some(e),
            }
        }
        Ok(outputs)
    }
}
