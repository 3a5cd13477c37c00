//! Linear heads by their names, and what dense ones make of pictures.

use std::sync::Arc;

use bytes::Bytes;
use image::RgbImage;
use ndarray::Array2;

use super::{
    App,
    infer::{Inference, infer},
    problem::{Code, Problem},
};
use crate::serving::{Inferred, Served, UnknownHead};
use dino_vision::{
    dense,
    head::{LinearHead, Task},
    transform::PatchGrid,
};

/// Longer side in pixels of what is enlarged from patches: it bounds time and memory, whatever the picture's size.
const LONGER_SIDE: u32 = 1024;

/// The model that has the head `name`, which has to be of this task, and the head.
pub(super) fn find(app: &App, name: &str, model: Option<&str>, task: Task) -> Result<(Arc<Served>, Arc<LinearHead>), Problem> {
    if let Some(model) = model {
        app.registry.get(Some(model))?;
    }
    let served = app.registry.with_head(name, model, task)?;
    let Some(head) = served.head(name).cloned() else { return Err(UnknownHead::new(name, [&*served]).into()) };
    let found = head.description().task;
    if found != task {
        let detail = format!("head {name} is for {}: ask {}?head={name}", found.name(), found.route());
        return Err(Problem::new(Code::BadParameter, detail));
    }
    Ok((served, head))
}

/// Names of a model's heads of one task.
pub(super) fn of_task(served: &Served, task: Task) -> Vec<String> {
    served.heads().iter().filter(|(_, head)| head.description().task == task).map(|(name, _)| name.clone()).collect()
}

/// Runs pictures as a dense head sees them: whole, at the size that it was trained with, or `--segment-size` where that is less.
pub(super) async fn see(app: &App, served: &Arc<Served>, head: &LinearHead, pictures: Vec<Bytes>) -> Result<Inference, Problem> {
    let size = head.description().size.unwrap_or(app.segment_size).min(app.segment_size);
    let whole_picture = served.whole_picture(size);
    infer(app, served, pictures, move |picture: &RgbImage| whole_picture(picture).0).await
}

/// `[patches, classes]` or `[patches, bins]`, and their grid.
pub(super) fn logits(served: &Served, head: &LinearHead, inferred: &Inferred) -> Result<(Array2<f32>, PatchGrid), Problem> {
    let registers = served.manifest().registers as usize;
    let (features, grid) = dense::features(head.description().task, &inferred.outputs, registers, served.grid(inferred))?;
    let logits = head.logits(features.view());
    // A class or a depth would follow from them all the same.
    if !logits.iter().all(|logit| logit.is_finite()) {
        return Err(Problem::new(Code::InferenceFailed, "the model or its head gave numbers that are not finite"));
    }
    Ok((logits, grid))
}

/// The grid of a picture's own pixels; of one with more than 1024 on its longer side a coarser one of its shape.
pub(super) fn pixels((width, height): (u32, u32)) -> PatchGrid {
    let longer = width.max(height).max(1);
    let side = |side: u32| {
        let side = if longer > LONGER_SIDE { u64::from(side) * u64::from(LONGER_SIDE) / u64::from(longer) } else { side.into() };
        side.max(1) as usize
    };
    PatchGrid { rows: side(height), columns: side(width) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_pictures_have_a_coarser_grid() {
        assert_eq!(pixels((640, 480)), PatchGrid { rows: 480, columns: 640 });
        assert_eq!(pixels((4096, 2048)), PatchGrid { rows: 512, columns: 1024 });
        assert_eq!(pixels((1, 60_000)), PatchGrid { rows: 1024, columns: 1 });
    }
}
