//! Which path is answered by what.

use std::sync::Arc;

use axum::Router;
use axum::http::{Method, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};

use super::problem::Problem;
use super::service::Service;
use super::{admin, generations, guard, images, metrics, page, v2};

/// The whole service.
pub(crate) fn router(service: &Arc<Service>) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/openapi.json", get(page::openapi))
        .route("/v1/images", post(images::images))
        .route("/v1/images/generations", post(generations::generations))
        .route("/v1/models", get(generations::models))
        .route("/v2", get(v2::server))
        .route("/v2/health/live", get(v2::live))
        .route("/v2/health/ready", get(v2::ready))
        .route("/v2/models/{model}", get(v2::model))
        .route("/v2/models/{model}/ready", get(v2::model_ready))
        .route("/v2/models/{model}/infer", post(v2::infer))
        .route("/metrics", get(metrics::metrics))
        .route("/admin/reload", post(admin::reload))
        .fallback(nowhere)
        .method_not_allowed_fallback(other_method)
        .layer(from_fn_with_state(service.clone(), guard::guard))
        .with_state(service.clone())
}

async fn nowhere() -> Problem {
    Problem::nowhere("there is nothing at this path")
}

async fn other_method(method: Method) -> Problem {
    let message = format!("{method} is not for this path");
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "invalid_request_error", message)
}
