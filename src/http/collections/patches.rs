//! From pictures to patches, as collections of patches hold them.

use std::sync::Arc;

use bytes::Bytes;
use image::RgbImage;
use ndarray::{Array2, Array3};

use super::{
    super::{
        App, StoreImages,
        drawn_mask::MaskSource,
        infer::{Inference, infer_each},
        problem::{Code, Problem},
    },
    patch_bounds,
    upsert::{ItemContent, Kept, Upsert},
};
use crate::{
    index::{ANOMALOUS, Item, NORMAL, NewItem, PatchOptions, Spec, checksum},
    serving::{Inferred, Served},
};
use dino_vision::{
    anomaly::{MAX_STORED, PatchSet, ROTATIONS, Rows, foreground, rotated},
    media,
    transform::PatchGrid,
};

/// Most patches of all pictures of a body together, rotations included: their vectors are in memory at once.
const MAX_BODY_PATCHES: usize = 65_536;

/// How many pictures each of an upsert becomes.
pub(super) fn turns(upsert: &Upsert) -> usize {
    if upsert.rotations { ROTATIONS } else { 1 }
}

/// Refuses what a collection of patches cannot hold, and more than a body may hold, before a picture is decoded.
pub(super) fn check(app: &App, upsert: &Upsert, served: &Served, spec: &Spec, options: PatchOptions) -> Result<(), Problem> {
    for (index, (item, content)) in upsert.items.iter().enumerate() {
        let has = |label: &str| item.labels.iter().any(|own| own == label);
        let refused = |why: &str| Err(Problem::new(Code::BadParameter, format!("items[{index}]: {why}")).at(index));
        if matches!(content, ItemContent::Vector(_)) {
            return refused("this collection holds patches, which a vector has none of: send the picture as `image`");
        }
        if upsert.masks.contains_key(&index) {
            if item.labels.is_empty() {
                return refused("a mask shows something: say what in `labels`");
            }
            if upsert.rotations {
                return refused("a mask is not turned with its picture: leave out `rotations` or the mask");
            }
        }
        if has(NORMAL) && has(ANOMALOUS) {
            return refused("the labels `normal` and `anomalous` exclude each other");
        }
    }
    check_size(app, upsert.items.len() * turns(upsert), served, spec, options)?;
    check_stored(turns(upsert), served, spec, options)
}

/// Refuses a picture whose patches, with those of its rotations, would be too long to store.
fn check_stored(turns: usize, served: &Served, spec: &Spec, options: PatchOptions) -> Result<(), Problem> {
    let each = served.most_patches(options.size);
    let bytes = PatchSet::stored_length(each, each * turns, spec.dim);
    if bytes <= MAX_STORED {
        return Ok(());
    }
    let without = if turns > 1 { "leave out `rotations`, or " } else { "" };
    let detail = format!(
        "a picture of up to {each} patches in {turns} rotations takes {bytes} bytes, and at most {MAX_STORED} are stored: {without}make a \
         collection with a smaller `size`"
    );
    Err(Problem::new(Code::BadParameter, detail))
}

/// Refuses a collection that this server cannot use, and more pictures, rotations counted, than a body may hold for their patches.
pub(in crate::http) fn check_size(app: &App, pictures: usize, served: &Served, spec: &Spec, options: PatchOptions) -> Result<(), Problem> {
    patch_bounds::check_use(spec, options, served, app.segment_size)?;
    let each = served.most_patches(options.size).max(1);
    let most = app.limits.pictures.min((MAX_BODY_PATCHES / each).max(1));
    if pictures > most {
        let detail = format!(
            "{pictures} pictures of up to {each} patches, each rotation counted, and a request may hold {most} \
             (--max-pictures {}, {MAX_BODY_PATCHES} patches): send the others in further requests",
            app.limits.pictures
        );
        return Err(Problem::new(Code::TooManyPictures, detail));
    }
    Ok(())
}

/// The tokens `[patches, dim]` of a picture after the block `layer` or the last one, and their grid.
pub(in crate::http) fn features(served: &Served, inferred: &Inferred, layer: Option<u32>) -> Result<(Array2<f32>, PatchGrid), Problem> {
    let (features, grid) = served.patches(inferred, layer)?;
    if features.iter().all(|value| value.is_finite()) {
        Ok((features, grid))
    } else {
        Err(Problem::new(Code::InferenceFailed, "the model gave numbers that are not finite"))
    }
}

/// The rows of tokens.
pub(in crate::http) fn rows(features: &Array2<f32>) -> Rows {
    let mut rows = Rows::new(features.ncols());
    features.rows().into_iter().for_each(|row| rows.push(row.iter().copied()));
    rows
}

