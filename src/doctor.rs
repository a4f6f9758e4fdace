//! What can run here, and why not: every engine of this build, its library and where it was looked for, the driver and
//! its devices, and whether a bundle's engines fit them.

use camino::Utf8PathBuf;
use dpar_engine_api::places::Place;
use dpar_engine_api::{EngineError, EngineInfo};
use serde::Serialize;

use crate::bundle::Bundle;
use crate::engines::{self, EngineOptions};

/// The next step on a device that TensorRT-RTX does not list.
#[cfg(feature = "tensorrt")]
const TRY_HINT: &str =
    "`dpar-export verify BUNDLE --engine tensorrt` tries it; the ONNX graphs run with another engine";

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// One entry per engine that this version knows.
    pub engines: Vec<EngineReport>,
    /// The NVIDIA driver, where this build can ask (feature `tensorrt`).
    pub driver: Option<DriverReport>,
    /// SHA-256 of the bundle's manifest, if a bundle was given.
    pub bundle: Option<String>,
}

/// One engine.
#[derive(Debug, Serialize)]
pub struct EngineReport {
    /// Name as given to `--engine`.
    pub name: String,
    /// Whether this program was built with it.
    pub built_in: bool,
    /// Whether it runs here; with a bundle, whether it runs that bundle.
    pub works: bool,
    /// What would run.
    pub info: Option<EngineInfo>,
    /// Why it does not run.
    pub reason: Option<String>,
    /// The next step.
    pub hint: Option<String>,
    /// Libraries that were found and fit.
    pub libraries: Vec<LibraryReport>,
    /// Where its library was looked for, the place that was taken last.
    pub searched: Vec<Place>,
    /// Execution providers that the ONNX Runtime library was built with.
    pub providers: Vec<String>,
    /// The bundle's engine files against this machine.
    pub files: Vec<EngineFileReport>,
}

/// A library.
#[derive(Debug, Serialize)]
pub struct LibraryReport {
    /// Where it is.
    pub path: Utf8PathBuf,
    /// What it says it is.
    pub version: String,
}

/// The NVIDIA driver.
#[derive(Debug, Default, Serialize)]
pub struct DriverReport {
    /// The newest CUDA version it supports.
    pub cuda: Option<String>,
    /// Why there is none.
    pub reason: Option<String>,
    /// Its devices.
    pub gpus: Vec<GpuReport>,
}

/// A device.
#[derive(Debug, Serialize)]
pub struct GpuReport {
    /// Index.
    pub ordinal: usize,
    /// Product name.
    pub name: String,
    /// Compute capability.
    pub compute_capability: String,
    /// Bytes of memory.
    pub memory: u64,
}

/// An engine file of a bundle.
#[derive(Debug, Serialize)]
pub struct EngineFileReport {
    /// Graph.
    pub graph: String,
    /// File in the bundle.
    pub file: String,
    /// Version of the library that built it.
    pub version: String,
    /// Devices it was built for; empty = all of Ampere and later.
    pub compute_capabilities: Vec<String>,
    /// Why it does not run here, or is not known to, if the reason is the file, the library's version or the device.
    pub reason: Option<String>,
}

impl Report {
    /// The engine of that name.
    pub fn engine(&self, name: &str) -> Option<&EngineReport> {
        self.engines.iter().find(|e| e.name == name)
    }
}

/// Looks at every engine, and whether it runs the bundle where one is given.
pub fn examine(options: &EngineOptions, bundle: Option<&Bundle>) -> Report {
    let mut report =
        Report { engines: Vec::new(), driver: None, bundle: bundle.map(|b| b.manifest_sha256().to_owned()) };
    for name in engines::names() {
        let mut entry = EngineReport {
            name: name.to_owned(),
            built_in: false,
            works: false,
            info: None,
            reason: None,
            hint: None,
            libraries: Vec::new(),
            searched: Vec::new(),
            providers: Vec::new(),
            files: Vec::new(),
        };
        match engines::create(name, options) {
            Err(e) => entry.fails(&e),
            Ok(engine) => {
                entry.built_in = true;
                match engine.probe() {
                    Ok(info) => {
                        (entry.works, entry.info) = (true, Some(info));
                        let precision = bundle.map(|b| b.manifest().precision);
                        if let Some(Err(e)) = precision.map(|p| engine.arithmetic(p)) {
                            entry.fails(&e);
                        }
                    }
                    Err(e) => entry.fails(&e),
                }
                match name {
                    "ort" => entry.onnx_runtime(options),
                    "tensorrt" => report.driver = entry.tensorrt(options, bundle),
                    _ => {}
                }
            }
        }
        report.engines.push(entry);
    }
    report
}

impl EngineReport {
    fn fails(&mut self, e: &EngineError) {
        self.works = false;
        self.reason = Some(e.message.clone());
        self.hint.clone_from(&e.hint);
    }

    fn library(&mut self, path: &str, version: &str) {
        self.libraries.push(LibraryReport { path: path.into(), version: version.to_owned() });
    }

    #[cfg(feature = "ort")]
    fn onnx_runtime(&mut self, options: &EngineOptions) {
        let library = options.ort_library.as_deref();
        self.searched = dpar_engine_ort::searched(library);
        if let Some((path, version)) =
            self.info.as_ref().and_then(|i| Some((i.library.clone()?, i.version.clone())))
        {
            self.library(&path, &version);
        }
        if self.info.is_some()
            && let Ok(providers) = dpar_engine_ort::providers(library)
        {
            self.providers = providers;
        }
    }

