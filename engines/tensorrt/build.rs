//! Says what to do where libclang is missing, with which the bindings of TensorRT are generated. Their own build script
//! panics then, and names no remedy. Nothing can be put in front of it: cargo starts both when what each needs is there, and
//! with one job at a time only the panic may be seen. This one needs less, so it is usually first.

#![allow(clippy::print_stdout, reason = "a build script talks to cargo on stdout")]

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=LIBCLANG_PATH");
    // The search that the bindings' build script does.
    if let Err(e) = clang_sys::load() {
        println!(
            "cargo::error=the bindings of TensorRT are generated with libclang and clang's headers: run `cargo xtask \
             setup`, or install libclang (older than 22) and clang, on Debian `apt-get install libclang-dev clang`; or \
             build without the feature `tensorrt` ({})",
            e.lines().next().unwrap_or_default()
        );
    }
}
