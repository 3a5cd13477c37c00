//! Flags and environment of `serve`, and the checked settings that they come to.
//!
//! [`ServeArgs`] is what was written; [`ServeArgs::resolve`] turns it into [`Settings`] once, and nothing after that
//! reads a flag or the environment again.

use std::{num::NonZeroUsize, path::PathBuf, str::FromStr, time::Duration};

use axum::http::HeaderValue;
use clap::{Args, ValueEnum};

use crate::{
    fetch::{self, FetchOptions},
    http::{KeySource, Keys, Listen},
    index::{self, IndexUrl},
    traces::Collector,
};
use dino_vision::{
    media,
    model::{Accelerator, Device, Precision},
};

/// Flags of `dino-server serve`; each can also be set in the environment.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// A model folder to serve, or an ONNX file that was exported elsewhere, with the name that requests call it by (its own name
    /// if left out). May be given several times; the first is the one that requests without `model` get.
    #[arg(long = "model", env = "DINO_MODEL", value_name = "[NAME=]PATH", value_delimiter = ',', required = true, help_heading = "Models")]
    pub models: Vec<NamedModel>,
    /// A linear classifier that `dino-train linear --out` wrote, for /classify?head=NAME (the folder's own name if NAME is left out).
    /// May be given several times. Those in a model folder's `heads` are found without it.
    #[arg(long = "head", env = "DINO_HEAD", value_name = "[NAME=]PATH", value_delimiter = ',', help_heading = "Models")]
    pub heads: Vec<NamedModel>,
    /// Address to listen on, or a name with all addresses that it has. The default is reachable from this machine only; `[::]:8080` is
    /// every address of both families, 0.0.0.0:8080 those of IPv4. Port 0 picks a free one.
    #[arg(long, env = "DINO_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT", help_heading = "Address and access")]
    pub listen: Listen,
    /// Address with /metrics, /healthz and /readyz alone, open without a key. Where it is given, /metrics is there and
    /// nowhere else.
    #[arg(long, env = "DINO_METRICS_LISTEN", value_name = "ADDRESS:PORT", help_heading = "Address and access")]
    pub metrics_listen: Option<Listen>,
    /// Folder of the collections. Without it (or --index) there are none, and /classify has nothing to vote with. With --index it
    /// holds snapshots on their way, and nothing that lasts.
    #[arg(long, env = "DINO_DATA_DIR", value_name = "DIR", help_heading = "Collections")]
    pub data_dir: Option<PathBuf>,
    /// Database of the collections, in place of a folder: postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full, with the
    /// extension pgvector. Servers that name the same one share its collections. Meant for the environment: a flag can be
    /// read by whoever lists the processes of this machine.
    #[arg(long, env = "DINO_INDEX", hide_env_values = true, value_name = "URL", help_heading = "Collections")]
    pub index: Option<IndexUrl>,
    /// Most connections to the database of the collections.
    #[arg(long, env = "DINO_INDEX_CONNECTIONS", default_value_t = index::PostgresOptions::CONNECTIONS, value_name = "N",
          value_parser = clap::value_parser!(u32).range(1..=1000), help_heading = "Collections")]
    pub index_connections: u32,
    /// Collections with fewer items are searched exactly; larger ones get an approximate index.
    #[arg(long, env = "DINO_EXACT_BELOW", default_value_t = index::Options::EXACT_BELOW, value_name = "N", help_heading = "Collections")]
    pub exact_below: usize,
    /// How vectors of collections are held in memory: f32, or int8, which takes a quarter and looks the nearest up on the disk
    /// (then every search is a scan, and no index is built).
    #[arg(long, env = "DINO_VECTORS", default_value = "f32", value_name = "KIND", help_heading = "Collections")]
    pub vectors: index::Vectors,
    /// What is kept of the pictures that are stored as items, to show them, or (original) to embed them again with another
    /// model.
    #[arg(long, env = "DINO_STORE_IMAGES", default_value = "thumbnail", value_name = "WHAT", help_heading = "Collections")]
    pub store_images: StoreImages,
    /// Largest snapshot that POST /collections/{name}/restore takes, in bytes or with a unit.
    #[arg(long, env = "DINO_MAX_SNAPSHOT", default_value = "4G", value_name = "BYTES", help_heading = "Limits")]
    pub max_snapshot: ByteSize,
    /// Where models run: auto, cpu, cuda, cuda:N, tensorrt or tensorrt:N.
    #[arg(long, env = "DINO_DEVICE", default_value = "auto", help_heading = "Device")]
    pub device: Device,
    /// Most memory of a GPU that each session takes for its arena (and TensorRT to try things out in), in bytes or with a unit; as
    /// much as there is, if left out.
    #[arg(long, env = "DINO_DEVICE_MEMORY", value_name = "BYTES", help_heading = "Device")]
    pub device_memory: Option<ByteSize>,
    /// Folder for the engines that TensorRT builds, so that the next start finds them.
    #[arg(long, env = "DINO_ENGINE_CACHE", value_name = "DIR", help_heading = "Device")]
    pub engine_cache: Option<PathBuf>,
    /// Which of a model folder's files to run: f32, f16 or int8. An ONNX file that was exported elsewhere runs as it is.
    #[arg(long, env = "DINO_PRECISION", default_value = "f32", help_heading = "Models")]
    pub precision: Precision,
    /// Most pixels that a picture may declare; larger ones are refused before they are decoded.
    #[arg(long, env = "DINO_MAX_PIXELS", default_value_t = media::Limits::MAX_PIXELS, value_name = "N",
          value_parser = clap::value_parser!(u64).range(1..), help_heading = "Limits")]
    pub max_pixels: u64,
    /// Largest request body, in bytes or with a unit: 500k, 32M, 1G (powers of 1024).
    #[arg(long, env = "DINO_MAX_BODY", default_value = "32M", value_name = "BYTES", help_heading = "Limits")]
    pub max_body: ByteSize,
    /// Most memory for the bodies of all requests together; beyond it they are answered 429.
    #[arg(long, env = "DINO_BODY_MEMORY", default_value = "1G", value_name = "BYTES", help_heading = "Limits")]
    pub body_memory: ByteSize,
    /// Most pictures in one request.
    #[arg(long, env = "DINO_MAX_PICTURES", default_value = "64", value_name = "N", help_heading = "Limits")]
    pub max_pictures: NonZeroUsize,
    /// Length in pixels that the longer side of a picture gets before /segment looks at it.
    #[arg(long, env = "DINO_SEGMENT_SIZE", default_value_t = 480, value_name = "PIXELS",
          value_parser = clap::value_parser!(u32).range(1..=4096), help_heading = "Limits")]
    pub segment_size: u32,
    /// Sessions per model, each a copy of its weights with a thread of its own [default: one per core on a CPU, else 1].
    #[arg(long, env = "DINO_SESSIONS", value_name = "N", help_heading = "Device")]
    pub sessions: Option<NonZeroUsize>,
    /// Threads inside each session. More sessions of one thread answer more pictures; more threads answer one sooner.
    #[arg(long, env = "DINO_THREADS", default_value = "1", value_name = "N", help_heading = "Device")]
    pub threads: NonZeroUsize,
    /// Most pictures that one session runs at once, of the size that the model's transform makes; of larger ones fewer [default: 1 on
    /// a CPU, else as many as have the patches of 64 pictures of 224 pixels in patches of 16].
    #[arg(long, env = "DINO_MAX_BATCH", value_name = "N", help_heading = "Device")]
    pub max_batch: Option<NonZeroUsize>,
    /// Seconds that a batch with room left waits for further pictures, such as 0.005. With 0 a free session runs what is there. Batches
    /// of one picture, as they are on a CPU without --max-batch, have no room.
    #[arg(long, env = "DINO_MAX_BATCH_DELAY", default_value = "0", value_name = "SECONDS", value_parser = seconds_or_none, help_heading = "Device")]
    pub max_batch_delay: Duration,
    /// Most pictures inside the server at once, waiting or worked on; beyond it requests are answered 429.
    #[arg(long, env = "DINO_QUEUE", default_value = "256", value_name = "N", help_heading = "Limits")]
    pub queue: NonZeroUsize,
    /// Seconds from the arrival of a request's head to its answer, reading the body, fetching pictures and waiting included; after
    /// them it is answered 504, and what was done for it stops. Snapshots, restores and reloads of models may take longer.
    #[arg(long, env = "DINO_REQUEST_TIMEOUT", default_value = "30", value_name = "SECONDS", help_heading = "Limits")]
    pub request_timeout: Seconds,
    /// Seconds for a client to send a request's head, and again for its body.
    #[arg(long, env = "DINO_READ_TIMEOUT", default_value = "60", value_name = "SECONDS", help_heading = "Limits")]
    pub read_timeout: Seconds,
    /// Seconds for a client to take the next 64 KiB of an answer; a connection that takes less is closed, and so is one that takes
    /// less than 32 KiB a second on the whole.
    #[arg(long, env = "DINO_WRITE_TIMEOUT", default_value = "60", value_name = "SECONDS", help_heading = "Limits")]
    pub write_timeout: Seconds,
    /// Most memory for the long answers of all requests together, until their clients have read them; beyond it they are answered 429.
    /// One API key may hold half of it.
    #[arg(long, env = "DINO_ANSWER_MEMORY", default_value = "1G", value_name = "BYTES", help_heading = "Limits")]
    pub answer_memory: ByteSize,
    /// Most disk space for snapshots on their way, out and in, of all requests together; beyond it they are answered 429. One API key
    /// may hold half of it [default: twice --max-snapshot].
    #[arg(long, env = "DINO_SCRATCH_SPACE", value_name = "BYTES", help_heading = "Limits")]
    pub scratch_space: Option<ByteSize>,
    /// File of API keys, one a line: NAME KEY read-only|full [requests=N] [pixels=N], the limits by the minute, whole numbers. With any
    /// key, only health, metrics and documentation are open. Read again on SIGHUP.
    #[arg(long, env = "DINO_API_KEYS_FILE", value_name = "FILE", help_heading = "Address and access")]
    pub api_keys_file: Option<PathBuf>,
    /// API keys themselves, in the same form, with `;` between them. Meant for the environment: a flag can be read by
    /// whoever lists the processes of this machine.
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
    /// Connections at once; further ones are closed.
    #[arg(long, env = "DINO_MAX_CONNECTIONS", default_value = "1024", value_name = "N", help_heading = "Limits")]
    pub max_connections: NonZeroUsize,
    /// A host that pictures in JSON bodies may be fetched from by https, as example.org, *.example.org or *, with :PORT where it is not
    /// 443; may be given several times. None by default: then no URL is fetched.
    #[arg(long = "url-hosts", env = "DINO_URL_HOSTS", value_name = "HOST", value_delimiter = ',', help_heading = "Pictures from URLs")]
    pub url_hosts: Vec<fetch::Host>,
    /// Also fetch from addresses of private networks, and of this machine. Whoever may ask the server then reaches them too.
    #[arg(long, env = "DINO_URL_PRIVATE", help_heading = "Pictures from URLs")]
    pub url_private: bool,
    /// Certificates to trust for URLs in place of the public ones, a file in PEM form.
    #[arg(long, env = "DINO_URL_CA", value_name = "FILE", help_heading = "Pictures from URLs")]
    pub url_ca: Option<PathBuf>,
    /// Time for one picture to be fetched, redirects included.
    #[arg(long, env = "DINO_URL_TIMEOUT", default_value = "10", value_name = "SECONDS", help_heading = "Pictures from URLs")]
    pub url_timeout: Seconds,
    /// How the log is written, to stderr.
    #[arg(long, env = "DINO_LOG_FORMAT", default_value = "human", value_name = "FORMAT", help_heading = "Log and traces")]
    pub log_format: LogFormat,
    /// Collector of OpenTelemetry traces, which takes OTLP over HTTP, as `http://localhost:4318` (/v1/traces is added where there is no
    /// path). None by default: then nothing is traced.
    #[arg(long, env = "DINO_OTLP", value_name = "URL", help_heading = "Log and traces")]
    pub otlp: Option<Collector>,
}

