//! `GET /`, the page, and `GET /openapi.json`.

use std::sync::LazyLock;

use axum::http::{HeaderValue, header};
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::problem::typed;

/// One file with its style and script, which loads nothing.
const PAGE: &str = include_str!("page.html");

/// What the page may do: its own style and script, by their digests, and requests to where it came from.
static POLICY: LazyLock<String> = LazyLock::new(|| {
    let digest = |tag: &str| {
        let own =
            PAGE.split_once(&format!("<{tag}>")).and_then(|(_, rest)| rest.split_once(&format!("</{tag}>")));
        STANDARD.encode(Sha256::digest(own.map_or("", |(own, _)| own)))
    };
    format!(
        "default-src 'none'; style-src 'sha256-{}'; script-src 'sha256-{}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        digest("style"),
        digest("script")
    )
});

pub(crate) async fn page() -> Response {
    let mut response = typed("text/html; charset=utf-8", PAGE);
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response.headers_mut().insert(header::REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

/// What the service takes and answers.
pub(crate) async fn openapi() -> Response {
    typed("application/json", include_str!("openapi.json").replace("VERSION", env!("CARGO_PKG_VERSION")))
}
