//! Which engine runs, and how: one, or several that are told the same.

use camino::{Utf8Path, Utf8PathBuf};
use clap::{Args, ValueEnum};
use dpar_engine_api::{CacheForm, Engine, EngineError, EngineErrorKind};
use dpar_export_spec::RuleChange;

use super::libraries::LibraryArgs;
use super::rule::RuleArgs;
use super::threads::ThreadsArgs;
use crate::bundle::Bundle;
use crate::device::Device;
use crate::engines::{self, DEFAULT_ENGINE, EngineOptions, Runs};
use crate::failure::{Cause, Failure};
use crate::loaded::{LoadedBundle, RunError};
use crate::parity::ParityEngine;
use crate::stop::stopped;

/// Where a bundle runs.
#[derive(Debug, Clone, Args)]
pub struct EngineArgs {
    #[arg(long, value_name = "ENGINE", value_parser = engine_names(), help_heading = "Engine",
        help = format!("{} [default: {DEFAULT_ENGINE}]", engines::help()))]
    pub engine: Option<String>,
    #[command(flatten)]
    pub settings: SettingArgs,
}

/// The options of [`EngineArgs`], by their names in the parser.
pub const ENGINE: [&str; 10] = [
    "engine",
    "threads",
    "device",
    "ort_lib",
    "ep_lib",
    "trt_lib",
    "cuda_graphs",
    "runtime_cache",
    "caches",
    "batch",
];

/// How caches are kept, as `--caches` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum CacheWord {
    /// The engine's choice, graph by graph
    Auto,
    /// In place, or not at all
    InPlace,
    /// Joined
    Joined,
}

/// What engines are told. Each refuses what it does not have; of several, each takes what is its own.
#[derive(Debug, Clone, Args)]
pub struct SettingArgs {
    #[command(flatten)]
    pub threads: ThreadsArgs,
    #[arg(long, value_name = "DEVICE", help = engines::device_help(), help_heading = "Engine")]
    device: Option<Device>,
    #[command(flatten)]
    libraries: LibraryArgs,
    /// Record a CUDA graph for each shape and replay it, for --engine tensorrt
    #[arg(long, help_heading = "Engine")]
    cuda_graphs: bool,
    /// Folder for what TensorRT-RTX compiles for the device, kept for later runs, for --engine tensorrt
    #[arg(long, value_name = "DIR", help_heading = "Engine")]
    runtime_cache: Option<Utf8PathBuf>,
    /// How earlier keys and values reach a step: in memory of each row, written in place, or joined with the new ones as in the
    /// exported graphs; auto: in place where an engine and a graph can. Reports say what it came to
    #[arg(long, value_enum, value_name = "HOW", default_value = "auto", help_heading = "Engine")]
    caches: CacheWord,
    /// Images in one call of a graph
    #[arg(long, value_name = "B", default_value = "8", value_parser = clap::value_parser!(u16).range(1..=256), help_heading = "Engine")]
    batch: u16,
}

impl SettingArgs {
    /// As an engine takes them.
    pub(super) fn options(&self) -> EngineOptions {
        EngineOptions {
            threads: self.threads.given(),
            ort_library: self.libraries.ort_lib.clone(),
            ep_library: self.libraries.ep_lib.clone(),
            trt_library: self.libraries.trt.trt_lib.clone(),
            device: self.device,
            cuda_graphs: self.cuda_graphs,
            runtime_cache: self.runtime_cache.clone(),
            caches: match self.caches {
                CacheWord::Auto => None,
                CacheWord::InPlace => Some(CacheForm::InPlace),
                CacheWord::Joined => Some(CacheForm::Joined),
            },
        }
    }

    /// Refuses how caches are kept where there are none.
    pub fn without_caches(&self, what: &str) -> Result<(), Failure> {
        match self.caches {
            CacheWord::Auto => Ok(()),
            CacheWord::InPlace | CacheWord::Joined => {
                Err(Failure::usage(format!("--caches has no effect: {what}"), Some("leave it out")))
            }
        }
    }

    /// Images in one call of a graph.
    pub fn batch(&self) -> usize {
        usize::from(self.batch)
    }
}

impl EngineArgs {
    /// The engine that was named, or the default one.
    pub fn name(&self) -> &str {
        self.engine.as_deref().unwrap_or(DEFAULT_ENGINE)
    }

    /// A bundle on the engine.
    pub fn on(&self, bundle: &Utf8Path) -> Result<OnEngine, Failure> {
        self.on_beside(bundle, &[])
    }

    /// What opens a bundle on the engine, with every hash checked, again and again.
    ///
    /// # Errors
    /// When the engine is not in this build, or refuses what it is told.
    pub fn opener(
        &self,
        bundle: &Utf8Path,
    ) -> Result<impl Fn() -> Result<LoadedBundle<'static>, RunError> + Send + Sync + 'static, Failure> {
        let name = self.name().to_owned();
        let options = engines::own(&name, &[], &self.settings.options());
        let options = EngineOptions { device: self.settings.options().device, ..options };
        // What is wrong with the options is said before anything is opened.
        engines::create(&name, &options)?;
        let bundle = bundle.to_owned();
        Ok(move || {
            let opened = Bundle::open(&bundle)?;
            Ok(LoadedBundle::owning(opened, engines::create(&name, &options)?)?)
        })
    }

