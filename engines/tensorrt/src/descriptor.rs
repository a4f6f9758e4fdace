//! TensorRT for the table of engines.

use dpar_engine_api::device::Device;
use dpar_engine_api::{
    BuiltFile, Devices, Engine, EngineDescriptor, EngineError, EngineErrorKind, EngineFiles, EngineOption,
    EngineOptions, Gpu, Survey,
};

use crate::survey::survey;
use crate::{Capability, NAME, TensorRtEngine, TensorRtOptions, read_engine};

/// TensorRT, for the table of engines.
pub const ENGINE: EngineDescriptor = EngineDescriptor {
    options: &[EngineOption::TrtLibrary, EngineOption::CudaGraphs, EngineOption::RuntimeCache],
    devices: Devices {
        runs_on: |device| matches!(device, Device::Index(_) | Device::Cuda(_)),
        words: "the index of a CUDA device",
    },
    survey,
    files: Some(EngineFiles { judge, layers: |path, options| engine(options).inspect(path) }),
    ..EngineDescriptor::new(NAME, |options| -> Box<dyn Engine> { Box::new(engine(options)) })
};

/// The next step where other engines are needed.
const BUILD_HINT: &str = "build the engines with `dpar-export --target trt BUNDLE`";

/// The next step on a device that TensorRT-RTX does not list: building again changes nothing about the device.
const TRY_HINT: &str =
    "`dpar-export verify BUNDLE --engine tensorrt` tries it; the ONNX graphs run with another engine";

fn engine(options: &EngineOptions) -> TensorRtEngine {
    let device = match options.device {
        Some(Device::Index(index) | Device::Cuda(index)) => usize::from(index),
        _ => 0,
    };
    TensorRtEngine::new(TensorRtOptions {
        library_dir: options.trt_library.clone(),
        device,
        cuda_graphs: options.cuda_graphs,
        runtime_cache_dir: options.runtime_cache.clone(),
        ..TensorRtOptions::default()
    })
}

/// The file by itself, the library that would run it, the device that it would run on.
fn judge(file: &BuiltFile<'_>, found: &Survey) -> Result<(), EngineError> {
    read_engine(file.path)?;
    let refuse = |message: String, hint: &str| {
        Err(EngineError::new(EngineErrorKind::Unavailable, NAME, message).hint(hint))
    };
    if let Some(library) = found.libraries.first().filter(|_| found.missing.is_none())
        && library.version != file.version
    {
        let BuiltFile { builder, version, .. } = file;
        let message = format!("it was built by {builder} {version}, the library here is {}", library.version);
        return refuse(message, BUILD_HINT);
    }
    match found.driver.as_ref().and_then(|d| d.gpus.first()) {
        Some(gpu) => match device_reason(file.compute_capabilities, gpu) {
            Some(reason) => refuse(reason, if unlisted(gpu) { TRY_HINT } else { BUILD_HINT }),
            None => Ok(()),
        },
        None => Ok(()),
    }
}

/// Why an engine built for these devices does not run on that one. An empty list is all of Ampere and later.
fn device_reason(built_for: &[String], gpu: &Gpu) -> Option<String> {
    let (name, capability) = (&gpu.name, &gpu.compute_capability);
    if !built_for.is_empty() {
        let list = built_for.join(", ");
        return (!built_for.contains(capability))
            .then(|| format!("it was built for compute capability {list}, the {name} has {capability}"));
    }
    let major: u32 = capability.split('.').next().and_then(|m| m.parse().ok()).unwrap_or(0);
    if major < 8 {
        return Some(format!("it runs on Ampere (8.0) and later, the {name} has {capability}"));
    }
    unlisted(gpu).then(|| {
        format!("not tried on compute capability {capability} (the {name}): TensorRT-RTX does not list it")
    })
}

/// Whether TensorRT-RTX builds for other devices only. Full TensorRT builds for the device at hand.
fn unlisted(gpu: &Gpu) -> bool {
    !cfg!(feature = "enterprise") && gpu.compute_capability.parse::<Capability>().is_err()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu(capability: &str) -> Gpu {
        Gpu { ordinal: 0, name: "G".into(), compute_capability: capability.into(), memory: 1 }
    }

    #[test]
    fn an_engine_fits_the_devices_it_was_built_for() {
        let list = |c: &[&str]| c.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        assert_eq!(device_reason(&[], &gpu("8.9")), None);
        assert_eq!(device_reason(&[], &gpu("12.0")), None);
        assert!(device_reason(&[], &gpu("7.5")).unwrap().contains("Ampere"));
        #[cfg(not(feature = "enterprise"))]
        for unlisted in ["9.0", "10.0", "8.7"] {
            let reason = device_reason(&[], &gpu(unlisted)).unwrap();
            let want =
                format!("not tried on compute capability {unlisted} (the G): TensorRT-RTX does not list it");
            assert_eq!(reason, want);
        }
        assert_eq!(device_reason(&list(&["8.6", "8.9"]), &gpu("8.9")), None);
        let reason = device_reason(&list(&["8.6"]), &gpu("8.9")).unwrap();
        assert_eq!(reason, "it was built for compute capability 8.6, the G has 8.9");
    }
}
