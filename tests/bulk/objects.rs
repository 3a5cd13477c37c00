//! Object storage, against a real one that speaks S3 (`SeaweedFS`), also behind connections that are slow and break off.

use std::io::Read as _;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use futures::TryStreamExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::{ObjectStore as _, ObjectStoreExt as _};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::common::{model, program, root, text};
use super::sources::{Rows, embedded, pictures, rows_of, rows_of_batches, tar_of};

const KEY: &str = "dino";
const SECRET: &str = "dino-secret";
pub(crate) const BUCKET: &str = "pictures";
/// Longest that the storage may take to start.
const START: Duration = Duration::from_mins(1);

/// A `SeaweedFS` with one bucket.
struct Storage {
    folder: TempDir,
    ports: Vec<u16>,
    server: Option<Child>,
    runtime: Runtime,
    client: AmazonS3,
}

impl Storage {
    fn start() -> Self {
        let listeners: Vec<TcpListener> = (0..9).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let ports: Vec<u16> = listeners.iter().map(|listener| listener.local_addr().unwrap().port()).collect();
        drop(listeners);
        let folder = tempfile::tempdir().unwrap();
        fs_err::create_dir(folder.path().join("data")).unwrap();
        let identity = serde_json::json!({"identities": [{
            "name": "test", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin", "Read", "Write", "List", "Tagging"],
        }]});
        fs_err::write(folder.path().join("s3.json"), identity.to_string()).unwrap();
        // Another part of the program uses the same TLS library, with the same provider.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = AmazonS3Builder::new()
            .with_bucket_name(BUCKET)
            .with_endpoint(format!("http://127.0.0.1:{}", ports[6]))
            .with_allow_http(true)
            .with_access_key_id(KEY)
            .with_secret_access_key(SECRET)
            .build()
            .unwrap();
        let mut storage = Self { folder, ports, server: None, runtime: Runtime::new().unwrap(), client };
        storage.start_again();
        ureq::post(format!("http://127.0.0.1:{}/buckets/{BUCKET}/", storage.ports[4])).send_empty().unwrap();
        // The first write waits for a volume.
        let began = Instant::now();
        while let Err(error) = storage.runtime.block_on(storage.client.put(&"ready".into(), "x".into())) {
            assert!(began.elapsed() < START, "{error}");
            thread::sleep(Duration::from_millis(100));
        }
        storage.runtime.block_on(storage.client.delete(&"ready".into())).unwrap();
        storage
    }

    fn start_again(&mut self) {
        let weed = root().join(".cache/seaweedfs/weed");
        assert!(weed.exists(), "no SeaweedFS in {}: run `make seaweedfs`", weed.display());
        let log = std::fs::OpenOptions::new().create(true).append(true).open(self.folder.path().join("log")).unwrap();
        let mut command = Command::new(weed);
        command.arg("server").arg(format!("-dir={}", self.folder.path().join("data").display()));
        command.arg(format!("-s3.config={}", self.folder.path().join("s3.json").display()));
        command.args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-master.volumeSizeLimitMB=64", "-volume.max=20"]);
        command.args(["-webdav", &format!("-webdav.port={}", self.ports[8])]);
        command.args(["-master.telemetry=false", "-s3.port.iceberg=0", "-s3.port.lance=0"]);
        for (name, port) in ["master.port", "volume.port", "filer.port", "s3.port"].iter().zip(self.ports.chunks(2)) {
            command.arg(format!("-{name}={}", port[0])).arg(format!("-{name}.grpc={}", port[1]));
        }
        command.current_dir(self.folder.path()).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.server = Some(command.spawn().unwrap());
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.ports[6])).is_err() {
            let log = || fs_err::read_to_string(self.folder.path().join("log")).unwrap();
            assert!(began.elapsed() < START, "SeaweedFS does not start: {}", log());
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn kill(&mut self) {
        let mut server = self.server.take().unwrap();
        server.kill().unwrap();
        server.wait().unwrap();
    }

    fn put(&self, name: &str, bytes: Vec<u8>) {
        self.runtime.block_on(self.client.put(&name.into(), bytes.into())).unwrap();
    }

    fn get(&self, name: &str) -> Vec<u8> {
        self.runtime.block_on(async { self.client.get(&name.into()).await?.bytes().await }).unwrap().to_vec()
    }

    /// All names below; none while the storage is away.
    fn names(&self, prefix: &str) -> Vec<String> {
        let found: Vec<_> = self.runtime.block_on(self.client.list(Some(&prefix.into())).try_collect()).unwrap_or_default();
        let mut names: Vec<String> = found.into_iter().map(|meta| meta.location.to_string()).collect();
        names.sort();
        names
    }

    fn embedded(&self, arguments: &[&str]) -> String {
        let output = embed(self.ports[6], arguments);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stderr)
    }

    fn rows(&self, name: &str) -> Rows {
        rows_of_batches(ParquetRecordBatchReaderBuilder::try_new(bytes::Bytes::from(self.get(name))).unwrap())
    }
}

