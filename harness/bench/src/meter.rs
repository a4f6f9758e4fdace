//! An engine that keeps a ledger of what another one does.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use dpar_engine_api::{
    Arithmetic, CachedSession, CallRow, Engine, EngineError, EngineInfo, GraphFile, Outputs, Session, Tensor,
    TensorView, call_rows,
};
use dpar_export_spec::{Dialect, GraphSpec, Precision, WeightBits};
use serde::{Deserialize, Serialize};

/// What one graph has cost so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct GraphCost {
    /// Calls.
    pub calls: u64,
    /// Rows of all calls together: [`call_rows`].
    pub rows: u64,
    /// Wall time in the engine, in seconds.
    pub seconds: f64,
}

impl GraphCost {
    /// What came after an earlier state.
    pub(crate) fn since(self, earlier: Self) -> Self {
        Self {
            calls: self.calls - earlier.calls,
            rows: self.rows - earlier.rows,
            seconds: self.seconds - earlier.seconds,
        }
    }
}

/// What every graph has cost, shared by an engine and its sessions.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<BTreeMap<String, GraphCost>>>);

impl Ledger {
    /// The costs so far, by the graph's name.
    pub fn costs(&self) -> BTreeMap<String, GraphCost> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Runs a call and books it.
    fn book<T>(&self, graph: &str, inputs: &[(&str, TensorView<'_>)], call: impl FnOnce() -> T) -> T {
        let started = Instant::now();
        let result = call();
        let seconds = started.elapsed().as_secs_f64();
        let mut costs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let cost = costs.entry(graph.to_owned()).or_default();
        cost.calls += 1;
        cost.rows += call_rows(inputs) as u64;
        cost.seconds += seconds;
        result
    }
}

/// The engine, and the ledger that its sessions will keep.
pub fn metered(engine: Box<dyn Engine>) -> (Box<dyn Engine>, Ledger) {
    let ledger = Ledger::default();
    (Box::new(Metered { inner: engine, ledger: ledger.clone() }), ledger)
}

struct Metered {
    inner: Box<dyn Engine>,
    ledger: Ledger,
}

impl Engine for Metered {
    fn name(&self) -> &'static str {
        self.inner.name()
    }

    fn probe(&self) -> Result<EngineInfo, EngineError> {
        self.inner.probe()
    }

    fn arithmetic(&self, precision: Precision) -> Result<Arithmetic, EngineError> {
        self.inner.arithmetic(precision)
    }

    fn dialects(&self) -> &'static [Dialect] {
        self.inner.dialects()
    }

    fn quantized(&self, weights: WeightBits) -> Result<Arithmetic, EngineError> {
        self.inner.quantized(weights)
    }

    fn prepare(&self, graph: GraphFile<'_>) -> Result<Box<dyn Session>, EngineError> {
        let inner = self.inner.prepare(graph)?;
        Ok(Box::new(MeteredSession { inner, ledger: self.ledger.clone() }))
    }

    fn prepare_cached(&self, graph: GraphFile<'_>) -> Result<Box<dyn CachedSession>, EngineError> {
        let inner = self.inner.prepare_cached(graph)?;
        Ok(Box::new(MeteredCache { inner, ledger: self.ledger.clone() }))
    }
}

struct MeteredSession {
    inner: Box<dyn Session>,
    ledger: Ledger,
}

impl Session for MeteredSession {
    fn spec(&self) -> &GraphSpec {
        self.inner.spec()
    }

    fn run_unchecked(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, EngineError> {
        let graph = self.inner.spec().name.clone();
        self.ledger.book(&graph, inputs, || self.inner.run_unchecked(inputs))
    }
}

struct MeteredCache {
    inner: Box<dyn CachedSession>,
    ledger: Ledger,
}

impl CachedSession for MeteredCache {
    fn spec(&self) -> &GraphSpec {
        self.inner.spec()
    }

    fn reset(&mut self, rows: usize) {
        self.inner.reset(rows);
    }

    fn step(&mut self, inputs: &[(&str, TensorView<'_>)], rows: &[CallRow]) -> Result<Outputs, EngineError> {
        let graph = self.inner.spec().name.clone();
        self.ledger.book(&graph, inputs, || self.inner.step(inputs, rows))
    }
}