/// Form of the log's lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For a terminal.
    Human,
    /// One JSON object a line.
    Json,
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

/// `[NAME=]PATH` of a model, or of a head.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedModel {
    /// What requests call it.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
}

impl FromStr for NamedModel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A `=` further down belongs to the path: names have no slashes.
        if let Some((name, path)) = text.split_once('=')
            && is_name(name)
        {
            if path.is_empty() {
                return Err(format!("`{text}` names no folder after the `=`"));
            }
            return Ok(Self { name: name.into(), path: path.into() });
        }
        let path = PathBuf::from(text);
        let name = if path.extension().is_some_and(|end| end == "onnx") { path.file_stem() } else { path.file_name() };
        let name = name.and_then(|name| name.to_str()).filter(|name| is_name(name));
        match name {
            Some(name) => Ok(Self { name: name.into(), path }),
            None => Err(format!("give the model a name: NAME={text} (letters, digits, `_`, `.`, `-`)")),
        }
    }
}

/// `[A-Za-z0-9][A-Za-z0-9_.-]{0,127}`, the form of every name in the API.
fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    bytes.next().is_some_and(|first| first.is_ascii_alphanumeric())
        && text.len() <= 128
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// A number of bytes, written plain or with k, M or G.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteSize(pub usize);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (digits, shift) = match text.chars().last() {
            Some('k' | 'K') => (&text[..text.len() - 1], 10),
            Some('m' | 'M') => (&text[..text.len() - 1], 20),
            Some('g' | 'G') => (&text[..text.len() - 1], 30),
            _ => (text, 0),
        };
        let number: usize = digits.parse().map_err(|_| "expected a number of bytes, such as 33554432 or 32M")?;
        let bytes = number.checked_mul(1 << shift).filter(|&bytes| bytes > 0);
        bytes.map(Self).ok_or_else(|| "must be at least 1 and fit the address space".into())
    }
}

