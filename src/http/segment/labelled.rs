//! `/segment?head=NAME`: a mask for each class that a linear segmentation head finds.

use std::sync::Arc;

use axum::http::HeaderMap;

use super::{Answer, Found, MaskFile, Masks, Options, PNG, Segmented, drawn, wants_png, written};
use crate::{
    http::{
        App,
        answer::Encoder,
        heads,
        problem::{Code, Problem},
        response::{Either, FileBody, Timed},
        submission::Submission,
    },
    serving::{Inferred, Served},
    traces::timed,
};
use dino_vision::{
    cancel,
    dense::segmentation::{ClassMap, probability},
    head::{LinearHead, Task},
    segment::{Heatmap, Mask},
};

/// What answers call it.
pub(super) const METHOD: &str = "linear";

impl Options {
    /// Refuses what belongs to masks of what stands out.
    fn refuse_methods(&self) -> Result<(), Problem> {
        let given = [
            (self.method.is_some(), "method"),
            (self.threshold.is_some(), "threshold"),
            (self.refine.is_some(), "refine"),
            (self.basis.is_some(), "basis"),
        ];
        let named = given.into_iter().find_map(|(given, name)| given.then_some(name));
        let refused = |name| Problem::new(Code::BadParameter, format!("{name}: a linear head takes none; leave out one of them"));
        named.map_or(Ok(()), |name| Err(refused(name)))
    }
}

pub(super) async fn handle(app: &App, headers: &HeaderMap, submission: Submission<Options>, name: String) -> Result<Timed<Masks>, Problem> {
    let Submission { pictures, options, lease } = submission;
    options.refuse_methods()?;
    options.check_holes()?;
    let (served, head) = heads::find(app, &name, options.model.as_deref(), Task::Segmentation)?;
    let most = options.objects(pictures.len(), head.description().classes.len())?;
    let as_picture = wants_png(headers, pictures.len())?;
    let inference = heads::see(app, &served, &head, pictures).await?;
    let timing = inference.timing;
    let encoder = Encoder::new(app);
    let draw = move || -> Result<Masks, Problem> {
        let classes = Classes { served, head, most, pictures: inference.inferred.len() };
        if as_picture {
            return classes.as_png(&inference.inferred[0]).map(Either::Second);
        }
        let results = inference.inferred.iter().map(|inferred| classes.result(inferred, &options)).collect::<Result<_, _>>()?;
        encoder.json(&Answer { model: classes.served.name().into(), head: Some(name), results }).map(Either::First)
    };
    let masks = timed("segment", app.drawing.run(draw)).await??;
    drop(lease);
    Ok(timing.with(masks))
}

/// What finds classes.
struct Classes {
    served: Arc<Served>,
    head: Arc<LinearHead>,
    /// Most masks of one picture.
    most: usize,
    /// Pictures of the request.
    pictures: usize,
}

impl Classes {
    fn result(&self, inferred: &Inferred, options: &Options) -> Result<Segmented, Problem> {
        let (logits, patches) = heads::logits(&self.served, &self.head, inferred)?;
        let (width, height) = inferred.size;
        let map = ClassMap::new(logits.view(), patches, heads::pixels(inferred.size));
        cancel::check()?;
        // One mask at a time is in memory.
        let found = |(class, score): (usize, f32)| -> Result<Found, Problem> {
            let heatmap = || Heatmap::new(&probability(logits.view(), class), patches);
            let label = self.head.description().classes[class].clone();
            Ok(Found { label: Some(label), ..written(&mask(&map, class, inferred), score, (options.format, options.holes), heatmap)? })
        };
        let present = map.present();
        let drawn = drawn(present.len().min(self.most), options.format, options.max_objects, self.pictures, inferred.size)?;
        let masks = present.into_iter().take(drawn).map(found).collect::<Result<_, _>>()?;
        Ok(Segmented { width, height, method: METHOD, masks, heads: Vec::new(), colours: None })
    }

    /// The first mask.
    fn as_png(&self, inferred: &Inferred) -> Result<FileBody<MaskFile>, Problem> {
        let (logits, patches) = heads::logits(&self.served, &self.head, inferred)?;
        let map = ClassMap::new(logits.view(), patches, heads::pixels(inferred.size));
        cancel::check()?;
        let first = map.present().first().map_or(0, |(class, _)| *class);
        Ok(FileBody::new(PNG, mask(&map, first, inferred).png()?))
    }
}

fn mask(map: &ClassMap, class: usize, inferred: &Inferred) -> Mask {
    Mask::new(map.classes.iter().map(|found| usize::from(*found) == class).collect(), map.grid, inferred.size)
}
