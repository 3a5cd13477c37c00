//! Traces for an OpenTelemetry collector: one span for each request, and child spans for its steps. They are sent by OTLP
//! over HTTP, in protobuf.
//!
//! Unless [`Traces::start`] was called nothing is recorded, and what is written here costs next to nothing.
//!
//! ```
//! use dino_server::traces::{Collector, timed};
//!
//! let _: Collector = "http://localhost:4318".parse()?;
//! assert!("localhost:4318".parse::<Collector>().is_err(), "it has no scheme");
//!
//! // Within a request that is traced this becomes a span.
//! let answer = futures::executor::block_on(timed("add", async { 2 + 2 }));
//! assert_eq!(answer, 4);
//! # Ok::<(), String>(())
//! ```

use std::{
    str::FromStr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use axum::http::{Uri, uri::PathAndQuery};
use opentelemetry::{
    Context, Key, KeyValue, Value, global,
    trace::{Span, TraceContextExt, Tracer},
};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{ExporterBuildError, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};

/// Name of this program's spans, and of its service unless `OTEL_SERVICE_NAME` or `OTEL_RESOURCE_ATTRIBUTES` say otherwise.
pub const NAME: &str = "dino-server";
/// Path at which collectors listen by convention.
const PATH: &str = "/v1/traces";
/// Longest that the collector may take to accept a batch of spans.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest wait for the last spans when the server stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(3);
/// Most bytes of a collector's answer.
const MAX_ANSWER: u64 = 1 << 20;

/// Address of a collector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector(Uri);

impl FromStr for Collector {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let uri: Uri = text.parse().map_err(|error| format!("expected a URL such as http://localhost:4318: {error}"))?;
        let Some(authority) = uri.authority().filter(|_| matches!(uri.scheme_str(), Some("http" | "https"))) else {
            return Err("expected a URL such as http://localhost:4318".into());
        };
        if authority.as_str().contains('@') {
            return Err("keys of the collector belong into OTEL_EXPORTER_OTLP_HEADERS, not into its URL".into());
        }
        if !matches!(uri.path(), "" | "/") {
            return Ok(Self(uri));
        }
        let mut parts = uri.into_parts();
        parts.path_and_query = Some(PathAndQuery::from_static(PATH));
        Uri::from_parts(parts).map(Self).map_err(|error| error.to_string())
    }
}

/// Sends spans as long as it lives, and the last ones when it is dropped.
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Starts a thread that sends all spans of this process to `collector`.
    ///
    /// # Errors
    /// Where the environment's variables for OTLP contradict themselves. A collector that does not answer is no error: the log
    /// says so once, and spans are dropped.
    pub fn start(collector: &Collector) -> Result<Self, ExporterBuildError> {
        let exporter =
            SpanExporter::builder().with_http().with_http_client(Client::new()).with_endpoint(collector.0.to_string()).build()?;
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource()).build();
        global::set_tracer_provider(provider.clone());
        Ok(Self(provider))
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(SHUTDOWN_TIMEOUT) {
            tracing::warn!("the last traces were not sent: {error}");
        }
    }
}

/// What sends the spans.
fn resource() -> Resource {
    let named = Resource::builder().build();
    // What the SDK calls a service without a name.
    let unnamed = named.get(&Key::new("service.name")).is_none_or(|name| name.as_str().starts_with("unknown_service"));
    let resource = Resource::builder().with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    if unnamed { resource.with_service_name(NAME).build() } else { resource.build() }
}

/// Records that a step of the current request began at `start` and took `duration`.
pub fn step(name: &'static str, start: SystemTime, duration: Duration, attributes: impl IntoIterator<Item = (&'static str, Value)>) {
    let parent = Context::current();
    if !parent.span().is_recording() {
        return;
    }
    let attributes = attributes.into_iter().map(|(key, value)| KeyValue::new(key, value));
    let tracer = global::tracer(NAME);
    let span = tracer.span_builder(name).with_start_time(start).with_attributes(attributes);
    span.start_with_context(&tracer, &parent).end_with_timestamp(start + duration);
}

/// Waits for `work` as a step of the current request.
pub async fn timed<T>(name: &'static str, work: impl Future<Output = T>) -> T {
    let start = SystemTime::now();
    let outcome = work.await;
    step(name, start, start.elapsed().unwrap_or_default(), []);
    outcome
}

/// Carries spans to the collector, on the thread that collects them.
#[derive(Debug)]
struct Client {
    agent: ureq::Agent,
    /// Whether the last batch was lost.
    failing: AtomicBool,
}

impl Client {
    fn new() -> Self {
        // A refusal of the collector is an answer. One that sends elsewhere is not followed: the request carries the collector's key.
        let config =
            ureq::Agent::config_builder().timeout_global(Some(EXPORT_TIMEOUT)).http_status_as_error(false).max_redirects(0).build();
        Self { agent: config.new_agent(), failing: AtomicBool::new(false) }
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, ureq::Error> {
        let (head, mut body) = self.agent.run(request.map(|body| body.to_vec()))?.into_parts();
        Ok(Response::from_parts(head, body.with_config().limit(MAX_ANSWER).read_to_vec()?.into()))
    }
}

#[async_trait::async_trait]
impl HttpClient for Client {
    /// Blocks: that thread has nothing else to do.
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let outcome = self.send(request);
        let reason = match &outcome {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("it answers {}", response.status())),
            Err(error) => Some(error.to_string()),
        };
        if self.failing.swap(reason.is_some(), Ordering::Relaxed) != reason.is_some() {
            if let Some(reason) = reason {
                tracing::warn!("the collector of traces does not take them: {reason}; until it does they are lost");
            } else {
                tracing::info!("the collector takes traces again");
            }
        }
        Ok(outcome?)
    }
}

#[cfg(test)]
mod tests {
    use super::Collector;

    #[test]
    fn a_collector_is_a_url() {
        let address = |text: &str| text.parse::<Collector>().map(|collector| collector.0.to_string());
        assert_eq!(address("http://localhost:4318").as_deref(), Ok("http://localhost:4318/v1/traces"));
        assert_eq!(address("https://example.org/").as_deref(), Ok("https://example.org/v1/traces"));
        assert_eq!(address("https://example.org/otlp/v1/traces").as_deref(), Ok("https://example.org/otlp/v1/traces"));
        for wrong in ["", "localhost:4318", "/v1/traces", "grpc://localhost:4317", "http://user:key@localhost:4318"] {
            assert!(address(wrong).is_err(), "{wrong}");
        }
    }
}
