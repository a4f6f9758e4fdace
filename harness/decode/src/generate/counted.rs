//! A prepared graph that counts its calls.

use std::time::{Duration, Instant};

use dpar_engine_api::{CachedSession, CallRow, EngineError, Outputs, TensorView, call_rows};
use dpar_export_spec::GraphName;

use super::{GraphCalls, Prepare};

/// A graph of the loop.
#[derive(Debug)]
pub(super) struct Counted {
    session: Box<dyn CachedSession>,
    calls: GraphCalls,
}

impl Counted {
    pub(super) fn prepare<E>(graph: GraphName, prepare: &mut Prepare<'_, E>) -> Result<Self, E> {
        let session = prepare(graph)?;
        let caches = session.form();
        let calls = GraphCalls { graph, calls: 0, rows: 0, caches, cache_bytes: 0, time: Duration::ZERO };
        Ok(Self { session, calls })
    }

    pub(super) fn calls(&self) -> GraphCalls {
        GraphCalls { cache_bytes: self.session.cache_bytes(), ..self.calls }
    }

    pub(super) fn reset(&mut self, rows: usize) {
        self.session.reset(rows);
    }

    pub(super) fn step(
        &mut self,
        inputs: &[(&str, TensorView<'_>)],
        rows: &[CallRow],
    ) -> Result<Outputs, EngineError> {
        let started = Instant::now();
        let outputs = self.session.step(inputs, rows)?;
        self.calls.time += started.elapsed();
        self.calls.calls += 1;
        self.calls.rows += call_rows(inputs) as u64;
        Ok(outputs)
    }
}