/// A time in seconds, with a fraction if need be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seconds(pub Duration);

/// A time in seconds, or 0.
fn seconds_or_none(text: &str) -> Result<Duration, String> {
    if text.parse() == Ok(0.0) { Ok(Duration::ZERO) } else { text.parse().map(|Seconds(time)| time) }
}

impl FromStr for Seconds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let seconds: f64 = text.parse().map_err(|_| "expected a number of seconds")?;
        if !(0.001..=86_400.0).contains(&seconds) {
            return Err("must lie between 0.001 and 86400".into());
        }
        Ok(Self(Duration::from_secs_f64(seconds)))
    }
}

/// What the server runs with, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// At least one, names unique; the first is the default.
    pub models: Vec<NamedModel>,
    /// Classifiers, beside those in the model folders; names unique.
    pub heads: Vec<NamedModel>,
    /// Address to listen on.
    pub listen: Listen,
    /// Address of health and metrics alone.
    pub metrics_listen: Option<Listen>,
    /// Folder of the collections, or of snapshots on their way to the database.
    pub data_dir: Option<PathBuf>,
    /// Database of the collections.
    pub index: Option<IndexUrl>,
    /// Most connections to it.
    pub index_connections: u32,
    /// Size from which collections have an approximate index.
    pub exact_below: usize,
    /// How vectors of collections are held in memory.
    pub vectors: index::Vectors,
    /// What is kept of pictures that become items.
    pub store_images: StoreImages,
    /// Limit of a snapshot in bytes.
    pub max_snapshot: u64,
    /// Where models run.
    pub device: Device,
    /// What each session may use of an accelerator.
    pub accelerator: Accelerator,
    /// Which file of a model runs.
    pub precision: Precision,
    /// Limit of declared pixels.
    pub max_pixels: u64,
    /// Limit of a body in bytes.
    pub max_body: usize,
    /// Limit of all bodies together in bytes, at least `max_body`.
    pub body_memory: usize,
    /// Limit of pictures in a request, at most `queue`.
    pub max_pictures: usize,
    /// Longer side for `/segment`.
    pub segment_size: u32,
    /// Sessions per model; `None` leaves it to the device.
    pub sessions: Option<usize>,
    /// Threads in each session.
    pub threads: usize,
    /// Pictures in one run; `None` leaves it to the device.
    pub max_batch: Option<usize>,
    /// How long a batch waits to be full.
    pub max_batch_delay: Duration,
    /// Pictures inside the server at once.
    pub queue: usize,
    /// Time from the arrival of the head to the answer.
    pub request_timeout: Duration,
    /// Time for a head, and for a body, to arrive.
    pub read_timeout: Duration,
    /// Time for a client to take the next part of an answer.
    pub write_timeout: Duration,
    /// Limit of all answers together in bytes.
    pub answer_memory: u64,
    /// Limit of all snapshots on their way together in bytes.
    pub scratch_space: u64,
    /// All API keys; none for an open server.
    pub keys: Keys,
    /// Where they can be read again.
    pub key_source: KeySource,
    /// Origins that browsers may let in.
    pub cors_origins: Vec<HeaderValue>,
    /// Connections at once.
    pub max_connections: usize,
    /// Where pictures are fetched from.
    pub fetching: FetchOptions,
    /// Form of the log.
    pub log_format: LogFormat,
    /// Where traces go.
    pub otlp: Option<Collector>,
}

