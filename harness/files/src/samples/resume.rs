//! A folder of samples that is gone on with where a run ended, however it ended.
//!
//! The folder holds `run.json`, which says what run it is of, and the images that are done. What is not complete lies in
//! `unfinished/`: `lock`, held by the process at work; the images of the chunk under way; and a file for each chunk that is done,
//! with what was decided for its images and the digests of their files. A chunk counts when its file is there, which appears whole,
//! after its images: a process that ends anywhere leaves the folder with or without a chunk. When all are done, [`SAMPLES`],
//! [`GRID`] and, last, [`TRACE`] are put beside the images, and `unfinished/` is removed.

use std::fs::File;
use std::io::{self, Write};

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_spec::{Hinted, text};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{GRID, RUN, SAMPLES, TRACE, TraceFile, TraceRow, UNFINISHED, image_name};
use crate::arrays::{
    ArrayError, ArrayErrorKind, ArrayFile, ArrayRef, ImageNpzWriter, write_atomic, write_npz,
};
use crate::patches::{pad, unpad};
use crate::picture::{PictureError, encode_png, read_png};
use crate::staging::{FolderKind, Lock, StagingError, recover, remove_unfinished, sync_folder, try_lock};

const LOCK: &str = "lock";
/// Bytes of a digest.
const DIGEST: usize = 32;

/// Why a folder is not gone on with.
#[derive(Debug, thiserror::Error)]
pub enum ResumeError {
    /// The folder cannot be taken.
    #[error(transparent)]
    Staging(#[from] StagingError),
    /// A file of it cannot be read or written.
    #[error(transparent)]
    Array(#[from] ArrayError),
    /// An image cannot be read or written.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// It was begun by another run.
    #[error("{folder} holds samples of another run: {what}")]
    OtherRun {
        /// The folder.
        folder: Utf8PathBuf,
        /// What is other.
        what: String,
    },
    /// A file is not the one that was written.
    #[error("{path} {message}")]
    Damaged {
        /// The file.
        path: Utf8PathBuf,
        /// What is wrong.
        message: String,
    },
}

impl Hinted for ResumeError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Staging(e) => return e.hint(),
            Self::Array(_) | Self::Picture(_) => return None,
            Self::OtherRun { .. } => "repeat the command line that began it, or choose another --output",
            Self::Damaged { .. } => "remove the folder, and generate again",
        };
        Some(hint.to_owned())
    }
}

impl ResumeError {
    fn damaged(path: Utf8PathBuf, message: &str) -> Self {
        Self::Damaged { path, message: message.to_owned() }
    }
}

fn disk(path: &Utf8Path) -> impl Fn(io::Error) -> ResumeError + use<> {
    let path = path.to_owned();
    move |e| ArrayErrorKind::Io(e).in_file(&path).into()
}

/// What a run makes.
#[derive(Debug, Clone)]
pub struct SampleRun {
    /// All that decides what it makes, as a JSON object: a folder is gone on with by the same only.
    pub record: String,
    /// Images, N.
    pub images: usize,
    /// Tokens of an image, T.
    pub tokens: usize,
    /// Images that are saved together.
    pub chunk: usize,
    /// Side of an image in pixels; `None`: tokens and trace only.
    pub size: Option<usize>,
}

/// A folder of samples that is gone on with, held by this process.
#[derive(Debug)]
pub struct ResumableSamples {
    folder: Utf8PathBuf,
    work: Utf8PathBuf,
    run: SampleRun,
    /// Images that are saved.
    done: usize,
    whole: bool,
    /// Digests of the images' files of the chunk under way.
    images: Vec<u8>,
    _lock: File,
}

/// What the images of a whole run came to.
#[derive(Debug)]
pub struct Gathered {
    /// Patches of every image.
    pub steps: Vec<usize>,
    /// Patch lengths of the first images.
    pub patches: Vec<Vec<usize>>,
    /// Pixels of the first images, u8 `[n, H, W, 3]`.
    pub pixels: Vec<u8>,
}

