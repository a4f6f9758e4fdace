//! The engines, by name: which there are, which this build has, and what each can be told.

use dpar_engine_api::{Engine, EngineDescriptor, EngineError, EngineErrorKind, EngineFiles, EngineOption};
use dpar_export_spec::text;

use device::Device;
pub use dpar_engine_api::{EngineOptions, device};

/// What an engine runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runs {
    /// ONNX graphs.
    Graphs,
    /// What was built from them, and no graph.
    BuiltFiles,
}

/// An engine, also where this build does not have it.
#[derive(Debug, Clone, Copy)]
pub struct TableEntry {
    /// Name as given to `--engine`, and of the Cargo feature that compiles it.
    pub name: &'static str,
    /// In a few words, for help.
    pub about: &'static str,
    /// What it runs.
    pub runs: Runs,
    /// Whether a plain build has it.
    pub plain: bool,
    descriptor: Option<&'static EngineDescriptor>,
}

/// Writes the table: the Cargo feature, which is the name of the engine, and its crate as `Cargo.toml` has it.
macro_rules! engines {
    ($($name:literal => $krate:ident, $plain:expr, $runs:ident, $about:literal;)*) => {
        &[$(TableEntry {
            name: $name,
            about: $about,
            runs: Runs::$runs,
            plain: $plain,
            #[cfg(feature = $name)]
            descriptor: Some(&$krate::ENGINE),
            #[cfg(not(feature = $name))]
            descriptor: None,
        }),*]
    };
}

/// The one table of engines, the default one first.
const ENGINES: &[TableEntry] = engines! {
    "tract" => tract, true, Graphs, "embedded";
    "ort" => ort, true, Graphs, "ONNX Runtime";
    "candle" => candle, false, Graphs, "candle-onnx";
    "tensorrt" => tensorrt, false, BuiltFiles, "the engines of a `--target trt` bundle, on a GPU";
};

/// Engine used when none is asked for: embedded, nothing to install.
pub const DEFAULT_ENGINE: &str = ENGINES[0].name;

/// Every engine, also those that this build does not have.
pub const fn all() -> &'static [TableEntry] {
    ENGINES
}

/// Names that `--engine` knows.
pub fn names() -> impl Iterator<Item = &'static str> {
    ENGINES.iter().map(|e| e.name)
}

/// The engines that are compiled in.
pub fn built() -> impl Iterator<Item = (&'static TableEntry, &'static EngineDescriptor)> {
    ENGINES.iter().filter_map(|e| Some((e, e.descriptor?)))
}

/// The engine of that name.
pub fn find(name: &str) -> Option<&'static TableEntry> {
    ENGINES.iter().find(|e| e.name == name)
}

impl TableEntry {
    /// Whether this build has it.
    pub const fn is_built(&self) -> bool {
        self.descriptor.is_some()
    }

    /// Name of its crate.
    pub fn package(&self) -> String {
        format!("dpar-engine-{}", self.name)
    }

    /// What its crate says of it.
    ///
    /// # Errors
    /// [`EngineErrorKind::Unavailable`] with its Cargo feature, where this build does not have it.
    pub fn descriptor(&self) -> Result<&'static EngineDescriptor, EngineError> {
        self.descriptor.ok_or_else(|| {
            EngineError::new(EngineErrorKind::Unavailable, self.name, "this build does not have it")
                .hint(format!("build with the Cargo feature `{}`", self.name))
        })
    }

    /// What it does with files that were built from graphs.
    ///
    /// # Errors
    /// As [`descriptor`](Self::descriptor); [`EngineErrorKind::Setting`] for an engine that runs graphs.
    pub fn files(&self) -> Result<EngineFiles, EngineError> {
        self.descriptor()?.files.ok_or_else(|| {
            EngineError::new(EngineErrorKind::Setting, self.name, "it runs graphs, nothing is built for it")
        })
    }

    /// Whether it runs on the processor; where this build does not have it, whether it runs graphs.
    pub fn runs_on_processor(&self) -> bool {
        self.descriptor.map_or(self.runs == Runs::Graphs, |d| (d.devices.runs_on)(Device::Cpu))
    }

    /// Whether it has an option, as far as this build knows.
    pub fn has(&self, option: EngineOption) -> bool {
        self.descriptor.is_some_and(|d| d.options.contains(&option))
    }
}

