//! The tokenizer of a loaded bundle: codes to images, and images to codes.

use dpar_engine_api::{EngineError, EngineErrorKind, Session, Tensor, TensorData, TensorView};
use dpar_export_spec::GraphName;

use crate::loaded::{LoadedBundle, Progress, RequestError, RunError, check_finite, check_tokens};

/// The tokenizer's decoder, prepared: see [`LoadedBundle::vq_decoder`]. What it gives counts when
/// [`Bundle::unchanged`](dpar_export_bundle::Bundle::unchanged) has passed behind the last call.
pub struct VqDecoder {
    session: Box<dyn Session>,
    tokens: usize,
    vocab: usize,
}

impl VqDecoder {
    /// Codes `ids` `[N, T]` as images `[N, 3, H, W]`, about [−1, 1], in one call of the graph.
    ///
    /// # Errors
    /// When a code is none of the codebook's; when the engine fails, or gives what is no image.
    pub fn decode(&mut self, ids: &[i64]) -> Result<Vec<f32>, RunError> {
        check_codes(ids, self.tokens, self.vocab)?;
        let view = TensorView::i64([ids.len() / self.tokens, self.tokens], ids);
        let TensorData::F32(images) = run_one(self.session.as_mut(), "tokens", view)? else {
            return Err(wrong_type(GraphName::VqDecode, "image").into());
        };
        check_finite(GraphName::VqDecode, "image", &images)?;
        Ok(images)
    }
}

impl LoadedBundle<'_> {
    /// Decodes codes `ids` `[N, T]` to images `[N, 3, H, W]`, about [−1, 1].
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn images(&self, ids: &[i64], batch: usize, progress: Progress<'_>) -> Result<Vec<f32>, RunError> {
        let system = self.bundle().system();
        let tokens = system.tokens();
        check_codes(ids, tokens, system.vocab)?;
        let mut decoder = self.vq_decoder()?;
        let mut images = Vec::new();
        for (i, chunk) in ids.chunks(tokens * batch.max(1)).enumerate() {
            images.extend(decoder.decode(chunk)?);
            if !progress(i * batch.max(1) + chunk.len() / tokens, ids.len() / tokens) {
                return Err(RunError::Interrupted);
            }
        }
        self.bundle().unchanged()?;
        Ok(images)
    }

    /// Prepares to turn codes into images as they come.
    ///
    /// # Errors
    /// When the bundle has no tokenizer or the engine refuses its graph.
    pub fn vq_decoder(&self) -> Result<VqDecoder, RunError> {
        let system = self.bundle().system();
        let session = self.prepare(GraphName::VqDecode)?;
        Ok(VqDecoder { session, tokens: system.tokens(), vocab: system.vocab })
    }

    /// Prepares to turn images into codes as they come.
    ///
    /// # Errors
    /// As [`vq_decoder`](Self::vq_decoder).
    pub fn vq_encoder(&self) -> Result<VqEncoder, RunError> {
        Ok(VqEncoder { session: self.prepare(GraphName::VqEncode)?, size: self.bundle().system().image_size })
    }

    /// Encodes images `[N, 3, H, W]` in [−1, 1] to codes `[N, T]`.
    ///
    /// # Errors
    /// See [`RunError`].
    pub fn codes(&self, images: &[f32], batch: usize, progress: Progress<'_>) -> Result<Vec<i64>, RunError> {
        let len = image_len(self.bundle().system().image_size);
        check_values(images, len)?;
        let mut encoder = self.vq_encoder()?;
        let mut codes = Vec::new();
        for (i, chunk) in images.chunks(len * batch.max(1)).enumerate() {
            codes.extend(encoder.encode(chunk)?);
            if !progress(i * batch.max(1) + chunk.len() / len, images.len() / len) {
                return Err(RunError::Interrupted);
            }
        }
        self.bundle().unchanged()?;
        Ok(codes)
    }
}

/// The tokenizer's encoder, prepared: see [`LoadedBundle::vq_encoder`]. What it gives counts as that of [`VqDecoder`].
pub struct VqEncoder {
    session: Box<dyn Session>,
    size: usize,
}

impl VqEncoder {
    /// Codes `[n, T]` of images `[n, 3, H, W]` in [−1, 1], in one call of the graph.
    ///
    /// # Errors
    /// When the values are no whole images; when the engine fails, or gives what are no codes.
    pub fn encode(&mut self, images: &[f32]) -> Result<Vec<i64>, RunError> {
        let (size, len) = (self.size, image_len(self.size));
        check_values(images, len)?;
        let view = TensorView::f32([images.len() / len, 3, size, size], images);
        let TensorData::I64(codes) = run_one(self.session.as_mut(), "image", view)? else {
            return Err(wrong_type(GraphName::VqEncode, "tokens").into());
        };
        Ok(codes)
    }
}

/// Values of an image of that side.
fn image_len(size: usize) -> usize {
    3 * size * size
}

/// Codes of whole images, each a row of the codebook.
fn check_codes(ids: &[i64], tokens: usize, vocab: usize) -> Result<(), RunError> {
    check_tokens(ids, tokens, vocab)?;
    match ids.len().is_multiple_of(tokens) {
        true => Ok(()),
        false => Err(RequestError::Partial { what: "codes", found: ids.len(), image: tokens }.into()),
    }
}

/// Values of whole images.
fn check_values(images: &[f32], image: usize) -> Result<(), RunError> {
    match images.len().is_multiple_of(image) {
        true => Ok(()),
        false => Err(RequestError::Partial { what: "values", found: images.len(), image }.into()),
    }
}

/// A call of a graph with one input and one output.
fn run_one(session: &mut dyn Session, name: &str, view: TensorView<'_>) -> Result<TensorData, EngineError> {
    let output = session.run(&[(name, view)])?.into_iter().next();
    output.map(Tensor::into_data).ok_or_else(|| {
        let graph = &session.spec().name;
        EngineError::new(EngineErrorKind::Output, "runtime", "it gives no output").in_graph(graph)
    })
}

fn wrong_type(graph: GraphName, port: &str) -> EngineError {
    let message = format!("output `{port}` has another element type than the runtime takes");
    EngineError::new(EngineErrorKind::Output, "runtime", message).in_graph(graph.as_str())
}
