//! Features of labelled pictures, through the same sessions as the server's.
//!
//! ```no_run
//! use dino_train::{data::labelled::Labelled, evaluate::features::{View, all}};
//! use dino_vision::bulk::{Embedder, Workload};
//! use dino_vision::{embedding::Pooling, head::Tokens, model::{Model, SessionOptions}};
//!
//! let model = Model::open("models/demo".as_ref())?;
//! let mut embedder = Embedder::open(&model, Pooling::Cls, &SessionOptions::default(), Workload::default())?;
//! let pictures = Labelled::open("photos".as_ref(), 0, &[])?;
//! let tokens = Tokens { n_last_blocks: 1, avgpool_patchtokens: false };
//! let batch = all("train", &mut embedder, &pictures, View::Evaluation, tokens)?;
//! assert_eq!(batch.features.nrows(), batch.classes.len());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use dino_vision::bulk::{self, Embedder, Worker};
use dino_vision::head::Tokens;
use image::RgbImage;
use ndarray::{Array2, Axis};
use rand_chacha::ChaCha8Rng;

use crate::data::augment::random_resized_crop;
use crate::data::labelled::Labelled;
use crate::data::loader::generator;
use crate::evaluate::copies::Fingerprint;
use crate::show::progress;

/// How pictures are brought to the model's input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    /// The model's evaluation transform.
    Evaluation,
    /// A random crop and a flip, which depend on these two numbers and the picture alone.
    Augmented {
        /// Seed of the run.
        seed: u64,
        /// Number of the view, or of the epoch.
        number: u64,
    },
}

/// Random numbers of crops.
const CROPS: u64 = 5;

/// Rows of features with their classes.
#[derive(Clone, Debug)]
pub struct Batch {
    /// `[n, F]`.
    pub features: Array2<f32>,
    /// The class of each row.
    pub classes: Vec<u32>,
    /// The picture of each row.
    pub pictures: Vec<usize>,
    /// What copies of each picture are known by; none of augmented views.
    pub fingerprints: Vec<Fingerprint>,
}

/// A picture's features, and what its copies are known by.
type Row = (Vec<f32>, Option<Fingerprint>);

/// Embeds the pictures of `order`, and hands their features to `sink` in that order, some hundreds at a time. Pictures that cannot be
/// read are left out.
///
/// # Errors
/// When the model fails, or does not give the tokens.
pub fn stream(
    embedder: &mut Embedder,
    pictures: &Labelled,
    order: &[usize],
    view: View,
    tokens: Tokens,
    mut sink: impl FnMut(Batch),
) -> Result<(), bulk::Error> {
    let work = |worker: &mut Worker<'_>, at: usize| -> Result<Option<Row>, bulk::Error> {
        let index = order[at];
        let Some(picture) = pictures.get(index) else { return Ok(None) };
        let pixels = match view {
            View::Evaluation => worker.transform().apply(&picture),
            View::Augmented { seed, number } => {
                let mut random = generator(seed, CROPS, number, index as u64);
                worker.transform().normalise(&augmented(worker, &picture, &mut random))
            }
        };
        let outputs = worker.run(pixels)?;
        let features = tokens.of(&outputs, worker.registers())?;
        let fingerprint = (view == View::Evaluation).then(|| Fingerprint::of(&picture));
        Ok(Some((features.index_axis_move(Axis(0), 0).to_vec(), fingerprint)))
    };
    embedder.each(order.len(), work, |range, rows| {
        let (mut features, mut classes, mut read) = (Vec::new(), Vec::with_capacity(rows.len()), Vec::with_capacity(rows.len()));
        let mut fingerprints = Vec::new();
        for (&index, row) in order[range].iter().zip(rows) {
            if let Some((row, fingerprint)) = row? {
                features.extend(row);
                fingerprints.extend(fingerprint);
                classes.push(pictures.class(index));
                read.push(index);
            }
        }
        if !classes.is_empty() {
            let shape = (classes.len(), features.len() / classes.len());
            let features = Array2::from_shape_vec(shape, features).expect("rows of one length");
            sink(Batch { features, classes, pictures: read, fingerprints });
        }
        Ok(())
    })
}

fn augmented(worker: &Worker<'_>, picture: &RgbImage, random: &mut ChaCha8Rng) -> RgbImage {
    // A manifest without a crop keeps all of the picture, at a size that follows its shape.
    let size = worker.transform().output_size().unwrap_or((picture.height(), picture.width()));
    random_resized_crop(picture, size, random)
}

/// The features of all pictures that can be read, in their order; a bar says how far they are with `what`.
///
/// # Errors
/// When the model fails, or does not give the tokens.
pub fn all(what: &str, embedder: &mut Embedder, pictures: &Labelled, view: View, tokens: Tokens) -> Result<Batch, bulk::Error> {
    let bar = progress::bar(pictures.len(), what);
    let order: Vec<usize> = (0..pictures.len()).collect();
    let mut parts = Vec::new();
    stream(embedder, pictures, &order, view, tokens, |batch| {
        // Those that could not be read are done too.
        batch.pictures.last().inspect(|&&last| bar.set_position(last as u64 + 1));
        parts.push(batch);
    })?;
    bar.finish_and_clear();
    let views: Vec<_> = parts.iter().map(|part| part.features.view()).collect();
    let features =
        if views.is_empty() { Array2::zeros((0, 0)) } else { ndarray::concatenate(Axis(0), &views).expect("rows of one length") };
    let (mut classes, mut read, mut fingerprints) = (Vec::new(), Vec::new(), Vec::new());
    for part in parts {
        classes.extend(part.classes);
        read.extend(part.pictures);
        fingerprints.extend(part.fingerprints);
    }
    Ok(Batch { features, classes, pictures: read, fingerprints })
}