impl ResumableSamples {
    /// Begins, or goes on where an earlier run ended, in a folder that is missing, empty, or of the same run. `kind`: what such a
    /// folder may hold.
    ///
    /// # Errors
    /// When the folder is of another run or holds anything else, another process works on it, or an image that was done is gone.
    pub fn open(folder: &Utf8Path, run: SampleRun, kind: &FolderKind) -> Result<Self, ResumeError> {
        recover(folder);
        let (work, record) = (folder.join(UNFINISHED), folder.join(RUN));
        check_entries(folder, kind)?;
        let lock = hold(folder, &work)?;
        // Again: another run may have ended in between.
        check_entries(folder, kind)?;
        remove_unfinished(folder);
        match fs_err::read_to_string(&record) {
            Ok(before) if before == run.record => {}
            Ok(before) => {
                let Some(what) = unlike(&before, &run.record) else {
                    return Err(ResumeError::damaged(record, "is no record of a run"));
                };
                return Err(ResumeError::OtherRun { folder: folder.to_owned(), what });
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                write_atomic(&record, run.record.as_bytes()).map_err(disk(&record))?;
            }
            Err(e) => return Err(disk(&record)(e)),
        }
        let (folder, whole) = (folder.to_owned(), folder.join(TRACE).exists());
        let mut found = Self { folder, work, run, done: 0, whole, images: Vec::new(), _lock: lock };
        while !whole && found.done < found.run.images && found.chunk_path(found.done).exists() {
            found.done += found.chunk_at(found.done);
        }
        found.sweep()?;
        let images = if found.run.size.is_some() { found.done } else { 0 };
        match (0..images).map(|i| found.image_path(i)).find(|path| !path.is_file()) {
            Some(path) => Err(ResumeError::damaged(path, "was written, and is gone")),
            None => Ok(found),
        }
    }

    /// Images that are saved.
    pub fn done(&self) -> usize {
        self.done
    }

    /// Whether an earlier run came to its end: nothing is left to do.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// The contact sheet, before [`commit`](Self::commit).
    pub fn grid(&self) -> Utf8PathBuf {
        self.work.join(GRID)
    }

    /// Writes the next image of the chunk under way, u8 `[H, W, 3]`. It is not in the folder yet.
    ///
    /// # Errors
    /// When it has another size, or the disk refuses.
    pub fn push_image(&mut self, pixels: &[u8]) -> Result<(), ResumeError> {
        let size = self.run.size.unwrap_or_default();
        let png = encode_png(pixels, size, size)?;
        let path = self.work.join(image_name((self.done + self.images.len() / DIGEST) as u64));
        let write = || {
            let mut file = fs_err::File::create(&path)?;
            file.write_all(&png)?;
            file.sync_all()
        };
        write().map_err(disk(&path))?;
        self.images.extend(Sha256::digest(&png));
        Ok(())
    }

