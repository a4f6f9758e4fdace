//! `decode` and `encode`: tokens to images and back, and the sample files that `generate` shares.

use std::borrow::Cow;

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use serde_json::json;

use super::args::{ArrayOutput, BundleArgs, EngineArgs, ManyArgs, OnEngine, OutputArgs};
use super::failure::{Exit, Failure};
use super::printer::{Bar, Printer};
use crate::arrays::{ArrayFile, ArrayRef, ImageNpzWriter, write_npz};
use crate::loaded::{LoadedBundle, RunError};
use crate::picture::{from_u8_nhwc, to_u8_nhwc, write_png};
use crate::samples::{GRID, SAMPLES, TRACE};
use crate::staging::FolderKind;

/// What `decode` and `generate` write.
pub(super) const SAMPLE_FOLDER: FolderKind = FolderKind {
    marks: &[TRACE, SAMPLES],
    writes: |name| {
        let image =
            name.strip_suffix(".png").is_some_and(|n| n.len() >= 6 && n.bytes().all(|b| b.is_ascii_digit()));
        image || [TRACE, SAMPLES, GRID].contains(&name)
    },
};

/// Images that are prepared at a time: enough to amortise a graph's preparation, few enough to bound memory.
const AT_ONCE: usize = 256;

/// Decodes tokens `[n, T]` chunk by chunk and writes `{index:06d}.png` and `samples.npz`; returns the pixels of
/// the first `keep` images, `[keep, H, W, 3]`.
pub(super) fn write_images(
    runtime: &LoadedBundle<'_>,
    ids: &[i64],
    folder: &Utf8Path,
    batch: usize,
    keep: usize,
    bar: &Bar,
) -> Result<Vec<u8>, Failure> {
    let system = runtime.bundle().system();
    let (size, t) = (system.image_size, system.tokens());
    let n = ids.len() / t;
    let mut npz = ImageNpzWriter::create(&folder.join(SAMPLES), size, size, n as u64)?;
    let mut kept = Vec::new();
    let mut index = 0;
    for chunk in ids.chunks(t * AT_ONCE) {
        let images = runtime.images(chunk, batch, &mut |done, _| bar.advance(index + done, n))?;
        for pixels in to_u8_nhwc(&images, chunk.len() / t, size, size).chunks(size * size * 3) {
            write_png(&folder.join(format!("{index:06}.png")), pixels, size, size)?;
            npz.push(pixels)?;
            if index < keep {
                kept.extend_from_slice(pixels);
            }
            index += 1;
        }
        if !bar.advance(index, n) {
            return Err(RunError::Interrupted.into());
        }
    }
    npz.finish()?;
    Ok(kept)
}

#[derive(Debug, Args)]
#[command(mut_arg("output", |a| a.help("Output folder: PNGs and samples.npz")))]
pub(crate) struct DecodeArgs {
    #[command(flatten)]
    bundle: BundleArgs,
    /// Array `tokens` [N, T] (.npz, .safetensors)
    #[arg(long, value_name = "FILE")]
    tokens: Utf8PathBuf,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    many: ManyArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Tokens to decode; their file is open.
pub(super) struct DecodePlan {
    tokens: ArrayFile,
    output: OutputArgs,
    on: OnEngine,
}

impl DecodeArgs {
    /// Opens the tokens, chooses the engine.
    pub(super) fn resolve(self) -> Result<DecodePlan, Failure> {
        let tokens = ArrayFile::open(&self.tokens)?;
        self.many.check(&tokens, "tokens")?;
        Ok(DecodePlan { tokens, on: self.engine.on(&self.bundle.bundle)?, output: self.output })
    }
}

pub(super) fn decode(plan: DecodePlan, printer: Printer) -> Result<Exit, Failure> {
    let DecodePlan { tokens: file, output, on } = plan;
    let batch = on.batch;
    on.run(|runtime| {
        let system = runtime.bundle().system();
        let ids = file.i64_in("tokens", &[None, Some(system.tokens())], "token", 0..system.vocab as i64)?;
        let n = ids.shape()[0];
        if n == 0 {
            return Err(Failure::usage(format!("{} holds no images", file.path()), None));
        }
        let ids = ids.into_raw_vec_and_offset().0;
        let staged = output.folder(&SAMPLE_FOLDER)?;
        let bar = printer.progress("decoding", "images");
        write_images(runtime, &ids, staged.path(), batch, 0, &bar)?;
        drop(bar);
        staged.commit()?;
        let output = output.output;
        let text = || format!("{output}: {n} images");
        printer.result(text, &json!({ "output": output, "images": n, "engine": runtime.info() }))?;
        Ok(Exit::Pass)
    })
}

/// What is to be encoded, as the file has it.
enum EncoderInput {
    /// u8 `[N, H, W, 3]`.
    Pixels(Vec<u8>),
    /// f32 `[N, 3, H, W]`.
    Floats(Vec<f32>),
}

impl EncoderInput {
    fn read(file: &ArrayFile, size: usize, many: &ManyArgs) -> Result<Self, Failure> {
        let side = Some(size);
        if file.contains("arr_0") {
            many.check(file, "arr_0")?;
            let pixels = file.u8("arr_0", &[None, side, side, Some(3)])?;
            return Ok(Self::Pixels(pixels.into_raw_vec_and_offset().0));
        }
        if !file.contains("images") {
            let message =
                format!("{} has neither `arr_0` nor `images` (it has {})", file.path(), file.listing());
            return Err(Failure::usage(message, None));
        }
        many.check(file, "images")?;
        let images = file.f32("images", &[None, Some(3), side, side])?.into_raw_vec_and_offset().0;
        if let Some(bad) = images.iter().find(|v| !(-1.001..=1.001).contains(*v)) {
            let message = format!("{}: value {bad} is outside [-1, 1]", file.path());
            return Err(Failure::usage(
                message,
                Some("`images` is f32 in [-1, 1]; u8 pixels go into `arr_0`"),
            ));
        }
        Ok(Self::Floats(images))
    }

