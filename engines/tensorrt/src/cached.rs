//! A session whose cache stays on the device. Device code, as in `session.rs`.

use std::sync::Arc;

use dpar_engine_api::{
    CacheForm, CachePort, CachedSession, CallRow, EngineError, EngineErrorKind, Outputs, Session, TensorView,
};
use dpar_export_spec::GraphSpec;

use crate::cuda::CudaStream;
use crate::device_cache::DeviceCache;
use crate::padded::Padded;
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

    fn form(&self) -> Option<CacheForm> {
        self.cache.state().kept(CacheForm::OnDevice)
    }

    fn cache_bytes(&self) -> u64 {
        self.cache.bytes()
    }

    fn reset(&mut self, rows: usize) {
        self.cache.reset(rows);
    }

    fn step(&mut self, inputs: &[(&str, TensorView<'_>)], rows: &[CallRow]) -> Result<Outputs, EngineError> {
        let Self { session, ports, cache } = self;
        let mut step = cache.state().check(session.spec(), inputs, rows)?;
        let padded = Padded::new(session.spec(), cache.state(), inputs, rows);
        if let Some(padded) = &padded {
            step = cache.state().check(session.spec(), &padded.views(), &padded.rows)?;
        }
        let (run, kept): (&[CallRow], Option<&[usize]>) =
            padded.as_ref().map_or((rows, None), |p| (&p.rows, Some(&p.kept)));
        let placement = cache.state().placement(&step, run);
        let mut all = padded.as_ref().map_or_else(|| inputs.to_vec(), Padded::views);
        all.extend(placement.iter().map(|(name, tensor)| (*name, tensor.view())));
        session.make_current()?;
        let of = cache.state().cache_rows(run);
        let places = cache.place(session.stream(), &step, run, kept);
        let places = places.map_err(|e| session.fail(EngineErrorKind::Run, e.to_string()))?;
        let resident = Resident {
            inputs: ports
                .iter()
                .zip(&places)
                .map(|(port, place)| (port.past.name.as_str(), port.shape(step.past, of), place.past))
                .collect(),
            outputs: ports.iter().zip(&places).map(|(port, place)| (port.fresh, place.fresh)).collect(),
        };
        let store = &mut |stream: &CudaStream| cache.store(stream, &step, run, kept);
        let mut outputs = session.run_with(&step.axes, &all, &resident, store)?;
        if let Some(padded) = &padded {
            outputs = padded.outputs(session.spec(), cache.state(), outputs);
        }
        Ok(cache.state().outputs(session.spec(), outputs))
    }
}
