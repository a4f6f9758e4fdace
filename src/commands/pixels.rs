//! `decode` and `encode`: tokens to images and back, and the sample files that `generate` shares.

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use serde_json::json;

use super::args::{ArrayOutput, BundleArgs, EngineArgs, ManyArgs, OnEngine, OutputArgs, ResizeArgs};
use super::failure::{Exit, Failure};
use super::printer::Printer;
use crate::arrays::{ArrayFile, Elements, NpzStream};
use crate::bundle::Bundle;
use crate::loaded::{LoadedBundle, RunError};
use crate::picture::{from_u8_nhwc, to_u8_resized};
use crate::samples::{GRID, ImageFolder, RUN, SAMPLES, TRACE, UNFINISHED, check_idle};
use crate::staging::{FolderKind, StagedFolder};
use crate::tokenizer::VqDecoder;

/// What `decode` and `generate` write.
pub(super) const SAMPLE_FOLDER: FolderKind = FolderKind {
    marks: &[TRACE, SAMPLES, RUN],
    writes: |name| {
        let image =
            name.strip_suffix(".png").is_some_and(|n| n.len() >= 6 && n.bytes().all(|b| b.is_ascii_digit()));
        image || [TRACE, SAMPLES, GRID, RUN, UNFINISHED].contains(&name)
    },
};

/// Takes the name of a folder of samples.
pub(super) fn sample_folder(output: &OutputArgs) -> Result<StagedFolder, Failure> {
    check_idle(&output.output)?;
    output.folder(&SAMPLE_FOLDER)
}

/// Tokens become images in a folder, a batch at a time: no more are in memory.
pub(super) struct SamplePictures<'a> {
    decoder: VqDecoder,
    folder: ImageFolder,
    bundle: &'a Bundle,
    batch: usize,
    /// Of the images that are written.
    side: usize,
    /// Tokens of less than a batch.
    waiting: Vec<i64>,
    keep: usize,
    kept: Vec<u8>,
}

impl<'a> SamplePictures<'a> {
    /// Begins with `count` images to come, of `side` × `side` pixels (`None`: as the tokenizer makes them): `{index:06d}.png` and
    /// `samples.npz`. The first `keep` stay at hand.
    pub(super) fn new(
        runtime: &'a LoadedBundle<'_>,
        folder: &Utf8Path,
        count: usize,
        side: Option<usize>,
        batch: usize,
        keep: usize,
    ) -> Result<Self, Failure> {
        let (decoder, bundle) = (runtime.vq_decoder()?, runtime.bundle());
        let side = side.unwrap_or(bundle.system().image_size);
        let folder = ImageFolder::create(folder, side, count as u64)?;
        Ok(Self { decoder, folder, bundle, batch, side, waiting: Vec::new(), keep, kept: Vec::new() })
    }

    /// The next image.
    pub(super) fn push(&mut self, tokens: impl IntoIterator<Item = i64>) -> Result<(), Failure> {
        self.waiting.extend(tokens);
        if self.waiting.len() < self.batch * self.bundle.system().tokens() { Ok(()) } else { self.write() }
    }

    fn write(&mut self) -> Result<(), Failure> {
        let system = self.bundle.system();
        let (side, n) = (self.side, self.waiting.len() / system.tokens());
        let images = self.decoder.decode(&self.waiting)?;
        self.waiting.clear();
        for pixels in to_u8_resized(&images, n, system.image_size, side).chunks(side * side * 3) {
            self.folder.push(pixels)?;
            if self.kept.len() < self.keep * pixels.len() {
                self.kept.extend_from_slice(pixels);
            }
        }
        Ok(())
    }

    /// Completes the folder, and checks that the bundle is what was hashed; the pixels of the first images, `[keep, H, W, 3]`.
    pub(super) fn finish(mut self) -> Result<Vec<u8>, Failure> {
        if !self.waiting.is_empty() {
            self.write()?;
        }
        self.bundle.unchanged()?;
        self.folder.finish()?;
        Ok(self.kept)
    }
}

/// Why the option of caches is refused, and hidden.
const NO_CACHES: &str = "the tokenizer has no caches";