    #[cfg(not(feature = "ort"))]
    fn onnx_runtime(&mut self, _: &EngineOptions) {}

    #[cfg(not(feature = "tensorrt"))]
    fn tensorrt(&mut self, _: &EngineOptions, _: Option<&Bundle>) -> Option<DriverReport> {
        None
    }

    #[cfg(feature = "tensorrt")]
    fn tensorrt(&mut self, options: &EngineOptions, bundle: Option<&Bundle>) -> Option<DriverReport> {
        let found = dpar_engine_tensorrt::survey(options.trt_library.as_deref());
        self.searched = found.searched;
        for library in [&found.core, &found.parser].into_iter().flatten() {
            self.library(library.path.as_str(), &library.version);
        }
        let driver = match found.driver {
            Err(e) => DriverReport { reason: Some(e.message), ..DriverReport::default() },
            Ok(driver) => DriverReport {
                cuda: Some(driver.cuda),
                reason: None,
                gpus: driver
                    .gpus
                    .into_iter()
                    .map(|g| GpuReport {
                        ordinal: g.ordinal,
                        name: g.name,
                        compute_capability: g.capability,
                        memory: g.memory,
                    })
                    .collect(),
            },
        };
        // The driver is asked first when something runs; a library that is missing as well is named too.
        if let (Err(e), Some(reason)) = (&found.core, &mut self.reason)
            && !reason.contains(&e.message)
        {
            *reason = format!("{reason}; {}", e.message);
        }
        if let Some(bundle) = bundle {
            let library = found.core.as_ref().ok().map(|l| l.version.as_str());
            self.files = files(bundle, library, driver.gpus.first());
            self.judge_files(bundle, driver.gpus.first());
        }
        Some(driver)
    }

    /// Every graph needs an engine that fits.
    #[cfg(feature = "tensorrt")]
    fn judge_files(&mut self, bundle: &Bundle, gpu: Option<&GpuReport>) {
        let missing = bundle
            .manifest()
            .graphs
            .iter()
            .find(|g| self.files.iter().all(|f| f.graph != g.spec.name))
            .map(|g| format!("the bundle has no engine of graph `{}`", g.spec.name));
        let unfit = self
            .files
            .iter()
            .find_map(|f| f.reason.as_ref().map(|r| format!("the engine of graph `{}`: {r}", f.graph)));
        let complete = missing.is_none();
        let Some(reason) = missing.or(unfit) else { return };
        let first = self.reason.take().map(|r| format!("{r}; ")).unwrap_or_default();
        self.reason = Some(format!("{first}{reason}"));
        if self.works || self.hint.is_none() {
            self.hint = Some(match gpu {
                // Building again changes nothing about the device.
                Some(gpu) if complete && unlisted(gpu) => TRY_HINT.to_owned(),
                _ => "build the engines with `dpar-export --target trt BUNDLE`".to_owned(),
            });
        }
        self.works = false;
    }
}

/// Engine files against the library that would run them and the device they would run on.
#[cfg(feature = "tensorrt")]
fn files(bundle: &Bundle, library: Option<&str>, gpu: Option<&GpuReport>) -> Vec<EngineFileReport> {
    let check = |entry: &crate::bundle::EngineEntry| {
        let file = dpar_engine_tensorrt::check_engine_file(&bundle.path(&entry.file));
        let reason = match (file, library) {
            (Err(e), _) => Some(e.message),
            (Ok(_), Some(version)) if version != entry.version => Some(format!(
                "it was built by {} {}, the library here is {version}",
                entry.builder, entry.version
            )),
            _ => gpu.and_then(|gpu| device_reason(&entry.compute_capabilities, gpu)),
        };
        EngineFileReport {
            graph: entry.graph.clone(),
            file: entry.file.clone(),
            version: entry.version.clone(),
            compute_capabilities: entry.compute_capabilities.clone(),
            reason,
        }
    };
    bundle.manifest().engines.iter().map(check).collect()
}

/// Why an engine built for these devices does not run on that one. An empty list is all of Ampere and later.
#[cfg(feature = "tensorrt")]
fn device_reason(built_for: &[String], gpu: &GpuReport) -> Option<String> {
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
#[cfg(feature = "tensorrt")]
fn unlisted(gpu: &GpuReport) -> bool {
    !cfg!(feature = "tensorrt-enterprise")
        && gpu.compute_capability.parse::<dpar_export_spec::Capability>().is_err()
}

#[cfg(all(test, feature = "tensorrt"))]
mod tests {
    use super::*;

    #[test]
    fn an_engine_fits_the_devices_it_was_built_for() {
        let gpu = |capability: &str| GpuReport {
            ordinal: 0,
            name: "G".into(),
            compute_capability: capability.into(),
            memory: 1,
        };
        let list = |c: &[&str]| c.iter().map(|c| (*c).to_owned()).collect::<Vec<_>>();
        assert_eq!(device_reason(&[], &gpu("8.9")), None);
        assert_eq!(device_reason(&[], &gpu("12.0")), None);
        assert!(device_reason(&[], &gpu("7.5")).unwrap().contains("Ampere"));
        #[cfg(not(feature = "tensorrt-enterprise"))]
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
