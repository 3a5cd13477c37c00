//! `POST /classify`: a vote of the nearest neighbours in a collection, or the classes of a linear head.

use std::{collections::HashMap, sync::Arc};

use axum::extract::State;
use ndarray::Axis;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    App,
    answer::Encoder,
    collections, heads,
    infer::infer,
    min_similarity,
    problem::{Code, Problem},
    response::{JsonBody, Timed},
    submission::Submission,
};
use crate::{
    index::{Collection, DEFAULT_EF, Filter, Neighbour, Search},
    serving::{Inferred, Served, UnknownHead},
    traces::timed,
};
use dino_vision::{
    head::{LinearHead, Task},
    vote::{ClassScore, DEFAULT_K, DEFAULT_TEMPERATURE, balanced_vote, vote, winner},
};

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "ClassifyOptions")]
pub(super) struct Options {
    /// The model; without it the one that made the collection, or has the head.
    model: Option<String>,
    /// A linear head, instead of a vote of neighbours.
    head: Option<String>,
    /// Where the neighbours come from.
    collection: String,
    /// Number of neighbours, 1 to 10000.
    k: usize,
    /// Each neighbour votes with weight exp(similarity / temperature).
    temperature: f64,
    /// Below it `label` is null, 0 to 1.
    min_score: f64,
    /// Where the nearest neighbour is less similar, `label` is null, 0 to 1; 0 asks all. Without it the collection's own: of its items,
    /// 5 % would be below it if they were new to it.
    min_similarity: Option<f32>,
    /// Compare with every item, and do not ask the index.
    exact: bool,
    /// Width of the search in the index, 1 to 100000: larger is slower, and finds more.
    ef: usize,
    /// Only items that pass it are neighbours.
    filter: Option<Filter>,
    /// Divide the weight of each class by the number of its items.
    balanced: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            model: None,
            head: None,
            collection: "default".into(),
            k: DEFAULT_K,
            temperature: DEFAULT_TEMPERATURE,
            min_score: 0.0,
            min_similarity: None,
            exact: false,
            ef: DEFAULT_EF,
            filter: None,
            balanced: false,
        }
    }
}

impl Options {
    fn check(&self) -> Result<(), Problem> {
        let refused = |why: String| Err(Problem::new(Code::BadParameter, why));
        collections::check_search_bounds(self.k, self.ef)?;
        if !(self.temperature > 0.0 && self.temperature.is_finite()) {
            return refused(format!("temperature: must be above 0, not {}", self.temperature));
        }
        if self.head.is_some() {
            let vote = Self::default();
            let foreign = [
                ("collection", self.collection != vote.collection),
                ("k", self.k != vote.k),
                ("temperature", (self.temperature - vote.temperature).abs() > 0.0),
                ("min_similarity", self.min_similarity.is_some()),
                ("exact", self.exact != vote.exact),
                ("ef", self.ef != vote.ef),
                ("filter", self.filter.is_some()),
                ("balanced", self.balanced),
            ];
            if let Some((name, _)) = foreign.iter().find(|(_, given)| *given) {
                return refused(format!("{name}: belongs to the vote of a collection, not to a head; leave out one of them"));
            }
        }
        if !(0.0..=1.0).contains(&self.min_score) {
            return refused(format!("min_score: must lie between 0 and 1, not {}", self.min_score));
        }
        if let Some(least) = self.min_similarity
            && !(0.0..=1.0).contains(&least)
        {
            return refused(format!("min_similarity: must lie between 0 and 1, not {least}"));
        }
        Ok(())
    }
}

/// The classes of the pictures, in their order.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ClassifyResponse")]
pub(super) struct Answer {
    /// Unless a head was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    collection: Option<String>,
    /// The head, where one was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<String>,
    model: String,
    /// What the similarity of each nearest neighbour was compared with, unless a head was asked.
    #[serde(skip_serializing_if = "Option::is_none")]
    min_similarity: Option<f32>,
    results: Vec<Classification>,
}

/// What the neighbours of one picture, or the head, say.
#[derive(Serialize, JsonSchema)]
struct Classification {
    /// The best class, unless its score is under `min_score`, `similarity` is under `min_similarity`, or there was no vote.
    label: Option<String>,
    /// Score of the best class, 0 without votes.
    score: f64,
    /// Cosine of the nearest neighbour; null without neighbours.
    similarity: Option<f32>,
    /// All classes with a vote, best first.
    classes: Vec<ClassScore<String>>,
    /// Nearest first; none with a head.
    neighbors: Vec<Hit>,
}

/// An item that is near.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ClassifyNeighbor")]
struct Hit {
    id: String,
    labels: Vec<String>,
    /// Cosine to the picture.
    similarity: f32,
    /// Whether the item's stored picture can be asked for.
    has_image: bool,
}

/// Errors beside those that any submission may end with.
pub(super) const ERRORS: &[Code] =
    &[Code::UnknownModel, Code::UnknownHead, Code::UnknownCollection, Code::ModelMismatch, Code::ModelLacksOutput, Code::StoreFailed];

