//! Where the server listens, who may ask, and how much at once.

use std::{path::PathBuf, time::Duration};

use axum::http::HeaderValue;
use clap::{Args, ValueEnum};
use dino_vision::media;

use super::{KeySource, Keys, Listen};
use crate::{flags, index::MAX_THUMBNAIL};

/// Flags of the HTTP server; each can also be set in the environment.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct Options {
    /// Address to listen on, or a name with all addresses that it has. The default is reachable from this machine only; `[::]:8080` is
    /// every address of both families, 0.0.0.0:8080 those of IPv4. Port 0 picks a free one.
    #[arg(long, env = "DINO_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT", help_heading = "Address and access")]
    pub listen: Listen,
    /// Address with /metrics, /healthz and /readyz alone, open without a key. Where it is given, /metrics is there and
    /// nowhere else.
    #[arg(long, env = "DINO_METRICS_LISTEN", value_name = "ADDRESS:PORT", help_heading = "Address and access")]
    pub metrics_listen: Option<Listen>,
    /// File of API keys, one a line: NAME KEY read-only|full [requests=N] [pixels=N], the limits by the minute, whole numbers. With any
    /// key, only health, metrics and documentation are open. Read again on SIGHUP.
    #[arg(long, env = "DINO_API_KEYS_FILE", value_name = "FILE", help_heading = "Address and access")]
    pub api_keys_file: Option<PathBuf>,
    /// API keys themselves, in the same form, with `;` between them. Meant for the environment: every user who can
    /// list the processes of this machine can read a flag.
    #[arg(
        long,
        env = "DINO_API_KEYS",
        hide_env_values = true,
        default_value = "",
        hide_default_value = true,
        value_name = "KEYS",
        help_heading = "Address and access"
    )]
    pub api_keys: Keys,
    /// Origin of web pages that may ask from a browser, such as `https://example.org`, or `*`; may be given several times. On loopback
    /// and without keys the server also answers to that name: give its own public origin where a proxy passes the name on.
    #[arg(
        long = "cors-origin",
        env = "DINO_CORS_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ',',
        help_heading = "Address and access"
    )]
    pub cors_origins: Vec<HeaderValue>,
    /// What is kept of the pictures that are stored as items, to show them, or (original) to embed them again with another
    /// model.
    #[arg(long, env = "DINO_STORE_IMAGES", default_value = "thumbnail", value_name = "WHAT", help_heading = "Collections")]
    pub store_images: StoreImages,
    /// Largest snapshot that POST /collections/{name}/restore takes, in bytes or with a unit.
    #[arg(long, env = "DINO_MAX_SNAPSHOT", default_value = "4G", value_name = "BYTES", value_parser = flags::bytes_u64, help_heading = "Limits")]
    pub max_snapshot: u64,
    /// Most pixels that a picture may declare; larger ones are refused before they are decoded.
    #[arg(long, env = "DINO_MAX_PIXELS", default_value_t = media::Limits::MAX_PIXELS, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Limits")]
    pub max_pixels: u64,
    /// Largest request body, in bytes or with a unit: 500k, 32M, 1G (powers of 1024).
    #[arg(long, env = "DINO_MAX_BODY", default_value = "32M", value_name = "BYTES", value_parser = flags::bytes, help_heading = "Limits")]
    pub max_body: usize,
    /// Most memory for the bodies of all requests together; beyond it they are answered 429.
    #[arg(long, env = "DINO_BODY_MEMORY", default_value = "1G", value_name = "BYTES", value_parser = flags::bytes, help_heading = "Limits")]
    pub body_memory: usize,
    /// Most pictures in one request.
    #[arg(long, env = "DINO_MAX_PICTURES", default_value = "64", value_name = "N", value_parser = flags::positive, help_heading = "Limits")]
    pub max_pictures: usize,
    /// Most pictures inside the server at once, waiting or worked on; beyond it requests are answered 429.
    #[arg(long, env = "DINO_QUEUE", default_value = "256", value_name = "N", value_parser = flags::positive, help_heading = "Limits")]
    pub queue: usize,
    /// Seconds from the arrival of a request's head to its answer, reading the body, fetching pictures and waiting included; after
    /// them it is answered 504, and what was done for it stops. Snapshots, restores and reloads of models may take longer.
    #[arg(long, env = "DINO_REQUEST_TIMEOUT", default_value = "30", value_name = "SECONDS", value_parser = flags::seconds, help_heading = "Limits")]
    pub request_timeout: Duration,
    /// Seconds for a client to send a request's head, and again for its body.
    #[arg(long, env = "DINO_READ_TIMEOUT", default_value = "60", value_name = "SECONDS", value_parser = flags::seconds, help_heading = "Limits")]
    pub read_timeout: Duration,
    /// Seconds for a client to take the next 64 KiB of an answer; a connection that takes less is closed, and so is one that takes
    /// less than 32 KiB a second on the whole.
    #[arg(long, env = "DINO_WRITE_TIMEOUT", default_value = "60", value_name = "SECONDS", value_parser = flags::seconds, help_heading = "Limits")]
    pub write_timeout: Duration,
    /// Most memory for the long answers of all requests together, until their clients have read them; beyond it they are answered 429.
    /// One API key may hold half of it.
    #[arg(long, env = "DINO_ANSWER_MEMORY", default_value = "1G", value_name = "BYTES", value_parser = flags::bytes_u64, help_heading = "Limits")]
    pub answer_memory: u64,
    /// Most disk space for temporary files of snapshots, sent and received, of all requests together; beyond it they are answered 429. One API key
    /// may hold half of it [default: twice --max-snapshot].
    #[arg(long, env = "DINO_SCRATCH_SPACE", value_name = "BYTES", value_parser = flags::bytes_u64, help_heading = "Limits")]
    pub scratch_space: Option<u64>,
    /// Connections at once; further ones are closed.
    #[arg(long, env = "DINO_MAX_CONNECTIONS", default_value = "1024", value_name = "N", value_parser = flags::positive, help_heading = "Limits")]
    pub max_connections: usize,
}

