//! ONNX Runtime behind the engine contract. The library is loaded at run time and checked before the bindings
//! touch it: with a missing or an old one they hang or abort, here it is an error that says how to get one.
//!
//! Where the library is looked for: `SharedLibrary::search` in `engines/api`, with [`OrtOptions::library`], then the
//! environment variable `ORT_DYLIB_PATH`.
//!
//! The library's telemetry is off before it is loaded, or it is not loaded: see [`disable_telemetry`].

mod attention;
mod descriptor;
mod device;
mod library;
mod plugin;
mod providers;
mod runtime;
mod session;
mod shapes;
mod telemetry;

use camino::Utf8PathBuf;

use dpar_engine_api::{
    Arithmetic, ArithmeticKind, CacheForm, CachedSession, Engine, EngineError, EngineInfo, GraphFile,
    Session, check_graph, no_precision, no_weights,
};
use dpar_engine_kv::{cached, not_in_place};
use dpar_export_spec::{AccuracyLevel, Dialect, Precision, WeightBits};

pub use descriptor::ENGINE;
pub use device::OrtDevice;
pub use plugin::{Hardware, PlugInDevice};
pub use telemetry::disable_telemetry;

/// Name as given to `--engine`.
const NAME: &str = "ort";

/// Why bf16 graphs are refused.
const NO_BFLOAT16: &str = "ONNX Runtime's CPU provider has no bfloat16 operators";

/// What may be chosen about the engine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OrtOptions {
    /// The shared library to load; `None` = search.
    pub library: Option<Utf8PathBuf>,
    /// Threads used for one run; `None` = ONNX Runtime's choice, one per physical core.
    pub threads: Option<usize>,
    /// Where graphs run. On a GPU, a provider that the library does not have, that does not load, or that leaves a
    /// node to the CPU is an error.
    pub device: OrtDevice,
    /// How caches are kept; `None` = in place on the CPU where that can be.
    pub caches: Option<CacheForm>,
}

/// ONNX Runtime with one execution provider and no other.
#[derive(Debug, Clone)]
pub struct OrtEngine {
    options: OrtOptions,
}

impl OrtEngine {
    /// An engine; nothing is loaded until it is probed or a graph is prepared.
    ///
    /// A process can hold one ONNX Runtime: once an engine has loaded a library, one that names another is
    /// unavailable.
    pub fn new(options: OrtOptions) -> Self {
        Self { options }
    }
}

