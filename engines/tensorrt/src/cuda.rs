//! The part of the CUDA driver interface that running an engine needs: one device, one stream, memory and copies.
//! The driver is opened at run time, so a machine without one gets an error and nothing else.
//!
//! Device code can only be compiled where this was written, not run; the bookkeeping is tested on a stand-in whose
//! device memory is host memory.

#![allow(unsafe_code, reason = "calls the driver")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Arc, OnceLock};

use dpar_engine_api::library::loader_words;
use dpar_engine_api::{EngineError, EngineErrorKind};
use libloading::Library;

use crate::NAME;

/// `CUresult`: 0 is success.
type CuResult = c_int;
/// `CUcontext` and `CUstream`: opaque handles.
type Handle = *mut c_void;
/// `CUdeviceptr`.
pub(crate) type Address = u64;

/// `CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR` and `_MINOR`.
pub(crate) const CAPABILITY: [c_int; 2] = [75, 76];
/// `CU_STREAM_NON_BLOCKING`.
const NON_BLOCKING: u32 = 1;

const LIBRARY: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };

/// The next step where there is no driver.
const DRIVER_HINT: &str = "run on a machine with an NVIDIA GPU and its driver; `--engine ort` and `--engine tract` \
    run the ONNX graphs without one";

/// Declares the table of entry points with their loader.
macro_rules! entry_points {
    ($($field:ident = $symbol:literal: fn($($argument:ty),*);)*) => {
        /// Entry points with their names and signatures as `cuda.h` of CUDA 12 has them.
        pub(crate) struct Api {
            $(pub(crate) $field: unsafe extern "system" fn($($argument),*) -> CuResult,)*
        }

        impl Api {
            /// # Safety
            /// The library is the CUDA driver.
            unsafe fn load(library: &Library) -> Result<Self, libloading::Error> {
                // SAFETY: promised by the caller; names and signatures are those of `cuda.h`.
                unsafe { Ok(Self { $($field: *library.get(concat!($symbol, "\0").as_bytes())?,)* }) }
            }
        }
    };
}

entry_points! {
    init = "cuInit": fn(u32);
    driver_version = "cuDriverGetVersion": fn(*mut c_int);
    device_count = "cuDeviceGetCount": fn(*mut c_int);
    device_get = "cuDeviceGet": fn(*mut c_int, c_int);
    device_name = "cuDeviceGetName": fn(*mut c_char, c_int, c_int);
    device_attribute = "cuDeviceGetAttribute": fn(*mut c_int, c_int, c_int);
    total_memory = "cuDeviceTotalMem_v2": fn(*mut usize, c_int);
    context_retain = "cuDevicePrimaryCtxRetain": fn(*mut Handle, c_int);
    context_set = "cuCtxSetCurrent": fn(Handle);
    memory_info = "cuMemGetInfo_v2": fn(*mut usize, *mut usize);
    stream_create = "cuStreamCreate": fn(*mut Handle, u32);
    stream_destroy = "cuStreamDestroy_v2": fn(Handle);
    stream_synchronize = "cuStreamSynchronize": fn(Handle);
    allocate = "cuMemAlloc_v2": fn(*mut Address, usize);
    free = "cuMemFree_v2": fn(Address);
    to_device = "cuMemcpyHtoDAsync_v2": fn(Address, *const c_void, usize, Handle);
    to_host = "cuMemcpyDtoHAsync_v2": fn(*mut c_void, Address, usize, Handle);
    copy = "cuMemcpyDtoDAsync_v2": fn(Address, Address, usize, Handle);
    fill = "cuMemsetD8Async": fn(Address, u8, usize, Handle);
    fill_each = "cuMemsetD2D8Async": fn(Address, usize, u8, usize, usize, Handle);
    error_name = "cuGetErrorName": fn(CuResult, *mut *const c_char);
    error_text = "cuGetErrorString": fn(CuResult, *mut *const c_char);
}

/// A started driver.
pub(crate) struct CudaDriver {
    pub(crate) api: Api,
    /// Loaded for as long as the process runs; none for the stand-in of the tests.
    _library: Option<Library>,
}

