//! A session whose cache stays on the device. Device code, as in `session.rs`.

use std::sync::Arc;

use dpar_engine_api::{
    Append, CachePort, CachedSession, EngineError, EngineErrorKind, Outputs, Session, TensorView,
};
use dpar_export_spec::GraphSpec;

use crate::cuda::Stream;
use crate::device_cache::DeviceCache;
use crate::session::{Resident, TrtSession};

/// A deserialised engine and its cache. Per step only the other inputs and outputs pass through the host.
pub(crate) struct TrtCached {
    session: TrtSession,
    ports: Vec<CachePort>,
    cache: DeviceCache,
}

impl TrtCached {
    pub(crate) fn new(mut session: TrtSession) -> Result<Self, EngineError> {
        let device = Arc::clone(session.device());
        let cache = DeviceCache::new(&device, session.spec(), session.profiles())?;
        let ports = cache.state().ports().to_vec();
        session.keep_on_device(&ports);
        Ok(Self { session, ports, cache })
    }
}

impl CachedSession for TrtCached {
    fn spec(&self) -> &GraphSpec {
        self.session.spec()
    }

    fn reset(&mut self, rows: usize) {
        self.cache.reset(rows);
    }

    fn keep_rows(&mut self, rows: usize) -> Result<(), EngineError> {
        self.cache.state().check_keep(self.session.spec(), rows)?;
        self.session.make_current()?;
        let kept = self.cache.keep_rows(self.session.stream(), rows);
        kept.map_err(|e| self.session.fail(EngineErrorKind::Run, e))
    }

    fn step(
        &mut self,
        inputs: &[(&str, TensorView<'_>)],
        past: usize,
        append: Append<'_>,
    ) -> Result<Outputs, EngineError> {
        let Self { session, ports, cache } = self;
        let step = cache.state().check(session.spec(), inputs, past, append)?;
        session.make_current()?;
        let rows = cache.state().rows();
        let places = cache.place(session.stream(), &step, append);
        let places = places.map_err(|e| session.fail(EngineErrorKind::Run, e))?;
        let resident = Resident {
            inputs: ports
                .iter()
                .zip(&places)
                .map(|(port, place)| (port.past.name.as_str(), port.shape(past, rows), place.past))
                .collect(),
            outputs: ports.iter().zip(&places).map(|(port, place)| (port.fresh, place.fresh)).collect(),
        };
        let store = &mut |stream: &Stream| cache.store(stream, &step, append);
        let outputs = session.run_with(&step.axes, inputs, &resident, store)?;
        Ok(cache.state().outputs(session.spec(), outputs))
    }
}
