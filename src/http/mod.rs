//! Transport only: routes, bodies, limits, problem+json. What pictures mean is decided elsewhere.
//!
//! One file per route; [`Submission`] reads the pictures for all of them, [`Problem`] writes the errors.
//!
//! ```
//! use std::sync::Arc;
//!
//! use dino_server::http::{self, Endpoint, KeyRing, ShutdownSignal, State, Timeouts};
//! use dino_server::{config::ServeArgs, fetch::Fetcher, serving::Registry};
//!
//! /// Serves models, without collections, until SIGTERM.
//! async fn serve(ServeArgs { models, http: options, urls, .. }: ServeArgs) -> Result<(), Box<dyn std::error::Error>> {
//!     let listeners = http::bind(&options.listen)?;
//!     let fetcher = Fetcher::new(&urls, options.max_body)?;
//!     let app = Arc::new(State::new(&options, KeyRing::read(options.key_source())?, Registry::load(models)?, None, fetcher));
//!     let timeouts = Timeouts { head: options.read_timeout, write: options.write_timeout, drain: options.request_timeout };
//!     let endpoint = Endpoint { listeners, routes: http::routes(app) };
//!     Ok(http::serve(vec![endpoint], timeouts, options.max_connections, ShutdownSignal::new()?).await?)
//! }
//!
//! assert!(http::openapi()["paths"]["/embed"]["post"].is_object());
//! ```

mod answer;
mod body;
mod classify;
mod collections;
mod depth;
mod docs;
mod drawn_mask;
mod embed;
mod embedded;
mod heads;
mod health;
mod infer;
mod json;
mod keys;
mod layers;
mod listen;
mod matches;
mod metrics;
mod min_similarity;
mod models;
mod openai;
mod openapi;
mod options;
mod origin;
mod page;
mod parameters;
mod places;
mod problem;
mod quota;
mod remote;
mod request_context;
mod response;
mod segment;
mod server;
mod similarity;
mod single_flight;
mod state;
mod submission;
mod trace;
mod unmatched_collections;
mod versioned_cache;
mod write_deadline;

use aide::axum::{
    ApiRouter,
    routing::{get_with, post_with},
};
use axum::{
    Router,
    http::{Method, Uri},
    routing::get,
};

use body::{BodyLimits, BodyMemory};
use collections::{DuplicateFinder, MapBuilder, PatchBanks, Transfers};
pub use keys::{Key, KeyRing, KeySource, Keys};
pub use listen::{Listen, bind};
use metrics::Metrics;
use min_similarity::MinSimilarities;
pub use openapi::document as openapi;
use openapi::operation::{Tag, describe};
pub use options::{Options, OptionsError, StoreImages};
use origin::OriginPolicy;
pub use problem::{Code, Problem};
pub use server::{Endpoint, ShutdownSignal, Timeouts, serve, watch_keys};
pub use state::{App, State};
pub use submission::{Lease, Submission};
pub use unmatched_collections::report as report_unmatched_collections;

/// All routes of the server.
pub fn routes(app: App) -> Router {
    let routes = if app.serve_metrics { api().merge(metrics_api()) } else { api() };
    layers::around(app, routes.into())
}

/// What the routes are, and what the API document says of them.
fn api() -> ApiRouter<App> {
    use Tag::{Models, Page, Pictures, Server};

    ApiRouter::new()
        .api_route("/", get_with(page::index, describe("get_page", Page, "The web page", &[])))
        .api_route("/page/{file}", get_with(page::file, describe("get_page_file", Page, "A file of that page", &[Code::UnknownRoute])))
        .api_route("/embed", post_with(embed::handle, describe("embed", Pictures, "Embeddings of pictures", embed::ERRORS)))
        .api_route(
            "/v1/embeddings",
            post_with(openai::handle, describe("create_embeddings", Pictures, "Embeddings of pictures, by OpenAI's API", openai::ERRORS)),
        )
        .api_route(
            "/classify",
            post_with(
                classify::handle,
                describe("classify", Pictures, "Classes of pictures: a vote of neighbours, or a head's", classify::ERRORS),
            ),
        )
        .api_route("/segment", post_with(segment::handle, describe("segment", Pictures, "Masks of what stands out", segment::ERRORS)))
        .api_route(
            "/depth",
            post_with(depth::handle, describe("depth", Pictures, "How far away pixels are: a linear head's", depth::ERRORS)),
        )
        .api_route(
            "/similarity",
            post_with(
                similarity::handle,
                describe("similarity", Pictures, "Patches that are like points of a picture", similarity::ERRORS),
            ),
        )
        .api_route("/match", post_with(matches::handle, describe("match", Pictures, "The same places in two pictures", matches::ERRORS)))
        .api_route("/healthz", get_with(health::healthz, describe("get_health", Server, "Version, models, devices", &[])))
        .api_route(
            "/readyz",
            get_with(health::readyz, describe("get_readiness", Server, "Whether requests can be answered", &[Code::NotReady])),
        )
        .api_route("/openapi.json", get_with(openapi::handle, describe("get_openapi", Page, "This document", &[])))
        .api_route("/docs", get_with(docs::page, describe("get_docs", Page, "This document, to read and try", &[])))
        .api_route("/docs/{file}", get_with(docs::file, describe("get_docs_file", Page, "A file of that page", &[Code::UnknownRoute])))
        .api_route("/v1/models", get_with(models::list, describe("list_models", Models, "The models, the default one first", &[])))
        .api_route(
            "/v1/models/{name}/reload",
            post_with(
                models::reload,
                describe("reload_model", Models, "Load a model again while the one before answers", models::RELOAD_ERRORS),
            ),
        )
        .merge(collections::routes())
}

/// The one route that may be on another port.
fn metrics_api() -> ApiRouter<App> {
    let metrics = get_with(metrics::handle, describe("get_metrics", Tag::Server, "Metrics for Prometheus", &[]));
    ApiRouter::new().api_route("/metrics", metrics)
}

/// Routes for operators, on a port of their own: health and metrics.
pub fn watch_routes(app: App) -> Router {
    let routes =
        Router::new().route("/healthz", get(health::healthz)).route("/readyz", get(health::readyz)).route("/metrics", get(metrics::handle));
    layers::around_watch(app, routes)
}

async fn unknown_route(uri: Uri) -> Problem {
    Problem::new(Code::UnknownRoute, format!("there is no {}; /docs lists the routes", uri.path()))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Problem {
    Problem::new(Code::MethodNotAllowed, format!("{} does not take {method}; the header Allow says what it takes", uri.path()))
}
