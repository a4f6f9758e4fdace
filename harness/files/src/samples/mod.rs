//! Folders of samples, as `generate` and `decode` write them: image by image, so that no more than one is in memory.

mod resume;

use camino::{Utf8Path, Utf8PathBuf};

use crate::arrays::{ArrayError, ArrayErrorKind, ArrayRef, Elements, ImageNpzWriter, NpzStream, Spool};
use crate::patches::PatchSpool;
use crate::picture::encode_png;

pub use resume::{Gathered, ResumableSamples, ResumeError, SampleRun, check_idle};

/// All samples: `arr_0` u8 `[N, H, W, 3]`.
pub const SAMPLES: &str = "samples.npz";
/// What was decided for each.
pub const TRACE: &str = "trace.npz";
/// The contact sheet: no sample.
pub const GRID: &str = "grid.png";
/// What run a folder is of that is gone on with.
pub const RUN: &str = "run.json";
/// The folder in it with what is not complete.
pub const UNFINISHED: &str = "unfinished";

/// The name of an image's file.
fn image_name(index: u64) -> String {
    format!("{index:06}.png")
}

/// The images of a folder: `{index:06}.png`, and all of them in [`SAMPLES`], which appears when it is complete.
#[derive(Debug)]
pub struct ImageFolder {
    folder: Utf8PathBuf,
    size: usize,
    npz: ImageNpzWriter,
}

impl ImageFolder {
    /// Begins with exactly `count` images of `size` × `size` pixels to come.
    ///
    /// # Errors
    /// When the folder refuses.
    pub fn create(folder: &Utf8Path, size: usize, count: u64) -> Result<Self, ArrayError> {
        let npz = ImageNpzWriter::create(&folder.join(SAMPLES), size, size, count)?;
        Ok(Self { folder: folder.to_owned(), size, npz })
    }

    /// Writes the next image, u8 `[H, W, 3]`.
    ///
    /// # Errors
    /// When it has another size, or the disk refuses.
    pub fn push(&mut self, pixels: &[u8]) -> Result<(), ArrayError> {
        let path = self.folder.join(image_name(self.npz.pushed()));
        // First: it says what is wrong with the pixels.
        self.npz.push(pixels)?;
        let refused = |e: &dyn std::fmt::Display| ArrayErrorKind::Write(e.to_string()).in_file(&path);
        let png = encode_png(pixels, self.size, self.size).map_err(|e| refused(&e))?;
        // Brought to the disk with the whole folder.
        fs_err::write(&path, png).map_err(|e| ArrayErrorKind::Io(e).in_file(&path))
    }

    /// Completes the folder.
    ///
    /// # Errors
    /// When images are missing, or the disk refuses.
    pub fn finish(self) -> Result<(), ArrayError> {
        self.npz.finish()
    }
}

/// What was decided for an image.
#[derive(Debug, Clone, Copy)]
pub struct TraceRow<'a> {
    /// VQ codes, T.
    pub tokens: &'a [u32],
    /// Patch lengths.
    pub patch_lengths: &'a [usize],
    /// Entropies in nats, T.
    pub entropy: &'a [f32],
    /// Margins of the draws, T.
    pub margin: &'a [f32],
    /// Class label.
    pub class: i64,
}

/// [`TRACE`], image by image. What is not the first array of the file lies beside it until it is complete.
#[derive(Debug)]
pub struct TraceFile {
    path: Utf8PathBuf,
    shape: [usize; 2],
    tokens: NpzStream,
    patches: PatchSpool,
    entropy: Spool,
    margin: Spool,
    labels: Vec<i64>,
}

impl TraceFile {
    /// Begins in `folder` with exactly `count` images of `tokens` tokens to come.
    ///
    /// # Errors
    /// When the folder refuses.
    pub fn create(folder: &Utf8Path, count: usize, tokens: usize) -> Result<Self, ArrayError> {
        let (path, shape) = (folder.join(TRACE), [count, tokens]);
        let disk = |e| ArrayErrorKind::Io(e).in_file(folder);
        let spool = || Spool::create_in(folder).map_err(disk);
        Ok(Self {
            tokens: NpzStream::i64(&path, "tokens", &shape)?,
            patches: PatchSpool::create_in(folder).map_err(disk)?,
            entropy: spool()?,
            margin: spool()?,
            labels: Vec::new(),
            path,
            shape,
        })
    }

    /// Appends an image.
    ///
    /// # Errors
    /// When there are more than announced, or the disk refuses.
    pub fn push(&mut self, row: TraceRow<'_>) -> Result<(), ArrayError> {
        let tokens: Vec<i64> = row.tokens.iter().map(|t| i64::from(*t)).collect();
        self.tokens.push(Elements::I64(&tokens))?;
        self.labels.push(row.class);
        let spooled = self.patches.push(row.patch_lengths);
        let spooled = spooled.and_then(|()| self.entropy.push(Elements::F32(row.entropy)));
        let spooled = spooled.and_then(|()| self.margin.push(Elements::F32(row.margin)));
        spooled.map_err(|e| ArrayErrorKind::Io(e).in_file(&self.path))
    }

    /// Completes the file with `more` arrays behind those of the images.
    ///
    /// # Errors
    /// When images are missing, or the disk refuses.
    pub fn finish(self, more: &[(&str, ArrayRef<'_>)]) -> Result<(), ArrayError> {
        let Self { path, shape, tokens, patches, entropy, margin, labels } = self;
        let disk = |e| ArrayErrorKind::Io(e).in_file(&path);
        let steps: Vec<i64> = patches.counts().iter().map(|n| i64::from(*n)).collect();
        let (lengths, columns) = patches.finish().map_err(disk)?;
        let (entropy, margin) = (entropy.finish().map_err(disk)?, margin.finish().map_err(disk)?);
        let (rows, vector) = ([shape[0], columns], [shape[0]]);
        let mut arrays = vec![
            ("patch_lengths", ArrayRef::i64(&rows, lengths.i64().map_err(disk)?)),
            ("entropy", ArrayRef::f32(&shape, entropy.f32().map_err(disk)?)),
            ("margin", ArrayRef::f32(&shape, margin.f32().map_err(disk)?)),
            ("steps", ArrayRef::i64(&vector, &steps)),
            ("class_labels", ArrayRef::i64(&vector, &labels)),
        ];
        arrays.extend_from_slice(more);
        tokens.finish_with(&arrays)
    }
}
