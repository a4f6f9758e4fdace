//! What is known of a set of images so far, on disk: an evaluation that was interrupted goes on as if it had not been.
//!
//! A store is a folder. `pool_3.f32` and `logits.f32` hold the features of every image, little-endian and row-major,
//! `images.sha256` the digest of its pixels, `steps.u32` the steps that it took; they grow chunk by chunk and are never
//! rewritten. `state.bin` holds how many rows count, the digest of every file's counted rows and the exact accumulators
//! of mean and covariance; it is replaced atomically after a chunk's rows are on the disk. What lies behind the counted
//! rows is the rest of an interrupted chunk and is cut off.
//!
//! Sums depend on their order in the last bit. So a part has none: it keeps the spatial features too (`spatial.f32`), and who
//! joins parts sums the rows of all in the order of the images, as a run does that was never cut.

use std::collections::BTreeMap;
use std::io::{Seek, SeekFrom, Write};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_decode::loaded::RunError;
use dpar_export_files::arrays::{Mapped, write_atomic};
use dpar_export_files::staging::remove_unfinished;
use dpar_export_inputs::memory;
use dpar_export_metrics::{Compute, Moments, MomentsAccumulator, Rows};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::{EvaluateError, InputKind};
use crate::features::Activations;

const STATE: &str = "state.bin";
const MAGIC: &[u8; 8] = b"DPXEVAL3";
const POOL: &str = "pool_3.f32";
const SPATIAL: &str = "spatial.f32";
const LOGITS: &str = "logits.f32";
const IMAGES: &str = "images.sha256";
const STEPS: &str = "steps.u32";
/// Bytes copied at a time.
const PART: usize = 16 << 20;
/// Longest header that is read.
const LONGEST_HEADER: usize = 1 << 16;

/// What a store is for. An existing store goes on only with the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Purpose {
    /// Digest of everything that features depend on: images, their order, network, engine, batches. Shards with
    /// different ones are not joined.
    pub(crate) key: String,
    /// Changes when files of the images are written again: a store goes on with untouched ones only. Shards may differ
    /// in it, since each machine has its copy.
    pub(crate) stamp: String,
    /// Images of the whole set.
    pub(crate) total: u64,
    /// First image of this store.
    pub(crate) from: u64,
    /// End of its images.
    pub(crate) to: u64,
    /// Values an image: pooled features, spatial features, logits; 0 = none.
    pub(crate) widths: [usize; 3],
    /// Whether the images are generated, and their steps are kept.
    pub(crate) steps: bool,
    /// Whether another store joins it with others: it keeps rows and no sums.
    pub(crate) part: bool,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StoreHeader {
    purpose: Purpose,
    count: u64,
    /// SHA-256 of the counted rows, by file.
    rows: BTreeMap<String, String>,
    moments: usize,
    spatial: usize,
    /// Parts that were joined: what is not kept of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    joined: Vec<JoinedPart>,
}

/// A part whose spatial features are in the sums, and not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct JoinedPart {
    from: u64,
    to: u64,
    spatial_sha256: String,
}

/// An open store.
#[derive(Debug)]
pub(crate) struct Store {
    folder: Utf8PathBuf,
    purpose: Purpose,
    counted: CountedRows,
}

/// What is known of the counted rows. A step works on a copy, which takes its place when it is on the disk: what fails leaves
/// the store as it was.
#[derive(Debug, Clone)]
struct CountedRows {
    count: u64,
    /// Digests, by file.
    hashes: BTreeMap<&'static str, Sha256>,
    /// Not of a part.
    moments: Option<MomentsAccumulator>,
    /// Not of a part, and only where the network has such features.
    spatial: Option<MomentsAccumulator>,
    joined: Vec<JoinedPart>,
}

impl CountedRows {
    fn hash(&mut self, name: &'static str, rows: &[u8]) {
        self.hashes.entry(name).or_default().update(rows);
    }

    fn rows_sha256(&self) -> BTreeMap<&'static str, String> {
        let hex = |hash: &Sha256| hex::encode(hash.clone().finalize());
        self.hashes.iter().map(|(name, hash)| (*name, hex(hash))).collect()
    }
}

/// A mapped file and the length of its counted rows.
struct Committed(Mapped, usize);

impl Committed {
    fn rows(&self) -> &[u8] {
        self.0.get(..self.1).unwrap_or_default()
    }
}

/// A file is not as it was recorded.
fn unlike(path: &Utf8Path, record: &str, message: String) -> EvaluateError {
    let message = format!("{message}; remove the output folder and evaluate again");
    RunError::Integrity { path: path.to_owned(), record: record.to_owned(), message }.into()
}

