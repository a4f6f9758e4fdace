//! `decode` and `encode`: tokens to images and back, and the sample files that `generate` shares.

use std::borrow::Cow;

use camino::Utf8Path;
use serde_json::json;

use super::args::{DecodeArgs, EncodeArgs};
use super::failure::{Exit, Failure};
use super::printer::{Bar, Printer};
use super::{array_file, with_runtime};
use crate::arrays::{ArrayFile, ArrayRef, ImageNpzWriter, write_npz};
use crate::picture::{from_u8_nhwc, to_u8_nhwc, write_png};
use crate::runtime::{RunError, Runtime};
use crate::samples::{GRID, SAMPLES, TRACE};
use crate::staging::{Kind, StagedFolder};

/// What `decode` and `generate` write.
pub(super) const SAMPLE_FOLDER: Kind = Kind {
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
    runtime: &Runtime<'_>,
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

pub(super) fn decode(args: &DecodeArgs, printer: Printer) -> Result<Exit, Failure> {
    let file = ArrayFile::open(&args.tokens)?;
    args.many.check(&file, "tokens")?;
    with_runtime(&args.bundle, &args.engine, |runtime| {
        let system = runtime.bundle().system();
        let ids = file.i64_in("tokens", &[None, Some(system.tokens())], "token", 0..system.vocab as i64)?;
        let n = ids.shape()[0];
        if n == 0 {
            return Err(Failure::usage(format!("{} holds no images", args.tokens), None));
        }
        let ids = ids.into_raw_vec_and_offset().0;
        let staged = StagedFolder::create(&args.output, args.force, &SAMPLE_FOLDER)?;
        let bar = printer.progress("decoding", "images");
        write_images(runtime, &ids, staged.path(), usize::from(args.engine.batch), 0, &bar)?;
        drop(bar);
        staged.commit()?;
        let text = || format!("{}: {n} images", args.output);
        printer.result(text, &json!({ "output": args.output, "images": n, "engine": runtime.info() }))?;
        Ok(Exit::Pass)
    })
}

/// What is to be encoded, as the file has it.
enum Images {
    /// u8 `[N, H, W, 3]`.
    Pixels(Vec<u8>),
    /// f32 `[N, 3, H, W]`.
    Floats(Vec<f32>),
}

impl Images {
    fn read(file: &ArrayFile, size: usize, args: &EncodeArgs) -> Result<Self, Failure> {
        let side = Some(size);
        if file.contains("arr_0") {
            args.many.check(file, "arr_0")?;
            let pixels = file.u8("arr_0", &[None, side, side, Some(3)])?;
            return Ok(Self::Pixels(pixels.into_raw_vec_and_offset().0));
        }
        if !file.contains("images") {
            let message =
                format!("{} has neither `arr_0` nor `images` (it has {})", args.images, file.listing());
            return Err(Failure::usage(message, None));
        }
        args.many.check(file, "images")?;
        let images = file.f32("images", &[None, Some(3), side, side])?.into_raw_vec_and_offset().0;
        if let Some(bad) = images.iter().find(|v| !(-1.001..=1.001).contains(*v)) {
            let message = format!("{}: value {bad} is outside [-1, 1]", args.images);
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

pub(super) fn encode(args: &EncodeArgs, printer: Printer) -> Result<Exit, Failure> {
    let file = ArrayFile::open(&args.images)?;
    let output = array_file(&args.output, args.force)?;
    with_runtime(&args.bundle, &args.engine, |runtime| {
        let system = runtime.bundle().system();
        let size = system.image_size;
        let images = Images::read(&file, size, args)?;
        let n = images.count(size);
        if n == 0 {
            return Err(Failure::usage(format!("{} holds no images", args.images), None));
        }
        let bar = printer.progress("encoding", "images");
        let batch = usize::from(args.engine.batch);
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
        output.commit()?;
        let text = || format!("{}: tokens of {n} images", args.output);
        printer.result(text, &json!({ "output": args.output, "images": n, "engine": runtime.info() }))?;
        Ok(Exit::Pass)
    })
}
