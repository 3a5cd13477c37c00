//! Requests that web pages make a browser send: whether their origin may ask.
//!
//! A web page can reach servers on the machine of its visitor: with requests that browsers send to any origin without a preflight
//! (`text/plain`, forms, pictures), or by letting the name of its own host point to that machine (DNS rebinding). A server without
//! keys would obey both. So pages of other origins are refused unless `--cors-origin` names them, and on loopback
//! also requests for any host that is not this machine. Other clients send no `Origin`, and are not affected.
//!
//! A server with keys looks at neither: browsers add no key by themselves.

use std::net::IpAddr;

use axum::{
    extract::{MatchedPath, Request, State},
    http::{
        HeaderMap, HeaderName, HeaderValue, Method, Uri, header,
        uri::{Authority, Scheme},
    },
    middleware::Next,
    response::{IntoResponse, Response},
};

use super::{
    App, keys,
    problem::{Code, Problem},
};

/// Relation of the page's origin to this server's; browsers alone can set it.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");
const SEC_FETCH_DEST: HeaderName = HeaderName::from_static("sec-fetch-dest");
/// The host that a proxy was asked for. Pages cannot send it to another origin without asking first.
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Characters of a client's header that an error repeats.
const REPEATED: usize = 100;

/// Which pages, and which names of this server, are let through.
#[derive(Clone, Debug)]
pub(crate) struct OriginPolicy {
    /// Origins of pages beside the server's own; `None` lets all through.
    origins: Option<Vec<HeaderValue>>,
    /// Names of this server beside those of loopback; `None` lets all through.
    hosts: Option<Vec<String>>,
}

impl OriginPolicy {
    /// For a server that listens on loopback or elsewhere, and whose requests need keys or not.
    pub(super) fn new(is_local: bool, has_keys: bool, origins: &[HeaderValue]) -> Self {
        if has_keys || origins.iter().any(|origin| origin == "*") {
            return Self { origins: None, hosts: None };
        }
        let names = origins.iter().filter_map(|origin| host_of(origin.to_str().ok()?.parse::<Uri>().ok()?.authority()?.as_str()));
        Self { origins: Some(origins.to_vec()), hosts: is_local.then(|| names.collect()) }
    }

    fn check(&self, is_open: bool, request: &Request) -> Result<(), Problem> {
        let headers = request.headers();
        let asked = headers.get_all(header::HOST).iter().map(|host| host.to_str().unwrap_or_default());
        for host in asked.chain(request.uri().authority().map(Authority::as_str)) {
            self.check_host(host)?;
        }
        if is_open { Ok(()) } else { self.check_origin(request.method(), headers) }
    }

    fn check_host(&self, asked: &str) -> Result<(), Problem> {
        let Some(hosts) = &self.hosts else { return Ok(()) };
        if host_of(asked).is_some_and(|host| is_loopback(&host) || hosts.contains(&host)) {
            return Ok(());
        }
        let asked = short(asked);
        let detail = format!(
            "this server listens on loopback and has no keys, so it answers to localhost, 127.0.0.1 and [::1] alone, not to {asked}; \
             where that name is right (a proxy passes it on), start it with --cors-origin http://{asked}"
        );
        Err(Problem::new(Code::HostNotAllowed, detail))
    }

    fn check_origin(&self, method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
        let Some(named) = &self.origins else { return Ok(()) };
        let text = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
        let site = text(&SEC_FETCH_SITE);
        // `none` is what the browser's own user does, such as entering an address.
        if matches!(site, Some("same-origin" | "none")) {
            return Ok(());
        }
        let page = match (headers.get(header::ORIGIN), site) {
            (Some(origin), _) if named.contains(origin) => return Ok(()),
            // On trusted connections browsers send the relation of the origins; on others the hosts are compared.
            (Some(origin), None) if is_own(origin, headers) => return Ok(()),
            (Some(origin), _) => short(&String::from_utf8_lossy(origin.as_bytes())),
            // No browser.
            (None, None) => return Ok(()),
            // A link that was followed shows its answer to the visitor, and not to the page.
            (None, Some(_))
                if *method == Method::GET && text(&SEC_FETCH_MODE) == Some("navigate") && text(&SEC_FETCH_DEST) == Some("document") =>
            {
                return Ok(());
            }
            // Pictures and scripts are asked for without an origin; the page may have said where it is.
            (None, Some(_)) => match text(&header::REFERER).and_then(origin_of) {
                Some(origin) if named.iter().any(|named| named == origin.as_str()) => return Ok(()),
                Some(origin) => short(&origin),
                None => "another origin".into(),
            },
        };
        let detail = format!(
            "a web page of {page} asked, and this server without keys answers its own page alone; --cors-origin lets others in. \
             Behind a proxy, let it pass on the header Host"
        );
        Err(Problem::new(Code::OriginNotAllowed, detail))
    }
}

