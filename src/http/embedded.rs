//! From a request's pictures to their embeddings: from the cache where they are known, else through the model.

use std::sync::Arc;

use bytes::Bytes;
use tokio::time::Instant;

use super::{
    App,
    infer::{Timing, deadline, in_order},
    problem::{Code, Problem},
};
use crate::{
    embedding_cache::{Embedded, Key, Source},
    serving::{Inferred, Served},
};
use dino_vision::{
    embedding::{self, Pooling},
    model::Outputs,
};

/// The embeddings of all pictures of a request, in their order.
pub(super) struct Embeddings {
    pub(super) pictures: Vec<Arc<Embedded>>,
    pub(super) timing: Timing,
}

/// Which tokens become the vectors.
#[derive(Clone, Copy)]
pub(super) struct Tokens {
    pub(super) pooling: Pooling,
    /// Number of a block, from 1, that is not the last one.
    pub(super) layer: Option<u32>,
}

/// Embeds `pictures`. As of [`infer`](super::infer::infer), the first one that cannot be read decides the answer, and only some are on
/// their way at once.
pub(super) async fn embed(app: &App, served: &Arc<Served>, pictures: Vec<Bytes>, tokens: Tokens) -> Result<Embeddings, Problem> {
    let embedder = Embedder {
        app,
        served,
        tokens,
        recipe: app.embeddings.as_ref().map(|_| served.embedding_recipe(tokens.pooling, tokens.layer)).unwrap_or_default().into(),
        deadline: deadline(app),
    };
    let found = in_order(app, served, pictures.into_iter().enumerate().collect(), |_, bytes| embedder.find(bytes)).await?;
    let mut timing = Timing::default();
    if app.embeddings.is_some() {
        timing.count_cached(found.iter().filter(|found| found.ran.is_none()).count(), found.len());
    }
    let (pictures, ran): (Vec<_>, Vec<_>) = found.into_iter().map(|Found { embedded, ran }| (embedded, ran)).unzip();
    let ran: Vec<_> = ran.into_iter().flatten().collect();
    timing.add(&ran);
    app.metrics.inferred(served.name(), &ran);
    Ok(Embeddings { pictures, timing })
}

/// What became of one picture.
struct Found {
    embedded: Arc<Embedded>,
    /// Its way through the model, without the outputs; `None` where it was known.
    ran: Option<Inferred>,
}

struct Embedder<'a> {
    app: &'a App,
    served: &'a Arc<Served>,
    tokens: Tokens,
    /// All that an embedding depends on beside the picture.
    recipe: Arc<str>,
    deadline: Instant,
}

impl Embedder<'_> {
    async fn find(&self, bytes: Bytes) -> Result<Found, Problem> {
        let Some(cache) = &self.app.embeddings else {
            let (embedded, ran) = self.compute(bytes).await?;
            return Ok(Found { embedded: Arc::new(embedded), ran: Some(ran) });
        };
        let (recipe, picture) = (Arc::clone(&self.recipe), bytes.clone());
        let key = self.app.pool.run(move || Key::of(&recipe, &picture)).await?;
        let mut ran = None;
        let compute = async {
            let (embedded, inferred) = self.compute(bytes).await?;
            ran = Some(inferred);
            Ok::<_, Problem>(embedded)
        };
        let (embedded, source) = cache.get(key, compute).await?;
        tracing::trace!(?source, "an embedding was looked up");
        debug_assert_eq!(ran.is_some(), source == Source::Computed);
        Ok(Found { embedded, ran })
    }

    async fn compute(&self, bytes: Bytes) -> Result<(Embedded, Inferred), Problem> {
        let Self { app, served, tokens: Tokens { pooling, layer }, deadline, .. } = *self;
        let (transform, registers) = (served.manifest().transform.clone(), served.manifest().registers as usize);
        let prepare = move |picture: &_| (transform.apply(picture), ());
        let (inferred, ()) = served.infer(&app.pool, bytes, app.limits.media, prepare, deadline).await?;
        let grid = served.grid(&inferred);
        let pool = move || {
            let rows = embedding::pool_layer(&inferred.outputs, layer, registers, pooling)?;
            if !rows.iter().all(|value| value.is_finite()) {
                return Err(Problem::new(Code::InferenceFailed, "the model gave numbers that are not finite"));
            }
            Ok((Embedded { rows, grid }, Inferred { outputs: Outputs::default(), ..inferred }))
        };
        app.pool.run(pool).await?
    }
}
