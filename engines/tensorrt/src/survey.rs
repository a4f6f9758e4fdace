//! What of TensorRT is on this machine: libraries, driver, devices. Each part is looked at by itself, so that a report
//! can name everything that is missing and not only the first.

#![allow(unsafe_code, reason = "asks a loaded library")]

use std::ffi::{CStr, c_char, c_int};
use std::sync::Arc;

use dpar_engine_api::{EngineError, EngineOptions, Gpu, LibraryFound, Survey};

use crate::cuda::{self, CudaDriver};
use crate::library::CORE;
use crate::start;

/// Looks for everything. No device memory is taken.
pub(crate) fn survey(options: &EngineOptions) -> Survey {
    let folder = options.trt_library.as_deref();
    let (core, parser) = (start::core(folder), start::parser(folder));
    let missing = core.as_ref().err().cloned();
    let found = |s: start::Started| LibraryFound { path: s.path, version: s.version };
    let driver = cuda::driver().and_then(devices);
    Survey {
        searched: CORE.search(folder),
        libraries: [core, parser].into_iter().flatten().map(found).collect(),
        missing,
        driver: Some(driver.unwrap_or_else(|e| dpar_engine_api::Driver {
            reason: Some(e.message),
            ..dpar_engine_api::Driver::default()
        })),
        ..Survey::default()
    }
}

fn devices(driver: &Arc<CudaDriver>) -> Result<dpar_engine_api::Driver, EngineError> {
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
            compute_capability: format!("{}.{}", parts[0], parts[1]),
            memory: memory as u64,
        });
    }
    // 12080 is 12.8 (`cuDriverGetVersion` in `cuda.h`).
    let version: c_int = version;
    let cuda = format!("{}.{}", version / 1000, version % 1000 / 10);
    Ok(dpar_engine_api::Driver { cuda: Some(cuda), reason: None, gpus })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_listed_with_what_decides_about_engines() {
        let found = devices(&cuda::fake::driver()).unwrap();
        assert_eq!(found.cuda.as_deref(), Some("12.8"));
        let [gpu] = &found.gpus[..] else { panic!("{found:?}") };
        assert_eq!((gpu.ordinal, gpu.name.as_str(), gpu.compute_capability.as_str()), (0, "stand-in", "8.9"));
        assert!(gpu.memory > 0);
    }

    #[test]
    fn a_folder_without_libraries_is_reported_and_the_rest_is_still_looked_at() {
        let trt_library = Some("no-such-folder".into());
        let found = survey(&EngineOptions { trt_library, ..EngineOptions::default() });
        assert!(found.missing.unwrap().message.contains("no-such-folder"));
        assert_eq!((found.libraries.len(), found.searched.len()), (0, 1));
        assert!(found.driver.is_some());
    }
}
