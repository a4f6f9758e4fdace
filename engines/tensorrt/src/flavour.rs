//! What differs between TensorRT-RTX and full TensorRT (feature `enterprise`). A program holds one of the two: their
//! bindings declare the same symbols.

use dpar_engine_api::EngineError;
use trtx::{BuilderConfig, Runtime, RuntimeConfig};

use crate::{BuildError, Capability, ShapeKernels, TensorRtOptions};

/// Why an engine is refused, as far as the library says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Diagnosis {
    pub(crate) malformed: bool,
    pub(crate) version: bool,
    pub(crate) device: bool,
    pub(crate) driver: bool,
    pub(crate) memory: bool,
    pub(crate) cuda: bool,
}

#[cfg(not(feature = "enterprise"))]
mod chosen {
    use std::sync::Arc;

    use camino::Utf8Path;
    use trtx::{
        CudaGraphStrategy, DynamicShapesKernelSpecializationStrategy as Specialization,
        EngineInvalidityDiagnostics as Why, RuntimeCache,
    };

    use super::*;
    use crate::capability::native;

    pub(crate) const PRODUCT: &str = "TensorRT-RTX";
    /// Where `cargo xtask setup` puts the libraries, below the checkout.
    pub(crate) const SETUP_FOLDER: &str = "third_party/tensorrt-rtx";
    /// The library that builds and runs engines: names it is shipped under, first the one of the Python wheel.
    pub(crate) const CORE_FILES: &[&str] = if cfg!(windows) {
        &["tensorrt_rtx_1_7.dll"]
    } else {
        &["libtensorrt_rtx.so.1", "libtensorrt_rtx.so.1.7.1", "libtensorrt_rtx.so"]
    };
    /// The library that reads ONNX files.
    pub(crate) const PARSER_FILES: &[&str] = if cfg!(windows) {
        &["tensorrt_onnxparser_rtx_1_7.dll"]
    } else {
        &[
            "libtensorrt_onnxparser_rtx.so.1",
            "libtensorrt_onnxparser_rtx.so.1.7.1",
            "libtensorrt_onnxparser_rtx.so",
        ]
    };
    /// The next step where no usable library is found.
    pub(crate) const INSTALL_HINT: &str = "run `cargo xtask setup` in a checkout, or unpack the wheel \
        tensorrt-rtx-cu12-libs 1.7.1.116 and set DPAR_TRT_LIB to the folder that has libtensorrt_rtx.so.1 and \
        libtensorrt_onnxparser_rtx.so.1";

    /// What was compiled for the device at run time.
    pub(crate) type Cache = Arc<RuntimeCache>;

    /// Nothing here needs a device to build.
    pub(crate) fn check_build(_: &[Capability]) -> Result<(), BuildError> {
        Ok(())
    }

    pub(crate) fn check_run(_: &TensorRtOptions) -> Result<(), EngineError> {
        Ok(())
    }

    pub(crate) fn set_capabilities(
        config: &mut BuilderConfig<'_>,
        wanted: &[Capability],
    ) -> trtx::Result<()> {
        let mut wanted = wanted.to_vec();
        wanted.sort_unstable();
        wanted.dedup();
        if !wanted.is_empty() {
            config.set_nb_compute_capabilities(i32::try_from(wanted.len()).unwrap_or(i32::MAX))?;
        }
        for (i, capability) in (0..).zip(&wanted) {
            config.set_compute_capability(native(*capability), i)?;
        }
        Ok(())
    }

    pub(crate) fn choose_kernels(config: &mut RuntimeConfig<'static>, kernels: ShapeKernels) {
        config.set_dynamic_shapes_kernel_specialization_strategy(match kernels {
            ShapeKernels::General => Specialization::kNONE,
            ShapeKernels::SpecialLater => Specialization::kLAZY,
            ShapeKernels::SpecialFirst => Specialization::kEAGER,
        });
    }

    pub(crate) fn record_graphs(config: &mut RuntimeConfig<'static>) -> trtx::Result<()> {
        config.set_cuda_graph_strategy(CudaGraphStrategy::kWHOLE_GRAPH_CAPTURE)
    }

    /// A cache with the content of the file, if there is one and it fits.
    pub(crate) fn open_cache(config: &mut RuntimeConfig<'static>, path: &Utf8Path) -> trtx::Result<Cache> {
        let cache = config.create_runtime_cache()?;
        if path.is_file() {
            let read = fs_err::read(path).map_err(|e| e.to_string());
            // A cache of another device or version is no reason to fail: it is compiled again.
            if let Err(e) = read.and_then(|bytes| cache.deserialize(&bytes).map_err(|e| e.to_string())) {
                tracing::warn!("the runtime cache `{path}` is not used: {e}");
            }
        }
        let cache = Arc::new(cache);
        config.set_runtime_cache(Arc::clone(&cache))?;
        Ok(cache)
    }

