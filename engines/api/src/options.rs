//! What engines can be told.

use camino::Utf8PathBuf;

use crate::CacheForm;
use crate::device::Device;

/// What every engine can be told. An engine refuses what it does not have: see [`EngineOption`].
#[derive(Debug, Clone, Default)]
pub struct EngineOptions {
    /// Threads of one run; `None` = the engine's choice.
    pub threads: Option<usize>,
    /// Path of the ONNX Runtime library; `None` = search.
    pub ort_library: Option<Utf8PathBuf>,
    /// Path of a library with an execution provider for ONNX Runtime; `None` = its own providers.
    pub ep_library: Option<Utf8PathBuf>,
    /// Folder of the TensorRT libraries; `None` = search.
    pub trt_library: Option<Utf8PathBuf>,
    /// Where to run; `None` = the engine's first device.
    pub device: Option<Device>,
    /// Record a CUDA graph for each shape and replay it.
    pub cuda_graphs: bool,
    /// Folder for what is compiled for the device at run time.
    pub runtime_cache: Option<Utf8PathBuf>,
    /// How caches are kept; `None` = the engine's choice, graph by graph.
    pub caches: Option<CacheForm>,
}

/// An option that some engines have and others have not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EngineOption {
    /// [`EngineOptions::threads`].
    Threads,
    /// [`EngineOptions::ort_library`].
    OrtLibrary,
    /// [`EngineOptions::ep_library`].
    EpLibrary,
    /// [`EngineOptions::trt_library`].
    TrtLibrary,
    /// [`EngineOptions::cuda_graphs`].
    CudaGraphs,
    /// [`EngineOptions::runtime_cache`].
    RuntimeCache,
    /// [`EngineOptions::caches`].
    Caches,
}

impl EngineOption {
    /// As the command line has it.
    pub fn flag(self) -> &'static str {
        match self {
            Self::Threads => "--threads",
            Self::OrtLibrary => "--ort-lib",
            Self::EpLibrary => "--ep-lib",
            Self::TrtLibrary => "--trt-lib",
            Self::CudaGraphs => "--cuda-graphs",
            Self::RuntimeCache => "--runtime-cache",
            Self::Caches => "--caches",
        }
    }
}

impl EngineOptions {
    /// The options that are given. A device is judged by [`Devices`](crate::Devices).
    pub fn given(&self) -> Vec<EngineOption> {
        let mut given = Vec::new();
        given.extend(self.ort_library.as_ref().map(|_| EngineOption::OrtLibrary));
        given.extend(self.ep_library.as_ref().map(|_| EngineOption::EpLibrary));
        given.extend(self.trt_library.as_ref().map(|_| EngineOption::TrtLibrary));
        given.extend(self.threads.map(|_| EngineOption::Threads));
        given.extend(self.cuda_graphs.then_some(EngineOption::CudaGraphs));
        given.extend(self.runtime_cache.as_ref().map(|_| EngineOption::RuntimeCache));
        given.extend(self.caches.map(|_| EngineOption::Caches));
        given
    }

    /// All but one option.
    #[must_use]
    pub fn without(mut self, option: EngineOption) -> Self {
        match option {
            EngineOption::Threads => self.threads = None,
            EngineOption::OrtLibrary => self.ort_library = None,
            EngineOption::EpLibrary => self.ep_library = None,
            EngineOption::TrtLibrary => self.trt_library = None,
            EngineOption::CudaGraphs => self.cuda_graphs = false,
            EngineOption::RuntimeCache => self.runtime_cache = None,
            EngineOption::Caches => self.caches = None,
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_listed_and_can_be_left_out() {
        assert!(EngineOptions::default().given().is_empty());
        let all = EngineOptions {
            threads: Some(1),
            ort_library: Some("a".into()),
            ep_library: Some("p".into()),
            trt_library: Some("b".into()),
            device: Some(Device::Cpu),
            cuda_graphs: true,
            runtime_cache: Some("c".into()),
            caches: Some(CacheForm::Joined),
        };
        let given = all.given();
        let flags: Vec<&str> = given.iter().map(|o| o.flag()).collect();
        let all_flags = [
            "--ort-lib",
            "--ep-lib",
            "--trt-lib",
            "--threads",
            "--cuda-graphs",
            "--runtime-cache",
            "--caches",
        ];
        assert_eq!(flags, all_flags);
        for option in given {
            let without = all.clone().without(option);
            let left: Vec<EngineOption> = all.given().into_iter().filter(|o| *o != option).collect();
            assert_eq!(without.given(), left);
        }
    }
}
