//! Transport only: routes, bodies, limits, problem+json. What pictures mean is decided elsewhere.
//!
//! One file per route; [`Submission`] reads the pictures for all of them, [`Problem`] writes the errors.

mod answer;
mod body;
mod call;
mod classify;
mod collections;
mod docs;
mod embed;
mod health;
mod infer;
mod json;
mod keys;
mod listen;
mod metrics;
mod models;
mod openai;
mod openapi;
mod options;
mod origin;
mod page;
mod problem;
mod quota;
mod remote;
mod segment;
mod server;
mod similarity;
mod single_flight;
mod state;
mod submission;
mod trace;
mod unserved;
mod write_deadline;

use std::{any::Any, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{self, HeaderName, HeaderValue, Method, Uri, header},
    middleware::{from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use tower::ServiceBuilder;
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, CorsLayer, ExposeHeaders},
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer},
    trace::TraceLayer,
};
use tracing::Span;

use body::{BodyLimits, BodyMemory};
use collections::{Maps, Transfers};
pub use keys::{Key, KeyRing, KeySource, Keys};
pub use listen::{Listen, bind};
use metrics::Metrics;
pub use openapi::document as openapi;
pub use options::{Options, OptionsError, StoreImages};
use origin::Guard;
pub use problem::{Code, Problem};
pub use server::{Entrance, Patience, Stop, serve, watch_keys};
pub use state::{App, State};
pub use submission::{Room, Submission};
pub use unserved::report as report_unserved;

/// Request id, taken from the client or made here; in the answer and in each line of the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// All routes of the server.
pub fn routes(app: App) -> Router {
    let is_traced = app.is_traced;
    let around = ServiceBuilder::new()
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(
            TraceLayer::new_for_http()
                .make_span_with(span)
                .on_request(())
                .on_response(log_response)
                // A 5xx has been logged with its reason when the problem was written.
                .on_failure(()),
        )
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(from_fn(body::read_on))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(cors(&app.origins))
        .layer(from_fn_with_state(app.clone(), call::follow))
        .layer(from_fn_with_state(app.clone(), origin::check))
        .layer(from_fn_with_state(app.clone(), keys::check));
    let metrics = if app.serve_metrics { Router::new().route("/metrics", get(metrics::handle)) } else { Router::new() };
    let routes = Router::new()
        .merge(metrics)
        .route("/", get(page::index))
        .route("/page/{file}", get(page::file))
        .route("/embed", post(embed::handle))
        .route("/v1/embeddings", post(openai::handle))
        .route("/classify", post(classify::handle))
        .route("/segment", post(segment::handle))
        .route("/similarity", post(similarity::handle))
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/openapi.json", get(openapi::handle))
        .route("/docs", get(docs::page))
        .route("/docs/{file}", get(docs::file))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{name}/reload", post(models::reload))
        .merge(collections::routes())
        .fallback(unknown_route)
        .method_not_allowed_fallback(method_not_allowed)
        // Bodies have a limit of their own, see `body`.
        .layer(DefaultBodyLimit::disable())
        .layer(around)
        .with_state(app);
    // Around everything else, so that the log can name the trace.
    if is_traced { routes.layer(from_fn(trace::follow)) } else { routes }
}

/// Routes for operators, on a port of their own: health and metrics.
pub fn watch_routes(app: App) -> Router {
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::handle))
        .fallback(unknown_route)
        .method_not_allowed_fallback(method_not_allowed)
        .layer(from_fn_with_state(app.clone(), origin::check_watch))
        .layer(from_fn(body::read_on))
        .with_state(app)
}

/// What browsers let pages of other origins do. They ask before they send, and that needs no key.
fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let methods = [Method::GET, Method::POST, Method::PUT, Method::DELETE];
    let headers = [header::CONTENT_TYPE, header::ACCEPT, header::AUTHORIZATION, HeaderName::from_static("x-api-key"), REQUEST_ID];
    let origins = if origins.iter().any(|origin| origin == "*") { AllowOrigin::any() } else { AllowOrigin::list(origins.to_vec()) };
    CorsLayer::new().allow_origin(origins).allow_methods(methods).allow_headers(headers).expose_headers(ExposeHeaders::any())
}

async fn unknown_route(uri: Uri) -> Problem {
    Problem::new(Code::UnknownRoute, format!("there is no {}; /docs lists the routes", uri.path()))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    Problem::new(Code::MethodNotAllowed, format!("{} does not take {method}; the header Allow says what it takes", uri.path()))
}

fn span(request: &Request) -> Span {
    let id = request.headers().get(REQUEST_ID).map(HeaderValue::as_bytes).map(String::from_utf8_lossy);
    tracing::info_span!(
        "request",
        method = %request.method(),
        path = request.uri().path(),
        id = id.as_deref().unwrap_or_default(),
        key = tracing::field::Empty,
        trace = trace::id(),
    )
}

fn log_response<B>(response: &http::Response<B>, latency: Duration, _span: &Span) {
    tracing::info!(status = response.status().as_u16(), ?latency, "answered");
}

fn panicked(_panic: Box<dyn Any + Send>) -> Response {
    // The panic itself is in the log.
    Problem::new(Code::Internal, "a part of the server failed on this request; its log says more").into_response()
}