    fn count(&self, size: usize) -> usize {
        let values = match self {
            Self::Pixels(v) => v.len(),
            Self::Floats(v) => v.len(),
        };
        values / (3 * size * size)
    }

    /// Images `from..to`, f32 `[n, 3, H, W]`.
    fn floats(&self, size: usize, from: usize, to: usize) -> Cow<'_, [f32]> {
        let image = 3 * size * size;
        match self {
            Self::Pixels(v) => from_u8_nhwc(&v[from * image..to * image], to - from, size, size).into(),
            Self::Floats(v) => v[from * image..to * image].into(),
        }
    }
}

#[derive(Debug, Args)]
#[command(mut_arg("output", |a| a.value_name("OUT.npz").help("Output: array `tokens` i64 [N, T]")))]
pub(crate) struct EncodeArgs {
    #[command(flatten)]
    bundle: BundleArgs,
    /// Array `arr_0` u8 [N, H, W, 3], or `images` f32 [N, 3, H, W] in [−1, 1]
    #[arg(long, value_name = "FILE")]
    images: Utf8PathBuf,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    many: ManyArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Images to encode; their file is open, the output's name is taken.
pub(super) struct EncodePlan {
    images: ArrayFile,
    many: ManyArgs,
    output: ArrayOutput,
    on: OnEngine,
}

impl EncodeArgs {
    /// Opens the images, takes the output's name, chooses the engine.
    pub(super) fn resolve(self) -> Result<EncodePlan, Failure> {
        Ok(EncodePlan {
            images: ArrayFile::open(&self.images)?,
            output: self.output.array_file()?,
            on: self.engine.on(&self.bundle.bundle)?,
            many: self.many,
        })
    }
}

pub(super) fn encode(plan: EncodePlan, printer: Printer) -> Result<Exit, Failure> {
    let EncodePlan { images: file, many, output, on } = plan;
    let batch = on.batch;
    on.run(|runtime| {
        let system = runtime.bundle().system();
        let size = system.image_size;
        let images = EncoderInput::read(&file, size, &many)?;
        let n = images.count(size);
        if n == 0 {
            return Err(Failure::usage(format!("{} holds no images", file.path()), None));
        }
        let bar = printer.progress("encoding", "images");
        let mut codes = Vec::with_capacity(n * system.tokens());
        // Whole batches, so that each is the one that it would be without pieces.
        let step = batch * (AT_ONCE / batch).max(1);
        for from in (0..n).step_by(step) {
            let images = images.floats(size, from, n.min(from + step));
            codes.extend(runtime.codes(&images, batch, &mut |done, _| bar.advance(from + done, n))?);
        }
        drop(bar);
        let shape = [n, system.tokens()];
        write_npz(output.path(), &[("tokens", ArrayRef::i64(&shape, &codes))])?;
        let name = output.name.clone();
        output.commit()?;
        let text = || format!("{name}: tokens of {n} images");
        printer.result(text, &json!({ "output": name, "images": n, "engine": runtime.info() }))?;
        Ok(Exit::Pass)
    })
}