/// What a program does once, first, while it has one thread, for every engine that needs it. Where it cannot be done, the
/// engine says so when its library is to be loaded.
pub fn before_threads() {
    built().for_each(|(_, engine)| (engine.before_threads)());
}

/// Warns of more threads than there are processors: they are what was asked for, and slower.
pub fn warn_threads(threads: usize) {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    if threads > processors {
        tracing::warn!(
            "{threads} threads on {processors} processors: more threads than processors are slower"
        );
    }
}

/// The help of `--engine`.
pub fn help() -> String {
    let about = |e: &TableEntry| match e.descriptor {
        Some(_) => format!("{} ({})", e.name, e.about),
        None => format!("{} ({}; feature `{}`, not in this build)", e.name, e.about, e.name),
    };
    format!("Engine: {}", ENGINES.iter().map(about).collect::<Vec<_>>().join(", "))
}

/// The help of `--device`.
pub fn device_help() -> String {
    let words = |(e, d): (&TableEntry, &EngineDescriptor)| format!("{}: {}", e.name, d.devices.words);
    format!("Where the engine runs. {}", built().map(words).collect::<Vec<_>>().join("; "))
}

/// `, or take --engine X or --engine Y`, for engines that can be told what another cannot.
fn or_take(can: impl Fn(&EngineDescriptor) -> bool) -> String {
    let names = built().filter(|(_, d)| can(d)).map(|(e, _)| format!("--engine {}", e.name));
    let names: Vec<String> = names.collect();
    if names.is_empty() { String::new() } else { format!(", or take {}", names.join(" or ")) }
}

/// Refuses what an engine cannot be told: nothing is passed over in silence.
fn check(engine: &EngineDescriptor, options: &EngineOptions) -> Result<(), EngineError> {
    let refuse = |message: String, hint: String| {
        Err(EngineError::new(EngineErrorKind::Setting, engine.name, message).hint(hint))
    };
    if let Some(device) = options.device.filter(|d| !(engine.devices.runs_on)(*d)) {
        let hint = format!("say {}{}", engine.devices.words, or_take(|d| (d.devices.runs_on)(device)));
        return refuse(format!("it does not run on `--device {device}`"), hint);
    }
    match options.given().into_iter().find(|option| !engine.options.contains(option)) {
        Some(option) => {
            let hint = format!("leave it out{}", or_take(|d| d.options.contains(&option)));
            refuse(format!("it has no {}", option.flag()), hint)
        }
        None => (engine.check)(options),
    }
}

/// Makes the engine of that name.
///
/// # Errors
/// [`EngineErrorKind::Unavailable`] when its feature is not built in; [`EngineErrorKind::Setting`] when the name is unknown, and
/// for an option that the engine does not have.
pub fn create(name: &str, options: &EngineOptions) -> Result<Box<dyn Engine>, EngineError> {
    let Some(entry) = find(name) else {
        let message = format!("no such engine; this version knows {}", text::names(names()));
        return Err(EngineError::new(EngineErrorKind::Setting, name, message));
    };
    let engine = entry.descriptor()?;
    check(engine, options)?;
    options.threads.into_iter().for_each(warn_threads);
    Ok((engine.open)(options))
}

/// Whether an engine takes an option that is for some engines only: any but threads, which are asked of all.
fn takes(name: &str, option: EngineOption) -> bool {
    find(name).is_some_and(|e| e.has(option))
}

/// Whether an engine runs on a device, as far as this build knows.
fn runs_on(name: &str, device: Device) -> bool {
    find(name).and_then(|e| e.descriptor).is_some_and(|d| (d.devices.runs_on)(device))
}

/// What the engine `name` is told where several are told the same: without what it does not have and another of them has.
/// What none has stays, and so do threads, which are asked of all: [`create`] refuses it.
pub fn own(name: &str, among: &[&str], options: &EngineOptions) -> EngineOptions {
    let others = options.given().into_iter().filter(|option| {
        *option != EngineOption::Threads && !takes(name, *option) && among.iter().any(|n| takes(n, *option))
    });
    let mut own = others.fold(options.clone(), EngineOptions::without);
    own.device = own.device.filter(|d| runs_on(name, *d) || !among.iter().any(|n| runs_on(n, *d)));
    own
}

