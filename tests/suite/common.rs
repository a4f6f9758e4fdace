//! Fixtures, bundles and engines for the tests.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_engine_api::ArithmeticKind;
use dpar_export::arrays::{ArrayRef, write_safetensors};
use dpar_export::bundle::{self, Bundle};
use dpar_export::engines::{self, EngineOptions};
use dpar_export::loaded::LoadedBundle;
use dpar_export::tolerance::{Quantity, Rounding};
use dpar_export_checkpoint::{LoadOptions, TensorFile, load};
use dpar_export_spec::Precision;

/// Whether an engine of the table is in this build and runs on any machine.
const fn runs_anywhere(entry: &engines::TableEntry) -> bool {
    entry.is_built() && matches!(entry.runs, engines::Runs::Graphs)
}

const COUNT: usize = {
    let (mut count, mut i) = (0, 0);
    while i < engines::all().len() {
        count += runs_anywhere(&engines::all()[i]) as usize;
        i += 1;
    }
    count
};

/// The engines of this build that run on any machine.
pub(crate) const ENGINES: [&str; COUNT] = {
    let (mut names, mut count, mut i) = ([""; COUNT], 0, 0);
    while i < engines::all().len() {
        let entry = &engines::all()[i];
        if runs_anywhere(entry) {
            names[count] = entry.name;
            count += 1;
        }
        i += 1;
    }
    names
};

/// What an engine is told: two threads, but candle takes its number from the environment.
pub(crate) fn engine_options(engine: &str) -> EngineOptions {
    EngineOptions { threads: (engine != "candle").then_some(2), ..EngineOptions::default() }
}

/// A path below `fixtures/`.
pub(crate) fn fixture(path: &str) -> Utf8PathBuf {
    dpar_export_fixtures::path(path).unwrap()
}

/// A folder that is removed when it is dropped.
pub(crate) struct Temp(tempfile::TempDir);

impl Temp {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> Utf8PathBuf {
        Utf8Path::from_path(self.0.path()).unwrap().join(name)
    }
}

/// Exports a checkpoint below `fixtures/` into `out`.
pub(crate) fn export(checkpoint: &str, options: &LoadOptions, out: &Utf8Path) -> Bundle {
    export_as(checkpoint, Precision::Fp32, options, out)
}

/// The same in any precision.
pub(crate) fn export_as(
    checkpoint: &str,
    precision: Precision,
    options: &LoadOptions,
    out: &Utf8Path,
) -> Bundle {
    let loaded = load(&fixture(checkpoint), options).unwrap();
    bundle::write(&loaded, precision, out, false, &mut |_| true, &mut |_, _| Ok(())).unwrap();
    Bundle::open(out).unwrap()
}

/// The LlamaGen baseline of a fixture folder: weight file and options.
pub(crate) fn llamagen(name: &str) -> (&'static str, LoadOptions) {
    let (file, folder, vq) = match name {
        "llamagen-small" => ("llamagen-small/c2i_tiny.pt", "llamagen-small", None),
        "emoji32" => ("emoji32/llamagen/c2i_emoji32.pt", "emoji32/llamagen", Some("emoji32/vq.pt")),
        other => panic!("no baseline in {other}"),
    };
    let options = LoadOptions {
        config: Some(fixture(folder).join("config.yaml")),
        vq: vq.map(fixture),
        ..LoadOptions::default()
    };
    (file, options)
}

/// Writes the weights of a file with what `change` makes of each tensor.
pub(crate) fn change_weights(from: &Utf8Path, to: &Utf8Path, change: impl Fn(&str, &mut [f32])) {
    let file = TensorFile::open(from).unwrap();
    let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = file
        .names()
        .map(|name| {
            let tensor = file.get(name).unwrap();
            let mut values = tensor.to_f32().unwrap().into_owned();
            change(name, &mut values);
            (name.to_owned(), tensor.shape.clone(), values)
        })
        .collect();
    let arrays: Vec<(&str, ArrayRef<'_>)> =
        tensors.iter().map(|(n, shape, v)| (n.as_str(), ArrayRef::f32(shape, v))).collect();
    write_safetensors(to, &arrays).unwrap();
}

/// The bundle on an engine.
pub(crate) fn on<'a>(bundle: &'a Bundle, engine: &str) -> LoadedBundle<'a> {
    let engine = engines::create(engine, &engine_options(engine)).unwrap();
    LoadedBundle::new(bundle, engine)
        .unwrap_or_else(|e| panic!("{e}; hint: {}", e.hint.clone().unwrap_or_default()))
}

/// What graphs of a precision may be off by, against a float32 reference.
pub(crate) fn limit(precision: Precision, quantity: Quantity) -> f32 {
    Rounding::between(Precision::Fp32, precision, ArithmeticKind::AsGraph).limit(quantity).value() as f32
}

/// Progress that is not shown.
pub(crate) fn quiet(_: usize, _: usize) -> bool {
    true
}
