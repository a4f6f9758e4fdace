//! The KServe v2 protocol: health, metadata, and inference with tensors in JSON or binary behind it.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::ask::{ClassWord, ImageQuery, Submitted};
use super::body::{parse, read};
use super::drawn::apart;
use super::problem::{Problem, json_response, typed};
use super::service::{ServedModel, Service};
use super::tensors::{InputTensor, NumberType, OutputTensor};
use crate::job::DrawnImage;

/// Bytes of the JSON in front of binary tensors.
const HEADER_LENGTH: HeaderName = HeaderName::from_static("inference-header-content-length");

/// A problem as this protocol says it: `{"error": "message"}`.
pub(crate) struct ProtocolProblem(Problem);

impl From<Problem> for ProtocolProblem {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for ProtocolProblem {
    fn into_response(self) -> Response {
        let message = self.0.document()["error"]["message"].take();
        let (mut parts, _) = self.0.into_response().into_parts();
        let body = json!({ "error": message }).to_string();
        parts.headers.remove(axum::http::header::CONTENT_LENGTH);
        Response::from_parts(parts, Body::from(body))
    }
}

/// `GET /v2/health/live`: the process answers.
pub(crate) async fn live() -> Response {
    json_response(&json!({ "live": true }))
}

/// `GET /v2/health/ready`: every model can draw.
pub(crate) async fn ready(State(service): State<Arc<Service>>) -> Result<Response, Problem> {
    match service.unwell() {
        None => Ok(json_response(&json!({ "ready": true }))),
        Some(why) => Err(Problem::unavailable(why)),
    }
}

/// `GET /v2`.
pub(crate) async fn server() -> Response {
    json_response(&json!({
        "name": "dpar-export",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": ["binary_tensor_data"],
    }))
}

fn named<'s>(service: &'s Service, name: &str) -> Result<&'s ServedModel, Problem> {
    service.model(Some(name)).ok_or_else(|| Problem::nowhere(format!("there is no model `{name}`")))
}

/// `GET /v2/models/{model}/ready`.
pub(crate) async fn model_ready(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
) -> Result<Response, ProtocolProblem> {
    match named(&service, &name)?.current().unwell() {
        None => Ok(json_response(&json!({ "name": name, "ready": true }))),
        Some(why) => Err(Problem::unavailable(why).into()),
    }
}

/// `GET /v2/models/{model}`.
pub(crate) async fn model(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
) -> Result<Response, ProtocolProblem> {
    let scheduler = named(&service, &name)?.current();
    let system = scheduler.bundle().system();
    let (size, tokens) = (system.image_size as i64, system.tokens() as i64);
    let port = |name: &str, datatype: NumberType, shape: &[i64]| json!({ "name": name, "datatype": datatype.word(), "shape": shape });
    let inputs: Vec<Value> = INPUTS
        .iter()
        .map(|(name, datatype)| port(name, *datatype, &[if *name == "class" { -1 } else { 1 }]))
        .collect();
    Ok(json_response(&json!({
        "name": name,
        "versions": [],
        "platform": "dpar-export",
        "inputs": inputs,
        "outputs": [
            port("image", NumberType::Uint8, &[-1, size, size, 3]),
            port("tokens", NumberType::Int64, &[-1, tokens]),
            port("steps", NumberType::Int64, &[-1]),
        ],
    })))
}

/// Tensors that a request may bring: one class for each image, the others once for all. Only `class` must be there.
const INPUTS: &[(&str, NumberType)] = &[
    ("class", NumberType::Int64),
    ("seed", NumberType::Int64),
    ("first", NumberType::Int64),
    ("cfg_scale", NumberType::Fp32),
    ("threshold", NumberType::Fp32),
    ("temperature", NumberType::Fp32),
    ("top_k", NumberType::Int64),
    ("top_p", NumberType::Fp64),
];

#[derive(Debug, Deserialize)]
struct Inference {
    id: Option<String>,
    inputs: Vec<InputTensor>,
    outputs: Option<Vec<WantedOutput>>,
    #[serde(default)]
    parameters: WantedParameters,
}

#[derive(Debug, Deserialize)]
struct WantedOutput {
    name: String,
    #[serde(default)]
    parameters: WantedParameters,
}

#[derive(Debug, Default, Deserialize)]
struct WantedParameters {
    /// Of an output.
    binary_data: Option<bool>,
    /// Of all outputs that say nothing else.
    binary_data_output: Option<bool>,
}

