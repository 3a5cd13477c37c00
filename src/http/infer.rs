//! From a request's pictures to the model's outputs, in order, within the deadline.

use std::{sync::Arc, time::Duration};

use axum::http::{HeaderName, HeaderValue};
use bytes::Bytes;
use futures::{StreamExt, TryFutureExt, TryStreamExt, stream};
use image::RgbImage;
use ndarray::Array3;
use tokio::time::Instant;

use super::{
    App,
    problem::{Code, Problem},
    request_context,
    response::Timed,
};
use crate::serving::{Inferred, Panicked, PictureError, Served, UnknownHead, UnknownModel};
use dino_vision::{
    batch::{Failure, Full},
    cancel::Cancelled,
    media::{self, DecodeError},
};

const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");

/// Where the time of a request went, summed over its pictures.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Timing {
    decode: Duration,
    transform: Duration,
    queue: Duration,
    infer: Duration,
    /// Pictures whose embedding was known, and all, where there is a cache.
    cached: Option<(usize, usize)>,
}

impl Timing {
    /// A body with these times in its headers.
    pub(super) fn with<T>(self, body: T) -> Timed<T> {
        Timed { timing: Some(self.header()), body }
    }

    /// Adds the times of pictures that a model ran.
    pub(super) fn add(&mut self, inferred: &[Inferred]) {
        for picture in inferred {
            self.decode += picture.decoded;
            self.transform += picture.transformed;
            self.queue += picture.waited;
            self.infer += picture.ran;
        }
    }

    /// That the embeddings of `known` of `all` pictures were known.
    pub(super) fn count_cached(&mut self, known: usize, all: usize) {
        self.cached = Some((known, all));
    }

    /// As a `Server-Timing` header (milliseconds), which browsers show beside the request.
    pub(super) fn header(self) -> (HeaderName, HeaderValue) {
        let times = [self.decode, self.transform, self.queue, self.infer];
        let [decode, transform, queue, infer] = times.map(|time| time.as_secs_f64() * 1e3);
        let cache = self.cached.map_or_else(String::new, |(known, all)| format!(", cache;desc=\"{known} of {all}\""));
        let value = format!("decode;dur={decode:.2}, transform;dur={transform:.2}, queue;dur={queue:.2}, infer;dur={infer:.2}{cache}");
        let value = HeaderValue::try_from(value).expect("digits and commas make a header value");
        (SERVER_TIMING, value)
    }
}

/// The model's view of all pictures of a request, in their order.
pub(super) struct Inference {
    pub(super) inferred: Vec<Inferred>,
    pub(super) timing: Timing,
}

/// Decodes `pictures`, brings each to the model's input with `prepare`, and runs them.
///
/// The first picture, by position, that cannot be read decides the answer, whichever fails first in time. Only some
/// pictures are in work at once: enough to keep the model busy, so that one large request neither fills the
/// memory nor holds back others.
pub(super) async fn infer<P>(app: &App, served: &Arc<Served>, pictures: Vec<Bytes>, prepare: P) -> Result<Inference, Problem>
where
    P: Fn(&RgbImage) -> Array3<f32> + Clone + Send + 'static,
{
    let indexed = pictures.into_iter().enumerate().collect();
    let (inference, _) = infer_indexed(app, served, indexed, move |picture: &_| (prepare(picture), ())).await?;
    Ok(inference)
}

/// As [`infer`], for pictures that have positions of their own in the request, and with what `prepare` makes of each
/// beside the input.
pub(super) async fn infer_indexed<P, X>(
    app: &App,
    served: &Arc<Served>,
    pictures: Vec<(usize, Bytes)>,
    prepare: P,
) -> Result<(Inference, Vec<X>), Problem>
where
    P: Fn(&RgbImage) -> (Array3<f32>, X) + Clone + Send + 'static,
    X: Send + 'static,
{
    infer_each(app, served, pictures, |_| prepare.clone()).await
}

/// As [`infer_indexed`], with a way of its own to prepare each of them, by its place in `pictures`.
pub(super) async fn infer_each<P, X>(
    app: &App,
    served: &Arc<Served>,
    pictures: Vec<(usize, Bytes)>,
    prepare: impl Fn(usize) -> P,
) -> Result<(Inference, Vec<X>), Problem>
where
    P: FnOnce(&RgbImage) -> (Array3<f32>, X) + Send + 'static,
    X: Send + 'static,
{
    let deadline = deadline(app);
    let run = |place, bytes| {
        let prepare = prepare(place);
        async move { Ok(served.infer(&app.pool, bytes, app.limits.media, prepare, deadline).await?) }
    };
    let (inferred, beside): (Vec<Inferred>, Vec<X>) = in_order(app, served, pictures, run).await?.into_iter().unzip();
    app.metrics.inferred(served.name(), &inferred);
    let mut timing = Timing::default();
    timing.add(&inferred);
    Ok((Inference { inferred, timing }, beside))
}