/// The options, as the command line has them, that no engine of several takes.
pub fn for_none(among: &[&str], options: &EngineOptions) -> Vec<String> {
    let given = options.given().into_iter().filter(|option| *option != EngineOption::Threads);
    let none = given.filter(|option| !among.iter().any(|n| takes(n, *option)));
    let device = options.device.filter(|d| !among.iter().any(|n| runs_on(n, *d)));
    none.map(|option| option.flag().to_owned()).chain(device.map(|d| format!("--device {d}"))).collect()
}

/// Whether options are for the engine `name` and not for every engine: its library, its settings, its device beside the
/// processor. How caches are kept several engines are asked alike, as for threads.
pub fn is_told(name: &str, options: &EngineOptions) -> bool {
    let of_many = [EngineOption::Threads, EngineOption::Caches];
    options.given().into_iter().any(|option| !of_many.contains(&option) && takes(name, option))
        || options.device.is_some_and(|d| d != Device::Cpu && runs_on(name, d))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_says_what_the_crates_say() {
        let mut names: Vec<&str> = names().collect();
        for (entry, engine) in built() {
            assert_eq!(entry.name, engine.name);
            assert_eq!((engine.open)(&EngineOptions::default()).name(), engine.name);
            assert_eq!(entry.runs == Runs::BuiltFiles, engine.files.is_some(), "{}", entry.name);
        }
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ENGINES.len());
        assert!(ENGINES[0].plain && ENGINES[0].runs == Runs::Graphs, "the default");
    }

    #[test]
    fn what_an_engine_has_not_is_refused_with_who_has_it() {
        let threads = EngineOptions { threads: Some(1), ..EngineOptions::default() };
        let graphs = EngineOptions { cuda_graphs: true, ..EngineOptions::default() };
        for (entry, engine) in built() {
            let made = create(entry.name, &threads);
            assert_eq!(made.is_ok(), engine.options.contains(&EngineOption::Threads));
            match create(entry.name, &graphs) {
                Ok(_) => assert!(entry.has(EngineOption::CudaGraphs)),
                Err(e) => assert!(e.kind == EngineErrorKind::Setting && e.message.contains("--cuda-graphs")),
            }
        }
        for entry in ENGINES.iter().filter(|e| e.descriptor.is_none()) {
            let e = create(entry.name, &graphs).err().unwrap();
            assert_eq!(e.kind, EngineErrorKind::Unavailable);
            assert!(e.hint.unwrap().contains(&format!("feature `{}`", entry.name)));
        }
        assert_eq!(create("none", &threads).err().unwrap().kind, EngineErrorKind::Setting);
    }

    #[test]
    fn of_several_engines_each_gets_its_own() {
        let library = EngineOptions { ort_library: Some("a".into()), ..EngineOptions::default() };
        let gpu = EngineOptions { device: Some(Device::Cuda(0)), ..EngineOptions::default() };
        let threads = EngineOptions { threads: Some(1), ..EngineOptions::default() };
        for (entry, engine) in built() {
            let has = entry.has(EngineOption::OrtLibrary);
            assert_eq!(is_told(entry.name, &library), has);
            assert_eq!(is_told(entry.name, &gpu), (engine.devices.runs_on)(Device::Cuda(0)));
            assert!(!is_told(entry.name, &threads));
            // Alone it is told all of it, and refuses what it has not.
            let alone = own(entry.name, &[entry.name], &library);
            assert_eq!(alone.ort_library, library.ort_library);
            assert_eq!(for_none(&[entry.name], &library).is_empty(), has);
            for (other, _) in built().filter(|(e, _)| e.has(EngineOption::OrtLibrary)) {
                let among = [entry.name, other.name];
                assert_eq!(own(entry.name, &among, &library).ort_library.is_some(), has);
                assert!(for_none(&among, &library).is_empty());
            }
            let alone = own(entry.name, &[entry.name], &gpu);
            assert_eq!(create(entry.name, &alone).is_ok(), (engine.devices.runs_on)(Device::Cuda(0)));
            assert_eq!(own(entry.name, &[entry.name], &threads).threads, Some(1));
        }
        let nowhere = EngineOptions { device: Some(Device::Cuda(7)), ..EngineOptions::default() };
        assert_eq!(for_none(&[DEFAULT_ENGINE], &nowhere), ["--device cuda:7"]);
    }
}
