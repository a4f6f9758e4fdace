//! A prepared graph that counts its calls.

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
        Ok(Self { session: prepare(graph)?, calls: GraphCalls { graph, calls: 0, rows: 0 } })
    }

    pub(super) fn calls(&self) -> GraphCalls {
        self.calls
    }

    pub(super) fn reset(&mut self, rows: usize) {
        self.session.reset(rows);
    }

    pub(super) fn step(
        &mut self,
        inputs: &[(&str, TensorView<'_>)],
        rows: &[CallRow],
    ) -> Result<Outputs, EngineError> {
        let outputs = self.session.step(inputs, rows)?;
        self.calls.calls += 1;
        self.calls.rows += call_rows(inputs) as u64;
        Ok(outputs)
    }
}
