//! ONNX Runtime for the table of engines.

use dpar_engine_api::device::Device;
use dpar_engine_api::{
    Devices, Engine, EngineDescriptor, EngineError, EngineErrorKind, EngineOption, EngineOptions,
    LibraryFound, Survey,
};

use crate::library::LIBRARY;
use crate::{
    Hardware, NAME, OrtDevice, OrtEngine, OrtOptions, PlugInDevice, disable_telemetry, providers, runtime,
};

/// ONNX Runtime, for the table of engines.
pub const ENGINE: EngineDescriptor = EngineDescriptor {
    options: &[
        EngineOption::Threads,
        EngineOption::OrtLibrary,
        EngineOption::EpLibrary,
        EngineOption::Caches,
    ],
    devices: Devices {
        runs_on: |device| !matches!(device, Device::Index(_)),
        words: "cpu, or cuda:N, tensorrt:N or nvrtx:N for its execution providers (a node that the provider does not \
            take is an error), or with --ep-lib cpu, gpu:N or npu:N",
    },
    check: together,
    survey,
    before_threads: || {
        // Where it cannot be done, loading the library says so.
        let _ = disable_telemetry();
    },
    ..EngineDescriptor::new(NAME, open)
};

fn open(options: &EngineOptions) -> Box<dyn Engine> {
    let plug_in = |hardware| match options.ep_library.clone() {
        Some(library) => OrtDevice::PlugIn(PlugInDevice { library, hardware }),
        // What does not go together was refused.
        None => OrtDevice::Cpu,
    };
    let device = match options.device {
        None => plug_in(Hardware::First),
        Some(Device::Cpu) => plug_in(Hardware::Cpu),
        Some(Device::Gpu(index)) => plug_in(Hardware::Gpu(index)),
        Some(Device::Npu(index)) => plug_in(Hardware::Npu(index)),
        Some(Device::Index(_)) => OrtDevice::Cpu,
        Some(Device::Cuda(index)) => OrtDevice::Cuda(index),
        Some(Device::TensorRt(index)) => OrtDevice::TensorRt(index),
        Some(Device::NvRtx(index)) => OrtDevice::NvRtx(index),
    };
    let EngineOptions { threads, caches, .. } = *options;
    let library = options.ort_library.clone();
    Box::new(OrtEngine::new(OrtOptions { library, threads, device, caches }))
}

/// Its own providers and those of other libraries are different places.
fn together(options: &EngineOptions) -> Result<(), EngineError> {
    let refuse = |device, why: &str, hint| {
        let message = format!("`--device {device}` {why}");
        Err(EngineError::new(EngineErrorKind::Setting, NAME, message).hint(hint))
    };
    match (options.device, &options.ep_library) {
        (Some(device @ (Device::Gpu(_) | Device::Npu(_))), None) => refuse(
            device,
            "is of a provider in a library of its own",
            "name the library with --ep-lib, or say cpu, cuda:N, tensorrt:N or nvrtx:N",
        ),
        (Some(device @ (Device::Cuda(_) | Device::TensorRt(_) | Device::NvRtx(_))), Some(_)) => refuse(
            device,
            "is a provider of ONNX Runtime's own library, and --ep-lib names another",
            "leave out --ep-lib, or say cpu, gpu:N or npu:N",
        ),
        _ => Ok(()),
    }
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