#[derive(Debug, Args)]
#[command(
    mut_arg("output", |a| a.help("Output folder: PNGs and samples.npz")),
    mut_arg("caches", |a| a.hide(true))
)]
pub(crate) struct DecodeArgs {
    #[command(flatten)]
    bundle: BundleArgs,
    /// Array `tokens` [N, T] (.npz, .safetensors)
    #[arg(long, value_name = "FILE")]
    tokens: Utf8PathBuf,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    resize: ResizeArgs,
    #[command(flatten)]
    many: ManyArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

/// Tokens to decode; their file is open.
pub(super) struct DecodePlan {
    tokens: ArrayFile,
    output: OutputArgs,
    side: Option<usize>,
    on: OnEngine,
}

impl DecodeArgs {
    /// Opens the tokens, chooses the engine.
    pub(super) fn resolve(self) -> Result<DecodePlan, Failure> {
        self.engine.settings.without_caches(NO_CACHES)?;
        let tokens = ArrayFile::open(&self.tokens)?;
        self.many.check(&tokens, "tokens")?;
        let on = self.engine.on(&self.bundle.bundle)?;
        Ok(DecodePlan { tokens, on, output: self.output, side: self.resize.side() })
    }
}

pub(super) fn decode(plan: DecodePlan, printer: Printer) -> Result<Exit, Failure> {
    let DecodePlan { tokens: file, output, side, on } = plan;
    let batch = on.batch;
    on.run(|runtime| {
        let system = runtime.bundle().system();
        let t = system.tokens();
        let n = file.fitting("tokens", &[None, Some(t)])?.shape[0];
        if n == 0 {
            return Err(Failure::usage(format!("{} holds no images", file.path()), None));
        }
        let staged = sample_folder(&output)?;
        let range = ("token", 0..system.vocab as i64);
        let ids = file.i64_spooled("tokens", &[None, Some(t)], range, staged.path())?;
        let bar = printer.progress("decoding", "images");
        let mut pictures = SamplePictures::new(runtime, staged.path(), n, side, batch, 0)?;
        for (i, tokens) in ids.i64()?.chunks(t).enumerate() {
            pictures.push(tokens.iter().copied())?;
            if !bar.advance(i + 1, n) {
                return Err(RunError::Interrupted.into());
            }
        }
        pictures.finish()?;
        drop((bar, ids));
        staged.commit()?;
        let output = output.output;
        let text = || format!("{output}: {n} images");
        printer.document(text, json!({ "output": output, "images": n, "engine": runtime.info() }))?;
        Ok(Exit::Pass)
    })
}

/// What is to be encoded: u8 `arr_0` `[N, H, W, 3]`, or f32 `images` `[N, 3, H, W]`.
struct EncoderInput<'a> {
    file: &'a ArrayFile,
    name: &'static str,
    shape: [Option<usize>; 4],
    count: usize,
}

impl<'a> EncoderInput<'a> {
    /// Finds them, and reads floats once to see that they are in their range.
    fn find(file: &'a ArrayFile, size: usize, many: &ManyArgs, batch: usize) -> Result<Self, Failure> {
        let side = Some(size);
        let (name, shape) = match (file.contains("arr_0"), file.contains("images")) {
            (true, _) => ("arr_0", [None, side, side, Some(3)]),
            (false, true) => ("images", [None, Some(3), side, side]),
            (false, false) => {
                let message =
                    format!("{} has neither `arr_0` nor `images` (it has {})", file.path(), file.listing());
                return Err(Failure::usage(message, None));
            }
        };
        many.check(file, name)?;
        let images = Self { file, name, shape, count: file.fitting(name, &shape)?.shape[0] };
        if name == "images" {
            images.batches(size, batch, &mut |values| match values
                .iter()
                .find(|v| !(-1.001..=1.001).contains(*v))
            {
                None => Ok(()),
                Some(bad) => {
                    let message = format!("{}: value {bad} is outside [-1, 1]", file.path());
                    let hint = "`images` is f32 in [-1, 1]; u8 pixels go into `arr_0`";
                    Err(Failure::usage(message, Some(hint)))
                }
            })?;
        }
        Ok(images)
    }

    /// Calls `f` with batches, f32 `[n, 3, H, W]`.
    fn batches(
        &self,
        size: usize,
        batch: usize,
        f: &mut dyn FnMut(&[f32]) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        if self.name == "images" {
            return self.file.f32_rows(self.name, &self.shape, batch, f);
        }
        self.file.u8_rows(self.name, &self.shape, batch, &mut |pixels| {
            f(&from_u8_nhwc(pixels, pixels.len() / (3 * size * size), size, size))
        })
    }
}

#[derive(Debug, Args)]
#[command(
    mut_arg("output", |a| a.value_name("OUT.npz").help("Output: array `tokens` i64 [N, T]")),
    mut_arg("caches", |a| a.hide(true))
)]
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

/// EncoderInput to encode; their file is open, the output's name is taken.
pub(super) struct EncodePlan {
    images: ArrayFile,
    many: ManyArgs,
    output: ArrayOutput,
    on: OnEngine,
}

impl EncodeArgs {
    /// Opens the images, takes the output's name, chooses the engine.
    pub(super) fn resolve(self) -> Result<EncodePlan, Failure> {
        self.engine.settings.without_caches(NO_CACHES)?;
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
        let images = EncoderInput::find(&file, size, &many, batch)?;
        let n = images.count;
        if n == 0 {
            return Err(Failure::usage(format!("{} holds no images", file.path()), None));
        }
        let bar = printer.progress("encoding", "images");
        let mut encoder = runtime.vq_encoder()?;
        let mut stream = NpzStream::i64(output.path(), "tokens", &[n, system.tokens()])?;
        let mut done = 0;
        images.batches(size, batch, &mut |images| {
            let codes = encoder.encode(images)?;
            stream.push(Elements::I64(&codes))?;
            done += codes.len() / system.tokens();
            if bar.advance(done, n) { Ok(()) } else { Err(RunError::Interrupted.into()) }
        })?;
        drop(bar);
        runtime.bundle().unchanged()?;
        stream.finish_with(&[])?;
        let name = output.name.clone();
        output.commit()?;
        let text = || format!("{name}: tokens of {n} images");
        printer.document(text, json!({ "output": name, "images": n, "engine": runtime.info() }))?;
        Ok(Exit::Pass)
    })
}
