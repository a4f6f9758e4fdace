//! A session over a graph with the operator.

use std::sync::Arc;

use dpar_engine_api::{
    CacheState, CachedSession, CallRow, EngineError, EngineErrorKind, Outputs, Session, TensorView,
    check_outputs,
};
use dpar_export_spec::{Dim, GraphSpec};

use crate::Cache;

/// A session of a derived graph, and its caches.
pub struct InPlace {
    /// The portable graph's: the caller's view.
    spec: GraphSpec,
    state: CacheState,
    session: Box<dyn Session>,
    cache: Arc<Cache>,
}

/// The caches of a graph, empty.
///
/// `None` where its layers are of unlike sizes.
fn cache(spec: &GraphSpec, state: &CacheState) -> Option<Cache> {
    let first = state.ports().first()?;
    let [heads, head_dim] = first.slot[..] else { return None };
    let slots = match first.past.dims.first()? {
        Dim::Axis(past) => spec.axis(past)?.max,
        Dim::Fixed(_) | Dim::Sum(..) => return None,
    };
    let alike = state.ports().iter().all(|port| port.slot == first.slot);
    alike.then(|| Cache::new(state.ports().len() / 2, heads, head_dim, slots))
}

impl InPlace {
    /// A session of the graph that was derived from the portable one with this interface. `open` loads it with the caches
    /// that its operators use; `None` where the caches cannot be kept so.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn new(
        spec: &GraphSpec,
        open: impl FnOnce(Arc<Cache>) -> Result<Box<dyn Session>, EngineError>,
    ) -> Result<Option<Self>, EngineError> {
        let state = CacheState::new(spec)?;
        let Some(cache) = cache(spec, &state).map(Arc::new) else { return Ok(None) };
        let session = open(Arc::clone(&cache))?;
        Ok(Some(Self { spec: spec.clone(), state, session, cache }))
    }
}

impl CachedSession for InPlace {
    fn spec(&self) -> &GraphSpec {
        &self.spec
    }

    fn reset(&mut self, rows: usize) {
        self.state.reset(rows);
        self.cache.reset(rows);
    }

    fn step(&mut self, inputs: &[(&str, TensorView<'_>)], rows: &[CallRow]) -> Result<Outputs, EngineError> {
        let step = self.state.check(&self.spec, inputs, rows)?;
        self.cache.begin(rows, step.new).map_err(|message| {
            EngineError::new(EngineErrorKind::Input, "caches in place", message).in_graph(&self.spec.name)
        })?;
        let outputs = self.session.run_unchecked(inputs)?;
        check_outputs(self.session.spec(), &step.axes, &outputs)?;
        self.state.appended(&step, rows);
        // The derived graph has the outputs that the caller gets, in their order.
        let own = self.spec.outputs.iter().map(|port| self.session.spec().output_index(&port.name));
        let mut outputs: Vec<Option<_>> = outputs.into_iter().map(Some).collect();
        let all: Vec<_> = own.map(|at| outputs.get_mut(at?)?.take()).collect();
        Ok(self.state.outputs(&self.spec, all))
    }
}
