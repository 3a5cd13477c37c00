//! The two servers.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use serde_json::{Value as Json, json};

use crate::repository::{etag, is_large, pointer, sha256};
use crate::{Access, Fault, Repository, STRANGER, Seen, TOKEN, lock};

/// How long a stalled answer keeps its connection.
const STALL: Duration = Duration::from_secs(30);
/// Lines of a request's head.
const MOST_LINES: usize = 200;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Hub,
    Store,
}

/// What both know.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) store: String,
    pub(crate) faults: Vec<(String, usize, Fault)>,
    pub(crate) seen: Vec<Seen>,
    pub(crate) names_alone: bool,
    pub(crate) sends_on: bool,
    pub(crate) stopped: bool,
    /// By OWNER/NAME and commit.
    commits: BTreeMap<(String, String), Repository>,
    /// Commits by OWNER/NAME and branch or tag.
    revisions: BTreeMap<(String, String), String>,
}

impl State {
    pub(crate) fn put(&mut self, id: &str, repository: Repository) {
        let commit = repository.commit();
        self.tag(id, "main", &commit);
        self.commits.insert((id.to_owned(), commit), repository);
    }

    pub(crate) fn tag(&mut self, id: &str, tag: &str, commit: &str) {
        self.revisions.insert((id.to_owned(), tag.to_owned()), commit.to_owned());
    }

    /// The fault of an answer, one time fewer.
    fn fault(&mut self, target: &str) -> Option<Fault> {
        let (_, times, fault) = self.faults.iter_mut().find(|(part, times, _)| *times > 0 && target.contains(part.as_str()))?;
        *times -= 1;
        Some(fault.clone())
    }
}

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

/// Listens on loopback.
pub(crate) fn run(role: Role, port: u16, state: Arc<Mutex<State>>) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("loopback has a free port");
    let address = listener.local_addr().expect("it listens");
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            if lock(&state).stopped {
                return;
            }
            let state = Arc::clone(&state);
            // A client that goes away in the middle is one of the things that are tested.
            thread::spawn(move || drop(serve(role, &stream, &state)));
        }
    });
    address
}

