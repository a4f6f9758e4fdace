//! Asking for memory before it is needed.

/// Numbers of a line of the processor's caches.
const LINE: usize = 16;

/// Asks for the lines of `count` numbers from `from` on, if they are there. Nothing is read, so that nothing waits.
#[inline(always)]
#[allow(unsafe_code)]
pub(crate) fn prefetch(numbers: &[f32], from: usize, count: usize) {
    if let Some(wanted) = numbers.get(from..from + count) {
        for line in wanted.chunks(LINE) {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a hint about memory that is there; it loads nothing into the program.
            unsafe {
                use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
                _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = line;
        }
    }
}
