//! A stand-in for the driver: one device whose memory is host memory and whose streams copy at once. It keeps books of
//! what is allocated and copied, refuses copies outside of one allocation and onto themselves, and fails at a call
//! that a test names. Each thread, so each test, has a device of its own.

use std::cell::RefCell;
use std::collections::BTreeMap;

use super::*;

const INVALID_VALUE: CuResult = 1;
const OUT_OF_MEMORY: CuResult = 2;
const ILLEGAL_ADDRESS: CuResult = 700;
const CAPACITY: usize = 1 << 20;

#[derive(Default)]
struct Books {
    /// Number and memory of each allocation, by address.
    live: BTreeMap<Address, (usize, Box<[u64]>)>,
    allocations: usize,
    log: Vec<String>,
    fails: Option<&'static str>,
}

thread_local! {
    static BOOKS: RefCell<Books> = RefCell::default();
}

fn books<T>(f: impl FnOnce(&mut Books) -> T) -> T {
    BOOKS.with_borrow_mut(f)
}

/// Makes every later call of that name fail, or none.
pub(crate) fn fail(call: Option<&'static str>) {
    books(|b| b.fails = call);
}

/// How many allocations there are now, and how many there have been.
pub(crate) fn allocations() -> (usize, usize) {
    books(|b| (b.live.len(), b.allocations))
}

/// Copies and fills on the device since the last call, e.g. `copy 8: #0+0 to #1+16`.
pub(crate) fn log() -> Vec<String> {
    books(|b| std::mem::take(&mut b.log))
}

/// What a kernel would do: writes to device memory.
pub(crate) fn write(to: *mut c_void, values: &[f32]) {
    let status = books(|b| b.place(to.addr() as Address, size_of_val(values)).map_or(INVALID_VALUE, |_| 0));
    assert_eq!(status, 0, "{} values do not fit at {to:?}", values.len());
    // SAFETY: the bytes are inside one allocation.
    unsafe {
        std::ptr::copy_nonoverlapping(values.as_ptr(), host(to.addr() as Address).cast(), values.len())
    };
}

/// What a kernel would see.
pub(crate) fn read(from: *mut c_void, count: usize) -> Vec<f32> {
    let mut values = vec![0.0_f32; count];
    let status =
        books(|b| b.place(from.addr() as Address, size_of_val(&values[..])).map_or(INVALID_VALUE, |_| 0));
    assert_eq!(status, 0, "there are no {count} values at {from:?}");
    // SAFETY: the bytes are inside one allocation.
    unsafe { std::ptr::copy_nonoverlapping(host(from.addr() as Address).cast(), values.as_mut_ptr(), count) };
    values
}

impl Books {
    fn failing(&self, call: &str) -> bool {
        self.fails == Some(call)
    }

    /// The allocation that has these bytes, as its number and the offset in it.
    fn place(&self, at: Address, bytes: usize) -> Option<(usize, usize)> {
        let (start, (number, memory)) = self.live.range(..=at).next_back()?;
        let offset = usize::try_from(at - start).ok()?;
        (offset + bytes <= size_of_val(&**memory)).then_some((*number, offset))
    }
}

fn host(at: Address) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(at as usize)
}

fn failing(call: &str) -> CuResult {
    if books(|b| b.failing(call)) { ILLEGAL_ADDRESS } else { 0 }
}

