//! Files that shrink while they are mapped.
//!
//! Weights and samples are read in place. Where another process cuts such a file short, or the disk cannot read it, the
//! system ends the program at the next access (SIGBUS). Nothing that was read can be trusted then, and nothing has been
//! written under its final name: the program says so and ends.

/// From now on, a lost page of a mapped file ends the program with a message and the exit code of a file that is not the
/// one that was opened.
#[cfg(unix)]
#[allow(unsafe_code)]
pub(super) fn say_lost_pages() -> std::io::Result<()> {
    use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
    let action = SigAction::new(SigHandler::Handler(lost), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler calls write and _exit alone, which are safe in a handler, and does not return.
    let before = unsafe { sigaction(Signal::SIGBUS, &action) };
    before.map(|_| ()).map_err(std::io::Error::from)
}

#[cfg(not(unix))]
pub(super) fn say_lost_pages() -> std::io::Result<()> {
    Ok(())
}

#[cfg(unix)]
#[allow(unsafe_code)]
extern "C" fn lost(_signal: nix::libc::c_int) {
    const TEXT: &[u8] = b"error: a file was cut short, or could not be read, while it was in use (SIGBUS)\n \
hint: leave inputs alone while they are read, and run it again; no output was written\n";
    // SAFETY: both calls are on the list of those that a handler may make, and TEXT is whole.
    unsafe {
        nix::libc::write(2, TEXT.as_ptr().cast(), TEXT.len());
        nix::libc::_exit(super::failure::Exit::Integrity as i32);
    }
}
