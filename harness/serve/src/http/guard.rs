//! What holds for every request: who may ask, and what is written down of it.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::problem::Problem;
use super::service::Service;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const TRACE_PARENT: HeaderName = HeaderName::from_static("traceparent");

/// Paths that are answered without a token: they say nothing that a token protects.
const PUBLIC: &[&str] = &["/", "/openapi.json", "/v2/health/live", "/v2/health/ready"];

/// Longest id that is taken over.
const LONGEST_ID: usize = 128;

/// Checks a request, lets it be answered, and takes down what was answered.
pub(crate) async fn guard(State(service): State<Arc<Service>>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let path = request.extensions().get::<MatchedPath>().map_or("other", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    let id = given_id(request.headers()).unwrap_or_else(|| format!("{:016x}", random()));
    let trace = TraceParent::of(request.headers());
    let allowed = allowed(&service, &path, request.headers(), request.uri());
    let mut response = match allowed {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    };
    let status = response.status();
    tracing::info!(
        request = id,
        trace = trace.trace,
        %method,
        path,
        status = status.as_u16(),
        seconds = started.elapsed().as_secs_f64(),
        "answered"
    );
    let mut answered = service.answered.lock().unwrap_or_else(PoisonError::into_inner);
    *answered.entry((path, status.as_u16())).or_default() += 1;
    drop(answered);
    let headers = response.headers_mut();
    for (name, value) in [(REQUEST_ID, id), (TRACE_PARENT, trace.header())] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// Whether a request may be answered.
fn allowed(service: &Service, path: &str, headers: &HeaderMap, uri: &Uri) -> Result<(), Problem> {
    let text = |name: HeaderName| headers.get(name).and_then(|v| v.to_str().ok());
    let host = uri.host().or_else(|| text(header::HOST).map(name_of_host));
    // A name that leads to this machine only for a page that was made to ask it.
    if service.local && service.token().is_none() && !host.is_some_and(is_local) {
        let message = "without a token, only localhost, 127.0.0.1 and [::1] are answered";
        return Err(Problem::new(StatusCode::FORBIDDEN, "permission_error", message));
    }
    // Pages of other origins.
    if let (Some(origin), Some(host)) = (text(header::ORIGIN), text(header::HOST))
        && origin.split_once("://").map(|(_, rest)| rest) != Some(host)
    {
        let message = "pages of another origin are not answered";
        return Err(Problem::new(StatusCode::FORBIDDEN, "permission_error", message));
    }
    let Some(token) = service.token().filter(|_| !PUBLIC.contains(&path)) else { return Ok(()) };
    let given = text(header::AUTHORIZATION).and_then(|v| v.split_once(' '));
    match given {
        Some((scheme, given)) if scheme.eq_ignore_ascii_case("bearer") && token.is(given.trim()) => Ok(()),
        _ => {
            let message = "the request brings no token, or another one: `Authorization: Bearer TOKEN`";
            Err(Problem::new(StatusCode::UNAUTHORIZED, "authentication_error", message))
        }
    }
}

/// The name in a host header, without its port.
fn name_of_host(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

fn is_local(host: &str) -> bool {
    ["localhost", "127.0.0.1", "[::1]"].contains(&host.to_ascii_lowercase().as_str())
}

/// The id that a request brings, where it can stand in a log.
fn given_id(headers: &HeaderMap) -> Option<String> {
    let id = headers.get(REQUEST_ID)?.to_str().ok()?;
    let fits = (1..=LONGEST_ID).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic());
    fits.then(|| id.to_owned())
}

/// Bits that differ from call to call. Nothing depends on that they cannot be guessed.
pub(crate) fn random() -> u64 {
    static CALLS: AtomicU64 = AtomicU64::new(0);
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(CALLS.fetch_add(1, Ordering::Relaxed));
    hasher.finish()
}

/// The W3C trace context of an answer: the trace of the request, where it has one, and a span of its own.
struct TraceParent {
    trace: String,
    flags: String,
}

impl TraceParent {
    fn of(headers: &HeaderMap) -> Self {
        let given = headers.get(TRACE_PARENT).and_then(|v| v.to_str().ok()).and_then(Self::parse);
        given.unwrap_or_else(|| Self {
            trace: format!("{:016x}{:016x}", random(), random()),
            flags: "00".to_owned(),
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('-').collect();
        let hex = |text: &str, length: usize| {
            let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            text.len() == length && text.bytes().all(digit)
        };
        let [version, trace, span, flags] = parts[..] else { return None };
        let fits = hex(version, 2) && version != "ff" && hex(trace, 32) && hex(span, 16) && hex(flags, 2);
        let none = |id: &str| id.bytes().all(|b| b == b'0');
        (fits && !none(trace) && !none(span))
            .then(|| Self { trace: trace.to_owned(), flags: flags.to_owned() })
    }

    fn header(&self) -> String {
        format!("00-{}-{:016x}-{}", self.trace, random().max(1), self.flags)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_goes_on_where_it_can_be_read() {
        let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let trace = TraceParent::parse(given).unwrap();
        assert!(trace.header().starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
        assert!(trace.header().ends_with("-01") && trace.header() != given);
        for bad in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert!(TraceParent::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn hosts_are_told_from_their_ports() {
        for host in ["localhost", "localhost:80", "127.0.0.1:8080", "[::1]:1", "[::1]", "LOCALHOST"] {
            assert!(is_local(name_of_host(host)), "{host}");
        }
        for host in ["example.org", "localhost.example.org:80", "127.0.0.1.example.org", ""] {
            assert!(!is_local(name_of_host(host)), "{host}");
        }
    }
}
