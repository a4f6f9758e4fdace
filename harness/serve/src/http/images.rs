//! `POST /v1/images`.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use axum::response::Response;
use dpar_export_files::arrays::{ArrayRef, npz_bytes};
use dpar_export_files::patches;
use serde_json::{Value, json};

use super::ask::{AnswerFormat, ImageQuery, Submitted};
use super::body::read_json;
use super::drawn::{apart, image_document, png};
use super::events::{OwnEvents, event_stream};
use super::problem::{Problem, json_response, typed};
use super::service::{ServedModel, Service};
use crate::job::DrawnImage;
use crate::scheduler::Scheduler;

pub(crate) async fn images(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let query: ImageQuery = read_json(&headers, body, &service.limits).await?;
    let Submitted { model, scheduler, running } = query.submit(&service)?;
    let (size, seed, trace) = (scheduler.bundle().system().image_size, query.seed, query.trace);
    if query.stream {
        return Ok(event_stream(scheduler, running, OwnEvents { seed, trace }));
    }
    let drawn = running.all().await?;
    match query.format {
        AnswerFormat::Json => {
            let each =
                move || drawn.into_iter().map(|image| image_document(size, seed, trace, image)).collect();
            let mut images: Vec<Value> = apart::<Result<_, Problem>>(each).await??;
            for image in &mut images {
                image["class_name"] =
                    image["class"].as_i64().and_then(|class| model.class_name(class)).into();
            }
            let mut document = about(model, &scheduler);
            document["images"] = images.into();
            Ok(json_response(&document))
        }
        AnswerFormat::Png => match <[DrawnImage; 1]>::try_from(drawn) {
            Ok([image]) => {
                let (steps, class) = (image.stream.steps(), image.stream.request.class);
                let mut response = typed("image/png", png(size, &image.pixels.unwrap_or_default())?);
                for (name, value) in [("x-steps", steps as i64), ("x-class", class)] {
                    response.headers_mut().insert(name, HeaderValue::from(value));
                }
                Ok(response)
            }
            Err(several) => {
                let message = format!("a PNG is one image, not {}: ask for `npz` or `json`", several.len());
                Err(Problem::refused(message))
            }
        },
        AnswerFormat::Npz => {
            let bytes = apart(move || archive(&drawn, size, trace)).await??;
            Ok(typed("application/octet-stream", bytes))
        }
    }
}

/// What an answer says of the model.
fn about(model: &ServedModel, scheduler: &Scheduler) -> Value {
    let runtime = scheduler.runtime();
    json!({
        "model": model.name(),
        "bundle": runtime.bundle().manifest_sha256(),
        "engine": runtime.info(),
        "image_tokens": runtime.bundle().system().tokens(),
    })
}

/// `arr_0` u8 `[n, H, W, 3]`, `steps` and `class_labels` i64 `[n]`; of a trace what the command line's `trace.npz` has too.
fn archive(drawn: &[DrawnImage], size: usize, trace: bool) -> Result<Vec<u8>, Problem> {
    let n = drawn.len();
    let pixels: Vec<u8> = drawn.iter().flat_map(|d| d.pixels.iter().flatten()).copied().collect();
    let steps: Vec<i64> = drawn.iter().map(|d| d.stream.steps() as i64).collect();
    let labels: Vec<i64> = drawn.iter().map(|d| d.stream.request.class).collect();
    let tokens: Vec<i64> = drawn.iter().flat_map(|d| &d.stream.tokens).map(|t| i64::from(*t)).collect();
    let entropy: Vec<f32> = drawn.iter().flat_map(|d| &d.stream.entropy).copied().collect();
    let margin: Vec<f32> = drawn.iter().flat_map(|d| &d.stream.margin).copied().collect();
    let (lengths, columns) = patches::pad(drawn.iter().map(|d| d.stream.patch_lengths.as_slice()));
    let (shape, vector) = ([n, size, size, 3], [n]);
    let (of_tokens, of_patches) = ([n, tokens.len() / n.max(1)], [n, columns]);
    let mut arrays = vec![
        ("arr_0", ArrayRef::u8(&shape, &pixels)),
        ("steps", ArrayRef::i64(&vector, &steps)),
        ("class_labels", ArrayRef::i64(&vector, &labels)),
    ];
    if trace {
        arrays.extend([
            ("tokens", ArrayRef::i64(&of_tokens, &tokens)),
            ("patch_lengths", ArrayRef::i64(&of_patches, &lengths)),
            ("entropy", ArrayRef::f32(&of_tokens, &entropy)),
            ("margin", ArrayRef::f32(&of_tokens, &margin)),
        ]);
    }
    npz_bytes(&arrays).map_err(|e| Problem::internal(e.to_string()))
}