impl Engine for OrtEngine {
    fn name(&self) -> &'static str {
        NAME
    }

    fn probe(&self) -> Result<EngineInfo, EngineError> {
        let runtime = runtime::start(self.options.library.as_deref())?;
        let (device, provider) = match &self.options.device {
            OrtDevice::PlugIn(at) => {
                let found = at.find(&runtime)?;
                (found.name, found.provider)
            }
            own => {
                own.check(&runtime)?;
                (own.name(), own.provider().to_owned())
            }
        };
        Ok(EngineInfo {
            engine: NAME.to_owned(),
            version: runtime.version.clone(),
            device,
            provider,
            library: Some(runtime.path.to_string()),
            threads: self.options.threads.map(|n| n.max(1)),
            caches: self.options.caches,
        })
    }

    fn arithmetic(&self, precision: Precision) -> Result<Arithmetic, EngineError> {
        match (&self.options.device, precision) {
            // They build engines of their own. Nothing here sets TF32 off or the types fast, and none has run yet.
            (OrtDevice::TensorRt(_) | OrtDevice::NvRtx(_), _) => {
                let provider = self.options.device.provider();
                let text = format!(
                    "not known: {provider} chooses, TF32 and the types of {precision} graphs included"
                );
                Ok(Arithmetic::new(ArithmeticKind::Wider, text))
            }
            (OrtDevice::PlugIn(at), _) => {
                let runtime = runtime::start(self.options.library.as_deref())?;
                Ok(at.find(&runtime)?.arithmetic(precision))
            }
            (OrtDevice::Cuda(_), Precision::Fp32) => {
                Ok(Arithmetic::new(ArithmeticKind::AsGraph, "float32 without TF32"))
            }
            (OrtDevice::Cuda(_), Precision::Bf16AutocastExplicit) => Ok(Arithmetic::new(
                ArithmeticKind::AsGraph,
                "float32 without TF32, with every rounding of bf16 autocast",
            )),
            // No node is left to the CPU, and the provider has kernels of both half types.
            (OrtDevice::Cuda(_), half) => {
                Ok(Arithmetic::new(ArithmeticKind::AsGraph, format!("{half} as in the graph")))
            }
            (OrtDevice::Cpu, Precision::Fp32) => Ok(Arithmetic::float32()),
            // The CPU provider has no fp16 kernels for these operators. It casts their inputs to float32 and drops
            // every cast back to fp16 that is followed by another operator, also those of the graph.
            (OrtDevice::Cpu, Precision::Fp16 | Precision::Fp16Autocast) => {
                Ok(Arithmetic::new(ArithmeticKind::Wider, "float32 with fp16 weights and KV caches"))
            }
            (OrtDevice::Cpu, Precision::Bf16AutocastExplicit) => Ok(Arithmetic::explicit()),
            (OrtDevice::Cpu, Precision::Bf16 | Precision::Bf16Autocast) => {
                Err(no_precision(NAME, precision, NO_BFLOAT16))
            }
        }
    }

    fn dialects(&self) -> &'static [Dialect] {
        match &self.options.device {
            OrtDevice::Cpu => &[Dialect::Packed],
            OrtDevice::Cuda(_) | OrtDevice::TensorRt(_) | OrtDevice::NvRtx(_) | OrtDevice::PlugIn(_) => &[],
        }
    }

    fn quantized(&self, weights: WeightBits, accuracy: AccuracyLevel) -> Result<Arithmetic, EngineError> {
        match &self.options.device {
            // What its operator does at the accuracy level that the packed graphs ask for.
            OrtDevice::Cpu => Ok(match accuracy {
                AccuracyLevel::Int8 => {
                    let text =
                        "activations rounded to 8 bits a block, sums in int32 and float32 (accuracy level 4)";
                    Arithmetic::new(ArithmeticKind::NarrowActivations, text)
                }
                AccuracyLevel::Float32 => Arithmetic::new(
                    ArithmeticKind::AsGraph,
                    "float32 activations and sums (accuracy level 1)",
                ),
            }),
            OrtDevice::Cuda(_) | OrtDevice::TensorRt(_) | OrtDevice::NvRtx(_) | OrtDevice::PlugIn(_) => {
                let why = format!("no graph with them has run on {}", self.options.device.provider());
                Err(no_weights(NAME, weights, &why))
            }
        }
    }

    fn prepare(&self, graph: GraphFile<'_>) -> Result<Box<dyn Session>, EngineError> {
        let runtime = runtime::start(self.options.library.as_deref())?;
        check_graph(NAME, graph)?;
        Ok(Box::new(session::OrtSession::load(&runtime, graph, None, &self.options)?))
    }

    /// With its caches in place, where the graph is one that this can be derived from and nothing else is asked for; the operator
    /// runs on the CPU only.
    fn prepare_cached(&self, graph: GraphFile<'_>) -> Result<Box<dyn CachedSession>, EngineError> {
        let asked = match (&self.options.device, self.options.caches) {
            (OrtDevice::Cpu, asked) => asked,
            (_, Some(CacheForm::InPlace)) => {
                return Err(not_in_place(NAME, graph, "they are on the processor only"));
            }
            _ => Some(CacheForm::Joined),
        };
        let runtime = runtime::start(self.options.library.as_deref())?;
        check_graph(NAME, graph)?;
        cached(NAME, graph, asked, |derived| {
            Ok(Box::new(session::OrtSession::load(&runtime, graph, derived, &self.options)?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_known_of_a_provider_is_claimed() {
        let said = |device, precision| {
            let engine = OrtEngine::new(OrtOptions { device, ..OrtOptions::default() });
            engine.arithmetic(precision).map(|a| (a.kind, a.text)).map_err(|e| e.message)
        };
        for device in [OrtDevice::TensorRt(0), OrtDevice::NvRtx(0)] {
            for precision in Precision::ALL {
                let (kind, text) = said(device.clone(), precision).unwrap();
                assert_eq!(kind, ArithmeticKind::Wider, "{device:?} {precision}");
                assert!(text.starts_with("not known: ") && text.contains(device.provider()), "{text}");
            }
        }
        let cuda = |precision| said(OrtDevice::Cuda(0), precision).unwrap();
        assert_eq!(cuda(Precision::Fp32), (ArithmeticKind::AsGraph, "float32 without TF32".to_owned()));
        assert_eq!(cuda(Precision::Bf16), (ArithmeticKind::AsGraph, "bf16 as in the graph".to_owned()));
        assert_eq!(said(OrtDevice::Cpu, Precision::Fp16).unwrap().0, ArithmeticKind::Wider);
        assert!(said(OrtDevice::Cpu, Precision::Bf16).unwrap_err().contains("cannot run bf16 graphs"));
    }
}
