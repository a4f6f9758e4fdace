//! The shape of the OpenAI API: `POST /v1/images/generations` and `GET /v1/models`.

use std::sync::Arc;
use std::time::SystemTime;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::{Value, json};

use super::ask::{ClassWord, ImageQuery, Submitted};
use super::body::read_json;
use super::drawn::{apart, png};
use super::guard::random;
use super::problem::{Problem, json_response};
use super::service::Service;

/// What clients of that API send, as far as it means something here, and beside it the numbers of this service that they may add.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Generation {
    /// A class, by number or name.
    prompt: String,
    model: Option<String>,
    n: Option<usize>,
    /// That of the model, or `auto`.
    size: Option<String>,
    /// `b64_json`.
    response_format: Option<String>,
    /// Taken and not used.
    #[serde(rename = "user")]
    _user: Option<String>,
    seed: Option<u64>,
    cfg_scale: Option<f32>,
    threshold: Option<f32>,
    temperature: Option<f32>,
    top_k: Option<usize>,
    top_p: Option<f64>,
}

pub(crate) async fn generations(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let asked: Generation = read_json(&headers, body, &service.limits).await?;
    if let Some(other) = asked.response_format.as_deref().filter(|f| *f != "b64_json") {
        return Err(Problem::refused(format!("response_format `{other}` is not made here, only b64_json")));
    }
    // That API has no seed, and its users expect another image each time.
    let seed = asked.seed.unwrap_or_else(|| random() >> 11);
    let query = ImageQuery {
        model: asked.model,
        class: Some(ClassWord::Name(asked.prompt)),
        n: asked.n,
        seed,
        cfg_scale: asked.cfg_scale,
        threshold: asked.threshold,
        temperature: asked.temperature,
        top_k: asked.top_k,
        top_p: asked.top_p,
        ..ImageQuery::default()
    };
    let model = service.model(query.model.as_deref()).map(super::service::ServedModel::current);
    let size = model.map_or(0, |scheduler| scheduler.bundle().system().image_size);
    if let Some(other) = asked.size.filter(|s| size > 0 && s != "auto" && *s != format!("{size}x{size}")) {
        return Err(Problem::refused(format!("size `{other}` is not made here, only {size}x{size}")));
    }
    let Submitted { running, .. } = query.submit(&service)?;
    let drawn = running.all().await?;
    let each = move || {
        let one = |image: crate::job::DrawnImage| {
            let png = png(size, &image.pixels.unwrap_or_default())?;
            Ok(json!({ "b64_json": STANDARD.encode(png) }))
        };
        drawn.into_iter().map(one).collect()
    };
    let data: Vec<Value> = apart::<Result<_, Problem>>(each).await??;
    let created = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    Ok(json_response(&json!({ "created": created, "data": data, "seed": seed })))
}

/// Every model, with what it is.
pub(crate) async fn models(State(service): State<Arc<Service>>) -> Response {
    let all = service.models().iter().map(|model| {
        let mut about = model.about();
        about["id"] = model.name().into();
        about["object"] = "model".into();
        about["owned_by"] = "dpar-export".into();
        about
    });
    json_response(&json!({ "object": "list", "data": all.collect::<Vec<_>>() }))
}
