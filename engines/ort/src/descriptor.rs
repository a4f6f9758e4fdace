//! ONNX Runtime for the table of engines.

use dpar_engine_api::device::Device;
use dpar_engine_api::{Devices, Engine, EngineDescriptor, EngineOption, EngineOptions, LibraryFound, Survey};

use crate::library::LIBRARY;
use crate::{NAME, OrtDevice, OrtEngine, OrtOptions, disable_telemetry, providers, runtime};

/// ONNX Runtime, for the table of engines.
pub const ENGINE: EngineDescriptor = EngineDescriptor {
    options: &[EngineOption::Threads, EngineOption::OrtLibrary, EngineOption::Caches],
    devices: Devices {
        runs_on: |device| !matches!(device, Device::Index(_)),
        words: "cpu, or cuda:N, tensorrt:N or nvrtx:N for its execution providers (a node that the provider does not \
            take is an error)",
    },
    survey,
    before_threads: || {
        // Where it cannot be done, loading the library says so.
        let _ = disable_telemetry();
    },
    ..EngineDescriptor::new(NAME, open)
};

fn open(options: &EngineOptions) -> Box<dyn Engine> {
    let device = match options.device {
        None | Some(Device::Cpu | Device::Index(_)) => OrtDevice::Cpu,
        Some(Device::Cuda(index)) => OrtDevice::Cuda(index),
        Some(Device::TensorRt(index)) => OrtDevice::TensorRt(index),
        Some(Device::NvRtx(index)) => OrtDevice::NvRtx(index),
    };
    let EngineOptions { threads, caches, .. } = *options;
    let library = options.ort_library.clone();
    Box::new(OrtEngine::new(OrtOptions { library, threads, device, caches }))
}

fn survey(options: &EngineOptions) -> Survey {
    let library = options.ort_library.as_deref();
    let mut found = Survey { searched: LIBRARY.search(library), ..Survey::default() };
    match runtime::start(library) {
        Ok(runtime) => {
            let (path, version) = (runtime.path.clone(), runtime.version.clone());
            found.libraries.push(LibraryFound { path, version });
            found.providers = providers::providers().unwrap_or_default();
        }
        Err(e) => found.missing = Some(e),
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_that_setup_fetched_offers_the_cpu() {
        let found = survey(&EngineOptions::default());
        assert!(found.missing.is_none(), "{:?}", found.missing);
        assert!(found.providers.iter().any(|n| n == "CPUExecutionProvider"), "{found:?}");
        assert!(found.searched.last().is_some_and(|p| p.taken), "{found:?}");
    }
}
