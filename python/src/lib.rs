//! `dpar_export._native`: the extension module behind the Python package. Users see `dpar_export/__init__.py`; what is here
//! takes checked arrays and plain values, and gives arrays that Python owns.
//!
//! There is one decoding loop, that of `dpar-export`: here its steps are driven, its results handed over.

mod arrays;
mod bundle;
mod decoding;
mod errors;
mod log;
mod picture;
mod record;
mod scheduler;
mod stop;
mod stream;

use std::ffi::OsString;

use dpar_export::commands;
use dpar_export::engines;
use pyo3::prelude::*;

use errors::raise;

/// Runs the command line as all that this process does, and returns its exit code. `program` starts a process that does the
/// same.
#[pyfunction]
fn main(py: Python<'_>, program: Vec<OsString>, arguments: Vec<OsString>) -> u8 {
    py.detach(|| commands::run(program, arguments) as u8)
}

/// Carries out one command: `(exit code, JSON document)`.
#[pyfunction]
fn call(py: Python<'_>, arguments: Vec<OsString>) -> PyResult<(u8, String)> {
    // Two results: a failure that comes with an exit code of its own, and the failures of `work`.
    let (called, said) = errors::work(py, |asked| Ok((commands::call(&arguments, asked), asked.said())))?;
    match called {
        Ok(exit) => Ok((exit as u8, said.unwrap_or_else(|| "null".to_owned()))),
        Err(called) => Err(raise(py, &called.failure, called.exit)),
    }
}

/// Names of the engines: `(name, whether this build has it)`, the default one first.
#[pyfunction]
fn engine_names() -> Vec<(&'static str, bool)> {
    engines::all().iter().map(|e| (e.name, e.is_built())).collect()
}

/// The extension module.
#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    dpar_engine_api::panics::silence_guarded();
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<bundle::PyBundle>()?;
    module.add_class::<scheduler::PyScheduler>()?;
    module.add_class::<scheduler::PyJob>()?;
    module.add_class::<scheduler::Preview>()?;
    module.add_class::<stream::PyStream>()?;
    module.add_class::<stream::Token>()?;
    module.add_class::<stream::Patch>()?;
    module.add_class::<stream::Image>()?;
    module.add_function(wrap_pyfunction!(bundle::open, module)?)?;
    module.add_function(wrap_pyfunction!(picture::grid, module)?)?;
    module.add_function(wrap_pyfunction!(picture::png, module)?)?;
    module.add_function(wrap_pyfunction!(record::patch_lengths, module)?)?;
    module.add_function(wrap_pyfunction!(record::write_reference, module)?)?;
    module.add_function(wrap_pyfunction!(call, module)?)?;
    module.add_function(wrap_pyfunction!(main, module)?)?;
    module.add_function(wrap_pyfunction!(engine_names, module)?)?;
    Ok(())
}