/// What is kept of a picture that becomes an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum StoreImages {
    /// Its vector alone.
    None,
    /// A small JPEG.
    Thumbnail,
    /// The file as it was sent, if it has at most 16 MiB; else a small JPEG.
    Original,
}

impl StoreImages {
    /// Whether a picture in a file of these bytes is kept smaller than it is.
    pub(super) fn shrinks(self, bytes: &[u8]) -> bool {
        match self {
            Self::None => false,
            Self::Thumbnail => true,
            Self::Original => bytes.len() > MAX_THUMBNAIL,
        }
    }

    /// What is kept: the file, or what was made of it.
    pub(super) fn kept(self, bytes: &[u8], smaller: Option<Vec<u8>>) -> Option<Vec<u8>> {
        if self == Self::Original && !self.shrinks(bytes) { Some(bytes.to_vec()) } else { smaller }
    }
}

/// Limits that do not go together.
#[derive(Debug, thiserror::Error)]
pub enum OptionsError {
    /// A large body could never be read.
    #[error("--body-memory {body_memory} is smaller than --max-body {max_body}: a full body would never be read")]
    BodyMemoryTooSmall {
        /// As given, in bytes.
        body_memory: usize,
        /// As given, in bytes.
        max_body: usize,
    },
    /// A request could never be admitted.
    #[error("--queue {queue} is smaller than --max-pictures {pictures}: a full request would never be admitted")]
    QueueTooSmall {
        /// As given.
        queue: usize,
        /// As given.
        pictures: usize,
    },
}

impl Options {
    /// Checks what the flags' own types cannot.
    ///
    /// # Errors
    /// See [`OptionsError`].
    pub fn check(&self) -> Result<(), OptionsError> {
        let Self { queue, max_pictures: pictures, body_memory, max_body, .. } = *self;
        if queue < pictures {
            return Err(OptionsError::QueueTooSmall { queue, pictures });
        }
        if body_memory < max_body {
            return Err(OptionsError::BodyMemoryTooSmall { body_memory, max_body });
        }
        Ok(())
    }

    /// Where the API keys can be read, now and again.
    pub fn key_source(&self) -> KeySource {
        KeySource { given: self.api_keys.clone(), file: self.api_keys_file.clone() }
    }

    /// Disk space in bytes for temporary files of snapshots.
    pub(super) fn scratch_space(&self) -> u64 {
        self.scratch_space.unwrap_or(self.max_snapshot.saturating_mul(2))
    }
}