/// The driver of this machine, started once.
///
/// # Errors
/// [`EngineErrorKind::Unavailable`] when there is none or it does not start.
pub(crate) fn driver() -> Result<&'static Arc<CudaDriver>, EngineError> {
    static DRIVER: OnceLock<Result<Arc<CudaDriver>, EngineError>> = OnceLock::new();
    DRIVER.get_or_init(|| open(LIBRARY).map(Arc::new)).as_ref().map_err(Clone::clone)
}

pub(crate) fn no_driver(message: impl std::fmt::Display) -> EngineError {
    EngineError::new(EngineErrorKind::Unavailable, NAME, message.to_string()).hint(DRIVER_HINT)
}

fn open(name: &str) -> Result<CudaDriver, EngineError> {
    // SAFETY: loading runs the constructors of the system's CUDA driver, which the user installed as such.
    let library = unsafe { Library::new(name) }.map_err(|e| {
        no_driver(format!("no NVIDIA driver was found: the system has no `{name}` ({})", loader_words(&e)))
    })?;
    // SAFETY: the library of this name is the CUDA driver.
    let api = unsafe { Api::load(&library) }.map_err(|e| {
        no_driver(format!("the NVIDIA driver (`{name}`) is too old for CUDA 12: {}", loader_words(&e)))
    })?;
    let driver = CudaDriver { api, _library: Some(library) };
    // SAFETY: the first call that the driver wants; 0 is the only flag there is.
    let status = unsafe { (driver.api.init)(0) };
    driver
        .check("cuInit", status)
        .map_err(|e| no_driver(format!("the NVIDIA driver does not start: {e}")))?;
    Ok(driver)
}

impl CudaDriver {
    /// The driver's own words for a failure.
    pub(crate) fn check(&self, call: &str, status: CuResult) -> Result<(), CudaError> {
        if status == 0 {
            return Ok(());
        }
        let text = |get: unsafe extern "system" fn(CuResult, *mut *const c_char) -> CuResult| {
            let mut text = std::ptr::null();
            // SAFETY: writes a pointer to a static string, or null for an unknown number.
            unsafe { get(status, &mut text) };
            // SAFETY: not null, and a static NUL-terminated string.
            (!text.is_null()).then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        let name = text(self.api.error_name).unwrap_or_else(|| "unknown error".to_owned());
        let words = text(self.api.error_text).map(|t| format!(": {t}")).unwrap_or_default();
        Err(format!("{call}: {name} ({status}){words}").into())
    }
}

/// Why a call of the driver failed, or was not made: the call, its error and the driver's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct CudaError(String);

impl From<String> for CudaError {
    fn from(why: String) -> Self {
        Self(why)
    }
}

impl From<&str> for CudaError {
    fn from(why: &str) -> Self {
        Self(why.to_owned())
    }
}

/// One device with its primary context, which TensorRT's own CUDA runtime uses too. The context is never released:
/// TensorRT's objects may outlive any session.
pub(crate) struct CudaDevice {
    driver: Arc<CudaDriver>,
    context: Handle,
    pub(crate) ordinal: usize,
    pub(crate) name: String,
    /// Compute capability, e.g. `8.9`.
    pub(crate) capability: String,
}

// SAFETY: a context handle may be used from every thread; the driver serialises what it must.
unsafe impl Send for CudaDevice {}
// SAFETY: as above; all methods take `&self` and make driver calls that are thread-safe.
unsafe impl Sync for CudaDevice {}

impl CudaDevice {
    /// Opens a device.
    ///
    /// # Errors
    /// [`EngineErrorKind::Unavailable`] when the machine has no such device.
    pub(crate) fn open(driver: &Arc<CudaDriver>, ordinal: usize) -> Result<Arc<Self>, EngineError> {
        let api = &driver.api;
        let check = |call: &str, status| driver.check(call, status).map_err(no_driver);
        let (mut count, mut device, mut context) = (0, 0, std::ptr::null_mut());
        // SAFETY: writes the count.
        check("cuDeviceGetCount", unsafe { (api.device_count)(&mut count) })?;
        let index = c_int::try_from(ordinal).ok().filter(|i| *i < count).ok_or_else(|| {
            no_driver(format!("there is no CUDA device {ordinal}: the machine has {count}"))
        })?;
        // SAFETY: writes the device number; the index is in range.
        check("cuDeviceGet", unsafe { (api.device_get)(&mut device, index) })?;
        let mut name: [c_char; 256] = [0; 256];
        // SAFETY: writes at most 255 bytes and a NUL.
        check("cuDeviceGetName", unsafe { (api.device_name)(name.as_mut_ptr(), 255, device) })?;
        let mut parts = [0; 2];
        for (part, attribute) in parts.iter_mut().zip(CAPABILITY) {
            // SAFETY: writes one number.
            check("cuDeviceGetAttribute", unsafe { (api.device_attribute)(part, attribute, device) })?;
        }
        // SAFETY: writes the handle.
        check("cuDevicePrimaryCtxRetain", unsafe { (api.context_retain)(&mut context, device) })?;
        // SAFETY: the driver ended it with a NUL, and the last byte is one in any case.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        let capability = format!("{}.{}", parts[0], parts[1]);
        Ok(Arc::new(Self { driver: Arc::clone(driver), context, ordinal, name, capability }))
    }