    /// Saves the chunk under way: its images go into the folder, and what was decided for them beside the chunks before.
    ///
    /// # Errors
    /// When it has not its images, or the disk refuses.
    pub fn save(&mut self, rows: &[TraceRow<'_>]) -> Result<(), ResumeError> {
        let (n, t, path) = (rows.len(), self.run.tokens, self.chunk_path(self.done));
        let images = if self.run.size.is_some() { n } else { 0 };
        if n != self.chunk_at(self.done) || self.images.len() != images * DIGEST {
            let what = format!("{} images and {n} rows are not the next chunk", self.images.len() / DIGEST);
            return Err(ArrayErrorKind::Write(what).in_file(&path).into());
        }
        for i in self.done..self.done + images {
            let from = self.work.join(image_name(i as u64));
            fs_err::rename(&from, self.image_path(i)).map_err(disk(&from))?;
        }
        sync_folder(&self.folder);
        let tokens: Vec<i64> = rows.iter().flat_map(|r| r.tokens).map(|t| i64::from(*t)).collect();
        let (lengths, columns) = pad(rows.iter().map(|r| r.patch_lengths));
        let entropy: Vec<f32> = rows.iter().flat_map(|r| r.entropy).copied().collect();
        let margin: Vec<f32> = rows.iter().flat_map(|r| r.margin).copied().collect();
        let labels: Vec<i64> = rows.iter().map(|r| r.class).collect();
        let (matrix, patches, vector, digests) = ([n, t], [n, columns], [n], [images, DIGEST]);
        write_npz(
            &path,
            &[
                ("tokens", ArrayRef::i64(&matrix, &tokens)),
                ("patch_lengths", ArrayRef::i64(&patches, &lengths)),
                ("entropy", ArrayRef::f32(&matrix, &entropy)),
                ("margin", ArrayRef::f32(&matrix, &margin)),
                ("class_labels", ArrayRef::i64(&vector, &labels)),
                ("images_sha256", ArrayRef::u8(&digests, &self.images)),
            ],
        )?;
        self.done += n;
        self.images.clear();
        Ok(())
    }

    /// Makes [`SAMPLES`] and [`TRACE`] of all chunks, `more` arrays behind those of the images; the first `keep` images are
    /// kept. They are not in the folder yet.
    ///
    /// # Errors
    /// When chunks are missing, a file is not the one that was written, or the disk refuses.
    pub fn gather(&self, more: &[(&str, ArrayRef<'_>)], keep: usize) -> Result<Gathered, ResumeError> {
        let SampleRun { images, tokens, chunk, size, .. } = self.run;
        let mut trace = TraceFile::create(&self.work, images, tokens)?;
        let create = |size| ImageNpzWriter::create(&self.work.join(SAMPLES), size, size, images as u64);
        let mut samples = size.map(create).transpose()?;
        let (steps, patches, pixels) = (Vec::with_capacity(images), Vec::new(), Vec::new());
        let mut all = Gathered { steps, patches, pixels };
        for first in (0..images).step_by(chunk) {
            let saved = SavedChunk::open(&self.chunk_path(first), self.chunk_at(first), tokens)?;
            for i in 0..saved.labels.len() {
                trace.push(saved.row(i))?;
                all.steps.push(saved.lengths[i].len());
                if all.patches.len() < keep {
                    all.patches.push(saved.lengths[i].clone());
                }
                if let Some(samples) = &mut samples {
                    let path = self.image_path(first + i);
                    let bytes = fs_err::read(&path).map_err(disk(&path))?;
                    if saved.images.get(i * DIGEST..(i + 1) * DIGEST) != Some(&*Sha256::digest(&bytes)) {
                        return Err(ResumeError::damaged(path, "is not the image that was written"));
                    }
                    let picture = read_png(&path)?;
                    samples.push(&picture.rgb)?;
                    if first + i < keep {
                        all.pixels.extend(picture.rgb);
                    }
                }
            }
        }
        samples.map(ImageNpzWriter::finish).transpose()?;
        trace.finish(more)?;
        Ok(all)
    }

    /// Puts what was gathered into the folder, which is then complete.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn commit(mut self) -> Result<(), ResumeError> {
        // The trace last: it says that the rest is there.
        for name in [SAMPLES, GRID, TRACE] {
            let from = self.work.join(name);
            match fs_err::rename(&from, self.folder.join(name)) {
                Err(e) if e.kind() == io::ErrorKind::NotFound && name != TRACE => {}
                done => done.map_err(disk(&from))?,
            }
            sync_folder(&self.folder);
        }
        (self.whole, self.done) = (true, 0);
        self.sweep()
    }

    /// Patches of every image, of a whole run.
    ///
    /// # Errors
    /// When [`TRACE`] cannot be read.
    pub fn steps(&self) -> Result<Vec<usize>, ResumeError> {
        let trace = ArrayFile::open(self.folder.join(TRACE))?;
        let steps = trace.i64_in("steps", &[Some(self.run.images)], "step", 0..i64::MAX)?;
        Ok(steps.iter().map(|n| *n as usize).collect())
    }

    /// Images of the chunk that begins with that one.
    fn chunk_at(&self, first: usize) -> usize {
        self.run.chunk.min(self.run.images - first)
    }

    fn chunk_path(&self, first: usize) -> Utf8PathBuf {
        self.work.join(format!("{first:08}.npz"))
    }

    fn image_path(&self, index: usize) -> Utf8PathBuf {
        self.folder.join(image_name(index as u64))
    }

    /// Removes what is of no chunk that is done; of a whole run, everything.
    fn sweep(&self) -> Result<(), ResumeError> {
        let chunks = (0..self.done).step_by(self.run.chunk).map(|first| self.chunk_path(first));
        let keep: std::collections::BTreeSet<Utf8PathBuf> = chunks.chain([self.work.join(LOCK)]).collect();
        let sweep = || -> io::Result<()> {
            for entry in self.work.read_dir_utf8()? {
                let path = entry?.into_path();
                if !keep.contains(&path) {
                    fs_err::remove_file(path)?;
                }
            }
            if self.whole { fs_err::remove_dir_all(&self.work) } else { Ok(()) }
        };
        sweep().map_err(disk(&self.work))
    }
}

/// What was decided for the images of a chunk.
struct SavedChunk {
    tokens: Vec<u32>,
    lengths: Vec<Vec<usize>>,
    entropy: Vec<f32>,
    margin: Vec<f32>,
    labels: Vec<i64>,
    images: Vec<u8>,
    columns: usize,
}

impl SavedChunk {
    fn open(path: &Utf8Path, n: usize, t: usize) -> Result<Self, ResumeError> {
        let file = ArrayFile::open(path)?;
        let matrix = [Some(n), Some(t)];
        let tokens = file.i64_in("tokens", &matrix, "token", 0..i64::from(u32::MAX))?;
        let lengths = file.i64("patch_lengths", &[Some(n), None])?;
        Ok(Self {
            tokens: tokens.iter().map(|t| *t as u32).collect(),
            lengths: unpad(&lengths, t, path, "patch_lengths")?,
            entropy: file.f32("entropy", &matrix)?.into_raw_vec_and_offset().0,
            margin: file.f32("margin", &matrix)?.into_raw_vec_and_offset().0,
            labels: file.i64("class_labels", &[Some(n)])?.into_raw_vec_and_offset().0,
            images: file.u8("images_sha256", &[None, Some(DIGEST)])?.into_raw_vec_and_offset().0,
            columns: t,
        })
    }

    fn row(&self, i: usize) -> TraceRow<'_> {
        let row = i * self.columns..(i + 1) * self.columns;
        TraceRow {
            tokens: &self.tokens[row.clone()],
            patch_lengths: &self.lengths[i],
            entropy: &self.entropy[row.clone()],
            margin: &self.margin[row],
            class: self.labels[i],
        }
    }
}

/// Refuses a folder that holds anything else than what such a run writes, or an output that cannot be gone on with.
fn check_entries(folder: &Utf8Path, kind: &FolderKind) -> Result<(), ResumeError> {
    let mut names = Vec::new();
    match folder.as_std_path().read_dir() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotADirectory => {
            let what = "is no folder".to_owned();
            return Err(StagingError::Foreign { output: folder.to_owned(), what }.into());
        }
        Err(e) => return Err(disk(folder)(e)),
        Ok(entries) => {
            for entry in entries {
                // A name that is not UTF-8 is not ours either way.
                names.push(entry.map_err(disk(folder))?.file_name().to_string_lossy().into_owned());
            }
        }
    }
    names.retain(|name| name != UNFINISHED && !name.starts_with(crate::staging::PREFIX));
    if let Some(other) = names.iter().filter(|name| !(kind.writes)(name)).min() {
        let what = format!("holds `{other}`, which is of no earlier output");
        return Err(StagingError::Foreign { output: folder.to_owned(), what }.into());
    }
    let begun = names.iter().any(|name| name == RUN);
    let work = folder.join(UNFINISHED);
    let foreign = |what: &str| StagingError::Foreign { output: folder.to_owned(), what: what.to_owned() };
    match work.symlink_metadata() {
        Ok(found) if !found.is_dir() => {
            return Err(foreign("holds `unfinished`, which is no folder").into());
        }
        // What is in it is removed unless it is of this run.
        Ok(_) if !begun => {
            for entry in work.as_std_path().read_dir().map_err(disk(&work))? {
                if entry.map_err(disk(&work))?.file_name() != LOCK {
                    return Err(foreign("holds `unfinished`, which is of no earlier run").into());
                }
            }
        }
        _ => {}
    }
    match names.is_empty() || begun {
        true => Ok(()),
        false => Err(StagingError::Exists(folder.to_owned()).into()),
    }
}