    pub(crate) fn cache_bytes(cache: &Cache) -> trtx::Result<Vec<u8>> {
        cache.serialize().map(|bytes| bytes.to_vec())
    }

    pub(crate) fn diagnose(runtime: &Runtime<'_>, bytes: &[u8]) -> Diagnosis {
        let why = runtime.engine_validity(bytes).map_or(Why::empty(), |(_, why)| why);
        Diagnosis {
            malformed: why.contains(Why::MALFORMED_ENGINE),
            version: why.contains(Why::VERSION_MISMATCH),
            device: why.contains(Why::UNSUPPORTED_CC),
            driver: why.intersects(Why::OLD_CUDA_DRIVER | Why::OLD_CUDA_RUNTIME),
            memory: why.contains(Why::INSUFFICIENT_GPU_MEMORY),
            cuda: why.contains(Why::CUDA_ERROR),
        }
    }

    /// Whether a file is a whole engine, as far as its header tells.
    pub(crate) fn check_plan(bytes: &[u8]) -> Result<Option<crate::PlanHeader>, crate::PlanFault> {
        crate::read_plan_header(bytes).map(Some)
    }
}

/// Compiled here and not run: no registry has the libraries, and the builder wants a GPU.
#[cfg(feature = "enterprise")]
mod chosen {
    use camino::Utf8Path;
    use dpar_engine_api::EngineErrorKind;

    use super::*;
    use crate::{NAME, cuda};

    pub(crate) const PRODUCT: &str = "TensorRT";
    /// Where a checkout may have the libraries.
    pub(crate) const SETUP_FOLDER: &str = "third_party/tensorrt";
    /// The library that builds and runs engines.
    pub(crate) const CORE_FILES: &[&str] =
        if cfg!(windows) { &["nvinfer_11.dll"] } else { &["libnvinfer.so.11", "libnvinfer.so"] };
    /// The library that reads ONNX files.
    pub(crate) const PARSER_FILES: &[&str] = if cfg!(windows) {
        &["nvonnxparser_11.dll"]
    } else {
        &["libnvonnxparser.so.11", "libnvonnxparser.so"]
    };
    /// The next step where no usable library is found.
    pub(crate) const INSTALL_HINT: &str = "install TensorRT 11 from NVIDIA and set DPAR_TRT_LIB to the folder that \
        has libnvinfer.so.11 and libnvonnxparser.so.11";

    /// There is none: everything is compiled when the engine is built.
    pub(crate) enum Cache {}

    fn refuse(setting: &str, reason: &str) -> BuildError {
        BuildError::Setting {
            setting: setting.to_owned(),
            reason: reason.to_owned(),
            hint: "leave it out".to_owned(),
        }
    }

    /// Full TensorRT times kernels on the device that it builds for.
    pub(crate) fn check_build(capabilities: &[Capability]) -> Result<(), BuildError> {
        if !capabilities.is_empty() {
            return Err(refuse("compute capabilities", "TensorRT builds for the device it builds on"));
        }
        cuda::driver().map(|_| ()).map_err(BuildError::Unavailable)
    }

    pub(crate) fn check_run(options: &TensorRtOptions) -> Result<(), EngineError> {
        let refuse = |what: &str| {
            let message = format!("{what} is there in TensorRT-RTX only; this build has TensorRT");
            Err(EngineError::new(EngineErrorKind::Setting, NAME, message).hint("leave it out"))
        };
        match options {
            o if o.cuda_graphs => refuse("recording CUDA graphs"),
            o if o.kernels != ShapeKernels::General => refuse("a choice of kernels"),
            o if o.runtime_cache_dir.is_some() => refuse("the runtime cache"),
            _ => Ok(()),
        }
    }

    pub(crate) fn set_capabilities(_: &mut BuilderConfig<'_>, _: &[Capability]) -> trtx::Result<()> {
        Ok(())
    }

    pub(crate) fn choose_kernels(_: &mut RuntimeConfig<'static>, _: ShapeKernels) {}

    pub(crate) fn record_graphs(_: &mut RuntimeConfig<'static>) -> trtx::Result<()> {
        Ok(())
    }

    pub(crate) fn open_cache(_: &mut RuntimeConfig<'static>, _: &Utf8Path) -> trtx::Result<Cache> {
        Err(trtx::Error::RuntimeCacheCreationFailed)
    }

    pub(crate) fn cache_bytes(cache: &Cache) -> trtx::Result<Vec<u8>> {
        match *cache {}
    }

    pub(crate) fn diagnose(_: &Runtime<'_>, _: &[u8]) -> Diagnosis {
        Diagnosis::default()
    }

    /// Left to the library, whose format this does not know.
    pub(crate) fn check_plan(_: &[u8]) -> Result<Option<crate::PlanHeader>, crate::PlanFault> {
        Ok(None)
    }
}

pub(crate) use chosen::*;
