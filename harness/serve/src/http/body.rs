//! Bodies of requests, with their limits.

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;

use super::problem::Problem;
use super::service::HttpLimits;

/// So much of a body that is too large is still read, so that its sender gets to read the answer.
const SWALLOWED: u64 = 32 << 20;

/// Reads a body.
///
/// # Errors
/// 413 for more bytes than are allowed, 408 when they do not come in time, 400 when they end before their end.
pub(crate) async fn read(body: Body, limits: &HttpLimits) -> Result<Bytes, Problem> {
    let late = |_| {
        let message = format!("the body did not come within {} s", limits.idle.as_secs_f32());
        Problem::new(StatusCode::REQUEST_TIMEOUT, "invalid_request_error", message)
    };
    tokio::time::timeout(limits.idle, read_all(body, limits.body)).await.map_err(late)?
}

async fn read_all(mut body: Body, most: usize) -> Result<Bytes, Problem> {
    let swallowed = SWALLOWED.max(most as u64);
    if body.size_hint().lower() > swallowed {
        return Err(Problem::too_large(most));
    }
    let (mut bytes, mut came) = (BytesMut::new(), 0_u64);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| Problem::refused(format!("the body is not whole: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        came += data.len() as u64;
        if came <= most as u64 {
            bytes.extend_from_slice(&data);
        } else if came > swallowed {
            break;
        }
    }
    match came <= most as u64 {
        true => Ok(bytes.freeze()),
        false => Err(Problem::too_large(most)),
    }
}

/// Reads a JSON document.
///
/// # Errors
/// As [`read`]; 415 where the body does not say that it is JSON, 400 where it is not, or is not what is asked for.
pub(crate) async fn read_json<T: DeserializeOwned>(
    headers: &HeaderMap,
    body: Body,
    limits: &HttpLimits,
) -> Result<T, Problem> {
    let media = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let bytes = read(body, limits).await?;
    // A page of another origin cannot send this type without being asked first.
    if media.split(';').next().map(str::trim) != Some("application/json") {
        let message = "the content type of the body must be application/json";
        return Err(Problem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_request_error", message));
    }
    parse(&bytes)
}

/// Reads a JSON object that is at hand. A list would be taken for the fields in their order.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Problem> {
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(Problem::refused("the body: a list, where an object is expected"));
    }
    serde_json::from_slice(bytes).map_err(|e| Problem::refused(format!("the body: {e}")))
}
