//! Flags and environment of `serve`.
//!
//! Each module has options of its own, which say what its flags are; here they come together, and what no module can see alone is checked.
//!
//! ```
//! use clap::{Args, Command, FromArgMatches};
//! use dino_server::config::ServeArgs;
//!
//! let flags = ["serve", "--model", "demo=models/demo", "--max-pictures", "8", "--queue", "8", "--max-batch", "16"];
//! let matches = ServeArgs::augment_args(Command::new("serve")).try_get_matches_from(flags)?;
//! let refused = ServeArgs::from_arg_matches(&matches)?.check().unwrap_err();
//! assert_eq!(refused.to_string(), "--queue 8 is smaller than --max-batch 16: a batch would never be full");
//! # Ok::<(), clap::Error>(())
//! ```

use std::time::Duration;

use clap::Args;

use crate::{
    embedding_cache, fetch, http,
    index::{self, IndexUrl},
    serving, telemetry,
};

/// Flags of `dino-server serve`; each can also be set in the environment.
#[derive(Args, Clone, Debug)]
pub struct ServeArgs {
    /// The models.
    #[command(flatten)]
    pub models: serving::Options,
    /// The HTTP server.
    #[command(flatten)]
    pub http: http::Options,
    /// The cache of embeddings.
    #[command(flatten)]
    pub cache: embedding_cache::Options,
    /// The collections.
    #[command(flatten)]
    pub collections: index::Options,
    /// Pictures from other hosts.
    #[command(flatten)]
    pub urls: fetch::Options,
    /// The log and traces.
    #[command(flatten)]
    pub log: telemetry::Options,
}

/// Flags that do not go together.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Those of the models.
    #[error(transparent)]
    Models(#[from] serving::OptionsError),
    /// Those of the HTTP server.
    #[error(transparent)]
    Http(#[from] http::OptionsError),
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
    /// A batch would be answered after its requests' deadlines.
    #[error("--max-batch-delay is {} s and --request-timeout {} s: a batch that is not full would be answered too late", delay.as_secs_f64(), timeout.as_secs_f64())]
    DelayTooLong {
        /// As given.
        delay: Duration,
        /// As given.
        timeout: Duration,
    },
}

impl ServeArgs {
    /// Checks what the flags' own types cannot.
    ///
    /// # Errors
    /// See [`ConfigError`].
    pub fn check(&self) -> Result<(), ConfigError> {
        self.models.check()?;
        self.http.check()?;
        let queue = self.http.queue;
        if let Some(batch) = self.models.max_batch.filter(|batch| *batch > queue) {
            return Err(ConfigError::BatchTooLarge { queue, batch });
        }
        let (delay, timeout) = (self.models.max_batch_delay, self.http.request_timeout);
        if delay >= timeout {
            return Err(ConfigError::DelayTooLong { delay, timeout });
        }
        self.collections.store.index.as_ref().map_or(Ok(()), IndexUrl::check)?;
        Ok(())
    }
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

    fn resolve(flags: &[&str]) -> Result<ServeArgs, String> {
        let Line { serve } = Line::try_parse_from([&["serve"], flags].concat()).map_err(|error| error.to_string())?;
        serve.check().map_err(|error| error.to_string())?;
        Ok(serve)
    }

    #[test]
    fn a_model_is_called_by_its_folder_or_file_unless_named() {
        let args = resolve(&["--model", "models/demo", "--model", "big=/m/a=b", "--model", "./x=y/demo2"]).unwrap();
        let named: Vec<_> = args.models.models.iter().map(|model| (model.name.as_str(), model.path.to_string())).collect();
        let named: Vec<_> = named.iter().map(|(name, path)| (*name, path.as_str())).collect();
        assert_eq!(named, [("demo", "models/demo"), ("big", "/m/a=b"), ("demo2", "./x=y/demo2")]);
        let hub = resolve(&["--model", "hf://o/dino@v1", "--model", "x=hf://o/dino/a=b.onnx"]).unwrap();
        let named: Vec<_> = hub.models.models.iter().map(|model| format!("{} {}", model.name, model.path)).collect();
        assert_eq!(named, ["dino hf://o/dino@v1", "x hf://o/dino/a=b.onnx"]);
        assert!(resolve(&["--model", "hf://dino"]).unwrap_err().contains("hf://OWNER/NAME"));
        assert_eq!("a/dino.v2.onnx".parse::<serving::Named<std::path::PathBuf>>().unwrap().name, "dino.v2");
    }

    #[test]
    fn the_server_listens_on_loopback_unless_told_otherwise() {
        assert!(resolve(&["--model", "a"]).unwrap().http.listen.is_loopback());
    }

    #[test]
    fn what_does_not_go_together_is_refused_by_name() {
        let refused = |flags: &[&str]| resolve(flags).unwrap_err();
        assert!(refused(&["--model", "x/a", "--model", "y/a"]).contains("`a`"));
        assert!(refused(&["--model", "a", "--queue", "3", "--max-pictures", "4"]).contains("--queue 3"));
        assert!(refused(&["--model", "a", "--queue", "64", "--max-batch", "65"]).contains("--max-batch 65"));
        assert!(refused(&["--model", "a", "--max-batch-delay", "50"]).contains("--max-batch-delay is 50 s"));
        assert!(resolve(&["--model", "a", "--max-batch-delay", "0"]).unwrap().models.max_batch_delay.is_zero());
        assert!(refused(&["--model", "a", "--body-memory", "1k"]).contains("--body-memory 1024"));
        assert!(refused(&["--model", "/"]).contains("NAME="));
        assert!(refused(&["--model", "a="]).contains("names no folder"));
        assert!(refused(&["--model", "a", "--request-timeout", "0"]).contains("0.001"));
        assert!(refused(&["--model", "a", "--request-timeout", "NaN"]).contains("0.001"));
        assert!(refused(&["--model", "a", "--max-body", "0"]).contains("at least 1"));
        assert!(refused(&[]).contains("--model"));
    }
}
