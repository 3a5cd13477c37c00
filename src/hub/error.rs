//! Why a model was not fetched, and what to do then.

use std::io;
use std::path::PathBuf;

/// Names of files that a message shows.
const SHOWN: usize = 20;

/// Why a model was not fetched. Each message ends in a way out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is no name of a model on a hub.
    #[error("{name:?} names no model on a hub ({reason}): write hf://OWNER/NAME[@REVISION][/FILE]")]
    Name {
        /// What was given.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is nothing at a path, which may be a name on a hub without its scheme.
    #[error("{path} does not exist: check the path; did you mean hf://{path}?")]
    NoSuchPath {
        /// What was given.
        path: String,
    },
    /// An environment variable has a value that cannot be.
    #[error("{variable} {reason}")]
    Setting {
        /// The variable.
        variable: &'static str,
        /// What is wrong with its value.
        reason: String,
    },
    /// The hub has no such repository, or does not show it.
    #[error("{endpoint} has no repository {repository}, or it is a private one: check the name; {token}")]
    NotFound {
        /// The hub.
        endpoint: String,
        /// OWNER/NAME.
        repository: String,
        /// What to do about the token.
        token: String,
    },
    /// The repository asks for its conditions to be accepted.
    #[error("{repository} is gated: accept its conditions at {page} in your browser; {token}")]
    Gated {
        /// OWNER/NAME.
        repository: String,
        /// Where its conditions are.
        page: String,
        /// What to do about the token.
        token: String,
    },
    /// The hub does not know the token.
    #[error("{endpoint} does not accept the token from {origin}: make a new one at {endpoint}/settings/tokens and set HF_TOKEN to it")]
    Token {
        /// The hub.
        endpoint: String,
        /// Where the token was found.
        origin: String,
    },
    /// The hub refuses the request.
    #[error("{endpoint} refuses {what} ({status}: {message}); {token}")]
    Refused {
        /// The hub.
        endpoint: String,
        /// What was asked for.
        what: String,
        /// The answer's status.
        status: u16,
        /// What the hub says.
        message: String,
        /// What to do about the token.
        token: String,
    },
    /// The repository has no such branch, tag or commit.
    #[error("{repository} has no revision {revision:?}: see {page} for its branches and tags")]
    Revision {
        /// OWNER/NAME.
        repository: String,
        /// What was asked for.
        revision: String,
        /// Where those are that there are.
        page: String,
    },
    /// The repository has no such file.
    #[error("{name} does not exist: the repository has {}", list(held))]
    NoFile {
        /// The file's whole name.
        name: String,
        /// What the repository has.
        held: Vec<String>,
    },
    /// The repository has nothing of what is needed.
    #[error("{name} holds {missing}: the repository has {}; {way_out}", list(held))]
    Unusable {
        /// The repository.
        name: String,
        /// What it does not hold.
        missing: String,
        /// What it has.
        held: Vec<String>,
        /// What to do.
        way_out: String,
    },
    /// Nothing may be asked, and the cache does not have it.
    #[error("{name} is not in the cache {} ({reason}), and HF_HUB_OFFLINE is set: unset it, or fetch the model where there is a network and copy the cache", cache.display())]
    Offline {
        /// The model.
        name: String,
        /// The cache.
        cache: PathBuf,
        /// What is missing of it.
        reason: String,
    },
    /// The hub does not answer.
    #[error(
        "{host} does not answer ({reason}), so {name} was not fetched: check the network; HF_ENDPOINT names another hub, HTTPS_PROXY a proxy"
    )]
    Unreachable {
        /// The host that does not answer.
        host: String,
        /// Error of the last attempt.
        reason: String,
        /// What was to be fetched.
        name: String,
    },
    /// The certificate of the host is not trusted.
    #[error("the connection to {host} is not secure ({reason}): SSL_CERT_FILE names the root certificates of a network of your own")]
    Tls {
        /// The host.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// The hub has no room for the request now.
    #[error("{host} answers {status} again and again{asked}: try again later{hint}")]
    Busy {
        /// Who answers.
        host: String,
        /// The last answer's status.
        status: u16,
        /// How long it asks to wait, in words.
        asked: String,
        /// What else helps.
        hint: &'static str,
    },
    /// An answer is not what the protocol says.
    #[error("{url} does not answer as a hub of Hugging Face's protocol ({reason}): check HF_ENDPOINT")]
    Protocol {
        /// What was asked.
        url: String,
        /// What is wrong.
        reason: String,
    },
    /// The hub sends to where it may not.
    #[error("{url} redirects to {to}, which is not followed: {reason}")]
    Redirect {
        /// What was asked.
        url: String,
        /// Where it sends.
        to: String,
        /// Why not there.
        reason: &'static str,
    },
    /// What was fetched is not the file that the hub has named.
    #[error(
        "{name} arrives damaged: its {kind} is {found}, and the hub says {expected}; nothing was kept, try again or without a proxy in between"
    )]
    Hash {
        /// The file.
        name: String,
        /// Name of the hash.
        kind: &'static str,
        /// What the hub says.
        expected: String,
        /// What it is.
        found: String,
    },
    /// The file is longer or shorter than the hub says.
    #[error("{name} has {found} bytes, and the hub says {expected}; nothing was kept, try again or without a proxy in between")]
    Size {
        /// The file.
        name: String,
        /// What the hub says.
        expected: u64,
        /// What it is; what was read until then where it is longer.
        found: u64,
    },
    /// There is no room for the file.
    #[error("{name} needs {needed} more on the disk of {}, and {free}: make room, or set HF_HUB_CACHE to a folder of a larger disk", folder.display())]
    Disk {
        /// The file.
        name: String,
        /// How much is still to come, in words.
        needed: String,
        /// How much is left, in words.
        free: String,
        /// The folder.
        folder: PathBuf,
    },
    /// The cache cannot be read or written.
    #[error("{0}: set HF_HUB_CACHE to a folder that you can write")]
    Io(io::Error),
}

/// The message has the reason already: it is no source, which programs would print once more.
impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Error {
    /// Whether what the cache has may be used in its place: the hub was not reached, or did not say that there is no such thing.
    pub(crate) fn leaves_the_cache(&self) -> bool {
        matches!(
            self,
            Self::NotFound { .. }
                | Self::Gated { .. }
                | Self::Token { .. }
                | Self::Refused { .. }
                | Self::Unreachable { .. }
                | Self::Tls { .. }
                | Self::Busy { .. }
                | Self::Protocol { .. }
                | Self::Redirect { .. }
        )
    }
}

/// Names of files, in words.
fn list(names: &[String]) -> String {
    match names {
        [] => "no files".to_owned(),
        names if names.len() <= SHOWN => names.join(", "),
        names => format!("{} and {} more", names[..SHOWN].join(", "), names.len() - SHOWN),
    }
}
