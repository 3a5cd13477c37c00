//! Transport only: routes, bodies, limits, problem+json. What pictures mean is decided elsewhere.
//!
//! One file per route; [`Submission`] reads the pictures for all of them, [`Problem`] writes the errors.

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
mod metrics;
mod models;
mod openai;
mod openapi;
mod page;
mod problem;
mod remote;
mod segment;
mod server;
mod similarity;
mod submission;

use std::{
    any::Any,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{self, HeaderName, HeaderValue, Method, Uri, header},
    middleware::from_fn_with_state,
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

pub use body::{BodyLimits, BodyMemory};
pub use collections::Maps;
pub use keys::{Key, Keys};
pub use metrics::Metrics;
pub use openapi::document as openapi;
pub use problem::{Code, Problem};
pub use server::{Patience, bind, serve};
pub use submission::{Room, Submission};

use crate::{
    batch::Admission,
    config::StoreImages,
    index::Store,
    media::{self, Fetcher},
    serving::{Pool, Registry},
};

/// Request id, taken from the client or made here; in the answer and in each line of the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What every route can reach.
pub type App = Arc<State>;

/// Models, collections and limits of one server.
pub struct State {
    /// The models that are served.
    pub registry: Registry,
    /// The collections, if there is a place for them.
    pub store: Option<Arc<dyn Store>>,
    /// The bound on pictures inside the server.
    pub admission: Admission,
    /// The memory that request bodies share.
    pub bodies: BodyMemory,
    /// Threads for decoding and drawing.
    pub pool: Pool,
    /// Threads that wait for the disk: many, so that writes that come together become durable together.
    pub disk: Pool,
    /// Fetches pictures that were sent as URLs.
    pub fetcher: Fetcher,
    /// Threads that wait for the network.
    pub fetches: Pool,
    /// What is kept of pictures that become items.
    pub store_images: StoreImages,
    /// Largest snapshot that is taken, in bytes.
    pub max_snapshot: u64,
    /// Held while a snapshot is restored.
    pub restoring: tokio::sync::Mutex<()>,
    /// What one request may ask for.
    pub limits: RequestLimits,
    /// Longer side in pixels for `/segment`.
    pub segment_size: u32,
    /// The maps of collections.
    pub maps: Maps,
    /// What is counted.
    pub metrics: Metrics,
    /// Whether `/metrics` is among the routes, and not on a port of its own.
    pub serve_metrics: bool,
    /// Who may ask; nobody is asked for a key where there is none.
    pub keys: Keys,
    /// Web pages of other origins that may ask.
    pub origins: Vec<HeaderValue>,
    /// When the server was started.
    pub started: Instant,
}

/// What one request may ask for.
#[derive(Clone, Copy, Debug)]
pub struct RequestLimits {
    /// Size of the body and time for it.
    pub body: BodyLimits,
    /// Number of pictures.
    pub pictures: usize,
    /// Declared size of a picture.
    pub media: media::Limits,
    /// Time from the end of the body to the answer.
    pub time: Duration,
}

/// All routes of the server.
pub fn routes(app: App) -> Router {
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
        .layer(CatchPanicLayer::custom(panicked))
        .layer(cors(&app.origins))
        .layer(from_fn_with_state(app.clone(), call::follow))
        .layer(from_fn_with_state(app.clone(), keys::check));
    let metrics = if app.serve_metrics { Router::new().route("/metrics", get(metrics::handle)) } else { Router::new() };
    Router::new()
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
        .with_state(app)
}

/// Routes for whoever looks after the server, on a port of their own: health and metrics.
pub fn watch_routes(app: App) -> Router {
    Router::new()
        .route("/healthz", get(health::healthz))
        .route("/readyz", get(health::readyz))
        .route("/metrics", get(metrics::handle))
        .fallback(unknown_route)
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
    Problem::new(Code::UnknownRoute, format!("there is no {}; the README lists the routes", uri.path()))
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
    )
}

fn log_response<B>(response: &http::Response<B>, latency: Duration, _span: &Span) {
    tracing::info!(status = response.status().as_u16(), ?latency, "answered");
}

fn panicked(_panic: Box<dyn Any + Send>) -> Response {
    // The panic itself is in the log.
    Problem::new(Code::Internal, "a part of the server failed on this request; its log says more").into_response()
}
