//! The methods, their options, and how what they find becomes objects.

use std::iter;
use std::str::FromStr;
use std::sync::Arc;

use image::RgbImage;
use ndarray::{ArrayView2, Axis};

use super::affinity::normalised;
use super::components::components;
use super::distinct::Distinct;
use super::{Coloured, Head, LOST_PATCHES, Mask, Object, Patches, attention, background, lost, ncut, principal_components, saliency};
use crate::cancel;
use crate::mask_defaults::Method;
use crate::transform::PatchGrid;

impl Method {
    /// Whether a model with these outputs can serve the method; asked before a picture is decoded.
    ///
    /// # Errors
    /// [`SegmentError::LacksOutput`].
    pub fn check(self, outputs: &[&str]) -> Result<(), SegmentError> {
        let need = |name| if outputs.contains(&name) { Ok(()) } else { Err(SegmentError::LacksOutput(name)) };
        match self {
            Self::Attention => need("attention"),
            Self::Background => need("attention").and(need("keys")),
            Self::Ncut | Self::Lost | Self::Pca | Self::Saliency => {
                if outputs.contains(&"last_hidden_state") || outputs.contains(&"feature_map") {
                    return Ok(());
                }
                need("keys")
            }
        }
    }
}

impl FromStr for Method {
    type Err = SegmentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|method| method.name() == text).ok_or_else(|| SegmentError::UnknownMethod(text.to_owned()))
    }
}

/// What is looked for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Options {
    /// How.
    pub method: Method,
    /// See [`Method::default_threshold`].
    pub threshold: Option<f32>,
    /// Whose attention; [`Head::Mean`] for the other methods.
    pub head: Head,
    /// Most objects that are returned.
    pub max_objects: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { method: Method::default(), threshold: None, head: Head::Mean, max_objects: 1 }
    }
}

impl Options {
    /// The method's threshold.
    pub fn threshold(&self) -> f32 {
        self.threshold.unwrap_or_else(|| self.method.default_threshold())
    }

    /// Refuses what can be known to fail before a picture is decoded; `heads` is the model's number of them.
    ///
    /// # Errors
    /// [`SegmentError`].
    pub fn check(&self, heads: usize) -> Result<(), SegmentError> {
        let (method, threshold) = (self.method, self.threshold());
        if !method.thresholds().contains(threshold) {
            return Err(SegmentError::Threshold { method, threshold });
        }
        match self.head {
            Head::Mean => Ok(()),
            head if method != Method::Attention => Err(SegmentError::NoHeads { method, head }),
            Head::Number(head) if head >= heads => Err(SegmentError::NoSuchHead { head, heads }),
            _ => Ok(()),
        }
    }
}

/// Why there are no masks. All are the caller's fault.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SegmentError {
    /// The method is not one of ours.
    #[error("unknown method `{0}`; known are {known}", known = Method::ALL.map(Method::name).join(", "))]
    UnknownMethod(String),
    /// The head is not one of the words, and no number.
    #[error("unknown head `{0}`; known are mean, best, all and a number")]
    UnknownHead(String),
    /// The model has fewer heads.
    #[error("there is no head {head}: the model has {heads}, counted from 0")]
    NoSuchHead {
        /// What was asked for.
        head: usize,
        /// How many there are.
        heads: usize,
    },
    /// A head was chosen for a method that reads all of them.
    #[error("head {head}: method {method} takes no head, only attention does")]
    NoHeads {
        /// The method.
        method: Method,
        /// What was asked for.
        head: Head,
    },
    /// The threshold is out of range.
    #[error("the threshold of method {method} must be {}, not {threshold}", method.thresholds())]
    Threshold {
        /// The method.
        method: Method,
        /// What was asked for.
        threshold: f32,
    },
    /// A point does not lie in the picture.
    #[error("the point [{}, {}] lies outside of the picture of {} x {} pixels", point.0, point.1, size.0, size.1)]
    Point {
        /// (x, y).
        point: (u32, u32),
        /// (width, height).
        size: (u32, u32),
    },
    /// The model computes too little for the method.
    #[error("the model has no output `{0}`")]
    LacksOutput(&'static str),
}

