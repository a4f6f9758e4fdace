//! ONNX Runtime sends nothing and leaves nothing behind: not for want of a network, but because its telemetry is off before
//! it is loaded. The program as a whole is looked at in the same way by `tests/suite/telemetry.rs`.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::print_stdout,
    reason = "a test fails by panicking"
)]

mod network;

use std::time::Duration;

use dpar_engine_api::{Engine, EngineErrorKind};
use dpar_engine_ort::{OrtEngine, OrtOptions};
use network::{attempts, files, inside, role};

/// The library looks for its vendor's host between 8 and 9 seconds after it was started.
const LONG_ENOUGH: Duration = Duration::from_secs(14);

/// Runs this test again as `as_role`, in an empty network: what it printed, and the files that it left.
fn seen(test: &str, as_role: &str, more: &[(&str, &str)]) -> Option<(String, Vec<std::path::PathBuf>)> {
    let place = tempfile::tempdir().unwrap();
    let output = inside(test, as_role, place.path(), more)?;
    let said =
        [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(output.status.success(), "{said}");
    Some((said, files(place.path())))
}

#[test]
fn nothing_is_sent_and_without_the_variable_it_would_be() {
    match role().as_deref() {
        Some("ours") => {
            let info = OrtEngine::new(OrtOptions::default()).probe().unwrap_or_else(|e| panic!("{e}"));
            std::thread::sleep(LONG_ENOUGH);
            println!("{} ran; attempts: {}.", info.version, attempts());
            return;
        }
        // As a program does that uses the bindings alone.
        Some(_) => {
            let builder = ort::init_from(std::env::var("ORT_DYLIB_PATH").unwrap()).unwrap();
            let _environment = builder.with_telemetry(false).build().unwrap();
            std::thread::sleep(LONG_ENOUGH);
            println!("the library ran; attempts: {}.", attempts());
            return;
        }
        None => {}
    }
    let test = "nothing_is_sent_and_without_the_variable_it_would_be";
    let Some((said, left)) = seen(test, "ours", &[("ORT_DISABLE_TELEMETRY", "1")]) else { return };
    assert!(said.contains("ran; attempts: 0."), "{said}");
    assert_eq!(left, [] as [std::path::PathBuf; 0]);

    let library =
        OrtEngine::new(OrtOptions::default()).probe().unwrap_or_else(|e| panic!("{e}")).library.unwrap();
    let Some((said, left)) = seen(test, "bare", &[("ORT_DYLIB_PATH", &library)]) else { return };
    assert!(said.contains("the library ran; attempts: ") && !said.contains("attempts: 0."), "{said}");
    assert!(!left.is_empty(), "{said}");
}

/// A test has two threads: its own and that of the test program.
#[test]
fn with_other_threads_the_library_is_not_loaded_unless_its_telemetry_is_off_already() {
    if role().is_some() {
        let e = OrtEngine::new(OrtOptions::default()).probe().unwrap_err();
        assert_eq!(e.kind, EngineErrorKind::Setting, "{e}");
        assert!(e.message.contains("ORT_DISABLE_TELEMETRY"), "{e}");
        assert!(e.hint.unwrap().contains("before threads are started"));
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!maps.contains("libonnxruntime"), "{maps}");
        println!("refused.");
        return;
    }
    let test = "with_other_threads_the_library_is_not_loaded_unless_its_telemetry_is_off_already";
    for value in [&[][..], &[("ORT_DISABLE_TELEMETRY", "0")]] {
        let Some((said, left)) = seen(test, "threads", value) else { return };
        assert!(said.contains("refused.") && left.is_empty(), "{said} {left:?}");
    }
}
