//! What a request is answered where it has no result.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::job::JobError;

/// An answer that is an error: `{"error": {"type", "message"}}`.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) status: StatusCode,
    kind: &'static str,
    message: String,
    /// When to try again.
    retry: Option<Duration>,
}

impl Problem {
    pub(crate) fn new(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Self {
        Self { status, kind, message: message.into(), retry: None }
    }

    /// What was asked for cannot be.
    pub(crate) fn refused(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", message)
    }

    /// There is no such thing.
    pub(crate) fn nowhere(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found_error", message)
    }

    /// Too many bytes.
    pub(crate) fn too_large(most: usize) -> Self {
        let message = format!("the body has more than {most} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_request_error", message)
    }

    /// The service cannot now.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        let cannot = Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable_error", message);
        Self { retry: Some(Duration::from_secs(1)), ..cannot }
    }

    /// The service failed.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    /// As JSON.
    pub(crate) fn document(&self) -> Value {
        json!({ "error": { "type": self.kind, "message": self.message } })
    }
}

impl From<JobError> for Problem {
    fn from(e: JobError) -> Self {
        let message = e.to_string();
        match e {
            JobError::Refused(_)
            | JobError::Nothing
            | JobError::TooMany { .. }
            | JobError::Guidance { .. } => Self::refused(message),
            JobError::Full { retry, .. } => {
                let full = Self::new(StatusCode::TOO_MANY_REQUESTS, "overloaded_error", message);
                Self { retry: Some(retry), ..full }
            }
            JobError::QueueTime(_) | JobError::DecodeTime(_) | JobError::Changed(_) | JobError::Ended => {
                Self::unavailable(message)
            }
            JobError::Run(_) | JobError::Diverged => Self::internal(message),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let mut response = (self.status, json_response(&self.document())).into_response();
        if let Some(retry) = self.retry {
            response.headers_mut().insert(header::RETRY_AFTER, retry.as_secs().max(1).into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A document as an answer.
pub(crate) fn json_response(document: &Value) -> Response {
    typed("application/json", document.to_string())
}

/// An answer of a media type.
pub(crate) fn typed(media: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media));
    response
}