/// What was found in one picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Segmentation {
    /// The objects: none empty, none twice (an intersection of more than 0.9 of the union), and none that is only what is left
    /// of the picture beside an earlier one or all of them. Scores never rise. Attention: most mass first. Background, pca and
    /// saliency: largest first. Ncut and lost: in the order in which they were cut out.
    pub objects: Vec<Object>,
    /// For [`Head::All`], what each head attends to, one share per patch.
    pub heads: Vec<Vec<f32>>,
    /// For [`Method::Pca`], up to three components, one value per patch.
    pub components: Vec<Vec<f32>>,
    /// Rows and columns of patches.
    pub grid: PatchGrid,
}

impl Segmentation {
    /// Moves the objects' borders along the edges of `guide`, see [`Mask::refined`]. Objects that become the same are one.
    pub fn refine(&mut self, guide: &RgbImage) {
        for object in &mut self.objects {
            if cancel::is_cancelled() {
                return;
            }
            object.mask = object.mask.refined(guide);
        }
        let mut distinct = Distinct::new(self.objects.iter().map(|object| &object.mask));
        self.objects.retain(|object| cancel::is_cancelled() || distinct.take(&object.mask).is_some());
    }
}

/// A set of patches that may become an object.
pub(super) struct Region {
    pub(super) cells: Vec<bool>,
    /// What the method saw, one value per patch.
    pub(super) heat: Arc<[f32]>,
    /// How far it stands out, 0 to 1, by the method's own measure; `None` for that of [`dissimilarity`].
    pub(super) contrast: Option<f32>,
}

/// Finds objects in a picture of `size` (width, height).
///
/// `structure` is how much there is to see in the picture at all, 0 to 1, see [`structure`](super::structure()); 1 where it is
/// not known. An object's score is this times how far the object stands out.
///
/// Where the request was cancelled ([`cancel`]), it ends early with some of them.
///
/// # Errors
/// [`SegmentError`].
pub fn segment(patches: &Patches<'_>, size: (u32, u32), structure: f32, options: &Options) -> Result<Segmentation, SegmentError> {
    options.check(patches.attention().map_or(0, |attention| attention.len_of(Axis(0))))?;
    let (grid, threshold, most) = (patches.grid(), options.threshold(), options.max_objects);
    let (mut heads, mut principal) = (Vec::new(), Vec::new());
    let parts = match options.method {
        Method::Attention => {
            let attention = patches.attention()?;
            if options.head == Head::All {
                heads = attention.rows().into_iter().map(|row| row.to_vec()).collect();
            }
            attention::parts(attention, grid, threshold, options.head)?
        }
        Method::Background => {
            let found = background(patches.attention()?, patches.keys()?, threshold);
            found.map_or_else(Vec::new, |found| {
                let known = found.cells.iter().any(|cell| *cell);
                let cells: Vec<bool> = found.cells.iter().map(|background| known && !background).collect();
                by_size(&cells, found.similarity.iter().map(|similarity| 1.0 - similarity).collect(), grid)
            })
        }
        Method::Ncut => {
            let cuts = ncut(patches.features()?, grid, threshold, most);
            cuts.into_iter().map(|cut| Region { cells: cut.object, heat: cut.eigenvector.into(), contrast: None }).collect()
        }
        Method::Lost => {
            let grown = lost(patches.features()?, grid, LOST_PATCHES, threshold, most);
            grown.into_iter().map(|grown| Region { cells: grown.object, heat: grown.correlation.into(), contrast: None }).collect()
        }
        Method::Pca => {
            principal = principal_components(patches.features()?, patches.attention().ok(), grid);
            principal.first().map_or_else(Vec::new, |first| {
                by_size(&first.iter().map(|value| *value > threshold).collect::<Vec<_>>(), first.as_slice().into(), grid)
            })
        }
        Method::Saliency => {
            let heat: Arc<[f32]> = saliency::saliency(patches.features()?, grid).into();
            let cut = saliency::otsu(&heat) * threshold;
            let kept: Vec<bool> = heat.iter().map(|value| *value > cut).collect();
            let mut parts = by_size(&kept, Arc::clone(&heat), grid);
            for part in &mut parts {
                part.contrast = Some(saliency::score(&heat, &part.cells, &kept, grid));
            }
            parts
        }
    };

    let objects = objects(parts, patches, size, structure, most);
    Ok(Segmentation { objects, heads, components: principal, grid })
}

