//! A folder with recorded streams and, perhaps, real images.

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_spec::SystemSpec;

use super::Step;
use crate::arrays::ArrayFile;
use crate::features::{Activations, FeatureExtractor};
use crate::runtime::RunError;
use crate::verify::ReferenceStreams;

/// Real images of the folder.
const REAL: &str = "real_images.npz";

/// Real images u8 [N, H, W, 3].
#[derive(Debug, Clone)]
pub struct RealImages {
    pixels: Vec<u8>,
    size: (usize, usize),
}

/// `reference.json`, `streams_dpar.safetensors`, `streams_llamagen.safetensors`, and optionally `real_images.npz` with
/// `arr_0` u8 [N, H, W, 3].
#[derive(Debug, Clone)]
pub struct ReferenceFolder {
    folder: Utf8PathBuf,
    images: Option<RealImages>,
    /// What the last extractor saw in the real images.
    seen: Option<(String, Activations)>,
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

    /// What the extractor sees in the real images; `None` without any. Kept for [`Self::real`].
    ///
    /// # Errors
    /// When the extractor fails, or `step` says stop.
    pub fn look(&mut self, extractor: &mut FeatureExtractor, step: Step<'_>) -> Result<(), RunError> {
        let Some(images) = &self.images else { return Ok(()) };
        let digest = extractor.identity().digest.clone();
        if self.seen.as_ref().is_none_or(|(d, _)| *d != digest) {
            let mut tell = |done, total| step("looking at real images", done, total);
            self.seen = Some((digest, extractor.run(&images.pixels, images.size, &mut tell)?));
        }
        Ok(())
    }

    /// What [`Self::look`] saw.
    pub fn real(&self) -> Option<&Activations> {
        self.seen.as_ref().map(|(_, a)| a)
    }
}

impl RealImages {
    fn read(path: &Utf8Path, limit: Option<usize>) -> Result<Self, RunError> {
        let array = ArrayFile::open(path)?.u8("arr_0", &[None, None, None, Some(3)])?;
        let shape = array.shape();
        let (n, size) = (shape[0], (shape[1], shape[2]));
        let length = size.0 * size.1 * 3;
        let take = limit.unwrap_or(n).min(n);
        if take < 2 || length == 0 {
            return Err(RunError::Input(format!("{path} gives {take} real images; at least 2 are needed")));
        }
        let all: Vec<u8> = array.iter().copied().collect();
        let pixels = (0..take).flat_map(|i| all[i * n / take * length..][..length].iter().copied()).collect();
        Ok(Self { pixels, size })
    }
}