/// What became of the pictures of an upsert: their inference, and what else is kept of those that are no rotations.
pub(super) type Inferences = (Inference, Vec<Option<Kept>>);

/// Refuses masks that cannot be read, or are not of their picture's size, before a model runs. Only one of them is in memory at a time, so
/// each is read again when it is stored.
async fn check_masks(app: &App, upsert: &Upsert) -> Result<(), Problem> {
    for (&index, mask) in &upsert.masks {
        let Some((_, ItemContent::Picture(source))) = upsert.items.get(index) else { continue };
        let (mask, picture, limits) = (mask.clone(), source.bytes.clone(), app.limits.media);
        let check = move || -> Result<(), Problem> {
            let mask = mask.read(&limits)?;
            // A picture whose header cannot be read is refused when it is decoded.
            if let Ok(size) = media::dimensions(&picture, &limits) {
                mask.check(size)?;
            }
            Ok(())
        };
        app.pool.run(check).await?.map_err(|problem| problem.at(index))?;
    }
    Ok(())
}

/// Runs the pictures of an upsert, each followed by its rotations.
pub(super) async fn infer(app: &App, served: &Arc<Served>, upsert: &Upsert, options: PatchOptions) -> Result<Inferences, Problem> {
    check_masks(app, upsert).await?;
    let (turns, keep) = (turns(upsert), app.store_images);
    let mut pictures: Vec<(usize, Bytes)> = Vec::new();
    for (position, (_, content)) in upsert.items.iter().enumerate() {
        if let ItemContent::Picture(source) = content {
            pictures.extend(std::iter::repeat_n((position, source.bytes.clone()), turns));
        }
    }
    let whole_picture = served.whole_picture(options.size);
    // Turned at twice the size that the model sees: turning 50 million pixels would take seconds, and the model would see no more.
    let side = served.input_side(options.size).saturating_mul(2);
    let shrinks: Vec<bool> = pictures.iter().map(|(_, bytes)| keep.shrinks(bytes)).collect();
    let prepare = |place: usize| {
        let (whole_picture, turn, shrinks) = (whole_picture.clone(), place % turns, shrinks[place]);
        move |picture: &RgbImage| -> (Array3<f32>, Option<Kept>) {
            if turn > 0 {
                return (whole_picture(&rotated(&media::within(picture, side), turn)).0, None);
            }
            (whole_picture(picture).0, Some(Kept::of(picture, shrinks)))
        }
    };
    infer_each(app, served, pictures, prepare).await
}

/// A picture that was run with what else is kept of it, or a rotation of it.
pub(super) type View = (Inferred, Option<Kept>);

/// The items of an upsert whose pictures were run.
pub(super) fn finish(
    served: &Served,
    upsert: Upsert,
    inferred: &[View],
    options: PatchOptions,
    keep: StoreImages,
    limits: &media::Limits,
) -> Result<Vec<NewItem>, Problem> {
    let views = inferred.chunks_exact(turns(&upsert));
    let mut masks = upsert.masks;
    let finish = |(index, ((mut item, content), views)): (usize, ((Item, ItemContent), &[View]))| {
        let ItemContent::Picture(source) = content else {
            return Err(Problem::new(Code::Internal, "a vector came where pictures were asked for"));
        };
        let (own, grid) = features(served, &views[0].0, options.layer)?;
        let foreground = foreground(own.view(), grid);
        let coverage = masks.remove(&index).map(|mask| coverage(mask, limits, &views[0].0, grid).map_err(|problem| problem.at(index)));
        let mut set = PatchSet { grid, foreground, coverage: coverage.transpose()?, rows: rows(&own) };
        for (view, _) in &views[1..] {
            features(served, view, options.layer)?.0.rows().into_iter().for_each(|row| set.rows.push(row.iter().copied()));
        }
        item.source = Some(checksum::of_bytes(&source.bytes));
        let (fingerprint, thumbnail) = views[0].1.clone().map(|kept| (kept.fingerprint, kept.thumbnail)).unzip();
        item.fingerprint = fingerprint;
        let thumbnail = keep.kept(&source.bytes, thumbnail.flatten());
        Ok(NewItem { item, vector: set.mean(), thumbnail, patches: Some(set.to_bytes()) })
    };
    upsert.items.into_iter().zip(views).enumerate().map(finish).collect()
}

/// The share of each patch that a mask of the picture covers, 0 to 255.
fn coverage(mask: MaskSource, limits: &media::Limits, picture: &Inferred, grid: PatchGrid) -> Result<Vec<u8>, Problem> {
    let mask = mask.read(limits)?;
    mask.check(picture.size)?;
    Ok(mask.coverage(grid).into_iter().map(|share| (share * 255.0).round() as u8).collect())
}