pub(super) async fn handle(State(app): State<App>, submission: Submission<Options>) -> Result<Timed<JsonBody<Answer>>, Problem> {
    let Submission { pictures, options, lease } = submission;
    options.check()?;
    let classifier = if let Some(head) = &options.head {
        Classifier::Head(head.clone())
    } else {
        collections::check_total_bounds(pictures.len(), options.k, options.ef)?;
        Classifier::Collection(collections::find_pictures(&app, &options.collection).await?)
    };
    let served = match &classifier {
        Classifier::Head(head) => heads::find(&app, head, options.model.as_deref(), Task::Classes)?.0,
        Classifier::Collection(collection) => collections::model_of(&app, &**collection, options.model.as_deref())?,
    };
    let transform = served.manifest().transform.clone();
    let inference = infer(&app, &served, pictures, move |picture| transform.apply(picture)).await?;
    let threads = match &classifier {
        Classifier::Collection(_) => collections::search_pool(&app),
        Classifier::Head(_) => &app.pool,
    };
    let min_similarity = match (&classifier, options.min_similarity) {
        (Classifier::Collection(collection), None) => Some(min_similarity::of(&app, collection).await?),
        (_, given) => given,
    };
    let (encoder, timing) = (Encoder::new(&app), inference.timing);
    let options = Options { min_similarity, ..options };
    let voting = threads.run(move || encoder.json(&answer(&served, &classifier, &inference.inferred, &options)?));
    let answer = timed("vote", voting).await??;
    drop(lease);
    Ok(timing.with(answer))
}

/// What classifies pictures.
enum Classifier {
    Collection(Arc<dyn Collection>),
    /// The head of this name.
    Head(String),
}

fn answer(served: &Served, classifier: &Classifier, inferred: &[Inferred], options: &Options) -> Result<Answer, Problem> {
    let results = Vec::with_capacity(inferred.len());
    let mut answer = Answer { collection: None, head: None, model: served.name().into(), min_similarity: options.min_similarity, results };
    match classifier {
        Classifier::Collection(collection) => {
            let search = Search { k: options.k, ef: options.ef, exact: options.exact, filter: options.filter.as_ref() };
            let mut found = Vec::with_capacity(inferred.len());
            for inferred in inferred {
                found.push(collection.search(&served.collection_vector(inferred)?, &search)?);
            }
            let sizes = if options.balanced { Some(sizes(&**collection, &found)?) } else { None };
            answer.results = found.iter().map(|neighbours| vote_of(neighbours, sizes.as_ref(), options)).collect();
            answer.collection = Some(collection.name().to_string());
        }
        Classifier::Head(name) => {
            let Some(head) = served.head(name) else { return Err(UnknownHead::new(name, [served]).into()) };
            let registers = served.manifest().registers as usize;
            for inferred in inferred {
                let features = head.description().tokens.of(&inferred.outputs, registers)?;
                let row = head.probabilities(features.view()).index_axis_move(Axis(0), 0);
                answer.results.push(classification_of(head, row.as_slice().unwrap_or_default(), options));
            }
            answer.head = Some(name.clone());
        }
    }
    Ok(answer)
}

/// The classes of a head, best first; `probabilities` has one for each.
fn classification_of(head: &LinearHead, probabilities: &[f64], options: &Options) -> Classification {
    let labels = head.description().classes.iter();
    let mut classes: Vec<_> = labels.zip(probabilities).map(|(label, &score)| ClassScore { label: label.clone(), score }).collect();
    // Stable: ties keep the order of the classes.
    classes.sort_by(|a, b| b.score.total_cmp(&a.score));
    Classification {
        label: winner(&classes, options.min_score).cloned(),
        score: classes.first().map_or(0.0, |best| best.score),
        similarity: None,
        classes,
        neighbors: Vec::new(),
    }
}

/// The number of items in each class that has a vote.
fn sizes(collection: &dyn Collection, found: &[Vec<Neighbour>]) -> Result<HashMap<String, usize>, Problem> {
    let labels = found.iter().flatten().flat_map(|neighbour| neighbour.item.labels.iter().map(String::as_str)).collect();
    Ok(collection.label_counts(&labels)?)
}

fn vote_of(neighbours: &[Neighbour], sizes: Option<&HashMap<String, usize>>, options: &Options) -> Classification {
    let ballots = neighbours.iter().map(|neighbour| (neighbour.item.labels.as_slice(), neighbour.similarity));
    let classes = match sizes {
        Some(sizes) => balanced_vote(ballots, options.temperature, |label| sizes.get(label).copied().unwrap_or_default()),
        None => vote(ballots, options.temperature),
    };
    let similarity = neighbours.first().map(|nearest| nearest.similarity);
    // 0 asks all: also those with a negative cosine.
    let least = options.min_similarity.filter(|&least| least > 0.0);
    let is_near = least.is_none_or(|least| similarity.is_some_and(|similarity| similarity >= least));
    Classification {
        label: winner(&classes, options.min_score).filter(|_| is_near).cloned(),
        score: classes.first().map_or(0.0, |best| best.score),
        similarity,
        classes,
        neighbors: neighbours.iter().map(Hit::from).collect(),
    }
}

impl From<&Neighbour> for Hit {
    fn from(Neighbour { item, similarity, has_picture }: &Neighbour) -> Self {
        Self { id: item.id.clone(), labels: item.labels.clone(), similarity: *similarity, has_image: *has_picture }
    }
}
