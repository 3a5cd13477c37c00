//! A linear head on the features of a frozen backbone: `dino-train linear` trains it; `/classify?head=…`, `/segment?head=…` and
//! `/depth?head=…` ask it.
//!
//! A head is a folder of two files: `head.safetensors` with `weight` `[classes, F]` and `bias` `[classes]`, and
//! `head.json`, which says what its features are and which model they come from. [`Task::Classes`] looks at a picture as a
//! whole; the other tasks are dense: they say something of every patch (see [`dense`](crate::dense)).
//!
//! ```
//! use dino_vision::head::{Description, LinearHead, Task, Tokens};
//! use ndarray::array;
//!
//! let description = Description {
//!     format: Task::Classes.format(),
//!     task: Task::Classes,
//!     classes: vec!["cat".into(), "dog".into()],
//!     size: None,
//!     depth: None,
//!     tokens: Tokens { n_last_blocks: 1, avgpool_patchtokens: false },
//!     model_fingerprint: "00000000000000000000000000000000".into(),
//!     weights_sha256: String::new(), // set when the head is saved
//!     training: serde_json::Value::Null,
//!     made_by: "example".into(),
//! };
//! let head = LinearHead::new(description, array![[1.0, 0.0], [0.0, 1.0]], array![0.0, 0.0]);
//! let probabilities = head.probabilities(array![[2.0_f32, 0.0]].view());
//! assert!(probabilities[[0, 0]] > 0.88, "a cat");
//! ```

use std::io;
use std::path::{Path, PathBuf};

use ndarray::{Array1, Array2, ArrayView2, Axis, Slice, concatenate};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use serde::{Deserialize, Serialize};

use crate::embedding::{self, EmbeddingError, Pooling};
use crate::model::{Manifest, Outputs, replace, sha256};
use crate::segment;

/// Which tokens a head looks at, as the public linear evaluation picks them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tokens {
    /// CLS after each of this many last blocks, side by side. Of a ResNet 1: its pooled features.
    pub n_last_blocks: usize,
    /// Then the mean of the last block's patch tokens.
    pub avgpool_patchtokens: bool,
}

impl Tokens {
    /// Length F of the features of a model of dimension `dim`.
    pub fn features(self, dim: usize) -> usize {
        dim.saturating_mul(self.n_last_blocks.saturating_add(usize::from(self.avgpool_patchtokens)))
    }

    /// `[B, F]`: the features of each picture, not normalised. `registers` is the model's number of register tokens.
    ///
    /// # Errors
    /// [`EmbeddingError::LacksOutput`] where the model does not give as many blocks.
    pub fn of(self, outputs: &Outputs, registers: usize) -> Result<Array2<f32>, EmbeddingError> {
        let pooled = |pooling| embedding::pool(outputs, registers, pooling).map(|rows| rows.index_axis_move(Axis(1), 0));
        let mut features = match &outputs.last_blocks {
            _ if self.n_last_blocks == 1 => pooled(Pooling::Cls)?,
            Some(blocks) if blocks.len_of(Axis(1)) >= self.n_last_blocks => {
                let (batch, count, dim) = blocks.dim();
                let last = blocks.slice_axis(Axis(1), Slice::from(count - self.n_last_blocks..)).as_standard_layout().into_owned();
                last.into_shape_with_order((batch, self.n_last_blocks * dim)).expect("standard layout")
            }
            _ => return Err(EmbeddingError::LacksOutput { pooling: Pooling::Cls, output: "last_blocks" }),
        };
        if self.avgpool_patchtokens {
            features = concatenate![Axis(1), features, pooled(Pooling::Mean)?];
        }
        Ok(features)
    }
}

/// What a head tells of a picture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Task {
    /// The class of the picture.
    #[default]
    Classes,
    /// The class of each pixel.
    Segmentation,
    /// How far away each pixel is.
    Depth,
}