/// `POST /v2/models/{model}/infer`.
pub(crate) async fn infer(
    State(service): State<Arc<Service>>,
    Path(name): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ProtocolProblem> {
    named(&service, &name)?;
    let bytes = read(body, &service.limits).await?;
    let length = match headers.get(HEADER_LENGTH).map(|v| v.to_str().ok().and_then(|v| v.parse().ok())) {
        None => bytes.len(),
        Some(Some(length)) if length <= bytes.len() => length,
        Some(_) => return Err(Problem::refused(format!("{HEADER_LENGTH} does not fit the body")).into()),
    };
    let (json, mut binary) = bytes.split_at(length);
    let inference: Inference = parse(json)?;
    if let Some(twice) = twice(inference.inputs.iter().map(InputTensor::name)) {
        return Err(Problem::refused(format!("the input `{twice}` is given twice")).into());
    }
    let mut query = ImageQuery { model: Some(name.clone()), ..ImageQuery::default() };
    for tensor in &inference.inputs {
        take(&mut query, tensor, &mut binary)?;
    }
    if !binary.is_empty() {
        return Err(Problem::refused(format!("{} bytes behind the last tensor", binary.len())).into());
    }
    if query.classes.is_none() {
        return Err(Problem::refused("the input `class` is missing").into());
    }
    let by_default = inference.parameters.binary_data_output.unwrap_or(false);
    let wanted: Vec<(String, bool)> = match inference.outputs {
        Some(wanted) if !wanted.is_empty() => {
            wanted.into_iter().map(|w| (w.name, w.parameters.binary_data.unwrap_or(by_default))).collect()
        }
        _ => OUTPUTS.iter().map(|name| ((*name).to_owned(), by_default)).collect(),
    };
    if let Some((other, _)) = wanted.iter().find(|(name, _)| !OUTPUTS.contains(&name.as_str())) {
        return Err(Problem::refused(format!("there is no output `{other}`")).into());
    }
    if let Some(twice) = twice(wanted.iter().map(|(name, _)| name.as_str())) {
        return Err(Problem::refused(format!("the output `{twice}` is asked for twice")).into());
    }
    let Submitted { scheduler, running, .. } = query.submit(&service)?;
    let size = scheduler.bundle().system().image_size;
    let drawn = running.all().await.map_err(Problem::from)?;
    Ok(apart(move || answer(&name, inference.id, wanted, &drawn, size)).await?)
}

/// The first name that comes a second time.
fn twice<'n>(names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    let mut seen = BTreeSet::new();
    let mut names = names;
    names.find(|name| !seen.insert(*name))
}

/// The wanted outputs, as JSON or behind it.
fn answer(
    name: &str,
    id: Option<String>,
    wanted: Vec<(String, bool)>,
    drawn: &[DrawnImage],
    size: usize,
) -> Response {
    let mut outputs = Vec::with_capacity(wanted.len());
    let mut behind = Vec::new();
    for (name, binary) in wanted {
        outputs.push(output(&name, drawn, size).document(&name, binary.then_some(&mut behind)));
    }
    let mut document = json!({ "model_name": name, "outputs": outputs });
    if let Some(id) = id {
        document["id"] = id.into();
    }
    if behind.is_empty() {
        return json_response(&document);
    }
    let mut whole = document.to_string().into_bytes();
    let length = whole.len();
    whole.extend(behind);
    let mut response = typed("application/octet-stream", whole);
    response.headers_mut().insert(HEADER_LENGTH, HeaderValue::from(length));
    response
}

const OUTPUTS: [&str; 3] = ["image", "tokens", "steps"];

/// Puts a tensor into the query; of `binary` it takes its bytes.
fn take(query: &mut ImageQuery, tensor: &InputTensor, binary: &mut &[u8]) -> Result<(), Problem> {
    let name = tensor.name();
    let Some((_, datatype)) = INPUTS.iter().find(|(known, _)| *known == name) else {
        return Err(Problem::refused(format!("there is no input `{name}`")));
    };
    let values = tensor.values(*datatype, binary)?;
    if name == "class" {
        let classes = values.iter().map(|v| v.whole().map(ClassWord::Number));
        query.classes = Some(classes.collect::<Option<_>>().ok_or_else(|| not_whole(name))?);
        return Ok(());
    }
    let [value] = values[..] else {
        return Err(Problem::refused(format!(
            "`{name}` has {} values, it is one for all images",
            values.len()
        )));
    };
    let whole = || value.whole().and_then(|v| u64::try_from(v).ok()).ok_or_else(|| not_whole(name));
    match name {
        "seed" => query.seed = whole()?,
        "first" => query.first = whole()?,
        "top_k" => query.top_k = Some(usize::try_from(whole()?).map_err(|_| not_whole(name))?),
        "cfg_scale" => query.cfg_scale = Some(value.number() as f32),
        "threshold" => query.threshold = Some(value.number() as f32),
        "temperature" => query.temperature = Some(value.number() as f32),
        _ => query.top_p = Some(value.number()),
    }
    Ok(())
}

fn not_whole(name: &str) -> Problem {
    Problem::refused(format!("`{name}` holds what is no whole number in its range"))
}

fn output(name: &str, drawn: &[DrawnImage], size: usize) -> OutputTensor {
    let n = drawn.len();
    match name {
        "image" => OutputTensor::bytes(
            vec![n, size, size, 3],
            drawn.iter().flat_map(|d| d.pixels.iter().flatten()).copied().collect(),
        ),
        "tokens" => {
            let all: Vec<i64> = drawn.iter().flat_map(|d| &d.stream.tokens).map(|t| i64::from(*t)).collect();
            OutputTensor::whole(vec![n, all.len() / n.max(1)], all)
        }
        _ => OutputTensor::whole(vec![n], drawn.iter().map(|d| d.stream.steps() as i64).collect()),
    }
}
