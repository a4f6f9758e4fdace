//! A folder with recorded streams and, perhaps, real images.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_compare::verify::ReferenceStreams;
use dpar_export_metrics::{Compute, Moments};
use dpar_export_spec::{SystemKind, SystemSpec};

use super::{CHUNK, failed, moments};
use crate::error::{EvaluateError, InputKind};
use crate::evaluate::images::{ImageSet, Reading};
use crate::evaluate::look::collect;
use crate::evaluate::reference::Given;
use crate::features::{Activations, FeatureExtractor};
use crate::{Step, WorkPhase};

/// Real images of the folder.
const REAL: &str = "real_images.npz";

/// What an extractor sees in the real images.
#[derive(Debug, Clone)]
pub struct Real {
    /// Mean and covariance: the stored ones as they are, or those of [`Self::seen`].
    pub moments: Moments,
    /// Features of the images, for what needs single images.
    pub seen: Activations,
}

/// `reference.json`, `streams_dpar.safetensors`, `streams_llamagen.safetensors`, and optionally `real_images.npz` with
/// `arr_0` u8 [N, H, W, 3], and statistics (`mu`, `sigma`) as guided-diffusion's reference files have them.
#[derive(Debug)]
pub struct ReferenceFolder {
    folder: Utf8PathBuf,
    images: Option<ImageSet>,
    /// What the last extractor saw in the real images.
    seen: Option<(String, Real)>,
}

impl ReferenceFolder {
    /// Opens a folder. Of the real images `limit` are taken, evenly spaced over the file; `None` = all. `images` is
    /// another file than the folder's.
    ///
    /// # Errors
    /// When there is no `reference.json`, or the images cannot be read.
    pub fn open(
        folder: &Utf8Path,
        images: Option<&Utf8Path>,
        limit: Option<usize>,
    ) -> Result<Self, EvaluateError> {
        if !folder.join("reference.json").is_file() {
            let message = format!("{folder} has no reference.json: it is no reference run");
            return Err(EvaluateError::input(InputKind::Recording, message, None));
        }
        let own = folder.join(REAL);
        let path = images.map(Utf8Path::to_owned).or_else(|| own.is_file().then_some(own));
        let images = path.map(|p| ImageSet::open(&p, Reading::default())).transpose()?;
        let images = images.map(|set| set.spread(limit.unwrap_or(usize::MAX)));
        if let Some(set) = &images {
            set.tell();
        }
        if let Some(set) = images.as_ref().filter(|set| set.count() < 2) {
            let message = format!("{} gives {} real images; at least 2 are needed", set.path(), set.count());
            return Err(EvaluateError::input(InputKind::Images, message, None));
        }
        Ok(Self { folder: folder.to_owned(), images, seen: None })
    }

    /// Whether there are real images.
    pub fn has_real_images(&self) -> bool {
        self.images.is_some()
    }

    /// The streams of that kind of system.
    ///
    /// # Errors
    /// When they cannot be read or do not fit the system.
    pub fn streams(&self, system: &SystemSpec) -> Result<ReferenceStreams, EvaluateError> {
        let kind = match system.kind {
            SystemKind::Llamagen => "llamagen",
            SystemKind::Dpar | SystemKind::Extractor => "dpar",
        };
        Ok(ReferenceStreams::open(&self.folder.join(format!("streams_{kind}.safetensors")), system)?)
    }

    /// What the extractor sees in the real images; nothing without any. Kept for [`Self::real`].
    ///
    /// # Errors
    /// When the extractor fails, stored statistics are those of another network, or `step` says stop.
    pub fn look(
        &mut self,
        extractor: &mut FeatureExtractor,
        compute: &Compute,
        step: Step<'_>,
    ) -> Result<(), EvaluateError> {
        let Some(images) = &self.images else { return Ok(()) };
        let digest = extractor.identity().digest.clone();
        if self.seen.as_ref().is_some_and(|(d, _)| *d == digest) {
            return Ok(());
        }
        // Asked first: looking at the images may take hours.
        let stored = match Given::open(images.path(), Reading::default(), extractor)? {
            Given::Stored(found, _) => found.pool_moments,
            Given::Images(_) => None,
        };
        let at = &mut |n| step(WorkPhase::Reference, n, images.count());
        let (seen, _) = collect(images, CHUNK, extractor, at)?;
        let moments = match stored {
            Some(stored) => stored,
            None => moments(&seen, compute).map_err(failed())?,
        };
        self.seen = Some((digest, Real { moments, seen }));
        Ok(())
    }

    /// What [`Self::look`] saw.
    pub fn real(&self) -> Option<&Real> {
        self.seen.as_ref().map(|(_, real)| real)
    }
}
