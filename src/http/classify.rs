//! `POST /classify`: a vote of the nearest neighbours in a collection.

use axum::{Json, extract::State, response::IntoResponse};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    App, collections,
    infer::{infer, within},
    problem::{Code, Problem},
    submission::Submission,
};
use crate::{
    embedding,
    index::{
        Collection, DEFAULT_EF, Filter, Item, Neighbour, Predicate, Search,
        vote::{ClassScore, DEFAULT_K, DEFAULT_TEMPERATURE, vote, winner},
    },
    serving::{COLLECTION_POOLING, Seen, Served},
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Options {
    model: Option<String>,
    collection: String,
    k: usize,
    temperature: f64,
    min_score: f64,
    exact: bool,
    ef: usize,
    filter: Option<Filter>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            model: None,
            collection: "default".into(),
            k: DEFAULT_K,
            temperature: DEFAULT_TEMPERATURE,
            min_score: 0.0,
            exact: false,
            ef: DEFAULT_EF,
            filter: None,
        }
    }
}

impl Options {
    fn check(&self) -> Result<(), Problem> {
        let refused = |why: String| Err(Problem::new(Code::BadParameter, why));
        collections::check_reach(self.k, self.ef)?;
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return refused(format!("temperature: must be above 0, not {}", self.temperature));
        }
        if !(0.0..=1.0).contains(&self.min_score) {
            return refused(format!("min_score: must lie between 0 and 1, not {}", self.min_score));
        }
        Ok(())
    }
}

#[derive(Serialize)]
struct Answer {
    collection: String,
    model: String,
    results: Vec<Verdict>,
}

/// What the neighbours of one picture say.
#[derive(Serialize)]
struct Verdict {
    /// The best class, unless its score is under `min_score` or nobody voted.
    label: Option<String>,
    /// Score of the best class, 0 without votes.
    score: f64,
    classes: Vec<ClassScore<String>>,
    neighbors: Vec<Hit>,
}

#[derive(Serialize)]
struct Hit {
    id: String,
    labels: Vec<String>,
    similarity: f32,
}

pub(super) async fn handle(State(app): State<App>, submission: Submission<Options>) -> Result<impl IntoResponse, Problem> {
    let Submission { pictures, options, room } = submission;
    options.check()?;
    let collection = collections::find(&app, &options.collection)?;
    let served = collections::model_of(&app, &collection, options.model.as_deref())?;
    within(&app, async {
        let transform = served.manifest().transform.clone();
        let inference = infer(&app, &served, pictures, move |picture| transform.apply(picture)).await?;
        let answer = app.pool.run(move || answer(&served, &collection, &inference.seen, &options)).await??;
        drop(room);
        Ok((inference.timing.header(), Json(answer)))
    })
    .await
}

fn answer(served: &Served, collection: &Collection, seen: &[Seen], options: &Options) -> Result<Answer, Problem> {
    let registers = served.manifest().registers as usize;
    let results = seen
        .iter()
        .map(|seen| {
            let vector = embedding::pool(&seen.outputs, registers, COLLECTION_POOLING)?;
            judge(collection, &vector.into_flat().to_vec(), options)
        })
        .collect::<Result<_, _>>()?;
    Ok(Answer { collection: collection.name().to_string(), model: served.name().into(), results })
}

fn judge(collection: &Collection, vector: &[f32], options: &Options) -> Result<Verdict, Problem> {
    let passes = options.filter.as_ref().map(|filter| |item: &Item| filter.passes(item));
    let filter = passes.as_ref().map(|passes| passes as Predicate<'_>);
    let search = Search { k: options.k, ef: options.ef, exact: options.exact, filter };
    let neighbours = collection.search(vector, &search)?;
    let ballots = neighbours.iter().map(|neighbour| (neighbour.item.labels.as_slice(), neighbour.similarity));
    let classes = vote(ballots, options.temperature);
    Ok(Verdict {
        label: winner(&classes, options.min_score).cloned(),
        score: classes.first().map_or(0.0, |best| best.score),
        classes,
        neighbors: neighbours.iter().map(Hit::from).collect(),
    })
}

impl From<&Neighbour> for Hit {
    fn from(neighbour: &Neighbour) -> Self {
        Self { id: neighbour.item.id.clone(), labels: neighbour.item.labels.clone(), similarity: neighbour.similarity }
    }
}
