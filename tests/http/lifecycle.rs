//! Starting, being overloaded, and ending.

use std::{
    io::Write,
    net::{TcpListener, TcpStream},
    process::Output,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    harness::{BOUNDARY, Server, multipart, program, tiny_model},
    pictures::{noise, png, scene},
};

fn serve(arguments: &[&str]) -> Output {
    program().arg("serve").args(arguments).output().unwrap()
}

/// Exit code 1 and one line on stderr that holds `words`.
#[track_caller]
fn refuses(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let errors: Vec<_> = text.lines().filter(|line| line.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{text}");
    for word in words {
        assert!(errors[0].contains(word), "{word}: {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[test]
fn a_server_says_what_it_runs() {
    let server = Server::start(&[]);
    let health = server.get("/healthz").ok().json();
    assert_eq!(health["version"], env!("CARGO_PKG_VERSION"));
    let model = &health["models"][0];
    assert_eq!((&model["name"], &model["device"], &model["precision"]), (&"tiny-model".into(), &"cpu".into(), &"f32".into()));
    let models = server.get("/v1/models").ok().json();
    assert_eq!((&models["data"][0]["id"], &models["data"][0]["dim"]), (&"tiny-model".into(), &32.into()));
    assert_eq!(server.get("/readyz").ok().json()["status"], "ready");
    // That /readyz was asked before is no fault.
    assert!(!server.log().contains("NotReady"), "{}", server.log());
    let page = server.get("/");
    assert_eq!(page.ok().header("content-type"), "text/html; charset=utf-8");
    let page = page.text();
    for outside in ["src=\"http", "href=\"http", "@import", "url(http"] {
        assert!(!page.contains(outside), "the page loads {outside}");
    }
}

#[test]
fn the_routes_are_described() {
    let server = Server::start(&[]);
    let document = server.get("/openapi.json").ok().json();
    assert_eq!(document["openapi"], "3.1.0");
    let path = crate::harness::root().join("openapi.json");
    let committed: Value = serde_json::from_str(&fs_err::read_to_string(path).unwrap()).unwrap();
    assert!(committed == document, "openapi.json is out of date: run `dino-server openapi > openapi.json`");
    // Each path that is described is routed.
    for (path, methods) in document["paths"].as_object().unwrap() {
        for method in methods.as_object().unwrap().keys() {
            let path = path.replace("/page/{file}", "/page/app.js").replace("{file}", "start.js").replace(['{', '}'], "");
            let status = server.attempt(&method.to_uppercase(), &path, &Value::Null).unwrap();
            assert_ne!(status, 405, "{method} {path}");
            assert!(status != 404 || !server.get(&path).text().contains("unknown_route"), "{method} {path}");
        }
    }
    let page = server.get("/docs").ok().text();
    let parts: Vec<_> = page.split(['"']).filter(|part| part.starts_with("docs/")).collect();
    assert_eq!(parts.len(), 3, "{page}");
    for part in parts {
        assert!(!server.get(&format!("/{part}")).ok().body.is_empty(), "{part}");
    }
    assert!(!page.contains("http"));
    assert!(page.contains("swagger-ui-bundle.js"));
}

#[test]
fn what_cannot_be_served_is_said_in_one_sentence() {
    let model = tiny_model();
    let model = model.to_str().unwrap();
    let quiet = ["--listen", "127.0.0.1:0"];
    refuses(&serve(&[&quiet[..], &["--model", "/nowhere/at/all"]].concat()), &["/nowhere/at/all", "manifest.json"]);
    refuses(&serve(&[&quiet[..], &["--model", model, "--precision", "int8"]].concat()), &["int8", "f32"]);
    refuses(&serve(&[&quiet[..], &["--model", model, "--device", "cuda:99"]].concat()), &["cuda:99"]);

    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    refuses(&serve(&["--model", model, "--listen", &address]), &[&address, "--listen"]);

    let mut without = program();
    without.args(["serve", "--model", model]).args(quiet).env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so");
    refuses(&without.output().unwrap(), &["ONNX Runtime", "/nowhere/libonnxruntime.so"]);

    let damaged = tempfile::tempdir().unwrap();
    for name in ["manifest.json", "model.onnx"] {
        fs_err::copy(tiny_model().join(name), damaged.path().join(name)).unwrap();
    }
    let mut graph = fs_err::read(damaged.path().join("model.onnx")).unwrap();
    graph[5000] ^= 1;
    fs_err::write(damaged.path().join("model.onnx"), graph).unwrap();
    let named = format!("m={}", damaged.path().display());
    refuses(&serve(&[&quiet[..], &["--model", &named]].concat()), &["model.onnx"]);

    let manifest = fs_err::read_to_string(tiny_model().join("manifest.json")).unwrap();
    let mut manifest: Value = serde_json::from_str(&manifest).unwrap();
    manifest["transform"]["crop"] = Value::Null;
    fs_err::write(damaged.path().join("manifest.json"), manifest.to_string()).unwrap();
    refuses(&serve(&[&quiet[..], &["--model", &named]].concat()), &["crop"]);
}

/// A server that never gets ready: it reads its graph from a pipe to which no process writes.
fn never_starting() -> (tempfile::TempDir, std::process::Child) {
    let folder = tempfile::tempdir().unwrap();
    fs_err::copy(tiny_model().join("manifest.json"), folder.path().join("manifest.json")).unwrap();
    let pipe = folder.path().join("model.onnx");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let named = format!("m={}", folder.path().display());
    let mut command = program();
    let child = command.args(["serve", "--listen", "127.0.0.1:0", "--model", &named]).spawn().unwrap();
    // It has the pipe open once something can be written to it; until then this waits.
    let (opened, is_open) = std::sync::mpsc::channel();
    thread::spawn(move || opened.send(fs_err::OpenOptions::new().write(true).open(pipe)));
    let writer = is_open.recv_timeout(crate::harness::TIMEOUT).unwrap().unwrap();
    // Kept open, so that reading does not end.
    std::mem::forget(writer);
    (folder, child)
}

#[test]
fn a_signal_ends_a_server_that_is_still_starting_at_once() {
    for signal in ["-TERM", "-INT"] {
        let (_folder, mut child) = never_starting();
        let sent = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(sent.success());
        let began = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            if began.elapsed() > Duration::from_secs(5) {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("{signal} was ignored");
            }
            thread::sleep(Duration::from_millis(10));
        };
        // Not ended by the system's default, which process 1 of a container does not have.
        assert_eq!(status.code(), Some(0), "{signal}: {status}");
    }
}

#[test]
fn one_setting_listens_on_both_families() {
    let reached = |listen: &str| {
        let server = Server::listening_on(listen, &[]);
        let port = server.address().rsplit_once(':').unwrap().1.to_owned();
        let mut check = program();
        let checked = check
            .args(["healthcheck", "--path", "/healthz", "--listen", &format!("{}:{port}", listen.rsplit_once(':').unwrap().0)])
            .output()
            .unwrap();
        assert!(checked.status.success(), "{checked:?}");
        ["127.0.0.1", "[::1]"].map(|host| TcpStream::connect(format!("{host}:{port}")).is_ok())
    };
    let has_six = TcpListener::bind("[::1]:0").is_ok();
    assert_eq!(reached("[::]:0"), [true, has_six]);
    assert_eq!(reached("0.0.0.0:0"), [true, false]);
    let [four, six] = reached("localhost:0");
    assert!(four || six);
    let unknown = serve(&["--model", "a", "--listen", "no-such-host.invalid:8080"]);
    refuses(&unknown, &["no-such-host.invalid:8080", "--listen"]);
}

#[test]
fn wrong_usage_exits_with_2() {
    for arguments in [&[][..], &["--model"], &["--model", "a", "--listen", "nowhere"], &["--model", "a", "--device", "gpu"]] {
        assert_eq!(serve(arguments).status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn flags_can_be_set_in_the_environment() {
    let output = program().arg("serve").env("DINO_MODEL", "x/same,y/same").output().unwrap();
    refuses(&output, &["`same`"]);
    let output = program().arg("serve").env("DINO_MODEL", "a").env("DINO_QUEUE", "none").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn the_log_can_be_json() {
    let server = Server::start(&["--log-format", "json"]);
    server.embed(&png(&scene(9, 9, 1)));
    let log = server.log_with("\"path\":\"/embed\"");
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let answered = lines.iter().filter(|line| line["message"] == "answered" && line["span"]["path"] == "/embed");
    assert_eq!(answered.count(), 1, "{log}");
}

/// Work for some seconds: at the default size of `/segment` the tiny model, with its small patches, is slow.
fn heavy(pictures: usize) -> Vec<Vec<u8>> {
    vec![png(&noise(300, 300, 1)); pictures]
}

#[test]
fn a_full_server_says_when_to_come_back() {
    let server = Server::start(&["--queue", "4", "--max-pictures", "4", "--sessions", "1"]);
    let (good, full) = (AtomicUsize::new(0), AtomicUsize::new(0));
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                let answer = server.post_parts("/segment", &heavy(2));
                if answer.status == 200 {
                    good.fetch_add(1, Ordering::SeqCst);
                } else {
                    answer.problem(429, "queue_full");
                    assert!(answer.header("retry-after").parse::<u64>().unwrap() >= 1);
                    full.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    });
    let (good, full) = (good.into_inner(), full.into_inner());
    assert!(good >= 2 && full >= 1 && good + full == 6, "{good} good, {full} refused");
    server.embed(&png(&scene(9, 9, 1)));
}

#[test]
fn a_deadline_is_kept_and_the_server_goes_on() {
    let server = Server::start(&["--request-timeout", "1.5", "--sessions", "1"]);
    let began = Instant::now();
    server.post_parts("/segment", &heavy(60)).problem(504, "deadline_passed");
    // What was not run when the deadline passed is not run any more: a later request does not wait behind it.
    while server.post("/embed", "image/png", &png(&scene(9, 9, 1))).status != 200 {}
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(server.get("/healthz").json()["pictures_inside"], 0);
}

#[test]
fn sigterm_lets_requests_finish_and_exits_with_0() {
    let server = Server::start(&["--sessions", "1"]);
    let status = thread::scope(|scope| {
        let request = scope.spawn(|| server.post_parts("/segment", &heavy(3)).status);
        while server.get("/healthz").json()["pictures_inside"] == 0 {
            assert!(!request.is_finished(), "the request was over before the signal");
        }
        server.signal("-TERM");
        request.join().unwrap()
    });
    assert_eq!(status, 200);
    let (exit, log) = server.end();
    assert_eq!(exit.code(), Some(0), "{log}");
    assert!(log.contains("stopped"), "{log}");
}

#[test]
fn a_client_that_leaves_takes_its_pictures_along() {
    let server = Server::start(&["--sessions", "1"]);
    let pictures = heavy(60);
    let parts: Vec<_> = pictures.iter().map(|picture| ("image", picture.as_slice())).collect();
    let body = multipart(&parts);
    let mut socket = TcpStream::connect(server.address()).unwrap();
    let head = format!(
        "POST /segment HTTP/1.1\r\nhost: localhost\r\ncontent-type: multipart/form-data; boundary={BOUNDARY}\r\n\
         content-length: {}\r\n\r\n",
        body.len()
    );
    socket.write_all(head.as_bytes()).unwrap();
    socket.write_all(&body).unwrap();
    let inside = || server.get("/healthz").json()["pictures_inside"].as_u64().unwrap();
    while inside() < 60 {}
    drop(socket);
    let began = Instant::now();
    while inside() > 0 {
        assert!(began.elapsed() < Duration::from_secs(10), "the server did not notice that the client left");
    }
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    fs_err::create_dir_all(to).unwrap();
    for entry in fs_err::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs_err::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_model_is_swapped_without_a_request_being_lost() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("swapped");
    copy_folder(&tiny_model(), &path);
    let server = Server::with_models(&[path.to_str().unwrap()], &[]);
    let picture = png(&scene(64, 64, 1));
    let before = server.embed(&picture);
    let (asked, reload) = (AtomicUsize::new(0), "/v1/models/swapped/reload");
    let over = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(server.embed(&picture), before);
                    asked.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for _ in 0..5 {
            let answer = server.post(reload, "application/json", b"").ok().json();
            assert_eq!((&answer["model"], &answer["changed"]), (&"swapped".into(), &false.into()));
        }
        // One at a time: another one is told so.
        let both = [(); 2].map(|()| scope.spawn(|| server.post(reload, "application/json", b"").status));
        let statuses = both.map(|one| one.join().unwrap());
        assert!(statuses.contains(&200) && statuses.iter().all(|status| [200, 409].contains(status)), "{statuses:?}");
        let enough = asked.load(Ordering::Relaxed) + 5;
        while asked.load(Ordering::Relaxed) < enough {
            thread::sleep(Duration::from_millis(5));
        }
        over.store(true, Ordering::Relaxed);
    });

    // Other weights: another answer, and another fingerprint.
    for file in fs_err::read_dir(&path).unwrap() {
        fs_err::remove_file(file.unwrap().path()).unwrap();
    }
    copy_folder(&crate::harness::root().join("models/demo"), &path);
    let answer = server.post(reload, "application/json", b"").ok().json();
    assert_eq!(answer["changed"], true, "{answer}");
    let after = server.embed(&picture);
    assert_ne!(after.len(), before.len());
    assert_eq!(server.get("/v1/models").json()["data"][0]["dim"], after.len());

    // What asks for more than a machine has is refused before memory is spent.
    let good = fs_err::read_to_string(path.join("manifest.json")).unwrap();
    for (pointer, value, named) in [
        ("/transform/crop", serde_json::json!([2_240_000, 2_240_000]), "transform.crop"),
        ("/patch_size", serde_json::json!(4_000_000_000_u32), "patch_size"),
        ("/registers", serde_json::json!(4_000_000_000_u32), "registers"),
    ] {
        let mut large: Value = serde_json::from_str(&good).unwrap();
        *large.pointer_mut(pointer).unwrap() = value;
        fs_err::write(path.join("manifest.json"), large.to_string()).unwrap();
        let problem = server.post(reload, "application/json", b"").problem(422, "model_not_loaded");
        assert!(problem["detail"].as_str().unwrap().contains(named), "{problem}");
        assert_eq!(server.embed(&picture), after);
    }

    // What cannot be served does not take the place of what can.
    fs_err::write(path.join("manifest.json"), "{").unwrap();
    let answer = server.post(reload, "application/json", b"");
    answer.problem(422, "model_not_loaded");
    assert_eq!(server.embed(&picture), after);
    assert_eq!(server.get("/readyz").status, 200);
    let answer = server.post("/v1/models/other/reload", "application/json", b"");
    answer.problem(404, "unknown_model");
}
