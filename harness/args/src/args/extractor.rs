//! The engine of a feature network, beside the one of a bundle.

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use dpar_engine_api::Engine;

use super::engine::EngineArgs;
use crate::engines::{self, EngineOptions, Runs};
use crate::failure::Failure;
use crate::features::{ExtractorOptions, FeatureExtractor};

/// What looks at images.
#[derive(Debug, Clone, Args)]
pub struct ExtractorEngineArgs {
    /// Engine of the extractor; it runs on --device where it is the engine of the bundle too, or there is no bundle
    #[arg(long, value_name = "ENGINE", value_parser = extractor_engines(), help_heading = "Engine")]
    pub extractor_engine: Option<String>,
}

/// Those that run graphs: nothing is built for extractors.
fn extractor_engines() -> clap::builder::PossibleValuesParser {
    engines::all().iter().filter(|e| e.runs == Runs::Graphs).map(|e| e.name).collect::<Vec<_>>().into()
}

/// A feature network, and the engine that was chosen for it.
pub struct ExtractorPlan {
    path: Utf8PathBuf,
    engine: Box<dyn Engine>,
    options: ExtractorOptions,
}

impl ExtractorPlan {
    /// A network on the engine `name`, alone or beside the bundles that `--engine` runs: what is theirs it is not told, and
    /// the device only where it is the same engine.
    pub fn new(
        path: &Utf8Path,
        name: &str,
        engine: &EngineArgs,
        beside_a_bundle: bool,
        options: ExtractorOptions,
    ) -> Result<Self, Failure> {
        let settings = &engine.settings;
        let (batch, threads) = (settings.batch(), settings.threads.or_all());
        let (told, others) = (settings.options(), [engine.name()]);
        let own = match beside_a_bundle {
            true => EngineOptions {
                device: told.device.filter(|_| name == engine.name()),
                ..engines::own(name, &others, &told)
            },
            false => told,
        };
        let engine = engines::create(name, &own)?;
        Ok(Self { path: path.to_owned(), engine, options: ExtractorOptions { batch, threads, ..options } })
    }

    /// Opens it.
    pub fn open(self) -> Result<FeatureExtractor, Failure> {
        Ok(FeatureExtractor::open(&self.path, self.engine, &self.options)?)
    }
}