/// When this request has to be answered.
pub(super) fn deadline(app: &App) -> Instant {
    request_context::deadline().unwrap_or_else(|| Instant::now() + app.limits.time)
}

/// What `work` makes of each picture, which it gets with its place in `pictures`, in their order. As [`infer`] says, the first picture that fails decides, and only some are in work at once.
pub(super) async fn in_order<T, F>(
    app: &App,
    served: &Served,
    pictures: Vec<(usize, Bytes)>,
    work: impl Fn(usize, Bytes) -> F,
) -> Result<Vec<T>, Problem>
where
    F: Future<Output = Result<T, Problem>>,
{
    let many = pictures.len() > 1;
    request_context::set_model(served.name());
    count_pixels(app, &pictures).await?;
    let done = stream::iter(pictures.into_iter().enumerate())
        .map(|(place, (index, bytes))| work(place, bytes).map_err(move |problem| problem.at(index).naming(index, many)))
        .buffered(served.max_in_flight())
        .try_collect()
        .await?;
    request_context::set_inferred();
    Ok(done)
}

/// Takes what the pictures declare out of the budget of the caller's key, where that has one.
async fn count_pixels(app: &App, pictures: &[(usize, Bytes)]) -> Result<(), Problem> {
    let Some(key) = request_context::key().filter(|key| key.counts_pixels()) else {
        return Ok(());
    };
    key.spend_pixels(declared_pixels(app, pictures.iter().map(|(_, bytes)| bytes.clone()).collect()).await?)
}

/// The pixels that the headers of pictures declare, together. One that cannot be read counts as none: it is refused when it is decoded.
pub(super) async fn declared_pixels(app: &App, pictures: Vec<Bytes>) -> Result<u64, Problem> {
    let limits = app.limits.media;
    let area = move |bytes: &Bytes| media::dimensions(bytes, &limits).map_or(0, |(width, height)| u64::from(width) * u64::from(height));
    Ok(app.pool.run(move || pictures.iter().map(area).sum()).await?)
}

impl Problem {
    /// Says in words too which of several pictures is meant.
    fn naming(mut self, index: usize, many: bool) -> Self {
        if many {
            self.detail = format!("picture {index}: {}", self.detail).into();
        }
        self
    }
}

impl From<PictureError> for Problem {
    fn from(error: PictureError) -> Self {
        match error {
            PictureError::Decode(error) => error.into(),
            PictureError::Panicked(error) => error.into(),
            PictureError::Run(error) => error.into(),
        }
    }
}

impl From<DecodeError> for Problem {
    fn from(error: DecodeError) -> Self {
        let code = match error {
            DecodeError::Empty => Code::EmptyPicture,
            DecodeError::NotOffered { .. } | DecodeError::PhoneFormat { .. } => Code::UnknownFormat,
            DecodeError::TooManyPixels { .. } | DecodeError::SideTooLong { .. } => Code::TooManyPixels,
            DecodeError::Corrupt { .. } => Code::CorruptPicture,
        };
        Self::new(code, error.to_string())
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        let code = match failure {
            Failure::Expired => Code::DeadlinePassed,
            Failure::Engine(_) => Code::InferenceFailed,
            Failure::WorkerLost => Code::NotReady,
        };
        Self::new(code, failure.to_string())
    }
}

impl From<Panicked> for Problem {
    fn from(error: Panicked) -> Self {
        Self::new(Code::Internal, error.to_string())
    }
}

impl From<Cancelled> for Problem {
    /// Never sent: the client has left, or was told of the deadline.
    fn from(error: Cancelled) -> Self {
        Self::new(Code::DeadlinePassed, error.to_string())
    }
}

impl From<Full> for Problem {
    fn from(full: Full) -> Self {
        let seconds = full.retry_after.as_secs();
        let mut problem = Self::new(Code::QueueFull, format!("{full}; try again in {seconds} s"));
        problem.retry_after = Some(full.retry_after);
        problem
    }
}

impl From<UnknownHead> for Problem {
    fn from(error: UnknownHead) -> Self {
        Self::new(Code::UnknownHead, error.to_string())
    }
}

impl From<UnknownModel> for Problem {
    fn from(error: UnknownModel) -> Self {
        Self::new(Code::UnknownModel, error.to_string())
    }
}