    /// A bundle on the engine, where `others` run too: what is theirs it is not told. The device is its own.
    pub fn on_beside(&self, bundle: &Utf8Path, others: &[&str]) -> Result<OnEngine, Failure> {
        let options = self.settings.options();
        let own = engines::own(self.name(), others, &options);
        let engine = engines::create(self.name(), &EngineOptions { device: options.device, ..own })?;
        let rule = RuleChange::default();
        Ok(OnEngine { bundle: bundle.to_owned(), rule, engine, batch: self.settings.batch() })
    }
}

/// A bundle, and the engine that was chosen for it.
pub struct OnEngine {
    bundle: Utf8PathBuf,
    rule: RuleChange,
    engine: Box<dyn Engine>,
    /// Images in one call of a graph.
    pub batch: usize,
}

impl OnEngine {
    /// With these numbers in the bundle's patch rule.
    pub fn with_rule(self, rule: RuleArgs) -> Self {
        Self { rule: rule.change(), ..self }
    }

    /// Opens the bundle (checking its hashes, also while the engine loads) and calls `f` with it on the engine.
    pub fn run<T>(self, f: impl FnOnce(&LoadedBundle<'_>) -> Result<T, Failure>) -> Result<T, Failure> {
        let opened = Bundle::open_ahead(&self.bundle)?;
        let run = || {
            let bundle = opened.clone().with_rule(&self.rule)?;
            let runtime = LoadedBundle::new(&bundle, self.engine)?;
            if stopped() {
                return Err(RunError::Interrupted.into());
            }
            f(&runtime)
        };
        let done = run();
        // A file that is damaged, or was swapped, may be why; who asked to stop does not wait for the hashes.
        if done.as_ref().is_err_and(|e| e.cause != Cause::Stopped) {
            opened.unchanged()?;
        }
        done
    }
}

/// Engines that are compared.
#[derive(Debug, Clone, Args)]
pub struct EnginesArgs {
    /// Engines
    #[arg(long, value_name = "E,..", value_delimiter = ',', value_parser = engine_names(), help_heading = "Engine")]
    pub engines: Vec<String>,
    #[command(flatten)]
    settings: SettingArgs,
}

impl EnginesArgs {
    /// The engines that were named, or `default`.
    pub fn resolve(&self, default: Vec<String>) -> Result<EnginesPlan, Failure> {
        let named = !self.engines.is_empty();
        let names = if named { self.engines.clone() } else { default };
        if let Some(twice) = names.iter().enumerate().find(|(i, n)| names[..*i].contains(n)) {
            return Err(Failure::usage(format!("engine {} is named twice", twice.1), None));
        }
        let plan =
            EnginesPlan { names, named, options: self.settings.options(), batch: self.settings.batch() };
        match engines::for_none(&plan.among(), &plan.options).as_slice() {
            [] => Ok(plan),
            [option, ..] => {
                let message = format!("{option} is for an engine that is not in the run");
                Err(Failure::usage(message, None))
            }
        }
    }
}

/// Engines that are told the same.
pub struct EnginesPlan {
    /// Their names, none twice.
    pub names: Vec<String>,
    named: bool,
    options: EngineOptions,
    /// Images in one call of a graph.
    pub batch: usize,
}

impl EnginesPlan {
    fn among(&self) -> Vec<&str> {
        self.names.iter().map(String::as_str).collect()
    }

    /// Threads of one run, where they were given.
    pub fn threads(&self) -> Option<usize> {
        self.options.threads
    }

    /// One of them.
    pub fn create(&self, name: &str) -> Result<Box<dyn Engine>, EngineError> {
        engines::create(name, &engines::own(name, &self.among(), &self.options))
    }

    /// All of them, for a bundle.
    pub fn contenders(&self, bundle: &Bundle) -> Vec<ParityEngine> {
        let make = |name: &String| {
            let asked_for = self.named || engines::is_told(name, &self.options);
            let built_files = engines::find(name).is_some_and(|e| e.runs == Runs::BuiltFiles);
            // Of the engines that nobody named, one that needs more than the graphs.
            let engine = if built_files && !asked_for && bundle.manifest().engines.is_empty() {
                Err(no_engines(name))
            } else {
                self.create(name)
            };
            ParityEngine { engine, name: name.clone(), asked_for }
        };
        self.names.iter().map(make).collect()
    }
}

/// Nothing was built from the bundle's graphs.
fn no_engines(name: &str) -> EngineError {
    EngineError::new(EngineErrorKind::Unavailable, name, "the bundle has no engines of its graphs")
        .hint("build them with `dpar-export --target trt BUNDLE`")
}

/// What `--engine` may be.
pub fn engine_names() -> clap::builder::PossibleValuesParser {
    engines::names().collect::<Vec<_>>().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_options_is_whole() {
        let command = EngineArgs::augment_args(clap::Command::new("x"));
        let mut names: Vec<&str> = command.get_arguments().map(|a| a.get_id().as_str()).collect();
        let mut list = ENGINE.to_vec();
        names.sort_unstable();
        list.sort_unstable();
        assert_eq!(names, list);
    }
}
