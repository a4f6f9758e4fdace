//! A session over a graph with the operator.

use std::sync::Arc;

use dpar_engine_api::{
    CacheForm, CacheState, CachedSession, CallRow, EngineError, EngineErrorKind, GraphFile, HostCache,
    Outputs, Session, TensorView, check_outputs,
};
use dpar_export_spec::{Dim, GraphSpec};

use crate::Cache;
use crate::edit::{Edited, in_place};

/// A graph that was derived, and the caches that its operators use.
pub type Derived<'a> = (&'a Edited, Arc<Cache>);

/// A session of a graph with its caches as they are asked for; where nothing is, in place if that can be. `open` loads the
/// graph, or what was derived from it.
///
/// # Errors
/// Those of `open`; when caches are asked for that the graph cannot have.
pub fn cached(
    engine: &str,
    graph: GraphFile<'_>,
    asked: Option<CacheForm>,
    open: impl Fn(Option<Derived<'_>>) -> Result<Box<dyn Session>, EngineError>,
) -> Result<Box<dyn CachedSession>, EngineError> {
    if asked != Some(CacheForm::Joined)
        && let Some(edited) = in_place(engine, graph)?
        && let Some(session) = InPlace::new(graph.spec, |cache| open(Some((&edited, cache))))?
    {
        return Ok(Box::new(session));
    }
    if asked == Some(CacheForm::InPlace) && !CacheState::new(graph.spec)?.ports().is_empty() {
        return Err(not_in_place(
            engine,
            graph,
            "they are not float32, or not attended over as in an export",
        ));
    }
    Ok(Box::new(HostCache::new(open(None)?)?))
}

/// The refusal of caches in place.
pub fn not_in_place(engine: &str, graph: GraphFile<'_>, why: &str) -> EngineError {
    let message = format!("its caches cannot be kept in place: {why}");
    EngineError::new(EngineErrorKind::Setting, engine, message)
        .in_graph(&graph.spec.name)
        .hint("leave --caches out, or say --caches joined")
}

/// A session of a derived graph, and its caches.
struct InPlace {
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
    fn new(
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

    fn form(&self) -> Option<CacheForm> {
        self.state.kept(CacheForm::InPlace)
    }

    fn cache_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    fn reset(&mut self, rows: usize) {
        self.state.reset(rows);
        self.cache.reset(rows);
    }

    fn step(&mut self, inputs: &[(&str, TensorView<'_>)], rows: &[CallRow]) -> Result<Outputs, EngineError> {
        let step = self.state.check(&self.spec, inputs, rows)?;
        let wrong = |kind, message: String| {
            EngineError::new(kind, "caches in place", message).in_graph(&self.spec.name)
        };
        self.cache.begin(rows, step.new).map_err(|e| wrong(EngineErrorKind::Input, e))?;
        self.cache
            .reserve(rows)
            .map_err(|e| wrong(EngineErrorKind::Run, e).hint("decode fewer images at a time: --batch"))?;
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
