//! One picture as a model sees it, and what is found in it.

use std::iter::zip;

use dino_vision::model::{Manifest, Model, Outputs, Session};
use dino_vision::segment::{Head, Mask, Method, Object, Options, Patches, Segmentation, patch_at, segment, structure};
use dino_vision::transform::PatchGrid;
use image::RgbImage;
use ndarray::{Array3, Axis};

use super::ALL;
use crate::evaluate::segmentation::{Prediction, Truth};

/// One picture as a model sees it.
pub(super) struct View {
    input: Array3<f32>,
    grid: PatchGrid,
    /// Of the picture, (width, height).
    pub(super) size: (u32, u32),
    outputs: Outputs,
}

impl View {
    /// As the server looks at a whole picture: its longer side about `side` pixels, or the one size that the model takes.
    pub(super) fn new(session: &mut Session, model: &Model, picture: &RgbImage, side: u32) -> anyhow::Result<Self> {
        let Manifest { transform, patch_size, .. } = model.manifest();
        let (input, grid) = transform.whole_picture_within(picture, model.only_size(), side, *patch_size);
        let outputs = session.run(input.view().insert_axis(Axis(0)))?;
        Ok(Self { input, grid, size: picture.dimensions(), outputs })
    }

    /// A prediction for each row that the method has in the table.
    pub(super) fn predictions(&self, method: Method, truth: &Truth) -> anyhow::Result<Vec<(String, Prediction)>> {
        // Cuts and expansions after the first are other objects, not parts of it.
        let max_objects = if matches!(method, Method::Ncut | Method::Lost) { 1 } else { ALL };
        if method != Method::Attention {
            let found = self.find(Options { method, max_objects, ..Options::default() })?;
            return Ok(vec![(method.to_string(), found)]);
        }
        let head = |head| self.find(Options { method, max_objects, head, ..Options::default() });
        let heads = Patches::of(&self.outputs, self.grid).attention()?.nrows();
        let each: Vec<Prediction> = (0..heads).map(|number| head(Head::Number(number))).collect::<Result<_, _>>()?;
        let rated = each.into_iter().map(|found| (truth.jaccard(&found), found));
        let oracle = rated.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, found)| found);
        let rows = [("attention, mean of heads", head(Head::Mean)?), ("attention, head by entropy", head(Head::Best)?)];
        let rows = rows.into_iter().chain(oracle.map(|oracle| ("attention, oracle head", oracle)));
        Ok(rows.map(|(name, prediction)| (name.to_owned(), prediction)).collect())
    }

    fn find(&self, options: Options) -> anyhow::Result<Prediction> {
        let found = self.segment(&options)?;
        Ok(prediction(&found.objects, found.grid, self.size))
    }

    /// What `/segment` finds with these options.
    pub(super) fn segment(&self, options: &Options) -> anyhow::Result<Segmentation> {
        let patches = Patches::of(&self.outputs, self.grid);
        Ok(segment(&patches, self.size, structure(self.input.view(), self.grid), options)?)
    }

    /// How far the colour of each patch is from the picture's mean colour; above twice the mean of that, an object (Achanta et
    /// al. 2009, without their blur).
    pub(super) fn colour_contrast(&self) -> Prediction {
        let grid = self.grid;
        let (_, height, width) = self.input.dim();
        let (high, wide) = (height / grid.rows, width / grid.columns);
        let mut contrast = vec![0.0_f32; grid.len()];
        for plane in self.input.outer_iter() {
            let mean = plane.mean().unwrap_or_default();
            for (patch, contrast) in contrast.iter_mut().enumerate() {
                let (row, column) = (patch / grid.columns * high, patch % grid.columns * wide);
                let part = plane.slice(ndarray::s![row..row + high, column..column + wide]);
                *contrast += (part.mean().unwrap_or_default() - mean).powi(2);
            }
        }
        for contrast in &mut contrast {
            *contrast = contrast.sqrt();
        }
        let mean = contrast.iter().sum::<f32>() / contrast.len() as f32;
        let mask = Mask::new(contrast.iter().map(|contrast| *contrast > 2.0 * mean).collect(), grid, self.size);
        Prediction { score: None, ..prediction(&[Object { mask, score: 0.0, heat: contrast.into() }], grid, self.size) }
    }
}

/// All objects as one mask, the first one's box, and its map.
pub(super) fn prediction(objects: &[Object], grid: PatchGrid, size: (u32, u32)) -> Prediction {
    let mut cells = vec![false; grid.len()];
    for object in objects {
        for (cell, set) in zip(&mut cells, object.mask.cells()) {
            *cell |= set;
        }
    }
    let mask = Mask::new(cells, grid, size);
    let pixels = || (0..size.1).flat_map(move |y| (0..size.0).map(move |x| (x, y)));
    let heat = objects.first().map(|object| object.heat.clone());
    Prediction {
        pixels: pixels().map(|(x, y)| mask.contains(x, y)).collect(),
        saliency: pixels().map(|point| heat.as_ref().map_or(0.0, |heat| heat[patch_at(point, grid, size)])).collect(),
        bbox: objects.first().map_or([0; 4], |object| object.mask.bbox()),
        score: objects.first().map(|object| object.score),
    }
}

/// The middle of the picture, half as wide and half as high.
pub(super) fn centred_box((width, height): (u32, u32)) -> Prediction {
    let bbox = [width / 4, height / 4, width.div_ceil(2), height.div_ceil(2)];
    let inside = |x, y| (bbox[0]..bbox[0] + bbox[2]).contains(&x) && (bbox[1]..bbox[1] + bbox[3]).contains(&y);
    let pixels: Vec<bool> = (0..height).flat_map(|y| (0..width).map(move |x| (x, y))).map(|(x, y)| inside(x, y)).collect();
    Prediction { saliency: pixels.iter().map(|inside| f32::from(u8::from(*inside))).collect(), pixels, bbox, score: None }
}
