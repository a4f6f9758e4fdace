//! Images that are generated to measure how many patches an image has and how long they are.

use dpar_engine_api::Engine;
use dpar_export_bundle::{Bundle, BundleError, TargetError, TargetErrorKind};

use crate::generate::sampler::SamplerOptions;
use crate::generate::{DecodeError, DecodeOptions, Request};
use crate::loaded::{LoadedBundle, Progress, RunError};

/// Guidance of generated images: in the middle of the published scales (1.75 to 2.1).
const CFG_SCALE: f32 = 2.0;
/// Images decoded together.
const BATCH: usize = 8;

/// Patch lengths of images 0 to `images` - 1 of seed 0.
///
/// # Errors
/// When the engine is not there, the model fails, or `progress` returns false.
pub fn calibrate(
    bundle: &Bundle,
    engine: Box<dyn Engine>,
    images: u32,
    progress: Progress<'_>,
) -> Result<Vec<Vec<usize>>, RunError> {
    let decode = DecodeOptions {
        cfg_scale: CFG_SCALE,
        cfg_interval: None,
        sampler: SamplerOptions::default(),
        seed: 0,
    };
    let requests = Request::all_seeded(0, u64::from(images), bundle.system().num_classes);
    let streams = LoadedBundle::new(bundle, engine)?.decode(&requests, &decode, BATCH, progress)?;
    Ok(streams.into_iter().map(|s| s.patch_lengths).collect())
}

/// A calibration that failed is a target that could not be added; what is wrong with the bundle keeps its kind.
impl From<RunError> for BundleError {
    fn from(e: RunError) -> Self {
        let hint = e.of_engine().and_then(|e| e.hint.clone());
        let kind = match &e {
            RunError::Interrupted | RunError::Decode(DecodeError::Interrupted) => TargetErrorKind::Stopped,
            RunError::Engine(e) | RunError::Decode(DecodeError::Engine(e)) => e.kind.into(),
            RunError::Bundle(_)
            | RunError::Decode(
                DecodeError::Sample { .. } | DecodeError::Entropy { .. } | DecodeError::NoNullClass,
            )
            | RunError::Array(_)
            | RunError::Integrity { .. }
            | RunError::Metric(_)
            | RunError::Request(_) => TargetErrorKind::Refused,
        };
        match e {
            RunError::Bundle(e) => e,
            RunError::Integrity { path, message, .. } => Self::Integrity { path, message },
            e => Self::Target(TargetError { kind, message: format!("calibration: {e}"), hint }),
        }
    }
}