/// Flags that do not go together.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Certificates that cannot be read.
    #[error("--url-ca {}: {reason}", path.display())]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: std::io::Error,
    },
    /// Two models with one name.
    #[error("two models are called `{0}`: give one of them another name, --model NAME=PATH")]
    SameName(String),
    /// Two heads with one name.
    #[error("two heads are called `{0}`: give one of them another name, --head NAME=PATH")]
    SameHead(String),
    /// A large body could never be read.
    #[error("--body-memory {body_memory} is smaller than --max-body {max_body}: a full body would never be read")]
    BodyMemoryTooSmall {
        /// As given, in bytes.
        body_memory: usize,
        /// As given, in bytes.
        max_body: usize,
    },
    /// The file of API keys cannot be used.
    #[error("--api-keys-file {}: {reason}", .path.display())]
    ApiKeys {
        /// As given.
        path: PathBuf,
        /// What is wrong, without any key.
        reason: String,
    },
    /// The database's URL cannot be used.
    #[error(transparent)]
    Index(#[from] index::Error),
    /// A batch could never be full.
    #[error("--queue {queue} is smaller than --max-batch {batch}: a batch would never be full")]
    BatchTooLarge {
        /// As given.
        queue: usize,
        /// As given.
        batch: usize,
    },
    /// A batch would wait until nobody waits for it.
    #[error("--max-batch-delay is {} s and --request-timeout {} s: a batch that is not full would be answered too late", delay.as_secs_f64(), timeout.as_secs_f64())]
    DelayTooLong {
        /// As given.
        delay: Duration,
        /// As given.
        timeout: Duration,
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

impl ServeArgs {
    /// Checks what the flags' own types cannot.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn resolve(self) -> Result<Settings, ConfigError> {
        if let Some(name) = twice(&self.models) {
            return Err(ConfigError::SameName(name));
        }
        if let Some(name) = twice(&self.heads) {
            return Err(ConfigError::SameHead(name));
        }
        let (queue, pictures) = (self.queue.get(), self.max_pictures.get());
        if queue < pictures {
            return Err(ConfigError::QueueTooSmall { queue, pictures });
        }
        if let Some(batch) = self.max_batch.map(NonZeroUsize::get).filter(|batch| *batch > queue) {
            return Err(ConfigError::BatchTooLarge { queue, batch });
        }
        let (delay, timeout) = (self.max_batch_delay, self.request_timeout.0);
        if delay >= timeout {
            return Err(ConfigError::DelayTooLong { delay, timeout });
        }
        let (max_body, body_memory) = (self.max_body.0, self.body_memory.0);
        if body_memory < max_body {
            return Err(ConfigError::BodyMemoryTooSmall { body_memory, max_body });
        }
        self.index.as_ref().map_or(Ok(()), IndexUrl::check)?;
        let key_source = KeySource { given: self.api_keys, file: self.api_keys_file };
        let path = key_source.file.clone().unwrap_or_default();
        let keys = key_source.read().map_err(|reason| ConfigError::ApiKeys { path, reason })?;
        let roots = match &self.url_ca {
            Some(path) => fetch::root_certificates(path).map_err(|reason| ConfigError::Certificates { path: path.clone(), reason })?,
            None => Vec::new(),
        };
        Ok(Settings {
            models: self.models,
            heads: self.heads,
            listen: self.listen,
            metrics_listen: self.metrics_listen,
            data_dir: self.data_dir,
            index: self.index,
            index_connections: self.index_connections,
            exact_below: self.exact_below,
            vectors: self.vectors,
            store_images: self.store_images,
            max_snapshot: self.max_snapshot.0 as u64,
            device: self.device,
            accelerator: Accelerator { memory: self.device_memory.map(|size| size.0), engines: self.engine_cache, shapes: None },
            precision: self.precision,
            max_pixels: self.max_pixels,
            max_body,
            body_memory,
            max_pictures: pictures,
            segment_size: self.segment_size,
            sessions: self.sessions.map(NonZeroUsize::get),
            threads: self.threads.get(),
            max_batch: self.max_batch.map(NonZeroUsize::get),
            max_batch_delay: self.max_batch_delay,
            queue,
            request_timeout: self.request_timeout.0,
            read_timeout: self.read_timeout.0,
            write_timeout: self.write_timeout.0,
            answer_memory: self.answer_memory.0 as u64,
            scratch_space: self.scratch_space.map_or((self.max_snapshot.0 as u64).saturating_mul(2), |size| size.0 as u64),
            keys,
            key_source,
            cors_origins: self.cors_origins,
            max_connections: self.max_connections.get(),
            fetching: FetchOptions {
                hosts: self.url_hosts,
                private: self.url_private,
                roots,
                timeout: self.url_timeout.0,
                bytes: max_body,
            },
            log_format: self.log_format,
            otlp: self.otlp,
        })
    }
}

/// The first name that is given twice.
fn twice(named: &[NamedModel]) -> Option<String> {
    let again = |(position, one): &(usize, &NamedModel)| named[..*position].iter().any(|other| other.name == one.name);
    named.iter().enumerate().find(again).map(|(_, one)| one.name.clone())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        serve: ServeArgs,
    }

    fn resolve(flags: &[&str]) -> Result<Settings, String> {
        let line = Line::try_parse_from([&["serve"], flags].concat()).map_err(|error| error.to_string())?;
        line.serve.resolve().map_err(|error| error.to_string())
    }

    #[test]
    fn a_model_is_called_by_its_folder_or_file_unless_named() {
        let settings = resolve(&["--model", "models/demo", "--model", "big=/m/a=b", "--model", "./x=y/demo2"]).unwrap();
        let named: Vec<_> = settings.models.iter().map(|model| (model.name.as_str(), model.path.to_str().unwrap())).collect();
        assert_eq!(named, [("demo", "models/demo"), ("big", "/m/a=b"), ("demo2", "./x=y/demo2")]);
        assert_eq!("a/dino.v2.onnx".parse::<NamedModel>().unwrap().name, "dino.v2");
    }

    #[test]
    fn the_server_listens_on_loopback_unless_told_otherwise() {
        assert!(resolve(&["--model", "a"]).unwrap().listen.is_loopback());
    }

    #[test]
    fn what_does_not_go_together_is_refused_by_name() {
        let refused = |flags: &[&str]| resolve(flags).unwrap_err();
        assert!(refused(&["--model", "x/a", "--model", "y/a"]).contains("`a`"));
        assert!(refused(&["--model", "a", "--queue", "3", "--max-pictures", "4"]).contains("--queue 3"));
        assert!(refused(&["--model", "a", "--queue", "64", "--max-batch", "65"]).contains("--max-batch 65"));
        assert!(refused(&["--model", "a", "--max-batch-delay", "50"]).contains("--max-batch-delay is 50 s"));
        assert!(resolve(&["--model", "a", "--max-batch-delay", "0"]).unwrap().max_batch_delay.is_zero());
        assert!(refused(&["--model", "a", "--body-memory", "1k"]).contains("--body-memory 1024"));
        assert!(refused(&["--model", "/"]).contains("NAME="));
        assert!(refused(&["--model", "a="]).contains("names no folder"));
        assert!(refused(&["--model", "a", "--request-timeout", "0"]).contains("0.001"));
        assert!(refused(&["--model", "a", "--request-timeout", "NaN"]).contains("0.001"));
        assert!(refused(&["--model", "a", "--max-body", "0"]).contains("at least 1"));
        assert!(refused(&[]).contains("--model"));
    }

    #[test]
    fn sizes_have_units() {
        let body = |text: &str| text.parse().map(|ByteSize(bytes)| bytes);
        assert_eq!(body("7"), Ok(7));
        assert_eq!(body("3k"), Ok(3072));
        assert_eq!(body("32M"), Ok(32 << 20));
        assert!(body("M").is_err() && body("-1").is_err() && body("1é").is_err() && body("99999999999G").is_err());
    }
}
