//! A stand-in for the driver: one device whose memory is host memory and whose streams copy at once.

use super::*;

const OUT_OF_MEMORY: Status = 2;
const CAPACITY: usize = 1 << 20;

unsafe extern "system" fn one(out: *mut c_int) -> Status {
    // SAFETY: the caller gives a place to write.
    unsafe { *out = 1 };
    0
}
unsafe extern "system" fn same(out: *mut c_int, index: c_int) -> Status {
    // SAFETY: the caller gives a place to write.
    unsafe { *out = index };
    0
}
unsafe extern "system" fn name(out: *mut c_char, _: c_int, _: c_int) -> Status {
    let text = c"stand-in";
    // SAFETY: the caller gives 255 bytes.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), out, text.count_bytes() + 1) };
    0
}
unsafe extern "system" fn attribute(out: *mut c_int, which: c_int, _: c_int) -> Status {
    // SAFETY: the caller gives a place to write.
    unsafe { *out = if which == CAPABILITY[0] { 8 } else { 9 } };
    0
}
unsafe extern "system" fn handle(out: *mut Handle, _: c_int) -> Status {
    // SAFETY: the caller gives a place to write.
    unsafe { *out = std::ptr::dangling_mut::<u8>().cast() };
    0
}
unsafe extern "system" fn stream(out: *mut Handle, flags: u32) -> Status {
    assert_eq!(flags, NON_BLOCKING);
    // SAFETY: the caller gives a place to write.
    unsafe { handle(out, 0) }
}
unsafe extern "system" fn ok(_: Handle) -> Status {
    0
}
unsafe extern "system" fn init(_: u32) -> Status {
    0
}
unsafe extern "system" fn memory(free: *mut usize, total: *mut usize) -> Status {
    // SAFETY: the caller gives two places to write.
    unsafe { (*free, *total) = (CAPACITY, CAPACITY) };
    0
}
unsafe extern "system" fn allocate(out: *mut Address, bytes: usize) -> Status {
    if bytes > CAPACITY {
        return OUT_OF_MEMORY;
    }
    let memory: Box<[u64]> = vec![0; bytes.div_ceil(8)].into();
    // Leaked: `free` does not know the size.
    let address = Box::leak(memory).as_mut_ptr().expose_provenance();
    // SAFETY: the caller gives a place to write.
    unsafe { *out = address as Address };
    0
}
unsafe extern "system" fn free(_: Address) -> Status {
    0
}
unsafe extern "system" fn to_device(to: Address, from: *const c_void, bytes: usize, _: Handle) -> Status {
    let to = std::ptr::with_exposed_provenance_mut::<u8>(to as usize);
    // SAFETY: the wrappers check the sizes.
    unsafe { std::ptr::copy_nonoverlapping(from.cast(), to, bytes) };
    0
}
unsafe extern "system" fn to_host(to: *mut c_void, from: Address, bytes: usize, _: Handle) -> Status {
    let from = std::ptr::with_exposed_provenance::<u8>(from as usize);
    // SAFETY: the wrappers check the sizes.
    unsafe { std::ptr::copy_nonoverlapping(from, to.cast(), bytes) };
    0
}
unsafe extern "system" fn error_name(_: Status, out: *mut *const c_char) -> Status {
    // SAFETY: the caller gives a place to write.
    unsafe { *out = c"CUDA_ERROR_OUT_OF_MEMORY".as_ptr() };
    0
}
unsafe extern "system" fn error_text(_: Status, out: *mut *const c_char) -> Status {
    // SAFETY: the caller gives a place to write.
    unsafe { *out = c"out of memory".as_ptr() };
    0
}

pub(crate) fn driver() -> Arc<Driver> {
    let api = Api {
        init,
        device_count: one,
        device_get: same,
        device_name: name,
        device_attribute: attribute,
        context_retain: handle,
        context_set: ok,
        memory_info: memory,
        stream_create: stream,
        stream_destroy: ok,
        stream_synchronize: ok,
        allocate,
        free,
        to_device,
        to_host,
        error_name,
        error_text,
    };
    Arc::new(Driver { api, _library: None })
}