impl Store {
    /// Opens the store in `folder`, or starts one there.
    ///
    /// # Errors
    /// When a store for something else is there, or it is damaged.
    pub(crate) fn open(folder: &Utf8Path, purpose: Purpose) -> Result<Self, EvaluateError> {
        if !folder.join(STATE).exists() {
            return Self::start(folder, purpose);
        }
        let store = Self::read(folder)?;
        if store.purpose != purpose {
            let unlike = if (Purpose { stamp: purpose.stamp.clone(), ..store.purpose.clone() }) == purpose {
                "images that were written again since"
            } else {
                "other images, or with other options"
            };
            let message = format!("{folder} holds an evaluation of {unlike}");
            let hint = "repeat the command line that began it, or choose another --output";
            return Err(EvaluateError::input(InputKind::Store, message, Some(hint)));
        }
        store.cut()?;
        Ok(store)
    }

    fn start(folder: &Utf8Path, purpose: Purpose) -> Result<Self, EvaluateError> {
        fs_err::create_dir_all(folder).map_err(EvaluateError::io(folder))?;
        let new = |width: usize| match width > 0 && !purpose.part {
            true => MomentsAccumulator::new(width).map(Some).map_err(EvaluateError::metric("features")),
            false => Ok(None),
        };
        let (moments, spatial) = (new(purpose.widths[0])?, new(purpose.widths[1])?);
        let counted = CountedRows { count: 0, hashes: BTreeMap::new(), moments, spatial, joined: Vec::new() };
        let mut store = Self { folder: folder.to_owned(), purpose, counted: counted.clone() };
        let mut next = counted;
        for (name, _) in store.files() {
            let path = folder.join(name);
            fs_err::write(&path, b"").map_err(EvaluateError::io(&path))?;
            next.hash(name, b"");
        }
        store.commit(next)?;
        Ok(store)
    }

