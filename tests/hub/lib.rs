//! A model hub on loopback that speaks Hugging Face's protocol, for tests.
//!
//! Two servers, as the real hub is: one knows the repositories and sends small files, the other has the bytes of large ones, to which
//! the first redirects. Both can be told to fail in all the ways that networks do.

mod repository;
mod server;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

pub use repository::{Access, Repository};
use server::{Role, State};

/// A token that may read everything.
pub const TOKEN: &str = "hf_reader";
/// A token that is known, and may read neither gated nor private repositories.
pub const STRANGER: &str = "hf_stranger";

/// A hub that runs until it is dropped.
#[derive(Debug)]
pub struct LoopbackHub {
    state: Arc<Mutex<State>>,
    hub: SocketAddr,
    store: SocketAddr,
}

/// A request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    /// Whether it came to the server of bytes, and not to the hub itself.
    pub store: bool,
    /// Its method.
    pub method: String,
    /// Path and query.
    pub target: String,
    /// Its header `Authorization`.
    pub authorization: Option<String>,
    /// Its header `Range`.
    pub range: Option<String>,
}

/// How answers are to fail.
#[derive(Clone, Debug)]
pub enum Fault {
    /// This status, with these headers.
    Status(u16, Vec<(&'static str, String)>),
    /// The connection ends after so many bytes of the body.
    BreakOff(usize),
    /// Nothing more comes after so many bytes of the body.
    Stall(usize),
    /// One bit of the body is another.
    Corrupt,
    /// The body is the pointer that git keeps of a large file.
    Pointer,
    /// The body is longer than it is said to be.
    Longer,
    /// The length of the body is not said.
    Undeclared,
    /// Ranges are not understood: all of the body comes.
    NoRanges,
    /// The body is said to be compressed.
    Coded,
    /// The answer redirects to this address.
    Redirect(String),
}

impl LoopbackHub {
    /// Starts one on free ports.
    ///
    /// # Panics
    /// Where loopback has no free port.
    pub fn start() -> Self {
        Self::listen(0)
    }

    /// Starts one on this port.
    ///
    /// # Panics
    /// Where the port is taken.
    pub fn listen(port: u16) -> Self {
        let state = Arc::new(Mutex::new(State::default()));
        let [hub, store] = [(Role::Hub, port), (Role::Store, 0)].map(|(role, port)| server::run(role, port, Arc::clone(&state)));
        lock(&state).store = format!("http://{store}");
        Self { state, hub, store }
    }

    /// Address of the hub, for `HF_ENDPOINT`.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.hub)
    }

    /// Address of the server of bytes.
    pub fn store(&self) -> String {
        format!("http://{}", self.store)
    }

    /// Puts a repository `OWNER/NAME` there, or a new commit of it on its branch `main`.
    pub fn put(&self, id: &str, repository: Repository) -> String {
        let commit = repository.commit();
        lock(&self.state).put(id, repository);
        commit
    }

    /// Gives a commit of a repository another name.
    pub fn tag(&self, id: &str, tag: &str, commit: &str) {
        lock(&self.state).tag(id, tag, commit);
    }

    /// The next `times` answers to requests whose target contains `part` fail so.
    pub fn fail(&self, part: &str, times: usize, fault: Fault) {
        lock(&self.state).faults.push((part.to_owned(), times, fault));
    }

    /// The list of files says neither lengths nor hashes, as that of some mirrors.
    pub fn say_names_alone(&self) {
        lock(&self.state).names_alone = true;
    }

    /// Small files are sent on to another path of the hub, as the real one does.
    pub fn send_small_files_on(&self) {
        lock(&self.state).sends_on = true;
    }

    /// The requests since the last call.
    pub fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut lock(&self.state).seen)
    }
}

impl Drop for LoopbackHub {
    fn drop(&mut self) {
        lock(&self.state).stopped = true;
        for address in [self.hub, self.store] {
            // Wakes the thread that waits for connections.
            drop(std::net::TcpStream::connect(address));
        }
        thread::yield_now();
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