/// Has a program use the storage behind a port.
pub(crate) fn with_access(command: &mut Command, endpoint: u16) -> &mut Command {
    command.env("AWS_ENDPOINT", format!("http://127.0.0.1:{endpoint}")).env("AWS_ALLOW_HTTP", "true").env("AWS_REGION", "us-east-1");
    command.env("AWS_ACCESS_KEY_ID", KEY).env("AWS_SECRET_ACCESS_KEY", SECRET)
}

fn command(endpoint: u16, arguments: &[&str]) -> Command {
    let mut command = program();
    command.arg("embed").args(arguments).arg("--model").arg(model());
    with_access(&mut command, endpoint);
    command
}

pub(crate) fn embed(endpoint: u16, arguments: &[&str]) -> Output {
    command(endpoint, arguments).output().unwrap()
}

impl Drop for Storage {
    fn drop(&mut self) {
        if self.server.is_some() {
            self.kill();
        }
    }
}

/// A way to the storage on which every third connection breaks off after some kilobytes of answers, and every fifth begins late.
fn unreliable(to: u16) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (port, broken) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&broken);
    thread::spawn(move || {
        for (number, client) in listener.incoming().map_while(Result::ok).enumerate() {
            let counted = Arc::clone(&counted);
            thread::spawn(move || {
                if number % 5 == 4 {
                    thread::sleep(Duration::from_millis(300));
                }
                // While the storage is away, the client sees its connection end.
                let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { return };
                let (mut from, mut into) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let requests = thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut into);
                    let _ = into.shutdown(Shutdown::Write);
                });
                let most = if number % 3 == 2 { 1000 * (1 + number as u64 % 7) } else { u64::MAX };
                let mut client = client;
                let sent = std::io::copy(&mut (&server).take(most), &mut client).unwrap_or_default();
                counted.fetch_add(usize::from(sent == most), Ordering::Relaxed);
                let _ = client.shutdown(Shutdown::Both);
                let _ = server.shutdown(Shutdown::Both);
                let _ = requests.join();
            });
        }
    });
    (port, broken)
}

fn upload(storage: &Storage, files: &[(String, Vec<u8>)]) {
    for (name, bytes) in files {
        storage.put(&format!("images/{name}"), bytes.clone());
    }
}

