//! Two servers on one database behind the balancer of `docker/haproxy`, while servers die, the database is restarted and models change:
//! what was acknowledged is there, and each failure has a status that was promised.
//!
//! `make test-cluster` runs it for half a minute, `make soak` for `SOAK_SECONDS`.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    harness::{Server, TIMEOUT, root, tiny_model},
    pictures::{png, scene},
    postgres::Cluster,
};

/// Clients that write, each to items of its own.
const WRITERS: usize = 3;
/// Items of each.
const IDS: u64 = 50;
/// What happens, one after another; the statuses of each are counted apart.
const PHASES: [&str; 6] = [
    "all is well",
    "a server is killed",
    "the database restarts",
    "a model is added, server by server",
    "that model is asked",
    "all is well again",
];
/// A server that is killed, a balancer that finds none, a database that is away.
const PROMISED: [u16; 5] = [0, 429, 502, 503, 504];

/// Statuses by phase and kind of request.
type Counts = BTreeMap<(usize, &'static str, u16), u64>;

/// The balancer with the file that compose mounts, but for its addresses and for how often it looks at the servers.
struct Balancer {
    child: Child,
    address: String,
    agent: ureq::Agent,
}

impl Balancer {
    fn start(folder: &Path, servers: [&str; 2]) -> Self {
        let address = free_address();
        let file = fs_err::read_to_string(root().join("docker/haproxy/haproxy.cfg")).unwrap();
        let mut own = String::new();
        for line in file.lines().filter(|line| !line.contains("parse-resolv-conf")) {
            match line.trim() {
                "bind :8080" => writeln!(own, "    bind {address}").unwrap(),
                "server-template server 2 shared:8080" => {
                    servers.iter().enumerate().for_each(|(number, at)| writeln!(own, "    server server{number} {at}").unwrap());
                }
                _ => writeln!(own, "{}", line.replace("inter 2s", "inter 100ms").replace(" resolvers docker init-addr none", "")).unwrap(),
            }
        }
        assert!(own.matches(servers[0]).count() == 2 && own.contains(&address), "has {file} another form?");
        let config = folder.join("haproxy.cfg");
        fs_err::write(&config, own).unwrap();
        let child = Command::new("haproxy").args(["-db", "-q", "-f"]).arg(config).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let mut child = child.expect("haproxy is not installed: run `make test-cluster`");
        let began = Instant::now();
        while TcpStream::connect(&address).is_err() {
            assert!(child.try_wait().unwrap().is_none() && began.elapsed() < TIMEOUT, "the balancer does not start");
            thread::sleep(Duration::from_millis(50));
        }
        let agent = ureq::Agent::config_builder().http_status_as_error(false).timeout_global(Some(TIMEOUT)).build().into();
        Self { child, address, agent }
    }

    /// The status of an answer. 0 for a connection that was closed without one: what the balancer does where a server was lost under the second or a
    /// later request of a connection, so that the client sends it again.
    fn ask(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> u16 {
        let url = format!("http://{}{path}", self.address);
        let request = ureq::http::Request::builder().method(method).uri(url).header("content-type", kind);
        let Ok(mut answer) = self.agent.run(request.body(body).unwrap()) else { return 0 };
        if answer.body_mut().read_to_vec().is_err() { 0 } else { answer.status().as_u16() }
    }

    fn ask_json(&self, method: &str, path: &str, body: &Value) -> u16 {
        self.ask(method, path, "application/json", body.to_string().as_bytes())
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A port that a server may have again after it was killed.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn vector(version: u64) -> Vec<f32> {
    (0..32).map(|i| if i == version % 32 { 1.0 } else { 0.001 * (version % 97) as f32 }).collect()
}

fn until_ready(server: &Server) {
    let began = Instant::now();
    while server.get("/readyz").status != 200 {
        assert!(began.elapsed() < TIMEOUT, "not ready: {}", server.log());
        thread::sleep(Duration::from_millis(50));
    }
}

/// What one writer knows of its items: the versions that may be there. `None` is an item that is not.
type Known = BTreeMap<String, Vec<Option<u64>>>;

/// Writes and deletes until the end.
fn write(balancer: &Balancer, writer: usize, is_over: &AtomicBool, count: impl Fn(&'static str, u16)) -> Known {
    let mut known = Known::new();
    for version in 0.. {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let id = format!("{writer}-{}", (version * 7 + version / 5) % IDS);
        let deletes = version % 5 == 4;
        let (kind, status, after) = if deletes {
            ("delete", balancer.ask_json("DELETE", &format!("/collections/c/items/{id}"), &json!("")), None)
        } else {
            let item = json!({ "id": id, "vector": vector(version), "metadata": { "version": version } });
            ("upsert", balancer.ask_json("POST", "/collections/c/items", &json!({ "items": [item] })), Some(version))
        };
        count(kind, status);
        let versions = known.entry(id).or_insert_with(|| vec![None]);
        match status {
            200 | 204 => *versions = vec![after],
            // The balancer may have sent it to a server that died after it was done.
            404 if deletes => *versions = vec![None],
            _ => versions.push(after),
        }
    }
    known
}

fn phase_seconds() -> f64 {
    let all = std::env::var("SOAK_SECONDS").map_or(30.0, |seconds| seconds.parse().unwrap());
    all / PHASES.len() as f64
}

#[test]
#[ignore = "needs HAProxy: make test-cluster"]
#[expect(clippy::too_many_lines, reason = "phases that follow each other")]
fn two_servers_behind_a_balancer_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start();
    let url = cluster.database();
    let addresses = [free_address(), free_address()];
    let old = vec![tiny_model().display().to_string()];
    let start = |number: usize, models: &[String]| {
        let models: Vec<&str> = models.iter().map(String::as_str).collect();
        Server::at(&addresses[number], &models, &["--index", &url, "--sessions", "1"]).when_ready()
    };
    let mut servers = [start(0, &old), start(1, &old)];
    assert_eq!(servers[0].put("/collections/c", &json!({})).status, 201);
    let balancer = Balancer::start(folder.path(), [&addresses[0], &addresses[1]]);
    let picture = png(&scene(40, 40, 1));
    let began = Instant::now();
    while balancer.ask("POST", "/embed", "image/png", &picture) != 200 || balancer.ask("GET", "/collections/c", "", b"") != 200 {
        assert!(began.elapsed() < TIMEOUT, "the balancer finds no server");
        thread::sleep(Duration::from_millis(50));
    }

    // The same model with another transform is another model.
    let next = folder.path().join("next");
    fs_err::create_dir(&next).unwrap();
    fs_err::copy(tiny_model().join("model.onnx"), next.join("model.onnx")).unwrap();
    let manifest = fs_err::read_to_string(tiny_model().join("manifest.json")).unwrap();
    let mut manifest: Value = serde_json::from_str(&manifest).unwrap();
    manifest["transform"]["mean"] = json!([0.5, 0.5, 0.5]);
    fs_err::write(next.join("manifest.json"), manifest.to_string()).unwrap();
    let both = vec![old[0].clone(), format!("next={}", next.display())];

    let (counts, phase, is_over) = (Mutex::new(Counts::new()), AtomicUsize::new(0), AtomicBool::new(false));
    let count = |kind: &'static str, status: u16| {
        *counts.lock().unwrap().entry((phase.load(Ordering::Relaxed), kind, status)).or_default() += 1;
    };
    let wait = || thread::sleep(Duration::from_secs_f64(phase_seconds()));
    let known = thread::scope(|scope| {
        let (balancer, is_over) = (&balancer, &is_over);
        let writers: Vec<_> = (0..WRITERS).map(|writer| scope.spawn(move || write(balancer, writer, is_over, count))).collect();
        let readers = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                count("embed", balancer.ask("POST", "/embed", "image/png", &picture));
                count("classify", balancer.ask("POST", "/classify?collection=c&min_similarity=0", "image/png", &picture));
                count("search", balancer.ask_json("POST", "/collections/c/search", &json!({ "vector": vector(3), "k": 5 })));
                if phase.load(Ordering::Relaxed) == 4 {
                    let status = balancer.ask("POST", "/collections/next/items?id=p", "image/png", &picture);
                    count("upsert of the added model", status);
                }
            }
        });
        wait();
        phase.store(1, Ordering::Relaxed);
        servers[1].signal("-KILL");
        wait();
        servers[1] = start(1, &old);
        phase.store(2, Ordering::Relaxed);
        cluster.stop();
        wait();
        cluster.start_again();
        servers.iter().for_each(until_ready);
        // The balancer looks ten times a second.
        thread::sleep(Duration::from_secs(1));
        phase.store(3, Ordering::Relaxed);
        for (number, server) in servers.iter_mut().enumerate() {
            server.signal("-TERM");
            let began = Instant::now();
            while server.is_running() {
                assert!(began.elapsed() < TIMEOUT, "it does not end");
                thread::sleep(Duration::from_millis(20));
            }
            *server = start(number, &both);
            thread::sleep(Duration::from_secs(1));
        }
        wait();
        assert_eq!(servers[0].put("/collections/next", &json!({ "model": "next" })).status, 201);
        phase.store(4, Ordering::Relaxed);
        wait();
        phase.store(5, Ordering::Relaxed);
        wait();
        is_over.store(true, Ordering::Relaxed);
        readers.join().unwrap();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect::<Known>()
    });

    let counts = counts.into_inner().unwrap();
    for (number, name) in PHASES.iter().enumerate() {
        println!("{name}:");
        for ((_, kind, status), times) in counts.iter().filter(|((phase, ..), _)| *phase == number) {
            println!("  {kind}: {status} {times} times");
        }
    }
    let times = |phase: usize, statuses: &dyn Fn(u16) -> bool| -> u64 {
        counts.iter().filter(|((of, _, status), _)| *of == phase && statuses(*status)).map(|(_, times)| times).sum()
    };
    for (number, name) in PHASES.iter().enumerate() {
        assert!(times(number, &|status| matches!(status, 200 | 204)) > 0, "nothing was answered: {name}");
        let others = times(number, &|status| !matches!(status, 200 | 204 | 404) && !PROMISED.contains(&status));
        assert_eq!(others, 0, "{name}");
    }
    for calm in [0, 4, 5] {
        assert_eq!(times(calm, &|status| PROMISED.contains(&status)), 0, "{}", PHASES[calm]);
    }
    // Both servers hold what was acknowledged, and nothing else.
    for server in &servers {
        let page = server.get("/collections/c/items?limit=1000").ok().json();
        let version = |item: &Value| (item["id"].as_str().unwrap().to_owned(), item["metadata"]["version"].as_u64());
        let stored: BTreeMap<_, _> = page["items"].as_array().unwrap().iter().map(version).collect();
        assert!(stored.keys().all(|id| known.contains_key(id)));
        for (id, versions) in &known {
            let found = stored.get(id).copied().flatten();
            assert!(versions.contains(&found), "{id}: {found:?}, not one of {versions:?}");
        }
        assert_eq!(server.get("/collections/next/items/p").status, 200);
    }
}