    /// Reads a store as it was last committed, and compares every counted row with the digest of its file.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub(crate) fn read(folder: &Utf8Path) -> Result<Self, EvaluateError> {
        let path = folder.join(STATE);
        let bytes = dpar_export_inputs::read(&path, memory::most()).map_err(EvaluateError::io(&path))?;
        let damaged = |what: &str| unlike(&path, "its own digest", format!("it is damaged ({what})"));
        let (body, digest) = bytes.split_last_chunk::<32>().ok_or_else(|| damaged("truncated"))?;
        if Sha256::digest(body).as_slice() != digest {
            return Err(damaged("its bytes were changed"));
        }
        let rest = body.strip_prefix(MAGIC).ok_or_else(|| {
            let hint = "remove the output folder and evaluate again";
            EvaluateError::input(
                InputKind::Store,
                format!("{path} was written by another version of this tool"),
                Some(hint),
            )
        })?;
        let (length, rest) = rest.split_first_chunk::<8>().ok_or_else(|| damaged("truncated"))?;
        let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
        if length > LONGEST_HEADER.min(rest.len()) {
            return Err(damaged("its header is too long"));
        }
        let (header, rest) = rest.split_at(length);
        let header: StoreHeader = serde_json::from_slice(header).map_err(|e| damaged(&e.to_string()))?;
        let (moments, spatial) = rest.split_at_checked(header.moments).ok_or_else(|| damaged("truncated"))?;
        let state = |bytes: &[u8]| match bytes {
            [] => Ok(None),
            bytes => {
                MomentsAccumulator::from_bytes(bytes).map(Some).map_err(EvaluateError::metric(path.as_str()))
            }
        };
        let (moments, spatial) = (state(moments)?, state(spatial)?);
        let summed = |width| if header.purpose.part { 0 } else { width };
        let width = |sums: &Option<MomentsAccumulator>| sums.as_ref().map_or(0, MomentsAccumulator::width);
        let fits = width(&moments) == summed(header.purpose.widths[0])
            && width(&spatial) == summed(header.purpose.widths[1])
            && header.count <= header.purpose.to.saturating_sub(header.purpose.from);
        if !fits {
            return Err(damaged("its parts do not fit together"));
        }
        let StoreHeader { purpose, count, rows: recorded, joined, .. } = header;
        let counted = CountedRows { count, hashes: BTreeMap::new(), moments, spatial, joined };
        let mut store = Self { folder: folder.to_owned(), purpose, counted };
        for (name, _) in store.files() {
            let (path, bytes) = (folder.join(name), store.committed(name)?);
            let hash = Sha256::new_with_prefix(bytes.rows());
            if recorded.get(name) != Some(&hex::encode(hash.clone().finalize())) {
                return Err(unlike(
                    &path,
                    STATE,
                    "its rows were changed after they were committed".to_owned(),
                ));
            }
            store.counted.hashes.insert(name, hash);
        }
        Ok(store)
    }

    /// Files with their bytes an image.
    fn files(&self) -> Vec<(&'static str, u64)> {
        let [pool, spatial, logits] = self.purpose.widths.map(|w| w as u64 * 4);
        let steps = if self.purpose.steps { 4 } else { 0 };
        let spatial = if self.purpose.part { spatial } else { 0 };
        [(POOL, pool), (SPATIAL, spatial), (LOGITS, logits), (IMAGES, 32), (STEPS, steps)]
            .into_iter()
            .filter(|(_, bytes)| *bytes > 0)
            .collect()
    }

    /// Cuts off what was not committed.
    fn cut(&self) -> Result<(), EvaluateError> {
        remove_unfinished(&self.folder);
        for (name, bytes) in self.files() {
            let path = self.folder.join(name);
            let file =
                fs_err::OpenOptions::new().write(true).open(&path).map_err(EvaluateError::io(&path))?;
            file.set_len(self.counted.count * bytes).map_err(EvaluateError::io(&path))?;
        }
        Ok(())
    }

    /// Adds the features of the next images, whose bytes are `pixels`, `[n, …]`, and whose `steps` of the large transformer,
    /// `[n]`, where they are drawn; durable and atomic: a process that ends at any point, and a call that fails, leave the store
    /// with or without all of them.
    ///
    /// # Errors
    /// When the features do not fit, or the disk refuses.
    pub(crate) fn add(
        &mut self,
        pixels: &[u8],
        chunk: &Activations,
        steps: Option<&[u32]>,
        compute: &Compute,
    ) -> Result<(), EvaluateError> {
        let (n, [width, spatial_width, classes]) = (chunk.count, self.purpose.widths);
        let parts = [
            (Some(&chunk.features), width, "features"),
            (chunk.spatial.as_ref(), spatial_width, "spatial features"),
            (chunk.logits.as_ref(), classes, "logits"),
        ];
        for (values, width, what) in parts {
            if values.map_or(0, Vec::len) != n * width {
                let found = values.map_or(0, Vec::len);
                return Err(EvaluateError::input(
                    InputKind::Store,
                    format!("{found} values of {what} for {n} images"),
                    None,
                ));
            }
        }
        let steps = steps.unwrap_or_default();
        if steps.len() != if self.purpose.steps { n } else { 0 } {
            return Err(EvaluateError::input(
                InputKind::Store,
                format!("{} step counts for {n} images", steps.len()),
                None,
            ));
        }
        if self.counted.count + n as u64 > self.purpose.to - self.purpose.from {
            return Err(EvaluateError::input(
                InputKind::Store,
                format!("more than {} images", self.purpose.to),
                None,
            ));
        }
        let fail = || EvaluateError::metric("features");
        let rows = Rows::new("features", &chunk.features, width).map_err(fail())?;
        let spatial = match &chunk.spatial {
            Some(values) if spatial_width > 0 => {
                Some(Rows::new("spatial features", values, spatial_width).map_err(fail())?)
            }
            _ => None,
        };
        let bytes = |values: &[f32]| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
        let images = pixels.chunks((pixels.len() / n.max(1)).max(1));
        let digests: Vec<u8> = images.flat_map(|image| Sha256::digest(image).to_vec()).collect();
        let mut next = self.counted.clone();
        for (name, _) in self.files() {
            let rows = match name {
                POOL => bytes(&chunk.features),
                SPATIAL => bytes(chunk.spatial.as_deref().unwrap_or_default()),
                LOGITS => bytes(chunk.logits.as_deref().unwrap_or_default()),
                STEPS => steps.iter().flat_map(|s| s.to_le_bytes()).collect(),
                _ => digests.clone(),
            };
            self.write_rows(name, 0, &rows)?;
            next.hash(name, &rows);
        }
        for (all, rows) in [(&mut next.moments, Some(rows)), (&mut next.spatial, spatial)] {
            if let (Some(all), Some(rows)) = (all, rows) {
                all.push(rows, compute).map_err(fail())?;
            }
        }
        next.count += n as u64;
        self.commit(next)
    }

    /// Writes bytes `skip` behind the committed rows.
    fn write_rows(&self, name: &str, skip: u64, rows: &[u8]) -> Result<(), EvaluateError> {
        let path = self.folder.join(name);
        let bytes = self.files().iter().find(|f| f.0 == name).map_or(0, |f| f.1);
        let write = || {
            let mut file = fs_err::OpenOptions::new().write(true).open(&path)?;
            file.seek(SeekFrom::Start(self.counted.count * bytes + skip))?;
            file.write_all(rows)?;
            file.sync_data()
        };
        write().map_err(EvaluateError::io(&path))
    }

    /// Makes `next` what counts.
    fn commit(&mut self, next: CountedRows) -> Result<(), EvaluateError> {
        let bytes = |sums: &Option<MomentsAccumulator>| {
            sums.as_ref().map(MomentsAccumulator::to_bytes).unwrap_or_default()
        };
        let (moments, spatial) = (bytes(&next.moments), bytes(&next.spatial));
        let header = StoreHeader {
            purpose: self.purpose.clone(),
            count: next.count,
            rows: next.rows_sha256().into_iter().map(|(name, hash)| (name.to_owned(), hash)).collect(),
            moments: moments.len(),
            spatial: spatial.len(),
            joined: next.joined.clone(),
        };
        let path = self.folder.join(STATE);
        let header = serde_json::to_vec(&header)
            .map_err(|e| EvaluateError::Io { path: path.clone(), source: std::io::Error::other(e) })?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend((header.len() as u64).to_le_bytes());
        [header, moments, spatial].iter().for_each(|part| bytes.extend(part));
        bytes.extend(Sha256::digest(&bytes));
        write_atomic(&path, &bytes).map_err(EvaluateError::io(&path))?;
        self.counted = next;
        Ok(())
    }

    /// Joins what a part holds: its images come next, or they are here already, as an interrupted merge leaves them, and then
    /// they are the same, row by row.
    ///
    /// # Errors
    /// When it holds others, or the disk refuses.
    pub(crate) fn merge(&mut self, shard: &Self, compute: &Compute) -> Result<(), EvaluateError> {
        let (mine, other) = (&self.purpose, &shard.purpose);
        let at = mine.from + self.counted.count;
        let refuse = |message: String, hint| Err(EvaluateError::input(InputKind::Store, message, Some(hint)));
        let of = |purpose: &Purpose| (purpose.total, purpose.widths, purpose.steps);
        if !other.part {
            let message = format!("{} holds a whole evaluation, and no part of one", shard.folder);
            return refuse(message, "merge what --shard wrote");
        }
        if (&other.key, of(other)) != (&mine.key, of(mine)) {
            let message =
                format!("{} holds an evaluation of other images, or with other options", shard.folder);
            return refuse(message, "merge the shards of one command line");
        }
        let (from, to, there) = (other.from, other.to, shard.counted.count);
        let whole = there == to - from;
        if whole && from >= mine.from && to <= at {
            if self.has_rows_of(shard)? {
                return Ok(());
            }
            let message = format!(
                "{} holds other features of the images {from} to {to} than those that were merged before",
                shard.folder
            );
            return refuse(message, "merge into a new output folder");
        }
        if !whole || from != at {
            let message = format!(
                "{} holds {there} of the images {from} to {to}, where image {at} comes next",
                shard.folder
            );
            return refuse(message, "merge every shard once, and finished");
        }
        let mut next = self.counted.clone();
        for (name, _) in self.files() {
            // A part at a time: a shard is as large as the disk.
            for (i, part) in shard.values(name)?.chunks(PART).enumerate() {
                self.write_rows(name, (i * PART) as u64, part)?;
                next.hash(name, part);
            }
        }
        for (sums, name) in [(&mut next.moments, POOL), (&mut next.spatial, SPATIAL)] {
            if let Some(sums) = sums {
                let (fail, values) = (|| EvaluateError::metric("merged features"), shard.values(name)?);
                let rows = Rows::new("features", values.f32().unwrap_or_default(), sums.width());
                sums.push(rows.map_err(fail())?, compute).map_err(fail())?;
            }
        }
        next.count += there;
        next.joined.extend(shard.as_joined());
        self.commit(next)
    }

    /// What a store that joins this part keeps of its spatial features.
    fn as_joined(&self) -> Option<JoinedPart> {
        let spatial_sha256 = self.rows_sha256().remove(SPATIAL)?;
        Some(JoinedPart { from: self.purpose.from, to: self.purpose.to, spatial_sha256 })
    }

    /// Whether the rows of these images are those of a store of some of them.
    fn has_rows_of(&self, part: &Self) -> Result<bool, EvaluateError> {
        if let Some(own) = part.as_joined() {
            let joined = self.counted.joined.iter().find(|j| (j.from, j.to) == (own.from, own.to));
            if joined.is_some_and(|joined| *joined != own) {
                return Ok(false);
            }
        }
        for (name, bytes) in self.files() {
            let first = (part.purpose.from - self.purpose.from) * bytes;
            let rows = first as usize..(first + part.counted.count * bytes) as usize;
            if self.values(name)?.get(rows) != Some(&*part.values(name)?) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A file with at least the counted rows.
    fn committed(&self, name: &str) -> Result<Committed, EvaluateError> {
        let path = self.folder.join(name);
        let mapped = Mapped::open(&path).map_err(EvaluateError::io(&path))?;
        let wanted = self.counted.count * self.files().iter().find(|f| f.0 == name).map_or(0, |f| f.1);
        if (mapped.len() as u64) < wanted {
            let message = format!("it holds {} bytes, {wanted} were committed", mapped.len());
            return Err(unlike(&path, STATE, message));
        }
        Ok(Committed(mapped, wanted as usize))
    }

    fn values(&self, name: &str) -> Result<Mapped, EvaluateError> {
        let Committed(mapped, wanted) = self.committed(name)?;
        if mapped.len() != wanted || mapped.f32().is_none() {
            let message = format!("it holds {} bytes, {wanted} were committed", mapped.len());
            return Err(unlike(&self.folder.join(name), STATE, message));
        }
        Ok(mapped)
    }

    /// SHA-256 of the counted rows, by file.
    pub(crate) fn rows_sha256(&self) -> BTreeMap<&'static str, String> {
        self.counted.rows_sha256()
    }

    /// What it is for.
    pub(crate) fn purpose(&self) -> &Purpose {
        &self.purpose
    }

    /// Images so far.
    pub(crate) fn count(&self) -> u64 {
        self.counted.count
    }

    /// SHA-256 of the SHA-256 of every image's pixels (u8 `[H, W, 3]`), in order: what the images are.
    ///
    /// # Errors
    /// When the file is not as it was committed.
    pub(crate) fn pixels_sha256(&self) -> Result<String, EvaluateError> {
        Ok(hex::encode(Sha256::digest(&*self.values(IMAGES)?)))
    }

    /// Whether the first `count` images of both are the same, pixel by pixel.
    ///
    /// # Errors
    /// When a file is not as it was committed.
    pub(crate) fn same_images(&self, other: &Self, count: u64) -> Result<bool, EvaluateError> {
        let (own, other) = (self.committed(IMAGES)?, other.committed(IMAGES)?);
        let bytes = usize::try_from(count.saturating_mul(32)).unwrap_or(usize::MAX);
        let (own, other) = (own.rows().get(..bytes), other.rows().get(..bytes));
        Ok(own.is_some() && own == other)
    }

    /// Pooled features of every image, mapped.
    ///
    /// # Errors
    /// When the file is not as it was committed.
    pub(crate) fn pool(&self) -> Result<Mapped, EvaluateError> {
        self.values(POOL)
    }

    /// Logits of every image, mapped, where the network has them.
    ///
    /// # Errors
    /// When the file is not as it was committed.
    pub(crate) fn logits(&self) -> Result<Option<Mapped>, EvaluateError> {
        if self.purpose.widths[2] == 0 { Ok(None) } else { self.values(LOGITS).map(Some) }
    }

    /// Mean steps of the large transformer an image, where the images are generated.
    ///
    /// # Errors
    /// When the file is not as it was committed.
    pub(crate) fn mean_steps(&self) -> Result<Option<f64>, EvaluateError> {
        if !self.purpose.steps || self.counted.count == 0 {
            return Ok(None);
        }
        let bytes = self.values(STEPS)?;
        let steps = bytes.as_chunks::<4>().0.iter().map(|s| u64::from(u32::from_le_bytes(*s)));
        Ok(Some(steps.sum::<u64>() as f64 / self.counted.count as f64))
    }

    /// Mean and covariance of the pooled features.
    ///
    /// # Errors
    /// Below two images, and for a part.
    pub(crate) fn moments(&self, compute: &Compute) -> Result<Moments, EvaluateError> {
        let Some(sums) = &self.counted.moments else {
            let message = format!("{} holds a part of an evaluation", self.folder);
            return Err(EvaluateError::input(InputKind::Store, message, Some("merge all parts first")));
        };
        sums.finish(compute).map_err(EvaluateError::metric("features"))
    }

    /// Mean and covariance of the spatial features, where the network has them.
    ///
    /// # Errors
    /// Below two images.
    pub(crate) fn spatial_moments(&self, compute: &Compute) -> Result<Option<Moments>, EvaluateError> {
        let finish =
            |m: &MomentsAccumulator| m.finish(compute).map_err(EvaluateError::metric("spatial features"));
        self.counted.spatial.as_ref().map(finish).transpose()
    }
}

#[cfg(test)]
mod tests;