#[test]
fn a_bucket_gives_what_the_folder_gives_though_the_storage_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let (images, mut files) = pictures(folder.path(), 600);
    files.push(("even/broken.png".to_owned(), b"no picture".to_vec()));
    fs_err::write(images.join("even/broken.png"), b"no picture").unwrap();
    let (wanted, _) = embedded(folder.path(), images.to_str().unwrap(), &[], b"");
    let mut storage = Storage::start();
    upload(&storage, &files);
    let (way, broken) = unreliable(storage.ports[6]);
    let from = format!("s3://{BUCKET}/images/");
    let into = format!("s3://{BUCKET}/vectors/");
    let has_parts = |storage: &Storage, part: u32| {
        storage.names("vectors").iter().any(|name| name.starts_with(&format!("vectors/.part-0000{part}-of-00002.parquet.parts/")))
    };
    let arguments = |part: &'static str| ["--images", &from, "--out", &into, "--shard", part].map(str::to_owned);
    let start = |part| {
        let arguments = arguments(part);
        let mut command = command(way, &arguments.each_ref().map(String::as_str));
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };

    // The storage is killed when the first results are there, and comes back.
    let mut running = start("0/2");
    let began = Instant::now();
    while !has_parts(&storage, 0) && running.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < START, "nothing was written");
        thread::sleep(Duration::from_millis(20));
    }
    storage.kill();
    thread::sleep(Duration::from_millis(500));
    storage.start_again();
    let output = running.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(storage.names("vectors").iter().all(|name| !name.ends_with("_SUCCESS")), "one of two parts");

    // The program is killed, and goes on from what the storage has of it.
    let mut running = start("1/2");
    while !has_parts(&storage, 1) && running.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < 2 * START, "nothing was written");
        thread::sleep(Duration::from_millis(5));
    }
    running.kill().unwrap();
    running.wait().unwrap();
    let output = start("1/2").wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut names: Vec<String> =
        (0..2).flat_map(|part| ["failures.jsonl", "parquet"].map(|end| format!("vectors/part-0000{part}-of-00002.{end}"))).collect();
    names.insert(0, "vectors/_SUCCESS".to_owned());
    assert_eq!(storage.names("vectors"), names);
    assert!(broken.load(Ordering::Relaxed) > 0, "no connection broke off");
    assert_eq!(storage.get("vectors/_SUCCESS"), b"{\"parts\": 2}\n");
    let rows: Rows = names.iter().filter(|name| name.ends_with(".parquet")).flat_map(|name| storage.rows(name)).collect();
    assert_eq!(rows, wanted);
    let failures: Vec<u8> = names.iter().filter(|name| name.ends_with(".jsonl")).flat_map(|name| storage.get(name)).collect();
    let failure: serde_json::Value = serde_json::from_slice(&failures).unwrap();
    assert_eq!((&failure["id"], &failure["path"]), (&"even/broken.png".into(), &format!("s3://{BUCKET}/images/even/broken.png").into()));

    // Nothing is done twice, and a picture that changes is seen.
    let output = embed(storage.ports[6], &arguments("0/2").each_ref().map(String::as_str));
    assert!(text(&output.stdout).contains("is up to date"), "{}{}", text(&output.stdout), text(&output.stderr));
    storage.put("images/even/0000.png", files[1].1.clone());
    for part in ["0/2", "1/2"] {
        let output = embed(storage.ports[6], &arguments(part).each_ref().map(String::as_str));
        assert!(output.status.success(), "{}", text(&output.stderr));
    }
    let rows: Rows = names.iter().filter(|name| name.ends_with(".parquet")).flat_map(|name| storage.rows(name)).collect();
    assert_eq!(rows["even/0000.png"].1, wanted[&files[1].0].1);
}

