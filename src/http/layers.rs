//! The middleware before every handler, from the outside in: request id, log, panics, CORS, deadline, origin, key.

use std::{any::Any, time::Duration};

use axum::{
    Router,
    extract::{DefaultBodyLimit, Request},
    http::{self, HeaderName, HeaderValue, Method, header},
    middleware::{from_fn, from_fn_with_state},
    response::{IntoResponse, Response},
};
use tower::ServiceBuilder;
use tower_http::{
    catch_panic::CatchPanicLayer,
    cors::{AllowOrigin, CorsLayer, ExposeHeaders},
    request_id::{MakeRequestUuid, PropagateRequestIdLayer, SetRequestIdLayer},
    trace::TraceLayer,
};
use tracing::Span;

use super::{
    App, body, keys, method_not_allowed, origin,
    problem::{Code, Problem},
    request_context, trace, unknown_route,
};

/// Request id, taken from the client or made here; in the answer and in each line of the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// `routes` with everything around them.
pub(super) fn around(app: App, routes: Router<App>) -> Router {
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
        .layer(from_fn(body::drain_after))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(cors(&app.origins))
        .layer(from_fn_with_state(app.clone(), request_context::enter))
        .layer(from_fn_with_state(app.clone(), origin::check))
        .layer(from_fn_with_state(app.clone(), keys::check));
    let routes = routes
        .fallback(unknown_route)
        .method_not_allowed_fallback(method_not_allowed)
        // Bodies have a limit of their own, see `body`.
        .layer(DefaultBodyLimit::disable())
        .layer(around)
        .with_state(app);
    // Around everything else, so that the log can name the trace.
    if is_traced { routes.layer(from_fn(trace::follow)) } else { routes }
}

/// The same for the routes for operators: none of them has a key, a deadline or a line in the log for each request.
pub(super) fn around_watch(app: App, routes: Router<App>) -> Router {
    let around = ServiceBuilder::new()
        .layer(SetRequestIdLayer::new(REQUEST_ID, MakeRequestUuid))
        .layer(TraceLayer::new_for_http().make_span_with(span).on_request(()).on_response(()).on_failure(()))
        .layer(PropagateRequestIdLayer::new(REQUEST_ID))
        .layer(from_fn(body::drain_after))
        .layer(CatchPanicLayer::custom(panicked))
        .layer(from_fn_with_state(app.clone(), origin::check_watch));
    routes.fallback(unknown_route).method_not_allowed_fallback(method_not_allowed).layer(around).with_state(app)
}

/// What browsers let pages of other origins do. They ask before they send, and that needs no key.
fn cors(origins: &[HeaderValue]) -> CorsLayer {
    let methods = [Method::GET, Method::POST, Method::PUT, Method::DELETE];
    let headers = [header::CONTENT_TYPE, header::ACCEPT, header::AUTHORIZATION, HeaderName::from_static("x-api-key"), REQUEST_ID];
    let origins = if origins.iter().any(|origin| origin == "*") { AllowOrigin::any() } else { AllowOrigin::list(origins.to_vec()) };
    CorsLayer::new().allow_origin(origins).allow_methods(methods).allow_headers(headers).expose_headers(ExposeHeaders::any())
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

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use axum::{
        body::{Body, to_bytes},
        extract::State as Shared,
        routing::get,
    };
    use clap::Parser;
    use serde_json::Value;
    use tower::ServiceExt;

    use super::{
        super::{KeyRing, Options, State, api, metrics_api},
        *,
    };
    use crate::{
        fetch::{self, Fetcher},
        serving::{self, Registry},
        telemetry,
    };

    #[derive(Parser)]
    struct Flags {
        #[command(flatten)]
        models: serving::Options,
        #[command(flatten)]
        http: Options,
        #[command(flatten)]
        urls: fetch::Options,
    }

    fn app() -> App {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-model");
        let Flags { models, http, urls } = Flags::parse_from(["serve", "--model", model.to_str().unwrap()]);
        let keys = KeyRing::read(http.key_source()).unwrap();
        let fetcher = Fetcher::new(&urls, http.max_body).unwrap();
        Arc::new(State::new(&http, keys, Registry::load(models).unwrap(), None, fetcher))
    }

    async fn ask(server: &Router, path: &str) -> (u16, String) {
        let request = Request::get(path).header("host", "localhost").body(Body::empty()).unwrap();
        let response = server.clone().oneshot(request).await.unwrap();
        let status = response.status().as_u16();
        (status, String::from_utf8(to_bytes(response.into_body(), 1 << 20).await.unwrap().into()).unwrap())
    }

    async fn panics(server: &Router) -> u64 {
        let (_, metrics) = ask(server, "/metrics").await;
        metrics.lines().find_map(|line| line.strip_prefix("dino_panics_total ")).unwrap().parse().unwrap()
    }

    fn fail() {
        panic!("a test made it");
    }

    #[tokio::test]
    async fn a_panic_on_the_port_for_operators_is_answered_too() {
        let server = around_watch(app(), Router::new().route("/in-handler", get(|| async { fail() })));
        let request = Request::get("/in-handler").header("host", "localhost").header(REQUEST_ID, "mine-7").body(Body::empty()).unwrap();
        let response = server.oneshot(request).await.unwrap();
        assert_eq!((response.status().as_u16(), &response.headers()[REQUEST_ID]), (500, &HeaderValue::from_static("mine-7")));
    }

    #[tokio::test]
    async fn a_panic_costs_one_request_and_is_counted() {
        telemetry::watch_panics();
        let routes = Router::from(api().merge(metrics_api()));
        let routes = routes
            .route("/in-handler", get(|| async { fail() }))
            .route("/in-pool", get(|Shared(app): Shared<App>| async move { app.pool.run(fail).await.map_err(Problem::from) }));
        let server = around(app(), routes);
        for path in ["/in-handler", "/in-pool"] {
            let before = panics(&server).await;
            let (status, problem) = ask(&server, path).await;
            let problem: Value = serde_json::from_str(&problem).unwrap();
            assert_eq!((status, &problem["code"], &problem["status"]), (500, &"internal".into(), &500.into()), "{path}");
            assert!(!problem.to_string().contains("a test made it"), "what panicked is for the log alone: {problem}");
            // Other tests of this process may panic meanwhile.
            assert!(panics(&server).await > before, "{path}");
            assert_eq!(ask(&server, "/healthz").await.0, 200);
        }
    }
}
