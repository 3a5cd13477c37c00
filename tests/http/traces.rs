//! Traces, as a collector receives them.

use std::{
    fmt::Write,
    net::Ipv4Addr,
    sync::{Arc, Mutex},
};

use axum::{Router, body::Bytes, extract::State, http::StatusCode, response::Redirect, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{AnyValue, any_value},
    trace::v1::Span,
};
use prost::Message;

use crate::{
    harness::Server,
    pictures::{png, scene},
};

/// What a collector was sent.
type Received = Arc<Mutex<Vec<ExportTraceServiceRequest>>>;

/// Sends callers on.
async fn elsewhere() -> Redirect {
    Redirect::temporary("/v1/traces")
}

struct Collector {
    address: String,
    received: Received,
    _runtime: tokio::runtime::Runtime,
}

impl Collector {
    fn start() -> Self {
        let received = Received::default();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let take = |State(received): State<Received>, body: Bytes| async move {
            let Ok(spans) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
            received.lock().unwrap().push(spans);
            StatusCode::OK
        };
        let routes = Router::new().route("/v1/traces", post(take)).route("/elsewhere", post(elsewhere)).with_state(received.clone());
        let listener = runtime.block_on(tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(async { axum::serve(listener, routes).await });
        Self { address, received, _runtime: runtime }
    }

    /// All spans so far, and the name of the service that they came from.
    fn spans(&self) -> (Vec<Span>, String) {
        let received = self.received.lock().unwrap();
        let parts = || received.iter().flat_map(|request| &request.resource_spans);
        let spans = parts().flat_map(|part| &part.scope_spans).flat_map(|scope| scope.spans.clone()).collect();
        let resource = parts().find_map(|part| part.resource.as_ref()).unwrap();
        (spans, text(resource.attributes.iter().find(|pair| pair.key == "service.name").unwrap().value.as_ref()))
    }
}

fn text(value: Option<&AnyValue>) -> String {
    match value.and_then(|value| value.value.as_ref()) {
        Some(any_value::Value::StringValue(text)) => text.clone(),
        Some(any_value::Value::IntValue(number)) => number.to_string(),
        other => panic!("{other:?}"),
    }
}

fn attribute(span: &Span, key: &str) -> String {
    let pair = span.attributes.iter().find(|pair| pair.key == key);
    text(pair.unwrap_or_else(|| panic!("no {key} in {span:?}")).value.as_ref())
}

fn hexadecimal(id: &[u8]) -> String {
    id.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

#[test]
fn a_request_is_a_span_of_its_callers_trace_and_its_steps_lie_within() {
    let collector = Collector::start();
    let server = Server::start(&["--otlp", &collector.address, "--log-format", "json"]);
    let context = format!("00-{TRACE}-{CALLER}-01");
    let picture = png(&scene(60, 40, 1));
    server.post_with("/embed", &[("content-type", "image/png"), ("traceparent", &context)], &picture).ok();
    assert_eq!(server.post("/segment", "image/png", b"no picture").status, 422);
    assert_eq!(server.get("/nowhere/secret").status, 404);
    let log = server.log_with("/nowhere/secret");
    assert!(log.contains(TRACE), "the log does not name the trace: {log}");
    server.signal("-TERM");
    let (status, log) = server.end();
    assert!(status.success(), "{log}");

    let (spans, service) = collector.spans();
    assert_eq!(service, "dino-server");
    let mut names: Vec<_> = spans.iter().map(|span| span.name.as_str()).collect();
    names.sort_unstable();
    // A step of its own for each; none of the picture that could not be decoded, and none of the probes that the test began with.
    assert_eq!(names, ["GET", "POST /embed", "POST /segment", "decode", "encode", "infer", "queue", "transform"]);
    let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
    let embed = named("POST /embed");
    assert_eq!((hexadecimal(&embed.trace_id), hexadecimal(&embed.parent_span_id)), (TRACE.to_owned(), CALLER.to_owned()));
    assert_eq!(attribute(named("GET"), "url.path"), "/nowhere/secret");
    assert_eq!((attribute(embed, "http.route"), attribute(embed, "http.response.status_code")), ("/embed".into(), "200".into()));
    for name in ["decode", "transform", "queue", "infer", "encode"] {
        let step = named(name);
        assert_eq!((&step.trace_id, &step.parent_span_id), (&embed.trace_id, &embed.span_id), "{name}");
        assert!(embed.start_time_unix_nano <= step.start_time_unix_nano, "{name}");
        assert!(step.start_time_unix_nano <= step.end_time_unix_nano && step.end_time_unix_nano <= embed.end_time_unix_nano, "{name}");
    }
    assert_eq!(attribute(named("infer"), "dino.model"), "tiny-model");
    // Without a parent in the request: a trace of its own.
    let segment = named("POST /segment");
    assert!(segment.parent_span_id.is_empty() && segment.trace_id != embed.trace_id);
    assert_eq!(attribute(segment, "http.response.status_code"), "422");
}

#[test]
fn a_caller_that_does_not_sample_is_followed() {
    let collector = Collector::start();
    let server = Server::start(&["--otlp", &collector.address]);
    let context = format!("00-{TRACE}-{CALLER}-00");
    server.get_with("/v1/models", &[("traceparent", &context)]).ok();
    server.get("/v1/models").ok();
    server.signal("-TERM");
    assert!(server.end().0.success());
    let (spans, _) = collector.spans();
    assert_eq!(spans.len(), 1, "{spans:?}");
    assert_ne!(hexadecimal(&spans[0].trace_id), TRACE);
}

/// A request to a collector carries its key, which is for that collector alone.
#[test]
fn a_collector_that_sends_elsewhere_is_not_followed() {
    let collector = Collector::start();
    let server = Server::start(&["--otlp", &format!("{}/elsewhere", collector.address)]);
    server.get("/v1/models").ok();
    server.signal("-TERM");
    let (status, log) = server.end();
    assert!(status.success() && log.contains("it answers 307"), "{log}");
    assert!(collector.received.lock().unwrap().is_empty());
}

#[test]
fn a_collector_that_is_away_delays_no_request() {
    let server = Server::start(&["--otlp", "http://127.0.0.1:1"]);
    let picture = png(&scene(60, 40, 1));
    for _ in 0..3 {
        server.embed(&picture);
    }
    // Spans are sent every five seconds.
    server.log_with("the collector of traces does not take them");
    server.embed(&picture);
    server.signal("-TERM");
    let (status, log) = server.end();
    assert!(status.success(), "{log}");
    assert_eq!(log.matches("the collector of traces does not take them").count(), 1, "{log}");
}
