//! What of TensorRT is on this machine: libraries, driver, devices. Each part is looked at by itself, so that a report
//! can name everything that is missing and not only the first.

#![allow(unsafe_code, reason = "asks a loaded library")]

use std::ffi::{CStr, c_char, c_int};
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::EngineError;
use dpar_engine_api::places::{Place, Places};

use crate::cuda::{self, Driver};
use crate::library::{self, VARIABLE};
use crate::{flavour, start};

/// A library that was found and fits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibraryFound {
    /// Where it is.
    pub path: Utf8PathBuf,
    /// What it says it is.
    pub version: String,
}

/// A CUDA device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    /// Index, as in `cuda:0`.
    pub ordinal: usize,
    /// Product name.
    pub name: String,
    /// Compute capability, e.g. `8.9`.
    pub capability: String,
    /// Bytes of its memory.
    pub memory: u64,
}

/// The NVIDIA driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriverFound {
    /// The newest CUDA version that it supports, e.g. `12.8`.
    pub cuda: String,
    /// Its devices.
    pub gpus: Vec<Gpu>,
}

/// What is there, and why not.
#[derive(Debug, Clone)]
pub struct Survey {
    /// TensorRT-RTX or TensorRT.
    pub product: &'static str,
    /// Where the libraries were looked for, the place that was taken last.
    pub searched: Vec<Place>,
    /// The library that builds and runs engines.
    pub core: Result<LibraryFound, EngineError>,
    /// The library that reads ONNX files.
    pub parser: Result<LibraryFound, EngineError>,
    /// The driver.
    pub driver: Result<DriverFound, EngineError>,
}

/// Looks for everything. No device memory is taken.
pub fn survey(library_dir: Option<&Utf8Path>) -> Survey {
    let found = |s: start::Started| LibraryFound { path: s.path, version: s.version };
    Survey {
        product: flavour::PRODUCT,
        searched: library::search(library_dir, &Places::here(VARIABLE)),
        core: start::core(library_dir).map(found),
        parser: start::parser(library_dir).map(found),
        driver: cuda::driver().and_then(devices),
    }
}

fn devices(driver: &Arc<Driver>) -> Result<DriverFound, EngineError> {
    let api = &driver.api;
    let check = |call: &str, status| driver.check(call, status).map_err(cuda::no_driver);
    let (mut version, mut count) = (0, 0);
    // SAFETY: writes one number.
    check("cuDriverGetVersion", unsafe { (api.driver_version)(&mut version) })?;
    // SAFETY: writes one number.
    check("cuDeviceGetCount", unsafe { (api.device_count)(&mut count) })?;
    let mut gpus = Vec::new();
    for index in 0..count {
        let (mut device, mut parts, mut memory) = (0, [0; 2], 0);
        // SAFETY: writes the device number; the index is in range.
        check("cuDeviceGet", unsafe { (api.device_get)(&mut device, index) })?;
        let mut name: [c_char; 256] = [0; 256];
        // SAFETY: writes at most 255 bytes and a NUL.
        check("cuDeviceGetName", unsafe { (api.device_name)(name.as_mut_ptr(), 255, device) })?;
        for (part, attribute) in parts.iter_mut().zip(cuda::CAPABILITY) {
            // SAFETY: writes one number.
            check("cuDeviceGetAttribute", unsafe { (api.device_attribute)(part, attribute, device) })?;
        }
        // SAFETY: writes one number.
        check("cuDeviceTotalMem", unsafe { (api.total_memory)(&mut memory, device) })?;
        gpus.push(Gpu {
            ordinal: usize::try_from(index).unwrap_or_default(),
            // SAFETY: the driver ended it with a NUL, and the last byte is one in any case.
            name: unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned(),
            capability: format!("{}.{}", parts[0], parts[1]),
            memory: memory as u64,
        });
    }
    // 12080 is 12.8 (`cuDriverGetVersion` in `cuda.h`).
    let version: c_int = version;
    Ok(DriverFound { cuda: format!("{}.{}", version / 1000, version % 1000 / 10), gpus })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_listed_with_what_decides_about_engines() {
        let found = devices(&cuda::fake::driver()).unwrap();
        assert_eq!(found.cuda, "12.8");
        let [gpu] = &found.gpus[..] else { panic!("{found:?}") };
        assert_eq!((gpu.ordinal, gpu.name.as_str(), gpu.capability.as_str()), (0, "stand-in", "8.9"));
        assert!(gpu.memory > 0);
    }

    #[test]
    fn a_folder_without_libraries_is_reported_and_the_rest_is_still_looked_at() {
        let found = survey(Some("no-such-folder".into()));
        assert!(found.core.unwrap_err().message.contains("no-such-folder"));
        assert!(found.parser.is_err());
        assert_eq!(found.searched.len(), 1);
    }
}
