//! A real server for each test: the program itself, the real ONNX Runtime, a free port, HTTP over a socket.

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, LazyLock, Mutex, mpsc},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

/// Bytes of a server's log that are kept.
const KEPT_LOG: usize = 64 << 20;

/// Longer than anything should take here, on a busy machine.
pub(crate) const TIMEOUT: Duration = Duration::from_mins(1);

pub(crate) fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// Python with the packages of `tests/clients`, which `make test` installs.
pub(crate) fn python() -> PathBuf {
    let path = root().join(".cache/clients/python/bin/python3");
    assert!(path.is_file(), "{} is missing: run `make clients`", path.display());
    path
}

/// A file of `tests`.
pub(crate) fn file(path: &str) -> Vec<u8> {
    let path = root().join("tests").join(path);
    fs_err::read(&path).unwrap()
}

pub(crate) fn tiny_model() -> PathBuf {
    root().join("tests/data/tiny-model")
}

/// `dino-server`, without the settings of the user who runs the tests. It finds ONNX Runtime by itself.
pub(crate) fn program() -> Command {
    without_settings(Command::new(env!("CARGO_BIN_EXE_dino-server")))
}

/// The program, whose files may have so many bytes: a disk that is full of one of them. The limit can be lifted later.
pub(crate) fn program_with_file_limit(bytes: u64) -> Command {
    let mut command = without_settings(Command::new("sh"));
    let script = r#"trap '' XFSZ; limit=$1; shift; exec prlimit --fsize=$limit: "$@""#;
    command.args(["-c", script, "sh", &bytes.to_string(), env!("CARGO_BIN_EXE_dino-server")]);
    command
}

fn without_settings(mut command: Command) -> Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("DINO_") || text.starts_with("OTEL_") || text == "RUST_LOG" {
            command.env_remove(name);
        }
    }
    command
}

/// The API document.
fn document() -> &'static Value {
    static DOCUMENT: LazyLock<Value> =
        LazyLock::new(|| serde_json::from_slice(&fs_err::read(root().join("openapi.json")).unwrap()).unwrap());
    &DOCUMENT
}

pub(crate) struct Server {
    child: Child,
    address: String,
    log: Arc<Mutex<String>>,
    agent: ureq::Agent,
}

impl Server {
    /// The tiny model, and further flags.
    pub(crate) fn start(flags: &[&str]) -> Self {
        Self::with_models(&[tiny_model().to_str().unwrap()], flags)
    }

    /// The tiny model with the collections of a data folder.
    pub(crate) fn with_data(folder: &Path) -> Self {
        Self::start(&["--data-dir", folder.to_str().unwrap()])
    }

    /// Waits until the server is ready.
    pub(crate) fn with_models(models: &[&str], flags: &[&str]) -> Self {
        Self::without_waiting(models, flags).when_ready()
    }

    /// The demo model with its gallery, which is restored into `data` first: what `make serve` starts.
    pub(crate) fn demo(data: &Path, flags: &[&str]) -> Self {
        let demo = root().join("models/demo");
        let restored = program().arg("restore").arg("--from").arg(demo.join("gallery.dino")).arg("--data-dir").arg(data).output().unwrap();
        assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
        let mut all = vec!["--data-dir", data.to_str().unwrap()];
        all.extend(flags);
        Self::with_models(&[&format!("demo={}", demo.display())], &all)
    }

    /// The server once it is ready.
    pub(crate) fn when_ready(self) -> Self {
        let server = self;
        let began = Instant::now();
        while server.get("/readyz").status != 200 {
            assert!(began.elapsed() < TIMEOUT, "not ready: {}", server.log());
            thread::sleep(Duration::from_millis(20));
        }
        server
    }

    pub(crate) fn without_waiting(models: &[&str], flags: &[&str]) -> Self {
        Self::spawn(program(), "127.0.0.1:0", models, flags)
    }

    /// At an address that it may have had before.
    pub(crate) fn at(listen: &str, models: &[&str], flags: &[&str]) -> Self {
        Self::spawn(program(), listen, models, flags)
    }

    /// Whether the program runs.
    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Starts the server with a command that runs the program with the arguments that it gets.
    pub(crate) fn launch(command: Command, models: &[&str], flags: &[&str]) -> Self {
        Self::spawn(command, "127.0.0.1:0", models, flags)
    }

