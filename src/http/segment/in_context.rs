//! `/segment?collection={c}`: masks by the vote of patches of a collection whose items have masks.

use std::sync::Arc;

use axum::http::HeaderMap;

use super::{Answer, Found, MaskFile, Masks, Options, PNG, Segmented, drawn, wants_png, written};
use crate::{
    http::{
        App,
        answer::Encoder,
        collections::{find, model_of, patch_banks, patches},
        infer::{declared_pixels, infer},
        problem::{Code, Problem},
        response::{Either, FileBody, Timed},
        submission::Submission,
    },
    index::{PatchBank, PatchOptions},
    serving::{Inferred, Served},
    traces::timed,
};
use dino_vision::{
    in_context::{Painted, Painting, Votes, painted},
    segment::{Heatmap, Mask},
    transform::PatchGrid,
    vote::{DEFAULT_K, DEFAULT_TEMPERATURE},
};

/// What answers call it.
pub(super) const METHOD: &str = "neighbours";

/// Most neighbours of a patch.
const MAX_K: usize = 1000;
/// Most pixels of all pictures of a request: two numbers are kept of each, and a flag of one mask at a time.
const MAX_PAINTED: u64 = 32_000_000;

/// How patches vote.
#[derive(Clone, Copy)]
struct Vote {
    k: usize,
    temperature: f64,
    threshold: f32,
    /// Most masks of one picture.
    most: usize,
}

impl Options {
    /// Refuses what belongs to other masks, and what cannot be a vote.
    fn vote(&self, pictures: usize) -> Result<Vote, Problem> {
        let refused = |why: String| Err(Problem::new(Code::BadParameter, why));
        let given = [
            (self.method.is_some(), "method"),
            (self.head.is_some(), "head"),
            (self.basis.is_some(), "basis"),
            (self.refine.is_some(), "refine"),
        ];
        if let Some((_, name)) = given.into_iter().find(|(given, _)| *given) {
            return refused(format!("{name}: the vote of a collection takes none; leave out one of them"));
        }
        let (k, temperature, threshold) =
            (self.k.unwrap_or(DEFAULT_K), self.temperature.unwrap_or(DEFAULT_TEMPERATURE), self.threshold.unwrap_or_default());
        if !(1..=MAX_K).contains(&k) {
            return refused(format!("k: must lie between 1 and {MAX_K}, not {k}"));
        }
        if !(temperature > 0.0 && temperature.is_finite()) {
            return refused(format!("temperature: must be above 0, not {temperature}"));
        }
        if !(0.0..=1.0).contains(&threshold) {
            return refused(format!("threshold: the least share of a label lies between 0 and 1, not {threshold}"));
        }
        let most = self.objects(pictures, super::MAX_OBJECTS.min(super::MAX_DRAWN / pictures.max(1)).max(1))?;
        Ok(Vote { k, temperature, threshold, most })
    }
}

pub(super) async fn handle(app: &App, headers: &HeaderMap, submission: Submission<Options>, name: String) -> Result<Timed<Masks>, Problem> {
    let Submission { pictures, options, lease } = submission;
    let refused = |why: String| Err(Problem::new(Code::BadParameter, why));
    let vote = options.vote(pictures.len())?;
    options.check_holes()?;
    let as_picture = wants_png(headers, pictures.len())?;
    let collection = find(app, &name).await?;
    let (Some(how), Some(empty)) = (collection.spec().patches(), PatchBank::of(&*collection)) else {
        return refused(format!("collection: {} holds pictures, and patches vote here: name one of kind patches", collection.name()));
    };
    let served = model_of(app, &*collection, options.model.as_deref())?;
    patches::check_size(app, pictures.len(), &served, collection.spec(), how)?;
    let pixels = declared_pixels(app, pictures.clone()).await?;
    if pixels > MAX_PAINTED {
        return refused(format!(
            "pictures of {pixels} pixels together are too large to paint, at most {MAX_PAINTED} in a request: send fewer or smaller ones"
        ));
    }
    let whole_picture = served.whole_picture(how.size);
    let inference = infer(app, &served, pictures, move |picture| whole_picture(picture).0).await?;
    let (inferred, timing, encoder) = (inference.inferred, inference.timing, Encoder::new(app));
    let ready = timed("load", patch_banks::ready(app, &collection, empty)).await?;
    let draw = move |bank: Arc<PatchBank>| -> Result<Masks, Problem> {
        if bank.labelled.is_empty() {
            let detail = format!("collection: no item of {} has a mask: send some with `mask` and `labels`", collection.name());
            return Err(Problem::new(Code::BadParameter, detail));
        }
        let painter = Painter { bank, how, served, vote, pictures: inferred.len() };
        if as_picture {
            return painter.as_png(&inferred[0]).map(Either::Second);
        }
        let results = inferred.iter().map(|inferred| painter.result(inferred, &options)).collect::<Result<_, _>>()?;
        encoder.json(&Answer { model: painter.served.name().into(), head: None, results }).map(Either::First)
    };
    let masks = timed("segment", ready.draw(app, draw)).await??;
    drop(lease);
    Ok(timing.with(masks))
}

/// What paints pictures.
struct Painter {
    bank: Arc<PatchBank>,
    how: PatchOptions,
    served: Arc<Served>,
    vote: Vote,
    /// Of the request.
    pictures: usize,
}

impl Painter {
    fn paint(&self, inferred: &Inferred) -> Result<(Votes, PatchGrid, Painting), Problem> {
        let (features, grid) = patches::features(&self.served, inferred, self.how.layer)?;
        let votes = self.bank.labelled.vote(&patches::rows(&features), self.vote.k, self.vote.temperature)?;
        let mut painting = painted(&votes, grid, inferred.size, self.vote.threshold)?;
        painting.found.truncate(self.vote.most);
        Ok((votes, grid, painting))
    }

    fn result(&self, inferred: &Inferred, options: &Options) -> Result<Segmented, Problem> {
        let (votes, grid, painting) = self.paint(inferred)?;
        let found = |&Painted { label, score }: &Painted| -> Result<Found, Problem> {
            let heatmap = || Heatmap::new(&votes.shares[label], grid);
            let written = written(&painting.mask(label), score, (options.format, options.holes), heatmap)?;
            Ok(Found { label: Some(votes.labels[label].clone()), ..written })
        };
        let drawn = drawn(painting.found.len(), options.format, options.max_objects, self.pictures, inferred.size)?;
        let masks = painting.found[..drawn].iter().map(found).collect::<Result<_, _>>()?;
        let (width, height) = inferred.size;
        Ok(Segmented { width, height, method: METHOD, masks, heads: Vec::new(), colours: None })
    }

    /// The first mask; black where there is none.
    fn as_png(&self, inferred: &Inferred) -> Result<FileBody<MaskFile>, Problem> {
        let (_, grid, painting) = self.paint(inferred)?;
        let nothing = || Mask::new(vec![false; grid.len()], grid, inferred.size);
        Ok(FileBody::new(PNG, painting.found.first().map_or_else(nothing, |painted| painting.mask(painted.label)).png()?))
    }
}