/// As [`segment`] with [`Method::Pca`], for a picture in a [basis](super::ColourBasis) that was fitted on others too: objects are the parts
/// that are more than `threshold` deviations on the foreground's side, and the components are the colours.
///
/// # Errors
/// [`SegmentError::Threshold`].
pub fn segment_coloured(
    coloured: Coloured,
    patches: &Patches<'_>,
    size: (u32, u32),
    structure: f32,
    options: &Options,
) -> Result<Segmentation, SegmentError> {
    let (grid, threshold) = (patches.grid(), options.threshold());
    options.check(0)?;
    let cells: Vec<bool> = coloured.heat.iter().map(|value| *value > threshold).collect();
    let parts = by_size(&cells, coloured.heat.into(), grid);
    let objects = objects(parts, patches, size, structure, options.max_objects);
    let components = (0..3).map(|at| coloured.colours.iter().map(|colour| colour[at]).collect()).collect();
    Ok(Segmentation { objects, heads: Vec::new(), components, grid })
}

/// The first `most` different objects of the parts.
fn objects(parts: Vec<Region>, patches: &Patches<'_>, size: (u32, u32), structure: f32, most: usize) -> Vec<Object> {
    let grid = patches.grid();
    let mut objects: Vec<Object> = Vec::new();
    let features = patches.features().map(normalised).ok();
    // All masks lie on this grid.
    let mut distinct = Distinct::new([&Mask::new(vec![false; grid.len()], grid, size)]);
    let mut highest = 1.0_f32;
    for Region { cells, heat, contrast } in parts {
        if objects.len() == most || cancel::is_cancelled() {
            break;
        }
        let mask = Mask::new(cells, grid, size);
        // A picture smaller than the grid leaves out patches: what was an object may be empty.
        if let Some(share) = distinct.take(&mask) {
            let contrast = contrast.unwrap_or_else(|| {
                features.as_ref().map_or(0.0, |features| dissimilarity(features.view(), mask.cells()) * (1.0 - share as f32))
            });
            highest = (contrast * structure).clamp(0.0, highest);
            objects.push(Object { mask, score: highest, heat });
        }
    }
    objects
}

/// The connected parts, largest first; equal ones in reading direction.
fn by_size(cells: &[bool], heat: Arc<[f32]>, grid: PatchGrid) -> Vec<Region> {
    let mut parts = components(cells, grid.columns);
    parts.sort_by_cached_key(|part| std::cmp::Reverse(part.iter().filter(|cell| **cell).count()));
    iter::zip(parts, iter::repeat(heat)).map(|(cells, heat)| Region { cells, heat, contrast: None }).collect()
}

/// 1 minus the cosine between the mean features inside and outside, from 0 (the same) to 1 (at right angles, or beyond); 0
/// where there is no outside.
fn dissimilarity(features: ArrayView2<'_, f32>, cells: &[bool]) -> f32 {
    let mut sums = [ndarray::Array1::<f32>::zeros(features.ncols()), ndarray::Array1::zeros(features.ncols())];
    for (row, inside) in features.rows().into_iter().zip(cells) {
        sums[usize::from(*inside)] += &row;
    }
    let [outside, inside] = sums;
    let lengths = (inside.dot(&inside) * outside.dot(&outside)).sqrt();
    if lengths > 0.0 { (1.0 - inside.dot(&outside) / lengths).clamp(0.0, 1.0) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::{Method, SegmentError};

    #[test]
    fn outputs_decide_which_methods_there_are() {
        assert!(Method::Attention.check(&["attention"]).is_ok());
        assert_eq!(Method::Background.check(&["attention"]), Err(SegmentError::LacksOutput("keys")));
        assert!(Method::Ncut.check(&["embedding", "feature_map"]).is_ok());
        assert!(Method::Lost.check(&["last_hidden_state"]).is_ok());
        assert_eq!(Method::Pca.check(&["embedding"]), Err(SegmentError::LacksOutput("keys")));
    }

    #[test]
    fn an_unknown_method_is_answered_with_the_known_ones() {
        let error = "sam".parse::<Method>().unwrap_err().to_string();
        assert!(Method::ALL.iter().all(|method| error.contains(method.name())), "{error}");
    }
}
