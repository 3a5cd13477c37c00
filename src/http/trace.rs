//! A span for each request, as part of the caller's trace where it names one (W3C `traceparent`).

use std::borrow::Cow;

use axum::{
    extract::{MatchedPath, Request},
    http::Method,
    middleware::Next,
    response::Response,
};
use opentelemetry::{
    Context, KeyValue, global,
    propagation::TextMapPropagator,
    trace::{FutureExt, SpanKind, Status, TraceContextExt, Tracer},
};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;

use crate::traces::NAME;

/// What only asks whether the server is well: a span for each would bury all others.
const PROBES: [&str; 3] = ["/healthz", "/readyz", "/metrics"];

/// Characters of a path that no route knows: any client can send any path.
const LONGEST_PATH: usize = 128;

/// Records the request from its head to the head of its answer. Steps that are recorded meanwhile become children.
pub(super) async fn follow(path: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let route = path.as_ref().map_or("", MatchedPath::as_str);
    if PROBES.contains(&route) {
        return next.run(request).await;
    }
    let method = name_of(request.method());
    let name: Cow<'static, str> = if route.is_empty() { method.into() } else { format!("{method} {route}").into() };
    // Names as OpenTelemetry's conventions for HTTP have them.
    let place = if route.is_empty() {
        KeyValue::new("url.path", request.uri().path().chars().take(LONGEST_PATH).collect::<String>())
    } else {
        // Not the path itself: ids of items may say a lot.
        KeyValue::new("http.route", route.to_owned())
    };
    let attributes = [KeyValue::new("http.request.method", method), place, KeyValue::new("url.scheme", "http")];
    let caller = TraceContextPropagator::new().extract(&HeaderExtractor(request.headers()));
    let tracer = global::tracer(NAME);
    let span = tracer.span_builder(name).with_kind(SpanKind::Server).with_attributes(attributes).start_with_context(&tracer, &caller);
    let context = caller.with_span(span);
    let response = next.run(request).with_context(context.clone()).await;
    let (span, status) = (context.span(), response.status());
    span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
    if status.is_server_error() {
        span.set_status(Status::error(""));
    }
    span.end();
    response
}

/// The trace that the current request belongs to, in hexadecimal digits.
pub(super) fn id() -> Option<String> {
    let context = Context::current();
    let span = context.span();
    span.span_context().is_valid().then(|| span.span_context().trace_id().to_string())
}

/// Methods are the caller's words; the number of names has to stay small.
fn name_of(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        _ => "_OTHER",
    }
}
