//! The two text formats of metrics, and which one a client asks for.
//!
//! `OpenMetrics` 1.0 is what is written here first; the older text format 0.0.4 is made of it, for agents that know nothing else.

use axum::http::{HeaderMap, header};

/// A format of metrics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exposition {
    OpenMetrics,
    /// The text format of Prometheus before it.
    Text,
}

impl Exposition {
    /// What a request asks for: `OpenMetrics` where it is named or nothing is, text where that is what is named. No client is refused:
    /// agents ask for formats that are not offered here, and read one of these.
    pub(super) fn wanted_by(headers: &HeaderMap) -> Self {
        let (mut open, mut text) = (0.0_f32, 0.0_f32);
        let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        for range in values.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let weight = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
            let weight = weight.map_or(1.0, |weight| weight.parse().unwrap_or(0.0));
            match kind.as_str() {
                "application/openmetrics-text" => open = open.max(weight),
                "text/plain" | "text/*" => text = text.max(weight),
                _ => {}
            }
        }
        if text > open { Self::Text } else { Self::OpenMetrics }
    }

    /// Its media type.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Rewrites `OpenMetrics` as text 0.0.4: there a counter is declared under the name of its sample, and there is no type `info` and no
/// mark at the end.
pub(super) fn to_text(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len());
    let mut help = None;
    for line in open_metrics.lines() {
        let mut words = line.splitn(4, ' ');
        match (words.next(), words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(_), words) => help = Some(words.unwrap_or_default()),
            (Some("#"), Some("TYPE"), Some(name), Some(kind)) => {
                let (suffix, kind) = match kind {
                    "counter" => ("_total", kind),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    _ => ("", kind),
                };
                if let Some(help) = help.take() {
                    text.extend(["# HELP ", name, suffix, " ", help, "\n"]);
                }
                text.extend(["# TYPE ", name, suffix, " ", kind, "\n"]);
            }
            (Some("#"), ..) => {}
            _ => text.extend([line, "\n"]),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_agent_gets_what_it_reads() {
        use Exposition::{OpenMetrics, Text};
        let prometheus = "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        let telegraf = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,text/plain;version=0.0.4;q=0.3";
        for (accept, wanted) in [
            ("", OpenMetrics),
            ("*/*", OpenMetrics),
            ("text/plain;version=0.0.4", Text),
            ("text/plain", Text),
            ("application/openmetrics-text;version=1.0.0", OpenMetrics),
            ("application/openmetrics-text;version=0.0.1,text/plain;version=0.0.4;q=0.5,*/*;q=0.1", OpenMetrics),
            (prometheus, OpenMetrics),
            (telegraf, Text),
            ("application/openmetrics-text;q=0, text/plain;q=0.1", Text),
            ("image/png", OpenMetrics),
            (";;q=x,,", OpenMetrics),
        ] {
            let headers = HeaderMap::from_iter([(header::ACCEPT, accept.parse().unwrap())]);
            assert_eq!(Exposition::wanted_by(&headers), wanted, "{accept}");
        }
        assert_eq!(Exposition::wanted_by(&HeaderMap::new()), OpenMetrics);
    }

    #[test]
    fn types_fit_their_samples() {
        let open = "# HELP a Help of a.\n# TYPE a counter\na_total{x=\"# y\"} 1\n# HELP b B.\n# TYPE b info\nb_info{v=\"1\"} 1\n# TYPE c gauge\nc 2\n# EOF\n";
        let text = "# HELP a_total Help of a.\n# TYPE a_total counter\na_total{x=\"# y\"} 1\n# HELP b_info B.\n# TYPE b_info gauge\nb_info{v=\"1\"} 1\n# TYPE c gauge\nc 2\n";
        assert_eq!(to_text(open), text);
    }
}