    /// Makes the device the calling thread's, as every other call here and every call into TensorRT expects.
    pub(crate) fn make_current(&self) -> Result<(), CudaError> {
        // SAFETY: the context was retained and is never released.
        let status = unsafe { (self.driver.api.context_set)(self.context) };
        self.driver.check("cuCtxSetCurrent", status)
    }

    /// Bytes of device memory that are free.
    pub(crate) fn free_memory(&self) -> Result<usize, CudaError> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers.
        let status = unsafe { (self.driver.api.memory_info)(&mut free, &mut total) };
        self.driver.check("cuMemGetInfo", status).map(|()| free)
    }
}

/// A stream: what is put on it runs in order.
pub(crate) struct CudaStream {
    device: Arc<CudaDevice>,
    handle: Handle,
}

impl CudaStream {
    pub(crate) fn new(device: &Arc<CudaDevice>) -> Result<Self, CudaError> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: writes the handle.
        let status = unsafe { (device.driver.api.stream_create)(&mut handle, NON_BLOCKING) };
        device.driver.check("cuStreamCreate", status)?;
        Ok(Self { device: Arc::clone(device), handle })
    }

    /// For TensorRT.
    pub(crate) fn raw(&self) -> Handle {
        self.handle
    }

    /// Waits for everything on the stream, and reports what failed in it.
    pub(crate) fn synchronize(&self) -> Result<(), CudaError> {
        // SAFETY: the handle lives as long as `self`.
        let status = unsafe { (self.device.driver.api.stream_synchronize)(self.handle) };
        self.device.driver.check("cuStreamSynchronize", status)
    }

    /// Copies to the start of a buffer.
    ///
    /// # Safety
    /// `from` must stay as it is until the stream is synchronised.
    pub(crate) unsafe fn upload<T: Plain>(&self, to: &DeviceBuffer, from: &[T]) -> Result<(), CudaError> {
        let bytes = size_of_val(from);
        to.fits(bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the buffer has that many bytes; the caller keeps the source.
        let status = unsafe {
            (self.device.driver.api.to_device)(to.address, from.as_ptr().cast(), bytes, self.handle)
        };
        self.device.driver.check("cuMemcpyHtoDAsync", status)
    }

    /// Copies from the start of a buffer.
    ///
    /// # Safety
    /// `to` must neither be read nor moved until the stream is synchronised.
    pub(crate) unsafe fn download<T: Plain>(
        &self,
        to: &mut [T],
        from: &DeviceBuffer,
    ) -> Result<(), CudaError> {
        let bytes = size_of_val(to);
        from.fits(bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the buffer has that many bytes; the caller keeps the target, which takes any bit pattern.
        let status = unsafe {
            (self.device.driver.api.to_host)(to.as_mut_ptr().cast(), from.address, bytes, self.handle)
        };
        self.device.driver.check("cuMemcpyDtoHAsync", status)
    }

    /// Copies between places on the device that do not overlap. Nothing may free them before the stream is
    /// synchronised.
    pub(crate) fn copy(
        &self,
        to: &DeviceBuffer,
        to_at: usize,
        from: &DeviceBuffer,
        from_at: usize,
        bytes: usize,
    ) -> Result<(), CudaError> {
        let (to, from) = (to.part(to_at, bytes)?, from.part(from_at, bytes)?);
        if bytes == 0 {
            return Ok(());
        }
        if to.abs_diff(from) < bytes as Address {
            return Err(format!("a copy of {bytes} bytes on the device overlaps itself").into());
        }
        // SAFETY: both places have that many bytes and are apart.
        let status = unsafe { (self.device.driver.api.copy)(to, from, bytes, self.handle) };
        self.device.driver.check("cuMemcpyDtoDAsync", status)
    }

    /// Fills a part of a buffer with zeros.
    pub(crate) fn zero(&self, to: &DeviceBuffer, at: usize, bytes: usize) -> Result<(), CudaError> {
        let to = to.part(at, bytes)?;
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the place has that many bytes.
        let status = unsafe { (self.device.driver.api.fill)(to, 0, bytes, self.handle) };
        self.device.driver.check("cuMemsetD8Async", status)
    }

    /// Fills parts of a buffer with zeros: `times` of them, of `bytes` each; the first begins at `at`, each other `pitch` bytes behind the one
    /// before.
    pub(crate) fn zero_each(
        &self,
        to: &DeviceBuffer,
        at: usize,
        (pitch, bytes, times): (usize, usize, usize),
    ) -> Result<(), CudaError> {
        let to = to.part(at, times.saturating_sub(1).saturating_mul(pitch).saturating_add(bytes))?;
        if bytes == 0 || times == 0 {
            return Ok(());
        }
        // SAFETY: the place from the first part to the end of the last one is the buffer's.
        let status = unsafe { (self.device.driver.api.fill_each)(to, pitch, 0, bytes, times, self.handle) };
        self.device.driver.check("cuMemsetD2D8Async", status)
    }
}

impl Drop for CudaStream {
    fn drop(&mut self) {
        let _ = self.device.make_current();
        // SAFETY: created by `new`, and nothing uses it after this.
        unsafe { (self.device.driver.api.stream_destroy)(self.handle) };
    }
}

/// Element types that any bytes are a value of.
///
/// # Safety
/// Every bit pattern is valid, and there is no padding.
pub(crate) unsafe trait Plain: Copy {}
// SAFETY: any 32 bits are a float.
unsafe impl Plain for f32 {}
// SAFETY: any 64 bits are an integer.
unsafe impl Plain for i64 {}
// SAFETY: a `u16` in a transparent wrapper.
unsafe impl Plain for half::f16 {}
// SAFETY: a `u16` in a transparent wrapper.
unsafe impl Plain for half::bf16 {}

/// Device memory. The driver aligns it to 256 bytes, which TensorRT asks for.
pub(crate) struct DeviceBuffer {
    device: Arc<CudaDevice>,
    address: Address,
    bytes: usize,
}

impl DeviceBuffer {
    /// At least one byte is allocated, because TensorRT wants an address for empty tensors too.
    pub(crate) fn new(device: &Arc<CudaDevice>, bytes: usize) -> Result<Self, CudaError> {
        let mut address = 0;
        // SAFETY: writes the address.
        let status = unsafe { (device.driver.api.allocate)(&mut address, bytes.max(1)) };
        device.driver.check(&format!("cuMemAlloc of {bytes} bytes"), status)?;
        Ok(Self { device: Arc::clone(device), address, bytes })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// For TensorRT.
    pub(crate) fn raw(&self) -> *mut c_void {
        self.raw_at(0)
    }

    /// For TensorRT: so many bytes behind the first.
    pub(crate) fn raw_at(&self, at: usize) -> *mut c_void {
        // A device address is never dereferenced here.
        std::ptr::without_provenance_mut(usize::try_from(self.address).unwrap_or_default() + at)
    }

    /// The address of a part.
    fn part(&self, at: usize, bytes: usize) -> Result<Address, CudaError> {
        self.fits(at.saturating_add(bytes))?;
        Ok(self.address + at as Address)
    }

    fn fits(&self, bytes: usize) -> Result<(), CudaError> {
        if bytes <= self.bytes {
            return Ok(());
        }
        Err(format!("a copy of {bytes} bytes does not fit a buffer of {}", self.bytes).into())
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        let _ = self.device.make_current();
        // SAFETY: allocated by `new`; the session waits for its stream before it lets go of a buffer.
        unsafe { (self.device.driver.api.free)(self.address) };
    }
}

#[cfg(test)]
pub(crate) mod fake;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_driver_is_told_so() {
        let Err(e) = open("libdpar-no-such-driver.so") else { panic!("opened") };
        assert_eq!(e.kind, EngineErrorKind::Unavailable);
        assert!(e.message.starts_with("no NVIDIA driver was found"), "{e}");
        assert!(e.hint.unwrap().contains("--engine ort"));
    }

    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[test]
    fn a_library_that_is_no_driver_is_refused() {
        let Err(e) = open("libm.so.6") else { panic!("opened") };
        assert!(e.message.contains("too old") && e.message.contains("cuInit"), "{e}");
    }

    #[test]
    fn copies_go_both_ways_and_stay_inside_their_buffers() {
        let device = CudaDevice::open(&fake::driver(), 0).unwrap();
        assert_eq!((device.name.as_str(), device.capability.as_str()), ("stand-in", "8.9"));
        device.make_current().unwrap();
        let stream = CudaStream::new(&device).unwrap();
        let buffer = DeviceBuffer::new(&device, 16).unwrap();
        let mut back = [0.0_f32; 4];
        // SAFETY: the stand-in copies at once.
        unsafe {
            stream.upload(&buffer, &[1.0_f32, 2.0, 3.0, 4.0]).unwrap();
            stream.download(&mut back, &buffer).unwrap();
            let e = stream.upload(&buffer, &[0_i64; 3]).unwrap_err();
            assert!(e.to_string().contains("24 bytes does not fit a buffer of 16"), "{e}");
            assert!(stream.download(&mut [0_i64; 3], &buffer).is_err());
            stream.upload::<f32>(&DeviceBuffer::new(&device, 0).unwrap(), &[]).unwrap();
        }
        stream.synchronize().unwrap();
        assert_eq!(back, [1.0, 2.0, 3.0, 4.0]);
        stream.copy(&buffer, 0, &buffer, 8, 8).unwrap();
        stream.zero(&buffer, 8, 4).unwrap();
        // SAFETY: as above.
        unsafe { stream.download(&mut back, &buffer).unwrap() };
        assert_eq!(back, [3.0, 4.0, 0.0, 4.0]);
        assert!(stream.copy(&buffer, 0, &buffer, 4, 8).unwrap_err().to_string().contains("overlaps"));
        assert!(
            stream
                .copy(&buffer, 12, &buffer, 0, 8)
                .unwrap_err()
                .to_string()
                .contains("20 bytes does not fit")
        );
        assert!(stream.zero(&buffer, usize::MAX, 1).is_err());
        assert!(device.free_memory().unwrap() > 0);
    }

    #[test]
    fn failures_carry_the_drivers_words() {
        let driver = fake::driver();
        let Err(e) = CudaDevice::open(&driver, 3) else { panic!("opened") };
        assert!(e.message.contains("no CUDA device 3: the machine has 1"), "{e}");
        let device = CudaDevice::open(&driver, 0).unwrap();
        let Err(e) = DeviceBuffer::new(&device, usize::MAX) else { panic!("allocated") };
        assert!(e.to_string().contains("CUDA_ERROR_OUT_OF_MEMORY (2): out of memory"), "{e}");
        let stream = CudaStream::new(&device).unwrap();
        let buffer = DeviceBuffer::new(&device, 8).unwrap();
        let mut back = [0_i64; 1];
        for call in [
            "cuCtxSetCurrent",
            "cuStreamSynchronize",
            "cuMemcpyHtoDAsync",
            "cuMemcpyDtoHAsync",
            "cuMemsetD8Async",
        ] {
            fake::fail(Some(call));
            let result = match call {
                "cuCtxSetCurrent" => device.make_current(),
                "cuStreamSynchronize" => stream.synchronize(),
                // SAFETY: the stand-in copies at once.
                "cuMemcpyHtoDAsync" => unsafe { stream.upload(&buffer, &[1_i64]) },
                // SAFETY: as above.
                "cuMemcpyDtoHAsync" => unsafe { stream.download(&mut back, &buffer) },
                _ => stream.zero(&buffer, 0, 8),
            };
            let e = result.unwrap_err();
            let words = "CUDA_ERROR_ILLEGAL_ADDRESS (700): an illegal memory access was encountered";
            assert_eq!(e.to_string(), format!("{call}: {words}"));
        }
        fake::fail(None);
    }
}
