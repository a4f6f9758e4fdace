//! `POST /admin/reload`: bundles as they are on the disk now.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;

use super::body::read_json;
use super::drawn::apart;
use super::problem::{Problem, json_response};
use super::service::Service;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Reload {
    /// `None`: every model.
    model: Option<String>,
}

/// Opens one bundle again, or all: each is verified and draws an image before new requests get it. One that is not well changes
/// nothing.
pub(crate) async fn reload(
    State(service): State<Arc<Service>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    if service.token().is_none() && !service.local {
        let message = "without a token, a service that other machines reach is changed by SIGHUP only";
        return Err(Problem::new(StatusCode::FORBIDDEN, "permission_error", message));
    }
    let Reload { model } = read_json(&headers, body, &service.limits).await?;
    if let Some(name) = model.as_deref().filter(|name| service.model(Some(name)).is_none()) {
        return Err(Problem::nowhere(format!("there is no model `{name}`")));
    }
    apart(move || {
        let mut changed = Vec::new();
        for served in service.models().iter().filter(|m| model.as_deref().is_none_or(|name| name == m.name()))
        {
            match served.change() {
                None => {
                    let message = format!("another change of {} is under way", served.name());
                    return Err(Problem::new(StatusCode::CONFLICT, "conflict_error", message));
                }
                Some(Err(e)) => {
                    let message = format!("{} is what it was: {e}", served.name());
                    return Err(Problem::new(
                        StatusCode::UNPROCESSABLE_ENTITY,
                        "invalid_bundle_error",
                        message,
                    ));
                }
                Some(Ok(())) => changed.push(served.about()),
            }
        }
        Ok(json_response(&json!({ "models": changed })))
    })
    .await?
}
