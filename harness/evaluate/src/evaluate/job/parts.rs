//! Parts of an evaluation, for whoever gives them out to machines.

use std::collections::BTreeMap;

use camino::Utf8Path;
use serde::Serialize;

use super::{Job, SAMPLES, SampleSource, Shard, folder};
use crate::evaluate::EvaluateError;
use crate::evaluate::look::Pictures;
use crate::evaluate::store::Store;
use crate::{Step, WorkPhase};

/// A part whose features are stored.
#[derive(Debug)]
pub struct StoredPart {
    /// Which.
    pub shard: Shard,
    /// Its images.
    pub images: u64,
    /// Images of the whole.
    pub of: u64,
    /// SHA-256 of what was stored, by file.
    pub rows_sha256: BTreeMap<&'static str, String>,
}

/// What whoever gives out parts has to know of the whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct JobId {
    /// SHA-256 of everything that features depend on: parts with different ones are not joined.
    pub key: String,
    /// Images of the whole.
    pub images: usize,
    /// Smallest number of images that are looked at together: parts are whole chunks.
    pub chunk: usize,
}

impl Job {
    /// What parts of this job have in common.
    ///
    /// # Errors
    /// When what it depends on cannot be written.
    pub fn id(&self, source: &SampleSource<'_>) -> Result<JobId, EvaluateError> {
        let images = source.count();
        let key = self.samples_purpose(source, (0, images), false)?.key;
        Ok(JobId { key, images, chunk: self.chunk() })
    }

    /// Takes the output folder for a job whose parts others will do, and says how many images it holds already: all of them
    /// where nothing but the numbers is left to be done.
    ///
    /// # Errors
    /// What [`run`](Self::run) finds before the first image; a folder that is not this job's, or is in use.
    pub fn begin(&self, source: &SampleSource<'_>) -> Result<u64, EvaluateError> {
        drop(self.check(source)?);
        let _lock = folder::hold(&self.options.output, self.options.resume)?;
        let purpose = self.samples_purpose(source, (0, source.count()), false)?;
        Ok(Store::open(&self.options.output.join(SAMPLES), purpose)?.count())
    }

    /// Stores the features of a part of the samples in the folder `output`, or goes on there. The reference is not looked at:
    /// it is for who joins the parts.
    ///
    /// # Errors
    /// When the folder is not this part's, or is in use; when a picture, the network or the disk fails, or `step` says stop,
    /// which leaves a folder that is gone on with.
    pub fn part(
        &mut self,
        source: &SampleSource<'_>,
        shard: Shard,
        output: &Utf8Path,
        step: Step<'_>,
    ) -> Result<StoredPart, EvaluateError> {
        let _lock = folder::hold(output, self.options.resume)?;
        let range = shard.range(source.count(), self.chunk());
        let purpose = self.samples_purpose(source, range, true)?;
        let mut samples = Store::open(&output.join(SAMPLES), purpose)?;
        self.fill(&mut samples, WorkPhase::Samples, source, step)?;
        let (images, of) = (samples.count(), samples.purpose().total);
        Ok(StoredPart { shard, images, of, rows_sha256: samples.rows_sha256() })
    }
}