/// Lets requests through that no page of another origin made.
pub(super) async fn check(State(app): State<App>, path: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let is_open = keys::is_open(path.as_ref().map_or("", MatchedPath::as_str));
    match app.origin_policy.check(is_open, &request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// The same for the port of health and metrics.
pub(super) async fn check_watch(State(app): State<App>, request: Request, next: Next) -> Response {
    match app.watch_origin_policy.check(false, &request) {
        Ok(()) => next.run(request).await,
        Err(problem) => problem.into_response(),
    }
}

/// Whether the page's origin is the host that was asked, or that a proxy was asked for.
fn is_own(origin: &HeaderValue, headers: &HeaderMap) -> bool {
    let Some(origin) = origin.to_str().ok().and_then(|origin| origin.parse::<Uri>().ok()) else { return false };
    let (Some(page), Some(scheme)) = (origin.authority(), origin.scheme()) else { return false };
    let default_port = if *scheme == Scheme::HTTPS { ":443" } else { ":80" };
    let without_default = |host: &str| host.strip_suffix(default_port).unwrap_or(host).to_ascii_lowercase();
    let page = without_default(page.as_str());
    let forwarded = headers.get(X_FORWARDED_HOST).and_then(|hosts| hosts.to_str().ok()).and_then(|hosts| hosts.split(',').next());
    let asked = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    asked.into_iter().chain(forwarded).any(|host| without_default(host.trim()) == page)
}

/// The origin of an address.
fn origin_of(address: &str) -> Option<String> {
    let address: Uri = address.parse().ok()?;
    Some(format!("{}://{}", address.scheme_str()?, address.authority()?))
}

/// The host of `host[:port]`, in small letters.
fn host_of(authority: &str) -> Option<String> {
    let authority: Authority = authority.trim().parse().ok()?;
    Some(authority.host().trim_end_matches('.').to_ascii_lowercase())
}

fn is_loopback(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    // Names below `localhost` are this machine's too (RFC 6761).
    address.map_or_else(|_| host == "localhost" || host.ends_with(".localhost"), |address| address.to_canonical().is_loopback())
}

fn short(text: &str) -> String {
    text.chars().take(REPEATED).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(is_local: bool, has_keys: bool, origins: &[&'static str]) -> OriginPolicy {
        let origins: Vec<_> = origins.iter().map(|origin| HeaderValue::from_static(origin)).collect();
        OriginPolicy::new(is_local, has_keys, &origins)
    }

    /// The code of the refusal, if there is one.
    fn ask(policy: &OriginPolicy, method: &str, headers: &[(&str, &str)]) -> Option<Code> {
        let mut request = axum::http::Request::builder().method(method).uri("/collections");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        policy.check(false, &request.body(axum::body::Body::empty()).unwrap()).err().map(|problem| problem.code)
    }

    #[test]
    fn a_server_on_loopback_answers_to_its_own_names() {
        let closed = policy(true, false, &["https://dino.example.org"]);
        for host in [
            "localhost",
            "localhost:9000",
            "LOCALHOST:1",
            "127.0.0.1:8080",
            "127.8.8.8",
            "[::1]:8080",
            "a.localhost",
            "localhost.",
            "dino.example.org",
        ] {
            assert_eq!(ask(&closed, "POST", &[("host", host)]), None, "{host}");
        }
        for host in
            ["evil.example", "localhost.evil.example:8080", "evil-localhost", "192.168.1.1", "[::2]", "", "a b", "x@localhost@evil.example"]
        {
            assert_eq!(ask(&closed, "GET", &[("host", host)]), Some(Code::HostNotAllowed), "{host}");
        }
        assert_eq!(ask(&closed, "GET", &[]), None);
        for open in [policy(false, false, &[]), policy(true, true, &[]), policy(true, false, &["*"])] {
            assert_eq!(ask(&open, "GET", &[("host", "dino.example.org")]), None);
        }
        assert_eq!(ask(&policy(true, false, &[]), "GET", &[("host", "x.org")]), Some(Code::HostNotAllowed));
    }

    #[test]
    fn pages_of_other_origins_are_refused_unless_named() {
        let host = ("host", "dino.example.org");
        let closed = policy(false, false, &["https://app.example.org"]);
        let passes = |method: &str, headers: &[(&str, &str)]| ask(&closed, method, headers).is_none();
        // Not a browser; the page itself; a named one.
        assert!(passes("POST", &[host]));
        assert!(passes("POST", &[host, ("origin", "http://dino.example.org")]));
        assert!(passes("POST", &[("host", "DINO.example.org:443"), ("origin", "https://dino.example.org")]));
        assert!(passes(
            "POST",
            &[("host", "10.0.0.7:8080"), ("x-forwarded-host", "dino.example.org"), ("origin", "https://dino.example.org")]
        ));
        assert!(passes("POST", &[("host", "10.0.0.7:8080"), ("sec-fetch-site", "same-origin"), ("origin", "https://dino.example.org")]));
        assert!(passes("POST", &[host, ("sec-fetch-site", "cross-site"), ("origin", "https://app.example.org")]));
        assert!(passes(
            "GET",
            &[host, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors"), ("referer", "https://app.example.org/")]
        ));
        // An address that was entered, and a link that was followed.
        assert!(passes("GET", &[host, ("sec-fetch-site", "none")]));
        let link = [host, ("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate"), ("sec-fetch-dest", "document")];
        assert!(passes("GET", &link));
        assert!(!passes("POST", &link));

        for origin in
            ["https://evil.example", "null", "http://dino.example.org.evil.example", "http://dino.example.org:81", "dino.example.org"]
        {
            assert!(!passes("POST", &[host, ("origin", origin)]), "{origin}");
            assert!(!passes("GET", &[host, ("origin", origin)]), "{origin}");
        }
        for site in ["cross-site", "same-site"] {
            assert!(!passes("POST", &[host, ("sec-fetch-site", site), ("origin", "http://dino.example.org")]), "{site}");
            assert!(!passes("GET", &[host, ("sec-fetch-site", site), ("sec-fetch-mode", "no-cors")]), "{site}");
            assert!(
                !passes("GET", &[host, ("sec-fetch-site", site), ("referer", "https://evil.example/https://app.example.org")]),
                "{site}"
            );
        }
        let keyed = policy(false, true, &[]);
        assert_eq!(ask(&keyed, "POST", &[host, ("origin", "https://evil.example")]), None);
    }
}
