//! The models that are served, and a picture's way through one of them: decode, transform, queue, outputs.

mod engine;
mod pool;

use std::{
    collections::BTreeMap,
    num::NonZeroUsize,
    sync::Arc,
    thread::available_parallelism,
    time::{Duration, Instant},
};

use bytes::Bytes;
use image::RgbImage;
use ndarray::Array3;

use crate::{
    batch::{Batcher, Budget, Failure, Health},
    media::{self, DecodeError},
    model::{Device, Manifest, Model, Outputs, Precision},
};

pub use engine::SessionEngine;
pub use pool::{Panicked, Pool};
