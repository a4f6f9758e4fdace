//! A folder with recorded streams and, perhaps, real images.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_compare::verify::ReferenceStreams;
use dpar_export_decode::runtime::RunError;
use dpar_export_files::arrays::{ArrayFile, ImageNpz};
use dpar_export_metrics::{Compute, Moments};
use dpar_export_spec::SystemSpec;

use super::{CHUNK, Step, moments};
use crate::evaluate::EvaluateError;
use crate::evaluate::activations::Activations as Stored;
use crate::evaluate::report::Network;
use crate::features::{Activations, FeatureExtractor};

/// Real images of the folder.
const REAL: &str = "real_images.npz";

/// Real images u8 [N, H, W, 3], read a chunk at a time.
#[derive(Debug)]
struct RealImages {
    path: Utf8PathBuf,
    npz: ImageNpz,
    /// Images that are looked at, evenly spaced.
    take: usize,
    /// Mean and covariance of all real images, where the file stores them, with the network that they are of.
    stored: Option<(Network, Moments)>,
}

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
    images: Option<RealImages>,
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
    ) -> Result<Self, RunError> {
        if !folder.join("reference.json").is_file() {
            return Err(RunError::Input(format!("{folder} has no reference.json: it is no reference run")));
        }
        let own = folder.join(REAL);
        let path = images.map(Utf8Path::to_owned).or_else(|| own.is_file().then_some(own));
        let images = path.map(|p| RealImages::read(&p, limit)).transpose()?;
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
    pub fn streams(&self, system: &SystemSpec) -> Result<ReferenceStreams, RunError> {
        let kind = match system.kind {
            dpar_export_spec::SystemKind::Llamagen => "llamagen",
            _ => "dpar",
        };
        ReferenceStreams::open(&self.folder.join(format!("streams_{kind}.safetensors")), system)
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
    ) -> Result<(), RunError> {
        let Some(images) = &self.images else { return Ok(()) };
        let digest = extractor.identity().digest.clone();
        if self.seen.as_ref().is_none_or(|(d, _)| *d != digest) {
            self.seen = Some((digest, images.look(extractor, compute, step)?));
        }
        Ok(())
    }

    /// What [`Self::look`] saw.
    pub fn real(&self) -> Option<&Real> {
        self.seen.as_ref().map(|(_, real)| real)
    }
}

impl RealImages {
    fn read(path: &Utf8Path, limit: Option<usize>) -> Result<Self, RunError> {
        let file = ArrayFile::open(path)?;
        let stored = ["mu", "sigma"].into_iter().any(|name| file.contains(name));
        let stored = if stored { statistics(path)? } else { None };
        let npz = ImageNpz::open(path)?;
        let take = limit.unwrap_or(npz.count()).min(npz.count());
        if take < 2 {
            return Err(RunError::Input(format!("{path} gives {take} real images; at least 2 are needed")));
        }
        Ok(Self { path: path.to_owned(), npz, take, stored })
    }

    fn look(
        &self,
        extractor: &mut FeatureExtractor,
        compute: &Compute,
        step: Step<'_>,
    ) -> Result<Real, RunError> {
        let width = extractor.widths()[0];
        // Asked first: looking at the images may take hours.
        if let Some((network, moments)) = &self.stored {
            let own = match extractor.spec().is_fid() {
                true => Network::inception(),
                false => Network::named(&extractor.identity().name),
            };
            if *network != own || moments.width() != width {
                return Err(RunError::Input(format!(
                    "{} stores statistics of {} ({} features), the extractor is {} ({width}): give real images \
                     without `mu` and `sigma`, or the network that they were made with",
                    self.path,
                    network.name,
                    moments.width(),
                    own.name
                )));
            }
        }
        let (n, size) = (self.npz.count(), self.npz.size());
        let image = size.0 * size.1 * 3;
        let mut seen = Activations { width, ..Activations::default() };
        let (mut at, mut taken) = (0, 0);
        self.npz.chunks((0, n), CHUNK, &mut |pixels| {
            let mut chosen = Vec::new();
            let end = at + pixels.len() / image;
            while taken < self.take && taken * n / self.take < end {
                let from = (taken * n / self.take - at) * image;
                chosen.extend_from_slice(&pixels[from..from + image]);
                taken += 1;
            }
            at = end;
            if chosen.is_empty() {
                return Ok(());
            }
            let before = seen.count;
            let mut tell = |done, _| step("looking at real images", before + done, self.take);
            let Activations { count, width, features, .. } = extractor.run(&chosen, size, &mut tell)?;
            seen.append(Activations { count, width, features, ..Activations::default() })
        })?;
        let moments = match &self.stored {
            Some((_, moments)) => moments.clone(),
            None => moments(&seen, compute)?,
        };
        Ok(Real { moments, seen })
    }
}

/// Stored mean and covariance, read as `evaluate` reads them.
fn statistics(path: &Utf8Path) -> Result<Option<(Network, Moments)>, RunError> {
    match Stored::read(path) {
        Ok(stored) => Ok(stored.pool_moments.map(|moments| (stored.network, moments))),
        Err(EvaluateError::Array(e)) => Err(e.into()),
        Err(EvaluateError::Run(e)) => Err(e),
        Err(e) => Err(RunError::Input(e.to_string())),
    }
}