#[test]
fn shards_lists_and_arrays_are_read_and_written_in_a_bucket() {
    let folder = tempfile::tempdir().unwrap();
    let (images, files) = pictures(folder.path(), 6);
    let (wanted, _) = embedded(folder.path(), images.to_str().unwrap(), &[], b"");
    let storage = Storage::start();
    let tar = |number: usize| {
        let path: PathBuf = folder.path().join(format!("{number}.tar"));
        let mut members: Vec<_> =
            files[3 * number..3 * number + 3].iter().map(|(name, bytes)| (name.replace('/', "-"), bytes.clone())).collect();
        // More than one request asks for.
        members.insert(1, ("large.bin".to_owned(), vec![number as u8; 20 << 20]));
        tar_of(&path, &members);
        fs_err::read(path).unwrap()
    };
    (0..2).for_each(|number| storage.put(&format!("shards/{number}.tar"), tar(number)));
    let out = |name: &str| folder.path().join(name);
    let pattern = format!("s3://{BUCKET}/shards/{{0..1}}.tar");
    let ids: Vec<String> = files.iter().enumerate().map(|(at, (name, _))| format!("{}.tar/{}", at / 3, name.replace('/', "-"))).collect();
    let same = |rows: &Rows, ids: &[String]| {
        assert_eq!(rows.keys().cloned().collect::<Vec<_>>(), ids);
        assert!(rows.values().zip(wanted.values()).all(|(found, wanted)| found.1 == wanted.1));
    };
    storage.embedded(&["--images", &pattern, "--out", out("tar.parquet").to_str().unwrap()]);
    same(&rows_of(&out("tar.parquet")), &ids);
    let prefix = format!("s3://{BUCKET}/shards");
    storage.embedded(&["--images", &prefix, "--out", &format!("s3://{BUCKET}/out/tar.parquet")]);
    same(&storage.rows("out/tar.parquet"), &ids);

    let listed = format!("http://127.0.0.1:{}/buckets/{BUCKET}/shards/", storage.ports[8]);
    storage.embedded(&["--images", &listed, "--out", out("webdav.parquet").to_str().unwrap()]);
    same(&rows_of(&out("webdav.parquet")), &ids);

    // A list in the bucket; what was written there is read again.
    storage.put("list.txt", format!("{pattern}\n").replace("{0..1}", "0").into_bytes());
    let list = format!("s3://{BUCKET}/list.txt");
    storage.embedded(&["--images", &list, "--out", &format!("s3://{BUCKET}/out/list.npy")]);
    assert_eq!(storage.names("out"), ["out/list.npy", "out/list.npy.json", "out/tar.parquet"]);
    let again = embed(storage.ports[6], &["--images", &list, "--out", &format!("s3://{BUCKET}/out/list.npy")]);
    assert!(text(&again.stdout).contains("is up to date"), "{}", text(&again.stderr));

    // More than one piece of a multipart upload.
    let large = format!("s3://{BUCKET}/out/large.npy");
    let all = format!("s3://{BUCKET}/shards/");
    for (name, bytes) in &files {
        storage.put(&format!("many/{name}"), bytes.clone());
    }
    storage.embedded(&["--images", &format!("s3://{BUCKET}/many/"), "--pooling", "patches", "--out", &large]);
    assert!(storage.get("out/large.npy").len() > 6 * 784 * 32 * 4, "{all}");

    let mut import = program();
    import.args(["import", "--images", &prefix, "--data-dir"]).arg(out("data")).arg("--model").arg(model());
    let imported = with_access(&mut import, storage.ports[6]).output().unwrap();
    assert!(text(&imported.stdout).contains("6 stored, 0 unchanged, 0 skipped"), "{}", text(&imported.stderr));

    let file = out("x.npy");
    let file = file.to_str().unwrap();
    let refused = |arguments: &[&str], reason: &str| {
        let output = embed(storage.ports[6], arguments);
        assert!(!output.status.success() && text(&output.stderr).contains(reason), "{reason} in {}", text(&output.stderr));
    };
    refused(&["--images", &pattern.replace("0..1", "0..2"), "--out", file], "2.tar");
    refused(&["--images", &format!("s3://{BUCKET}/nothing/"), "--out", file], "no file in s3://");
    refused(&["--images", "s3:///x", "--out", file], "names no bucket");
    refused(&["--images", &pattern, "--out", "https://example.org/x.npy"], "s3://, gs:// and az://");
    let denied = command(storage.ports[6], &["--images", &prefix, "--out", file]).env("AWS_SECRET_ACCESS_KEY", "wrong").output().unwrap();
    assert!(!denied.status.success() && text(&denied.stderr).contains("s3://pictures/shards"), "{}", text(&denied.stderr));
    assert!(!Path::new(file).exists());
}

#[test]
fn a_folder_of_parts_is_marked_when_it_is_whole() {
    let folder = tempfile::tempdir().unwrap();
    let (images, _) = pictures(folder.path(), 20);
    let into = format!("{}/", folder.path().join("new/vectors").display());
    let embed = |part: &str| {
        let mut command = program();
        command
            .args(["embed", "--images", images.to_str().unwrap(), "--out", &into, "--shard", part, "--format", "npy", "--model"])
            .arg(model());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", text(&output.stderr));
    };
    embed("1/2");
    let success = folder.path().join("new/vectors/_SUCCESS");
    assert!(!success.exists());
    embed("0/2");
    assert!(success.exists());
    fs_err::remove_file(images.join("even/0000.png")).unwrap();
    fs_err::remove_file(images.join("odd/0001.png")).unwrap();
    embed("0/2");
    assert!(!success.exists(), "part 1 is of an earlier run");
    embed("1/2");
    assert!(success.exists());
    let other = Command::new(env!("CARGO_BIN_EXE_dino-server"))
        .args(["embed", "--images", images.to_str().unwrap(), "--out", &into, "--shard", "0/3", "--format", "npy", "--model"])
        .arg(model())
        .output()
        .unwrap();
    assert!(!other.status.success() && text(&other.stderr).contains("is a part of another run"), "{}", text(&other.stderr));
    let names = fs_err::read_dir(folder.path().join("new/vectors")).unwrap().count();
    assert_eq!(names, 7, "arrays, what explains them, failures, and the mark");
}
