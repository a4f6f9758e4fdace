//! What samples are compared with, opened and held against the network.

use camino::Utf8Path;
use dpar_export_files::arrays::ArrayFile;
use dpar_export_metrics::Moments;

use super::activations::{ActivationTable, StoredActivations};
use super::images::{ImageSet, Reading};
use super::report::Network;
use super::{EvaluateError, InputKind};
use crate::features::FeatureExtractor;

/// A reference.
pub(crate) enum Given {
    /// Images, which the network has to look at.
    Images(ImageSet),
    /// Statistics or activations, and images that serve what needs features of each.
    Stored(Box<StoredActivations>, Option<ImageSet>),
}

impl Given {
    /// Opens a reference.
    ///
    /// # Errors
    /// When it cannot be read, or its features are those of another network or preparation.
    pub(crate) fn open(
        path: &Utf8Path,
        reading: Reading,
        extractor: &FeatureExtractor,
    ) -> Result<Self, EvaluateError> {
        let stored = !path.is_dir() && {
            let file = ArrayFile::open(path)?;
            file.contains("mu") || file.contains("pool_3")
        };
        if !stored {
            return Ok(Self::Images(ImageSet::open(path, reading)?));
        }
        let found = StoredActivations::read(path)?;
        let (identity, network) = (extractor.identity(), Network::of(extractor.spec()).0);
        let other = Some("give the reference as images, or the network it was made with");
        let unlike = |message, hint| Err(EvaluateError::input(InputKind::Network, message, hint));
        if found.network != network {
            let (a, b) = (&found.network.name, &network.name);
            return unlike(format!("{path} holds features of {a}, the extractor is {b}"), other);
        }
        if let Some(e) = found.prepared_by([Some(&identity.digest), Some(identity.resize.name())]) {
            return unlike(format!("{path}: {e} of the extractor"), other);
        }
        let (width, pool) = (extractor.widths()[0], found.pool.as_ref().map(ActivationTable::width));
        if let Some(there) = found.pool_moments.as_ref().map(Moments::width).or(pool)
            && there != width
        {
            return unlike(format!("{path} has {there} features, the extractor {width}"), None);
        }
        let images = found.pool.is_none() && found.images;
        let set = images.then(|| ImageSet::open(path, reading)).transpose()?;
        Ok(Self::Stored(Box::new(found), set))
    }

    /// Its images.
    pub(crate) fn images(&self) -> Option<&ImageSet> {
        match self {
            Self::Images(set) => Some(set),
            Self::Stored(_, set) => set.as_ref(),
        }
    }
}