fn serve(role: Role, stream: &TcpStream, state: &Mutex<State>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines().take(MOST_LINES);
    let Some(first) = lines.next().transpose()? else { return Ok(()) };
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut headers = BTreeMap::new();
    for line in lines {
        let line = line?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let (authorization, range) = (headers.remove("authorization"), headers.remove("range"));
    let seen = Seen {
        store: role == Role::Store,
        method: method.clone(),
        target: target.clone(),
        authorization: authorization.clone(),
        range: range.clone(),
    };
    let (mut answer, fault) = {
        let mut state = lock(state);
        state.seen.push(seen);
        let fault = state.fault(&target);
        let path = target.split('?').next().unwrap_or_default();
        let path = percent_decode_str(path).decode_utf8_lossy().into_owned();
        let answer = match role {
            Role::Hub => hub(&state, &target, &path, authorization.as_deref()),
            Role::Store => store(&state, &target, &path, authorization.as_deref()),
        };
        (answer, fault)
    };
    if let Some(range) = range.filter(|_| !matches!(fault, Some(Fault::NoRanges))) {
        answer.part(&range);
    }
    send(stream, &method, answer, fault)
}

impl Answer {
    fn new(status: u16, body: Vec<u8>) -> Self {
        Self { status, headers: Vec::new(), body }
    }

    fn json(body: &Json) -> Self {
        Self::new(200, body.to_string().into_bytes()).with("Content-Type", "application/json")
    }

    /// What the hub says when it refuses.
    fn error(status: u16, code: &str, message: &str) -> Self {
        let answer = Self::new(status, json!({"error": message}).to_string().into_bytes()).with("X-Error-Message", message);
        if code.is_empty() { answer } else { answer.with("X-Error-Code", code) }
    }

    fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    /// Keeps a range of the body.
    fn part(&mut self, range: &str) {
        let from = range.strip_prefix("bytes=").and_then(|range| range.split('-').next()?.parse::<usize>().ok());
        let (Some(from), 200) = (from, self.status) else { return };
        let total = self.body.len();
        if from >= total {
            *self = Self::new(416, Vec::new()).with("Content-Range", format!("bytes */{total}"));
            return;
        }
        self.status = 206;
        self.body.drain(..from);
        self.headers.push(("Content-Range", format!("bytes {from}-{}/{total}", total - 1)));
    }
}

/// The bytes of large files, by their SHA-256. Like a store of signed addresses it refuses a second way of logging in.
fn store(state: &State, target: &str, path: &str, authorization: Option<&str>) -> Answer {
    if target.split_once('?').is_none_or(|(_, query)| query != signature()) {
        return Answer::error(403, "", "the signature does not match");
    }
    if authorization.is_some() {
        return Answer::error(400, "", "only one way of logging in is allowed");
    }
    let wanted = path.trim_start_matches("/blobs/");
    let files = state.commits.values().flat_map(|repository| &repository.files);
    match files.filter(|(path, _)| is_large(path)).find(|(_, bytes)| sha256(bytes) == wanted) {
        Some((_, bytes)) => Answer::new(200, bytes.clone()).with("ETag", "\"of-the-store\""),
        None => Answer::error(404, "", "no such blob"),
    }
}

/// As long as the signed addresses of real stores, with their policy and the names of headers in them.
fn signature() -> String {
    format!("Signature=secret&Policy={}&Key-Pair-Id=K3", "eyJTdGF0ZW1lbnQiOlt7".repeat(80))
}

fn hub(state: &State, target: &str, path: &str, authorization: Option<&str>) -> Answer {
    let token = authorization.map(|value| value.trim_start_matches("Bearer "));
    if token.is_some_and(|token| ![TOKEN, STRANGER].contains(&token)) {
        return Answer::error(401, "", "Invalid credentials in Authorization header");
    }
    let may_read = token == Some(TOKEN);
    // Revisions with a slash come as one segment, so the target is cut before it is decoded.
    let raw = target.split('?').next().unwrap_or_default();
    let decoded: Vec<_> =
        raw.trim_start_matches('/').split('/').map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned()).collect();
    let parts: Vec<_> = decoded.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["api", "models", owner, name, rest @ ..] => {
            let id = format!("{owner}/{name}");
            let revision = match rest {
                [_, revision, ..] => revision,
                _ => "main",
            };
            let (commit, repository) = match find(state, &id, revision, may_read, token.is_some()) {
                Ok(found) => found,
                Err(answer) => return answer,
            };
            if rest.first() == Some(&"tree") {
                return Answer::json(&repository.tree().into());
            }
            Answer::json(&json!({
                "id": id, "modelId": id, "sha": commit, "private": repository.access == Access::Private, "disabled": false, "tags": [],
                "gated": if repository.access == Access::Gated { json!("manual") } else { json!(false) },
                "siblings": repository.siblings(state.names_alone), "cardData": repository.card,
            }))
        }
        ["api", "resolve-cache", "models", owner, name, commit, file @ ..] | [owner, name, "resolve", commit, file @ ..] => {
            let (id, file) = (format!("{owner}/{name}"), file.join("/"));
            match find(state, &id, commit, may_read, token.is_some()) {
                Ok((commit, repository)) if may_read || repository.access == Access::Public => {
                    let sends_on = state.sends_on && !path.starts_with("/api/");
                    resolve(state, &id, &commit, repository, &file, sends_on)
                }
                Ok(_) => {
                    let status = if token.is_some() { 403 } else { 401 };
                    Answer::error(status, "GatedRepo", &format!("Access to model {id} is restricted."))
                }
                Err(answer) => answer,
            }
        }
        _ => Answer::error(404, "", "no such page"),
    }
}

