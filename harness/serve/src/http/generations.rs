//! The shape of the OpenAI API: `POST /v1/images/generations` and `GET /v1/models`.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
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
use super::events::{EventWriter, event_stream, line};
use super::guard::random;
use super::problem::{Problem, json_response};
use super::service::Service;
use crate::job::JobEvent;

/// Pictures of an image before it is complete, at most.
const MOST_PARTIAL: usize = 3;
/// An image of so many times as many tokens as there are between two pictures that may be told.
const PREVIEWS: usize = 16;

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
    /// Server-sent events.
    #[serde(default)]
    stream: bool,
    /// Pictures of what is drawn so far, in a stream.
    partial_images: Option<usize>,
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
    if asked.partial_images.is_some_and(|n| !asked.stream || n > MOST_PARTIAL) {
        let message = format!("`partial_images` is of streams (`stream`), and at most {MOST_PARTIAL}");
        return Err(Problem::refused(message));
    }
    // That API has no seed, and its users expect another image each time.
    let seed = asked.seed.unwrap_or_else(|| random() >> 11);
    let mut query = ImageQuery {
        model: asked.model,
        class: Some(ClassWord::Name(asked.prompt)),
        n: asked.n,
        seed,
        cfg_scale: asked.cfg_scale,
        threshold: asked.threshold,
        temperature: asked.temperature,
        top_k: asked.top_k,
        top_p: asked.top_p,
        stream: asked.stream,
        ..ImageQuery::default()
    };
    let model = service.model(query.model.as_deref()).map(super::service::ServedModel::current);
    let system = model.as_ref().map(|scheduler| scheduler.bundle().system());
    let (size, tokens) = system.map_or((0, 0), |system| (system.image_size, system.tokens()));
    let partial = asked.partial_images.unwrap_or(0);
    // Often enough that one is there soon after each of the wanted parts.
    query.preview_every = NonZeroUsize::new((tokens / PREVIEWS).max(1)).filter(|_| partial > 0);
    if let Some(other) = asked.size.filter(|s| size > 0 && s != "auto" && *s != format!("{size}x{size}")) {
        return Err(Problem::refused(format!("size `{other}` is not made here, only {size}x{size}")));
    }
    let Submitted { running, scheduler, .. } = query.submit(&service)?;
    // Of the bundle that draws: it may be another since the size was looked at.
    let (size, tokens) = (scheduler.bundle().system().image_size, scheduler.bundle().system().tokens());
    if asked.stream {
        return Ok(event_stream(scheduler, running, GenerationEvents::new(seed, partial, tokens)));
    }
    let drawn = running.all().await?;
    let each = move || {
        let one = |image: crate::job::DrawnImage| {
            let png = png(size, &image.pixels.unwrap_or_default())?;
            Ok(json!({ "b64_json": STANDARD.encode(png) }))
        };
        drawn.into_iter().map(one).collect()
    };
    let data: Vec<Value> = apart::<Result<_, Problem>>(each).await??;
    Ok(json_response(&json!({ "created": now(), "data": data, "seed": seed })))
}

/// Seconds since 1970.
fn now() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

/// The events of that API.
struct GenerationEvents {
    seed: u64,
    /// Pictures of an image before it is complete.
    partial: usize,
    /// Tokens of an image.
    tokens: usize,
    /// Pictures that were told, by image.
    told: BTreeMap<usize, usize>,
}

impl GenerationEvents {
    fn new(seed: u64, partial: usize, tokens: usize) -> Self {
        Self { seed, partial, tokens, told: BTreeMap::new() }
    }

    fn written(
        &self,
        name: &str,
        size: usize,
        pixels: &[u8],
        more: (&str, Value),
    ) -> Result<String, Problem> {
        let mut data = json!({
            "type": name,
            "b64_json": STANDARD.encode(png(size, pixels)?),
            "created_at": now(),
            "size": format!("{size}x{size}"),
            "output_format": "png",
        });
        data[more.0] = more.1;
        Ok(line(name, &data))
    }
}

impl EventWriter for GenerationEvents {
    fn event(&mut self, event: JobEvent, size: usize) -> Result<String, Problem> {
        match event {
            JobEvent::Preview { image, tokens, pixels } => {
                let told = self.told.entry(image).or_default();
                let index = *told;
                // Of two pictures the first shows a third of the image at least, the second two thirds.
                if index >= self.partial || tokens * (self.partial + 1) < self.tokens * (index + 1) {
                    return Ok(String::new());
                }
                *told += 1;
                let more = ("partial_image_index", index.into());
                self.written("image_generation.partial_image", size, &pixels, more)
            }
            JobEvent::Done { drawn, .. } => {
                let pixels = drawn.pixels.unwrap_or_default();
                self.written("image_generation.completed", size, &pixels, ("seed", self.seed.into()))
            }
            JobEvent::Token { .. } | JobEvent::Patch { .. } => Ok(String::new()),
        }
    }

    fn end(&self) -> String {
        String::new()
    }
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