impl Task {
    /// As `head.json` and the command line write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classes => "classes",
            Self::Segmentation => "segmentation",
            Self::Depth => "depth",
        }
    }

    /// The route that asks heads of this task.
    pub fn route(self) -> &'static str {
        match self {
            Self::Classes => "/classify",
            Self::Segmentation => "/segment",
            Self::Depth => "/depth",
        }
    }

    /// Whether requests can ask a head of this task by this name.
    ///
    /// # Errors
    /// [`HeadError::Reserved`]: `/segment` also takes heads of attention by `head`.
    pub fn check_name(self, name: &str) -> Result<(), HeadError> {
        let is_reserved = self == Self::Segmentation && name.parse::<segment::Head>().is_ok();
        if is_reserved { Err(HeadError::Reserved(name.to_owned())) } else { Ok(()) }
    }

    /// Version of `head.json`: programs that know no dense heads refuse 2.
    pub fn format(self) -> u32 {
        if self.is_classes() { 1 } else { 2 }
    }

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde calls")]
    fn is_classes(&self) -> bool {
        *self == Self::Classes
    }
}

/// The depths that a head can tell: its bins lie evenly between them. In the unit of the maps that it was trained on, usually metres.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct DepthRange {
    /// Of the first bin; above 0.
    pub min: f32,
    /// Of the last bin.
    pub max: f32,
}

impl DepthRange {
    /// The smallest and the largest depth that a head can tell: beyond them the scale of 16-bit maps is no finite number, or next to 0.
    pub const BOUNDS: (f32, f32) = (1e-6, 1e6);

    /// Whether both ends lie within [`BOUNDS`](Self::BOUNDS), in order.
    pub fn is_valid(self) -> bool {
        let (least, most) = Self::BOUNDS;
        self.min >= least && self.max > self.min && self.max <= most
    }
}

/// Most classes of a segmentation head: 255 is what masks leave out.
pub const MOST_CLASSES: usize = 255;
/// Most bins of a depth head; the public ones have 256.
const MOST_BINS: usize = 1024;
/// Longer sides in pixels at which a dense head may look at pictures.
const SIZES: std::ops::RangeInclusive<u32> = 16..=4096;

/// `head.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Description {
    /// Version of this format: 1, or 2 of a dense head.
    pub format: u32,
    /// What it tells.
    #[serde(default, skip_serializing_if = "Task::is_classes")]
    pub task: Task,
    /// Names of the classes, in the order of the weights' rows; none of a depth head, whose rows are bins.
    pub classes: Vec<String>,
    /// Of a dense head: the longer side in pixels at which it sees pictures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// Of a depth head: what its bins stand for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<DepthRange>,
    /// Its features.
    #[serde(flatten)]
    pub tokens: Tokens,
    /// Fingerprint of the model (see [`Model::fingerprint`](crate::model::Model::fingerprint) with [`Pooling::Cls`]).
    pub model_fingerprint: String,
    /// SHA-256 of `head.safetensors`, in hex.
    pub weights_sha256: String,
    /// How it was trained and how good it is, as far as that was noted.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub training: serde_json::Value,
    /// Program and version that wrote it.
    pub made_by: String,
}

impl Description {
    /// Length F of its features of a model of dimension `dim`: for depth, CLS stands beside each patch token.
    pub fn features(&self, dim: usize) -> usize {
        match self.task {
            Task::Classes => self.tokens.features(dim),
            Task::Segmentation => dim,
            Task::Depth => dim.saturating_mul(2),
        }
    }

    /// What is wrong with it, beside `rows` of weights.
    fn complaint(&self, rows: usize) -> Option<String> {
        let classes = self.classes.len();
        if self.task == Task::Depth {
            if !self.depth.is_some_and(DepthRange::is_valid) {
                let (least, most) = DepthRange::BOUNDS;
                return Some(format!("depth must be given, with {least:e} <= min < max <= {most:e}"));
            }
            if !(2..=MOST_BINS).contains(&rows) {
                return Some(format!("it has {rows} bins; known are 2 to {MOST_BINS}"));
            }
        } else if rows != classes {
            return Some(format!("it has {rows} rows of weights for {classes} classes"));
        }
        if self.task == Task::Segmentation && classes > MOST_CLASSES {
            return Some(format!("it has {classes} classes; at most {MOST_CLASSES} are known"));
        }
        let is_sized = self.size.is_some_and(|size| SIZES.contains(&size));
        let reason = || format!("size must be given, {} to {} pixels", SIZES.start(), SIZES.end());
        (self.task != Task::Classes && !is_sized).then(reason)
    }
}