/// The commit of a revision. A repository that is not shown looks like one that is not there.
fn find<'a>(state: &'a State, id: &str, revision: &str, may_read: bool, has_token: bool) -> Result<(String, &'a Repository), Answer> {
    let of = |commit: &str| state.commits.get(&(id.to_owned(), commit.to_owned()));
    let main = state.revisions.get(&(id.to_owned(), "main".to_owned())).and_then(|commit| of(commit));
    if main.is_none_or(|repository| repository.access == Access::Private && !may_read) {
        let status = if has_token { 404 } else { 401 };
        return Err(Answer::error(status, "RepoNotFound", "Repository not found"));
    }
    let commit = state.revisions.get(&(id.to_owned(), revision.to_owned())).map_or(revision, String::as_str);
    match of(commit) {
        Some(repository) => Ok((commit.to_owned(), repository)),
        None => Err(Answer::error(404, "RevisionNotFound", &format!("Invalid rev id: {revision}"))),
    }
}

fn resolve(state: &State, id: &str, commit: &str, repository: &Repository, file: &str, sends_on: bool) -> Answer {
    let Some(bytes) = repository.files.get(file) else {
        return Answer::error(404, "EntryNotFound", "Entry not found").with("X-Repo-Commit", commit);
    };
    let tag = format!("\"{}\"", etag(file, bytes));
    if is_large(file) {
        let signed = format!("{}/blobs/{}?{}", state.store, sha256(bytes), signature());
        let moved = Answer::new(302, b"Found. Redirecting".to_vec()).with("Location", signed).with("ETag", "\"of-the-redirect\"");
        return moved.with("X-Repo-Commit", commit).with("X-Linked-Etag", tag).with("X-Linked-Size", bytes.len().to_string());
    }
    if sends_on {
        let on = format!("/api/resolve-cache/models/{id}/{commit}/{file}");
        return Answer::new(307, b"Temporary Redirect".to_vec()).with("Location", on).with("X-Repo-Commit", commit);
    }
    Answer::new(200, bytes.clone()).with("X-Repo-Commit", commit).with("ETag", tag)
}

fn send(mut stream: &TcpStream, method: &str, mut answer: Answer, fault: Option<Fault>) -> std::io::Result<()> {
    let mut end = answer.body.len();
    let mut declared = true;
    match &fault {
        Some(Fault::Status(status, headers)) => {
            answer = Answer { status: *status, headers: headers.clone(), body: Vec::new() };
            end = 0;
        }
        Some(Fault::Redirect(to)) => {
            answer = Answer::new(302, Vec::new()).with("Location", to.clone());
            end = 0;
        }
        Some(Fault::Corrupt) => {
            if let Some(byte) = answer.body.last_mut() {
                *byte ^= 1;
            }
        }
        Some(Fault::Pointer) => {
            answer.body = pointer(&answer.body);
            end = answer.body.len();
        }
        Some(Fault::Longer) => {
            answer.body.extend_from_slice(b"more than was said");
            end = answer.body.len();
            declared = false;
        }
        Some(Fault::Undeclared) => declared = false,
        Some(Fault::Coded) => answer = answer.with("Content-Encoding", "gzip"),
        Some(Fault::BreakOff(bytes) | Fault::Stall(bytes)) => end = end.min(*bytes),
        Some(Fault::NoRanges) | None => {}
    }
    if declared {
        answer.headers.push(("Content-Length", answer.body.len().to_string()));
    }
    let headers: Vec<_> = answer.headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    write!(stream, "HTTP/1.1 {} .\r\nConnection: close\r\n{}\r\n", answer.status, headers.concat())?;
    if method != "HEAD" {
        stream.write_all(&answer.body[..end])?;
        if let Some(Fault::Stall(_)) = fault {
            thread::sleep(STALL);
        }
    }
    Ok(())
}
