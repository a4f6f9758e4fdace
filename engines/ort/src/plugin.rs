//! Execution providers in a library of their own, which any ONNX Runtime loads while it runs.

use std::fmt;
use std::sync::{Mutex, PoisonError};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::library::check_whole;
use dpar_engine_api::{Arithmetic, ArithmeticKind, EngineError, EngineErrorKind};
use dpar_export_spec::{GraphSpec, Precision};
use ort::device::Device;
use ort::ep::{self, ExecutionProvider};
use ort::memory::DeviceType;

use crate::NAME;
use crate::runtime::Runtime;
use crate::shapes::profile;

/// OpenVINO's provider.
const OPENVINO: &str = "OpenVINOExecutionProvider";

const HINT: &str = "name a provider's own library, such as libonnxruntime_providers_openvino_plugin.so of the Python \
    package onnxruntime-ep-openvino, with its other libraries beside it";

/// Which of a provider's devices.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Hardware {
    /// The first that the provider lists.
    #[default]
    First,
    /// The processor.
    Cpu,
    /// The GPU of this index among those that the provider lists.
    Gpu(u16),
    /// The NPU of this index among those that the provider lists.
    Npu(u16),
}

impl Hardware {
    fn index(self) -> usize {
        match self {
            Self::First | Self::Cpu => 0,
            Self::Gpu(index) | Self::Npu(index) => usize::from(index),
        }
    }

    fn is(self, found: DeviceType) -> bool {
        match self {
            Self::First => true,
            Self::Cpu => found == DeviceType::CPU,
            Self::Gpu(_) => found == DeviceType::GPU,
            Self::Npu(_) => found == DeviceType::NPU,
        }
    }
}

/// As `--device` has it.
impl fmt::Display for Hardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::First => f.write_str("its first device"),
            Self::Cpu => f.write_str("cpu"),
            Self::Gpu(index) => write!(f, "gpu:{index}"),
            Self::Npu(index) => write!(f, "npu:{index}"),
        }
    }
}

/// A device of a provider in a library of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlugInDevice {
    /// The provider's library.
    pub library: Utf8PathBuf,
    /// Which of its devices.
    pub hardware: Hardware,
}

/// A device of a registered provider.
pub(crate) struct PlugIn<'r> {
    pub(crate) device: Device<'r>,
    /// The provider's name, as ONNX Runtime has it.
    pub(crate) provider: String,
    /// The device's kind and index among those of its kind, such as `cpu:0`.
    pub(crate) name: String,
}

/// What a library registered: a process registers it once.
struct Registered {
    library: Utf8PathBuf,
    /// Providers that were not there before, in the order in which ONNX Runtime lists their devices.
    providers: Vec<String>,
}

static REGISTERED: Mutex<Vec<Registered>> = Mutex::new(Vec::new());

impl PlugInDevice {
    /// Registers the library, if it is not yet, and finds the device.
    pub(crate) fn find<'r>(&self, runtime: &'r Runtime) -> Result<PlugIn<'r>, EngineError> {
        let hardware = self.hardware;
        let provider = register(runtime, &self.library)?;
        let mine: Vec<Device<'r>> =
            runtime.environment.devices().filter(|d| d.ep().is_ok_and(|name| name == provider)).collect();
        let listed: Vec<&str> = mine.iter().map(|d| word(d.hardware_device().ty())).collect();
        let listed = listed.join(", ");
        let device = mine.into_iter().filter(|d| hardware.is(d.hardware_device().ty())).nth(hardware.index());
        let Some(device) = device else {
            let message = format!("{provider} has no such device here; it lists {listed}");
            return Err(unavailable(message).hint("say `--device cpu`, gpu:N or npu:N of what it lists"));
        };
        let name = format!("{}:{}", word(device.hardware_device().ty()), hardware.index());
        Ok(PlugIn { device, provider, name })
    }
}

/// The first provider of the library.
fn register(runtime: &Runtime, library: &Utf8Path) -> Result<String, EngineError> {
    let refuse =
        |why: &dyn std::fmt::Display| unavailable(format!("`{library}` cannot be used: {why}")).hint(HINT);
    let library = library.canonicalize_utf8().map_err(|e| refuse(&e))?;
    let mut registered = REGISTERED.lock().unwrap_or_else(PoisonError::into_inner);
    let providers = match registered.iter().find(|r| r.library == library) {
        Some(known) => &known.providers,
        None => {
            check_whole(&library).map_err(|e| refuse(&e))?;
            let before = listed(runtime);
            let added = runtime.environment.register_ep_library(library.as_str(), &library);
            added.map_err(|e| refuse(&e.message()))?;
            let mut providers = listed(runtime);
            providers.retain(|name| !before.contains(name));
            registered.push(Registered { library: library.clone(), providers });
            &registered[registered.len() - 1].providers
        }
    };
    providers.first().cloned().ok_or_else(|| refuse(&"it brings no provider with a device here"))
}

/// The providers of all devices, each once.
fn listed(runtime: &Runtime) -> Vec<String> {
    let mut names = Vec::new();
    for device in runtime.environment.devices() {
        if let Ok(name) = device.ep()
            && !names.iter().any(|n| n == name)
        {
            names.push(name.to_owned());
        }
    }
    names
}

impl PlugIn<'_> {
    /// What the provider is told, as `PROVIDER.KEY` and value, for a graph where it must know its shapes.
    pub(crate) fn settings(&self, threads: Option<usize>, spec: Option<&GraphSpec>) -> Vec<(String, String)> {
        let told: Vec<(&str, String)> = match (self.provider.as_str(), spec) {
            (OPENVINO, _) => vec![("load_config", self.openvino(threads))],
            // Without them an engine would be built again for every new shape, so at every decoding step.
            (ep::NVRTX::NAME, Some(spec)) => vec![
                ("nv_profile_min_shapes", profile(spec, |a| a.min)),
                ("nv_profile_opt_shapes", profile(spec, |a| a.opt)),
                ("nv_profile_max_shapes", profile(spec, |a| a.max)),
            ],
            _ => Vec::new(),
        };
        told.into_iter().map(|(key, value)| (format!("{}.{key}", self.provider), value)).collect()
    }

    /// OpenVINO computes float32 graphs in bfloat16 where the processor has it, unless it is told not to; threads are its own.
    fn openvino(&self, threads: Option<usize>) -> String {
        let mut told = serde_json::json!({ "INFERENCE_PRECISION_HINT": "f32" });
        if let Some(threads) = threads {
            told["INFERENCE_NUM_THREADS"] = threads.max(1).to_string().into();
        }
        let device = word(self.device.hardware_device().ty()).to_uppercase();
        serde_json::json!({ device: told }).to_string()
    }

    /// What it computes graphs with.
    pub(crate) fn arithmetic(&self, precision: Precision) -> Arithmetic {
        if self.provider == OPENVINO && precision == Precision::Fp32 {
            return Arithmetic::new(ArithmeticKind::AsGraph, "float32, as OpenVINO is told");
        }
        let text = format!("not known: {} chooses for {precision} graphs", self.provider);
        Arithmetic::new(ArithmeticKind::Wider, text)
    }
}

fn word(hardware: DeviceType) -> &'static str {
    match hardware {
        DeviceType::GPU => "gpu",
        DeviceType::NPU => "npu",
        DeviceType::CPU | DeviceType::FPGA => "cpu",
    }
}

fn unavailable(message: String) -> EngineError {
    EngineError::new(EngineErrorKind::Unavailable, NAME, message)
}
