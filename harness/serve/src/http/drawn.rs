//! Images that are complete, as answers have them.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dpar_export_files::picture::encode_png;
use serde_json::{Value, json};

use super::problem::Problem;
use crate::job::DrawnImage;

/// An image of `size` pixels as JSON: its picture, steps and, when asked for, all that was decided.
pub(crate) fn image_document(
    size: usize,
    seed: u64,
    trace: bool,
    image: DrawnImage,
) -> Result<Value, Problem> {
    let DrawnImage { stream, pixels } = image;
    let picture = png(size, &pixels.unwrap_or_default())?;
    let mut document = json!({
        "index": stream.request.index,
        "class": stream.request.class,
        "seed": seed,
        "steps": stream.steps(),
        "png": STANDARD.encode(picture),
    });
    if trace {
        document["trace"] = json!({
            "tokens": stream.tokens,
            "patch_lengths": stream.patch_lengths,
            "entropy": numbers(&stream.entropy),
            "margin": numbers(&stream.margin),
        });
    }
    Ok(document)
}

/// Numbers as JSON, which has none that are not finite.
fn numbers(values: &[f32]) -> Vec<Option<f32>> {
    values.iter().map(|v| v.is_finite().then_some(*v)).collect()
}

/// A PNG of pixels.
pub(crate) fn png(size: usize, pixels: &[u8]) -> Result<Vec<u8>, Problem> {
    encode_png(pixels, size, size).map_err(|e| Problem::internal(e.to_string()))
}

/// Work beside the thread that serves all connections.
pub(crate) async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Problem> {
    tokio::task::spawn_blocking(work).await.map_err(|e| Problem::internal(e.to_string()))
}
