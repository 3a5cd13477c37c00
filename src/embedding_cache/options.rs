//! How much of it is kept, and where.

use std::path::PathBuf;

use clap::Args;

use crate::flags;

/// Flags of the cache of embeddings; each can also be set in the environment.
#[derive(Args, Clone, Debug)]
#[group(skip)]
pub struct Options {
    /// Memory for embeddings that were computed before, in bytes or with a unit: /embed and /v1/embeddings answer the same bytes of a
    /// picture without running the model again. None is kept without it.
    #[arg(long, env = "DINO_EMBEDDING_CACHE", value_name = "BYTES", value_parser = flags::bytes_u64, help_heading = "Cache of embeddings")]
    pub embedding_cache: Option<u64>,
    /// Folder that keeps them too, for the next start.
    #[arg(long, env = "DINO_EMBEDDING_CACHE_DIR", value_name = "DIR", requires = "embedding_cache", help_heading = "Cache of embeddings")]
    pub embedding_cache_dir: Option<PathBuf>,
    /// Most bytes of the files in that folder; the oldest ones make room.
    #[arg(
        long,
        env = "DINO_EMBEDDING_CACHE_DIR_SIZE",
        default_value = "1G",
        value_name = "BYTES",
        value_parser = flags::bytes_u64,
        help_heading = "Cache of embeddings"
    )]
    pub embedding_cache_dir_size: u64,
}