/// Refuses a folder that a process grows at this moment: what replaces it would take its images from it.
///
/// # Errors
/// [`StagingError::Busy`].
pub fn check_idle(folder: &Utf8Path) -> Result<(), StagingError> {
    let path = folder.join(UNFINISHED).join(LOCK);
    let Ok(lock) = File::options().write(true).open(&path) else { return Ok(()) };
    match try_lock(&lock, path.as_std_path()) {
        Lock::Taken => Err(StagingError::Busy(folder.to_owned())),
        Lock::Held | Lock::Gone | Lock::Unknown(_) => Ok(()),
    }
}

/// Takes the folder for this process.
fn hold(folder: &Utf8Path, work: &Utf8Path) -> Result<File, ResumeError> {
    let path = work.join(LOCK);
    loop {
        fs_err::create_dir_all(work).map_err(disk(work))?;
        let lock = match File::options().write(true).create(true).truncate(false).open(&path) {
            Ok(lock) => lock,
            // Another run has just come to its end.
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(disk(&path)(e)),
        };
        match try_lock(&lock, path.as_std_path()) {
            Lock::Held => return Ok(lock),
            Lock::Gone => {}
            Lock::Taken => return Err(StagingError::Busy(folder.to_owned()).into()),
            Lock::Unknown(e) => {
                tracing::warn!("{path}: {e}: runs for one output are not told apart here");
                return Ok(lock);
            }
        }
    }
}

/// The first thing that two records say otherwise; `None` where one is no record.
fn unlike(before: &str, now: &str) -> Option<String> {
    let [before, now] = [before, now].map(|text| serde_json::from_str::<Map<String, Value>>(text).ok());
    let (before, now) = (before?, now?);
    let show = |value: Option<&Value>| {
        let value = value.map_or_else(|| "not there".to_owned(), Value::to_string);
        text::cut(&value, text::LONGEST_NAME).into_owned()
    };
    let mut keys = now.keys().chain(before.keys());
    let key = keys.find(|key| before.get(*key) != now.get(*key));
    Some(key.map_or_else(
        || "its record is written otherwise".to_owned(),
        |key| format!("its `{key}` is {}, and here {}", show(before.get(key)), show(now.get(key))),
    ))
}

#[cfg(test)]
mod tests;