/// A linear head.
#[derive(Clone, Debug)]
pub struct LinearHead {
    description: Description,
    weight: Array2<f32>,
    bias: Array1<f32>,
}

/// Why a head cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// A file cannot be read or written.
    #[error("{0}; a head is a folder with head.json and head.safetensors")]
    Io(#[from] io::Error),
    /// A file is not what it should be.
    #[error("{}: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// It was trained on the features of another model.
    #[error(
        "the head was trained for the model with fingerprint {head}, not for {models}: serve the model that it was trained with, \
         or train a head for this one"
    )]
    OtherModel {
        /// What the head says.
        head: String,
        /// What there is.
        models: String,
    },
    /// `/segment?head=` gives the name another meaning.
    #[error(
        "a segmentation head cannot be called `{0}`: /segment?head={0} means heads of attention, as mean, best, all and numbers do; \
         give it another name (that of its folder, or --head NAME=DIR)"
    )]
    Reserved(String),
    /// The model folder's graph has fewer blocks.
    #[error(
        "the head looks at the last {wanted} blocks, and the model gives {given}: export it with --last-blocks {wanted}, or train a head \
         with --n-last-blocks {given}"
    )]
    LacksBlocks {
        /// What the head needs.
        wanted: usize,
        /// What the model has, at least 1.
        given: usize,
    },
}

const DESCRIPTION: &str = "head.json";
const WEIGHTS: &str = "head.safetensors";
/// Weights that take the place of others, until the description is theirs.
const NEW_WEIGHTS: &str = "head.new.safetensors";

impl Description {
    fn read(folder: &Path) -> Result<Self, HeadError> {
        let path = folder.join(DESCRIPTION);
        let text = fs_err::read(&path)?;
        serde_json::from_slice(&text).map_err(|error| HeadError::Damaged { path, reason: error.to_string() })
    }

    /// The name of the file that holds its weights, and its bytes: that of new ones where a save was interrupted behind the description.
    fn weights(&self, folder: &Path) -> Result<(&'static str, Vec<u8>), HeadError> {
        let read = |name: &'static str| -> Result<(&'static str, Vec<u8>), HeadError> {
            let path = folder.join(name);
            let bytes = fs_err::read(&path)?;
            if sha256(&bytes).eq_ignore_ascii_case(&self.weights_sha256) {
                return Ok((name, bytes));
            }
            let reason = format!("its SHA-256 is not the one in {DESCRIPTION}: it is damaged or was replaced");
            Err(HeadError::Damaged { path, reason })
        };
        // The third time for those that were given their name between the first two looks.
        read(WEIGHTS).or_else(|error| read(NEW_WEIGHTS).or_else(|_| read(WEIGHTS)).map_err(|_| error))
    }
}

impl LinearHead {
    /// A head of trained weights `[classes, F]` and biases `[classes]`. The hash of the description is set when it is saved.
    ///
    /// # Panics
    /// If the numbers of classes differ.
    pub fn new(description: Description, weight: Array2<f32>, bias: Array1<f32>) -> Self {
        let rows = if description.task == Task::Depth { weight.nrows() } else { description.classes.len() };
        assert!(weight.nrows() == rows && bias.len() == rows, "a row and a bias for each class");
        Self { description, weight, bias }
    }

    /// What it says of itself.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// Reads and checks a head's folder.
    ///
    /// # Errors
    /// [`HeadError::Io`] and [`HeadError::Damaged`].
    pub fn load(folder: &Path) -> Result<Self, HeadError> {
        Self::described(Description::read(folder)?, folder)
    }

    /// The head of a folder whose description was read just now.
    fn described(description: Description, folder: &Path) -> Result<Self, HeadError> {
        Self::of(description.clone(), folder).or_else(|error| {
            // A save that has ended meanwhile left no weights of that description, but its own.
            let now = Description::read(folder)?;
            if now == description { Err(error) } else { Self::of(now, folder) }
        })
    }

