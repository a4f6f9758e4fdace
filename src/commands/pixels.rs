//! `decode` and `encode`: tokens to images and back, and the sample files that `generate` shares.

use camino::Utf8Path;
use dpar_export_spec::text;
use serde_json::json;

use super::args::{DecodeArgs, EncodeArgs};
use super::failure::{Exit, Failure};
use super::printer::{Bar, Printer};
use super::{array_file, with_runtime};
use crate::arrays::{ArrayFile, ArrayRef, ImageNpzWriter, write_npz};
use crate::picture::{from_u8_nhwc, to_u8_nhwc, write_png};
use crate::runtime::{RunError, Runtime};
use crate::staging::{Kind, StagedFolder};

/// All samples.
const SAMPLES: &str = "samples.npz";
/// What was decided for each image.
pub(super) const TRACE: &str = "trace.npz";
/// What `decode` and `generate` write.
pub(super) const SAMPLE_FOLDER: Kind = Kind {
    marks: &[TRACE, SAMPLES],
    writes: |name| {
        let image =
            name.strip_suffix(".png").is_some_and(|n| n.len() >= 6 && n.bytes().all(|b| b.is_ascii_digit()));
        image || [TRACE, SAMPLES, "grid.png"].contains(&name)
    },
};

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
    // Large enough to amortise a prepared graph's first call, small enough to bound memory.
    for chunk in ids.chunks(t * 256) {
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
    with_runtime(&args.bundle, &args.engine, |runtime| {
        let t = runtime.bundle().system().tokens();
        let ids = file.i64("tokens", &[None, Some(t)])?;
        let n = ids.shape()[0];
        if n == 0 {
            return Err(Failure::usage(format!("{} holds no images", args.tokens), None));
        }
        let ids: Vec<i64> = ids.iter().copied().collect();
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

pub(super) fn encode(args: &EncodeArgs, printer: Printer) -> Result<Exit, Failure> {
    let file = ArrayFile::open(&args.images)?;
    let output = array_file(&args.output, args.force)?;
    with_runtime(&args.bundle, &args.engine, |runtime| {
        let system = runtime.bundle().system();
        let size = system.image_size;
        let (n, images) = if file.contains("arr_0") {
            let pixels = file.u8("arr_0", &[None, Some(size), Some(size), Some(3)])?;
            let n = pixels.shape()[0];
            (n, from_u8_nhwc(&pixels.iter().copied().collect::<Vec<_>>(), n, size, size))
        } else if file.contains("images") {
            let images = file.f32("images", &[None, Some(3), Some(size), Some(size)])?;
            (images.shape()[0], images.iter().copied().collect())
        } else {
            let names: Vec<&str> = file.arrays().iter().map(|a| a.name.as_str()).collect();
            let message =
                format!("{} has neither `arr_0` nor `images` (it has {})", args.images, text::names(names));
            return Err(Failure::usage(message, None));
        };
        if n == 0 {
            return Err(Failure::usage(format!("{} holds no images", args.images), None));
        }
        if let Some(bad) = images.iter().position(|v| !(-1.001..=1.001).contains(v)) {
            let message = format!("{}: value {} is outside [-1, 1]", args.images, images[bad]);
            return Err(Failure::usage(
                message,
                Some("`images` is f32 in [-1, 1]; u8 pixels go into `arr_0`"),
            ));
        }
        let bar = printer.progress("encoding", "images");
        let batch = usize::from(args.engine.batch);
        let codes = runtime.codes(&images, batch, &mut |done, total| bar.advance(done, total))?;
        drop(bar);
        let shape = [n, system.tokens()];
        write_npz(output.path(), &[("tokens", ArrayRef::i64(&shape, &codes))])?;
        output.commit()?;
        let text = || format!("{}: tokens of {n} images", args.output);
        printer.result(text, &json!({ "output": args.output, "images": n, "engine": runtime.info() }))?;
        Ok(Exit::Pass)
    })
}