    /// The tiny model, asked for at another address than that of the tests; it may not be ready yet.
    pub(crate) fn listening_on(listen: &str, flags: &[&str]) -> Self {
        let server = Self::spawn(program(), listen, &[tiny_model().to_str().unwrap()], flags);
        server.log_with("loaded");
        server
    }

    fn spawn(mut command: Command, listen: &str, models: &[&str], flags: &[&str]) -> Self {
        command.args(["serve", "--listen", listen]).args(flags);
        for model in models {
            command.args(["--model", model]);
        }
        let mut child = command.stderr(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap();
        let log = Arc::new(Mutex::new(String::new()));
        let (found, address) = mpsc::channel();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let kept = log.clone();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some((_, address)) = line.split_once("listening on http://") {
                    // A JSON line goes on after the address.
                    let end = address.find('"').unwrap_or(address.len());
                    let _ = found.send(address[..end].to_owned());
                }
                let mut log = kept.lock().unwrap();
                // A long flood writes more than is of use.
                if log.len() > KEPT_LOG {
                    log.clear();
                }
                log.push_str(&line);
                log.push('\n');
            }
        });
        let Ok(address) = address.recv_timeout(TIMEOUT) else {
            panic!("the server did not start: {}", log.lock().unwrap());
        };
        let agent = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT)).build().into();
        Self { child, address, log, agent }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    /// What the server wrote to stderr so far.
    pub(crate) fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    /// Waits until the log holds `words`, then returns it: it arrives a little after the answers.
    pub(crate) fn log_with(&self, words: &str) -> String {
        let began = Instant::now();
        while !self.log().contains(words) {
            assert!(began.elapsed() < TIMEOUT, "no {words} in {}", self.log());
            thread::sleep(Duration::from_millis(5));
        }
        self.log()
    }

    /// Largest resident memory so far, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.of_status("VmHWM")
    }

    /// Forgets the largest resident memory so far.
    pub(crate) fn reset_peak(&self) {
        fs_err::write(format!("/proc/{}/clear_refs", self.child.id()), "5").unwrap();
    }

    /// Resident memory now, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.of_status("VmRSS")
    }

    /// Time that all of its threads have computed so far.
    pub(crate) fn computed(&self) -> Duration {
        let stat = fs_err::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // After the name in brackets, which may hold anything: utime and stime are the fields 14 and 15, in hundredths of a second.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
        let ticks: u64 = fields[11..13].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
        Duration::from_millis(10 * ticks)
    }

    /// Memory that is set aside for data, used or not, in bytes.
    pub(crate) fn reserved_memory(&self) -> u64 {
        self.of_status("VmData")
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    fn of_status(&self, name: &str) -> u64 {
        self.number_of_status(name) * 1024
    }

    /// Threads of the process.
    pub(crate) fn threads(&self) -> u64 {
        self.number_of_status("Threads")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    fn number_of_status(&self, name: &str) -> u64 {
        let status = fs_err::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    }

    pub(crate) fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().unwrap();
        assert!(sent.success());
    }

    /// Waits for the program to end by itself.
    pub(crate) fn end(mut self) -> (ExitStatus, String) {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                // The thread that reads the log sees the end of the pipe a little later.
                thread::sleep(Duration::from_millis(50));
                return (status, self.log());
            }
            assert!(began.elapsed() < TIMEOUT, "still running: {}", self.log());
            thread::sleep(Duration::from_millis(10));
        }
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.get_with(path, &[])
    }

    pub(crate) fn get_with(&self, path: &str, headers: &[(&str, &str)]) -> Answer {
        let mut request = self.agent.get(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::read("get", path, request.call())
    }

    pub(crate) fn post(&self, path: &str, kind: &str, body: &[u8]) -> Answer {
        self.post_with(path, &[("content-type", kind)], body)
    }

    pub(crate) fn post_with(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut request = self.agent.post(self.url(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        Answer::read("post", path, request.send(body))
    }

    pub(crate) fn put(&self, path: &str, body: &Value) -> Answer {
        let request = self.agent.put(self.url(path)).header("content-type", "application/json");
        Answer::read("put", path, request.send(body.to_string()))
    }

    pub(crate) fn delete(&self, path: &str) -> Answer {
        Answer::read("delete", path, self.agent.delete(self.url(path)).call())
    }

    /// A request to a server that may die under it: the status, if there was an answer.
    pub(crate) fn attempt(&self, method: &str, path: &str, body: &Value) -> Option<u16> {
        self.attempt_with(method, path, "application/json", body.to_string().as_bytes())
    }

    pub(crate) fn attempt_with(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> Option<u16> {
        let request = ureq::http::Request::builder().method(method).uri(self.url(path)).header("content-type", kind);
        Some(self.agent.run(request.body(body).unwrap()).ok()?.status().as_u16())
    }

    pub(crate) fn post_json(&self, path: &str, body: &Value) -> Answer {
        self.post(path, "application/json", body.to_string().as_bytes())
    }

    pub(crate) fn post_parts(&self, path: &str, pictures: &[Vec<u8>]) -> Answer {
        let parts: Vec<_> = pictures.iter().map(|picture| ("image", picture.as_slice())).collect();
        self.post(path, &format!("multipart/form-data; boundary={BOUNDARY}"), &multipart(&parts))
    }

    /// The embedding of one good picture.
    pub(crate) fn embed(&self, picture: &[u8]) -> Vec<f32> {
        self.embed_with("", picture)
    }

    pub(crate) fn embed_with(&self, query: &str, picture: &[u8]) -> Vec<f32> {
        let answer = self.post(&format!("/embed{query}"), "image/png", picture);
        let vectors = answer.ok().vectors();
        assert_eq!(vectors.len(), 1);
        vectors.into_iter().next().unwrap()
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) struct Answer {
    /// What was asked for.
    method: &'static str,
    path: String,
    pub(crate) status: u16,
    pub(crate) headers: ureq::http::HeaderMap,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    fn read(method: &'static str, path: &str, outcome: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> Self {
        let mut response = outcome.unwrap();
        Self {
            method,
            path: path.to_owned(),
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: response.body_mut().with_config().limit(1 << 30).read_to_vec().unwrap(),
        }
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// Insists on 200.
    pub(crate) fn ok(&self) -> &Self {
        assert_eq!(self.status, 200, "{}", self.text());
        self.is_documented();
        self
    }

    /// Insists that the API document has such an answer of the route, unless it does not have the route itself.
    #[track_caller]
    fn is_documented(&self) {
        let document = document();
        let asked: Vec<&str> = self.path.split(['?', '#']).next().unwrap().split('/').collect();
        let fits = |template: &str| {
            let parts: Vec<&str> = template.split('/').collect();
            parts.len() == asked.len() && parts.iter().zip(&asked).all(|(part, asked)| part.starts_with('{') || part == asked)
        };
        let operations = document["paths"].as_object().unwrap().iter().filter(|(template, _)| fits(template));
        let operations = operations.filter_map(|(template, methods)| Some((template.matches('{').count(), methods.get(self.method)?)));
        let Some((_, operation)) = operations.min_by_key(|(parameters, _)| *parameters) else { return };
        let mut response = &operation["responses"][self.status.to_string()];
        if let Some(reference) = response["$ref"].as_str() {
            response = document.pointer(reference.trim_start_matches('#')).unwrap();
        }
        let kind = self.header("content-type").split(';').next().unwrap();
        assert!(!response["content"][kind].is_null(), "{} {}: {} with {kind} is not in openapi.json", self.method, self.path, self.status);
    }

    /// `embeddings` of an answer of `/embed` in JSON.
    pub(crate) fn vectors(&self) -> Vec<Vec<f32>> {
        serde_json::from_value(self.json()["embeddings"].clone()).unwrap()
    }

    /// Insists on a problem+json of this status and code; returns its members.
    #[track_caller]
    pub(crate) fn problem(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), "application/problem+json", "{}", self.text());
        let problem = self.json();
        assert_eq!(problem["code"], code, "{problem}");
        assert_eq!(problem["status"], status);
        self.is_documented();
        assert!(problem["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{problem}");
        problem
    }
}

pub(crate) const BOUNDARY: &str = "a-line-that-no-picture-holds";

pub(crate) fn multipart(parts: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, content) in parts {
        body.extend(format!("--{BOUNDARY}\r\n").bytes());
        body.extend(format!("Content-Disposition: form-data; name=\"{name}\"; filename=\"x\"\r\n\r\n").bytes());
        body.extend(*content);
        body.extend(b"\r\n");
    }
    body.extend(format!("--{BOUNDARY}--\r\n").bytes());
    body
}

/// Vectors of length 1 point the same way up to rounding.
#[track_caller]
pub(crate) fn assert_close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    for (x, y) in a.iter().zip(b) {
        assert!((x - y).abs() <= 1e-4 + 1e-4 * y.abs(), "{x} against {y}");
    }
}

pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| f64::from(x * y)).sum::<f64>();
    (dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()) as f32
}