    fn of(description: Description, folder: &Path) -> Result<Self, HeadError> {
        let damaged = |name: &str, reason: String| HeadError::Damaged { path: folder.join(name), reason };
        if description.format != description.task.format() {
            return Err(damaged(DESCRIPTION, format!("format is {}, this program reads 1, and 2 of dense heads", description.format)));
        }
        if (description.classes.is_empty() && description.task != Task::Depth) || description.tokens.n_last_blocks == 0 {
            return Err(damaged(DESCRIPTION, "it needs at least one class and one block".into()));
        }
        let (_, bytes) = description.weights(folder)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| damaged(WEIGHTS, error.to_string()))?;
        let read = |name: &str, axes: usize| {
            let tensor = tensors.tensor(name).map_err(|error| damaged(WEIGHTS, error.to_string()))?;
            if tensor.dtype() != Dtype::F32 || tensor.shape().len() != axes {
                return Err(damaged(WEIGHTS, format!("{name} is {:?} {:?}, not F32 with {axes} axes", tensor.dtype(), tensor.shape())));
            }
            let numbers: Vec<f32> = tensor.data().as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
            if !numbers.iter().all(|number| number.is_finite()) {
                return Err(damaged(WEIGHTS, format!("{name} holds NaN or infinite values")));
            }
            Ok((tensor.shape().to_vec(), numbers))
        };
        let ((shape, weight), (_, bias)) = (read("weight", 2)?, read("bias", 1)?);
        if let Some(complaint) = description.complaint(shape[0]) {
            return Err(damaged(DESCRIPTION, complaint));
        }
        if bias.len() != shape[0] {
            return Err(damaged(WEIGHTS, format!("it has {} rows and {} biases", shape[0], bias.len())));
        }
        let weight = Array2::from_shape_vec((shape[0], shape[1]), weight).map_err(|error| damaged(WEIGHTS, error.to_string()))?;
        Ok(Self { description, weight, bias: bias.into() })
    }

    /// Writes it as a folder, which is made if it is not there. Of a head that is there already, all is left until all of the new one is.
    ///
    /// # Errors
    /// [`HeadError::Io`].
    pub fn save(&mut self, folder: &Path) -> Result<(), HeadError> {
        let bytes = |numbers: &mut dyn Iterator<Item = &f32>| numbers.flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        let (weight, bias) = (bytes(&mut self.weight.iter()), bytes(&mut self.bias.iter()));
        let view = |shape: &[usize], bytes| TensorView::new(Dtype::F32, shape.to_vec(), bytes).map_err(io::Error::other);
        let tensors = [("weight", view(self.weight.shape(), &weight)?), ("bias", view(self.bias.shape(), &bias)?)];
        let weights = safetensors::serialize(tensors, None).map_err(io::Error::other)?;
        self.description.weights_sha256 = sha256(&weights);
        let mut text = serde_json::to_string_pretty(&self.description).map_err(io::Error::other)?;
        text.push('\n');
        fs_err::create_dir_all(folder)?;
        let name_weights = || fs_err::rename(folder.join(NEW_WEIGHTS), folder.join(WEIGHTS));
        // A save that was interrupted: its weights are those of the head that stands here.
        if let Ok(standing) = Description::read(folder)
            && let Ok((NEW_WEIGHTS, _)) = standing.weights(folder)
        {
            name_weights()?;
        }
        replace(folder, NEW_WEIGHTS, &weights)?;
        replace(folder, DESCRIPTION, text.as_bytes())?;
        name_weights()?;
        Ok(fs_err::File::open(folder)?.sync_all()?)
    }

    /// Whether the features that it was trained on are those of this model.
    ///
    /// # Errors
    /// [`HeadError::OtherModel`] and [`HeadError::LacksBlocks`].
    pub fn check_model(&self, manifest: &Manifest, fingerprint: &str) -> Result<(), HeadError> {
        let wanted = self.description.tokens.n_last_blocks;
        let fits = self.weight.ncols() == self.description.features(manifest.dim as usize);
        if self.description.model_fingerprint != fingerprint || !fits {
            return Err(HeadError::OtherModel { head: self.description.model_fingerprint.clone(), models: fingerprint.to_owned() });
        }
        let given = (manifest.last_blocks as usize).max(1);
        if wanted > given { Err(HeadError::LacksBlocks { wanted, given }) } else { Ok(()) }
    }

    /// Features `[B, F]` to logits `[B, classes]`.
    pub fn logits(&self, features: ArrayView2<'_, f32>) -> Array2<f32> {
        features.dot(&self.weight.t()) + &self.bias
    }

    /// The softmax of [`logits`](Self::logits): `[B, classes]`, each row sums to 1.
    pub fn probabilities(&self, features: ArrayView2<'_, f32>) -> Array2<f64> {
        let mut rows = self.logits(features).mapv(f64::from);
        for mut row in rows.rows_mut() {
            let largest = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            row.mapv_inplace(|logit| (logit - largest).exp());
            let sum = row.sum();
            row /= sum;
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array3, array};

    use super::*;

    fn head() -> LinearHead {
        let description = Description {
            format: 1,
            task: Task::Classes,
            classes: vec!["cat".into(), "dog".into()],
            size: None,
            depth: None,
            tokens: Tokens { n_last_blocks: 1, avgpool_patchtokens: false },
            model_fingerprint: "f".into(),
            weights_sha256: String::new(),
            training: serde_json::Value::Null,
            made_by: "a test".into(),
        };
        LinearHead::new(description, array![[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]], array![0.5, 0.0])
    }

    #[test]
    fn features_are_the_last_blocks_then_the_mean_of_the_patches() {
        let outputs = Outputs {
            last_hidden_state: Some(array![[[5.0], [100.0], [1.0], [3.0]]]),
            last_blocks: Some(array![[[3.0], [4.0], [5.0]]]),
            ..Outputs::default()
        };
        let of = |n_last_blocks, avgpool_patchtokens| Tokens { n_last_blocks, avgpool_patchtokens }.of(&outputs, 1);
        assert_eq!(of(1, false).unwrap(), array![[5.0]]);
        assert_eq!(of(2, true).unwrap(), array![[4.0, 5.0, 2.0]]);
        assert_eq!(of(3, false).unwrap(), array![[3.0, 4.0, 5.0]]);
        assert!(of(4, false).is_err());
        let plain = Outputs { last_hidden_state: Some(Array3::zeros((1, 3, 2))), ..Outputs::default() };
        assert!(Tokens { n_last_blocks: 2, avgpool_patchtokens: false }.of(&plain, 0).is_err());
    }

    #[test]
    fn what_is_saved_is_loaded_and_damage_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let mut saved = head();
        saved.save(folder.path()).unwrap();
        let loaded = LinearHead::load(folder.path()).unwrap();
        assert_eq!((loaded.description(), &loaded.weight, &loaded.bias), (saved.description(), &saved.weight, &saved.bias));
        let path = folder.path().join(WEIGHTS);
        let mut bytes = fs_err::read(&path).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs_err::write(&path, bytes).unwrap();
        assert!(LinearHead::load(folder.path()).unwrap_err().to_string().contains("SHA-256"));
        assert!(matches!(LinearHead::load(&folder.path().join("none")), Err(HeadError::Io(_))));
    }

    #[test]
    fn a_save_that_is_interrupted_leaves_the_old_head_or_the_new_one() {
        let folders = tempfile::tempdir().unwrap();
        let (folder, other) = (folders.path().join("head"), folders.path().join("other"));
        let (mut old, mut new) = (head(), LinearHead { weight: array![[3.0, 0.0, 2.0], [0.0, 1.0, 0.0]], ..head() });
        let weight = || LinearHead::load(&folder).unwrap().weight;
        let names = || {
            let mut names: Vec<_> = fs_err::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            names
        };
        old.save(&folder).unwrap();
        new.save(&other).unwrap();
        // Its weights cannot be written.
        fs_err::create_dir(folder.join(NEW_WEIGHTS)).unwrap();
        assert!(matches!(new.save(&folder), Err(HeadError::Io(_))));
        assert_eq!(weight(), old.weight);
        fs_err::remove_dir(folder.join(NEW_WEIGHTS)).unwrap();
        assert_eq!(names(), [DESCRIPTION, WEIGHTS]);
        // It ends before the description is written, then behind it.
        fs_err::copy(other.join(WEIGHTS), folder.join(NEW_WEIGHTS)).unwrap();
        assert_eq!(weight(), old.weight);
        fs_err::copy(other.join(DESCRIPTION), folder.join(DESCRIPTION)).unwrap();
        assert_eq!(weight(), new.weight);
        // The next one finds that head, and leaves it until its own is whole.
        old.save(&folder).unwrap();
        assert_eq!((weight(), names()), (old.weight.clone(), vec![DESCRIPTION.into(), WEIGHTS.into()]));
        // The weights cannot have their name.
        fs_err::remove_file(folder.join(WEIGHTS)).unwrap();
        fs_err::create_dir(folder.join(WEIGHTS)).unwrap();
        assert!(matches!(new.save(&folder), Err(HeadError::Io(_))));
        assert_eq!(weight(), new.weight);
    }

    #[test]
    fn a_head_that_is_replaced_while_it_is_read_is_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let (mut old, mut new) = (head(), LinearHead { weight: array![[3.0, 0.0, 2.0], [0.0, 1.0, 0.0]], ..head() });
        old.save(folder.path()).unwrap();
        new.save(folder.path()).unwrap();
        let read = LinearHead::described(old.description, folder.path()).unwrap();
        assert_eq!((read.weight, &read.description), (new.weight, &new.description));
    }

    #[test]
    fn a_dense_head_needs_a_size_and_depths_need_a_range() {
        let folder = tempfile::tempdir().unwrap();
        let load = |description: Description| {
            LinearHead::new(description, array![[1.0], [2.0]], array![0.0, 0.0]).save(folder.path()).unwrap();
            LinearHead::load(folder.path()).map(|head| head.description().features(8)).map_err(|error| error.to_string())
        };
        let dense = |task: Task, size, depth| Description { format: task.format(), task, size, depth, ..head().description().clone() };
        let range = DepthRange { min: 0.001, max: 10.0 };
        assert_eq!(load(dense(Task::Segmentation, Some(480), None)), Ok(8));
        let depth = Description { classes: Vec::new(), ..dense(Task::Depth, Some(480), Some(range)) };
        assert_eq!(load(depth.clone()), Ok(16));
        for (wrong, word) in [
            (dense(Task::Segmentation, None, None), "size"),
            (dense(Task::Segmentation, Some(5000), None), "size"),
            (Description { depth: None, ..depth.clone() }, "depth"),
            (Description { depth: Some(DepthRange { min: 2.0, max: 1.0 }), ..depth.clone() }, "depth"),
            (Description { depth: Some(DepthRange { min: 1e-41, max: 1e-40 }), ..depth.clone() }, "depth"),
            (Description { depth: Some(DepthRange { min: 1.0, max: 3e38 }), ..depth.clone() }, "depth"),
            (Description { format: 1, ..depth }, "format"),
        ] {
            let error = load(wrong).unwrap_err();
            assert!(error.contains(word) && error.contains(DESCRIPTION), "{error}");
        }
    }

    #[test]
    fn a_segmentation_head_cannot_have_the_name_of_a_head_of_attention() {
        for name in ["mean", "best", "all", "3"] {
            assert!(matches!(Task::Segmentation.check_name(name), Err(HeadError::Reserved(_))), "{name}");
            assert!(Task::Depth.check_name(name).is_ok() && Task::Classes.check_name(name).is_ok(), "{name}");
        }
        assert!(Task::Segmentation.check_name("scenes").is_ok());
    }

    #[test]
    fn probabilities_are_a_softmax_that_does_not_overflow() {
        let rows = head().probabilities(array![[0.0, 0.5, 0.0], [1e4, -1e4, 0.0]].view());
        assert!((rows[[0, 0]] - 0.5).abs() < 1e-12);
        assert!((rows[[1, 0]] - 1.0).abs() < 1e-12 && rows[[1, 1]].is_finite());
    }
}