unsafe extern "system" fn one(out: *mut c_int) -> CuResult {
    // SAFETY: the caller gives a place to write.
    unsafe { *out = 1 };
    0
}
unsafe extern "system" fn version(out: *mut c_int) -> CuResult {
    // SAFETY: the caller gives a place to write.
    unsafe { *out = 12_080 };
    0
}
unsafe extern "system" fn total(out: *mut usize, _: c_int) -> CuResult {
    // SAFETY: the caller gives a place to write.
    unsafe { *out = CAPACITY };
    0
}
unsafe extern "system" fn same(out: *mut c_int, index: c_int) -> CuResult {
    // SAFETY: the caller gives a place to write.
    unsafe { *out = index };
    0
}
unsafe extern "system" fn name(out: *mut c_char, _: c_int, _: c_int) -> CuResult {
    let text = c"stand-in";
    // SAFETY: the caller gives 255 bytes.
    unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), out, text.count_bytes() + 1) };
    0
}
unsafe extern "system" fn attribute(out: *mut c_int, which: c_int, _: c_int) -> CuResult {
    // SAFETY: the caller gives a place to write.
    unsafe { *out = if which == CAPABILITY[0] { 8 } else { 9 } };
    0
}
unsafe extern "system" fn handle(out: *mut Handle, _: c_int) -> CuResult {
    // SAFETY: the caller gives a place to write.
    unsafe { *out = std::ptr::dangling_mut::<u8>().cast() };
    0
}
unsafe extern "system" fn stream(out: *mut Handle, flags: u32) -> CuResult {
    assert_eq!(flags, NON_BLOCKING);
    // SAFETY: the caller gives a place to write.
    unsafe { handle(out, 0) }
}
unsafe extern "system" fn current(_: Handle) -> CuResult {
    failing("cuCtxSetCurrent")
}
unsafe extern "system" fn destroy(_: Handle) -> CuResult {
    0
}
unsafe extern "system" fn synchronize(_: Handle) -> CuResult {
    failing("cuStreamSynchronize")
}
unsafe extern "system" fn init(_: u32) -> CuResult {
    0
}
unsafe extern "system" fn memory(free: *mut usize, total: *mut usize) -> CuResult {
    let used = books(|b| b.live.values().map(|(_, memory)| size_of_val(&**memory)).sum::<usize>());
    // SAFETY: the caller gives two places to write.
    unsafe { (*free, *total) = (CAPACITY - used, CAPACITY) };
    failing("cuMemGetInfo")
}
unsafe extern "system" fn allocate(out: *mut Address, bytes: usize) -> CuResult {
    let (mut free, mut total) = (0, 0);
    // SAFETY: two places to write.
    unsafe { memory(&mut free, &mut total) };
    // In whole words, as the memory is kept.
    if books(|b| b.failing("cuMemAlloc")) || bytes.checked_next_multiple_of(8).is_none_or(|n| n > free) {
        return OUT_OF_MEMORY;
    }
    // What was there before is not zero on a device either.
    let mut memory: Box<[u64]> = vec![u64::MAX; bytes.div_ceil(8)].into();
    let address = memory.as_mut_ptr().expose_provenance() as Address;
    books(|b| {
        b.live.insert(address, (b.allocations, memory));
        b.allocations += 1;
    });
    // SAFETY: the caller gives a place to write.
    unsafe { *out = address };
    0
}
unsafe extern "system" fn free(address: Address) -> CuResult {
    if books(|b| b.live.remove(&address)).is_some() { 0 } else { INVALID_VALUE }
}
unsafe extern "system" fn to_device(to: Address, from: *const c_void, bytes: usize, _: Handle) -> CuResult {
    if books(|b| b.place(to, bytes)).is_none() {
        return INVALID_VALUE;
    }
    // SAFETY: inside one allocation; the caller has the source.
    unsafe { std::ptr::copy_nonoverlapping(from.cast(), host(to), bytes) };
    failing("cuMemcpyHtoDAsync")
}
unsafe extern "system" fn to_host(to: *mut c_void, from: Address, bytes: usize, _: Handle) -> CuResult {
    if books(|b| b.place(from, bytes)).is_none() {
        return INVALID_VALUE;
    }
    // SAFETY: inside one allocation; the caller has the target.
    unsafe { std::ptr::copy_nonoverlapping(host(from), to.cast(), bytes) };
    failing("cuMemcpyDtoHAsync")
}
unsafe extern "system" fn copy(to: Address, from: Address, bytes: usize, _: Handle) -> CuResult {
    let places = books(|b| Some((b.place(from, bytes)?, b.place(to, bytes)?)));
    let Some((from_place, to_place)) = places.filter(|_| to.abs_diff(from) >= bytes as u64) else {
        return INVALID_VALUE;
    };
    let [(f, fo), (t, to_offset)] = [from_place, to_place];
    books(|b| b.log.push(format!("copy {bytes}: #{f}+{fo} to #{t}+{to_offset}")));
    // SAFETY: both inside one allocation each, apart from each other.
    unsafe { std::ptr::copy_nonoverlapping(host(from), host(to), bytes) };
    failing("cuMemcpyDtoDAsync")
}
unsafe extern "system" fn fill(to: Address, value: u8, bytes: usize, _: Handle) -> CuResult {
    let Some((number, offset)) = books(|b| b.place(to, bytes)) else { return INVALID_VALUE };
    books(|b| b.log.push(format!("fill {bytes}: #{number}+{offset}")));
    // SAFETY: inside one allocation.
    unsafe { std::ptr::write_bytes(host(to), value, bytes) };
    failing("cuMemsetD8Async")
}
unsafe extern "system" fn fill_each(
    to: Address,
    pitch: usize,
    value: u8,
    bytes: usize,
    times: usize,
    _: Handle,
) -> CuResult {
    let Some((number, offset)) = books(|b| b.place(to, pitch * (times - 1) + bytes)) else {
        return INVALID_VALUE;
    };
    books(|b| b.log.push(format!("fill {times} times {bytes} of {pitch}: #{number}+{offset}")));
    for at in (0..times).map(|i| (i * pitch) as Address) {
        // SAFETY: inside one allocation.
        unsafe { std::ptr::write_bytes(host(to + at), value, bytes) };
    }
    failing("cuMemsetD2D8Async")
}

fn texts(status: CuResult) -> (&'static CStr, &'static CStr) {
    match status {
        INVALID_VALUE => (c"CUDA_ERROR_INVALID_VALUE", c"invalid argument"),
        OUT_OF_MEMORY => (c"CUDA_ERROR_OUT_OF_MEMORY", c"out of memory"),
        _ => (c"CUDA_ERROR_ILLEGAL_ADDRESS", c"an illegal memory access was encountered"),
    }
}
unsafe extern "system" fn error_name(status: CuResult, out: *mut *const c_char) -> CuResult {
    // SAFETY: the caller gives a place to write.
    unsafe { *out = texts(status).0.as_ptr() };
    0
}
unsafe extern "system" fn error_text(status: CuResult, out: *mut *const c_char) -> CuResult {
    // SAFETY: the caller gives a place to write.
    unsafe { *out = texts(status).1.as_ptr() };
    0
}

pub(crate) fn driver() -> Arc<CudaDriver> {
    let api = Api {
        init,
        driver_version: version,
        device_count: one,
        device_get: same,
        device_name: name,
        device_attribute: attribute,
        total_memory: total,
        context_retain: handle,
        context_set: current,
        memory_info: memory,
        stream_create: stream,
        stream_destroy: destroy,
        stream_synchronize: synchronize,
        allocate,
        free,
        to_device,
        to_host,
        copy,
        fill,
        fill_each,
        error_name,
        error_text,
    };
    Arc::new(CudaDriver { api, _library: None })
}
