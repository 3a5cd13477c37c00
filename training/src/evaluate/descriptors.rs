//! One vector for each picture of a list, however it is made.
//!
//! ```no_run
//! use dino_train::evaluate::descriptors::{Unreadable, rows};
//! use dino_vision::bulk::{Embedder, Workload};
//! use dino_vision::{embedding::Pooling, model::{Model, SessionOptions}};
//!
//! let model = Model::open("models/demo".as_ref())?;
//! let mut embedder = Embedder::open(&model, Pooling::Cls, &SessionOptions::default(), Workload::default())?;
//! let paths = ["cat.jpg".into(), "dog.jpg".into()];
//! let features = rows("embed", &mut embedder, &paths, Unreadable::Fails, |worker, picture| {
//!     let outputs = worker.run(worker.transform().apply(picture))?;
//!     let cls = dino_vision::embedding::pool(&outputs, worker.registers(), Pooling::Cls)?;
//!     Ok(cls.into_raw_vec_and_offset().0)
//! })?;
//! assert_eq!(features.nrows(), 2);
//! # Ok::<(), anyhow::Error>(())
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use dino_vision::bulk::{self, Embedder, Worker};
use dino_vision::media::{self, Limits};
use image::RgbImage;
use ndarray::Array2;

use crate::show::progress;

/// What is done about a picture that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unreadable {
    /// Figures need all of them: it ends the evaluation.
    Fails,
    /// It is left out, and named.
    IsSkipped,
}

/// Rows `[pictures, dim]` that `describe` makes; a bar says how far they are with `what`.
///
/// # Errors
/// Where a picture cannot be read that is needed, none can, or the model fails.
pub fn rows(
    what: &str,
    embedder: &mut Embedder,
    paths: &[PathBuf],
    unreadable: Unreadable,
    describe: impl Fn(&mut Worker<'_>, &RgbImage) -> anyhow::Result<Vec<f32>> + Sync,
) -> anyhow::Result<Array2<f32>> {
    let bar = progress::bar(paths.len(), what);
    let work = |worker: &mut Worker<'_>, at: usize| {
        let row = decode(&paths[at]).map(|picture| describe(worker, &picture).with_context(|| paths[at].display().to_string()));
        bar.inc(1);
        row
    };
    let (mut numbers, mut count) = (Vec::new(), 0_usize);
    embedder.each(paths.len(), work, |_, rows| {
        for row in rows {
            match row {
                Ok(row) => {
                    numbers.extend(row?);
                    count += 1;
                }
                Err(error) if unreadable == Unreadable::IsSkipped => bar.suspend(|| tracing::warn!("skipped {error:#}")),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    })?;
    bar.finish_and_clear();
    ensure!(count > 0, "none of the {} pictures of {what} could be read", paths.len());
    Ok(Array2::from_shape_vec((count, numbers.len() / count), numbers)?)
}

/// Decodes a file.
///
/// # Errors
/// Names the file.
pub fn decode(path: &Path) -> anyhow::Result<RgbImage> {
    let read = || Ok::<_, bulk::Error>(media::decode(&bulk::read(path)?, &Limits::default())?);
    read().with_context(|| path.display().to_string())
}

/// (width, height) of a picture as it is seen, from its header alone.
///
/// # Errors
/// Names the file.
pub fn dimensions(path: &Path) -> anyhow::Result<(u32, u32)> {
    let read = || Ok::<_, bulk::Error>(media::dimensions(&bulk::read(path)?, &Limits::default())?);
    read().with_context(|| path.display().to_string())
}

/// Whether an error of [`decode`] or [`dimensions`] is of the one file, so that others go on without it.
pub fn is_of_file(error: &anyhow::Error) -> bool {
    error.downcast_ref::<bulk::Error>().is_some_and(bulk::Error::is_of_file)
}
