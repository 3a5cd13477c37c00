//! The items of an upsert, as they were sent: pictures or vectors, with what is said of them.

use std::collections::BTreeMap;

use bytes::Bytes;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::super::{
    json,
    problem::{Code, Problem},
    remote::Sent,
    submission::{at_least_one, picture_from_text, too_many},
};
use crate::index::Item;

/// Items that are not embedded yet, at least one.
pub(super) struct Draft {
    /// The model to embed with, or the one that made the vectors.
    pub(super) model: Option<String>,
    /// Models that single items say they come from, each with the position of the first such item.
    pub(super) named: BTreeMap<String, usize>,
    pub(super) items: Vec<(Item, Subject)>,
}

/// What an item's vector comes from.
pub(super) enum Subject {
    Picture(Sent),
    Vector(Vec<f32>),
}

impl Draft {
    /// The items of pictures that came without words; those are in the query.
    pub(super) fn of_pictures(pictures: Vec<Bytes>, query: Query) -> Result<Self, Problem> {
        let count = at_least_one(&pictures)?;
        if !query.ids.is_empty() && query.ids.len() != count {
            let detail = format!("id: {} for {count} pictures: give one for each of them, or none", query.ids.len());
            return Err(Problem::new(Code::BadParameter, detail));
        }
        let mut ids = query.ids.into_iter();
        let mut item = || Item {
            id: ids.next().unwrap_or_else(new_id),
            labels: query.labels.clone(),
            metadata: query.metadata.clone(),
            ..Item::default()
        };
        let items = pictures.into_iter().map(|picture| (item(), Subject::Picture(picture.into()))).collect();
        Ok(Self { model: query.model, named: BTreeMap::new(), items })
    }

    /// The items of a JSON body with at most so many pictures.
    pub(super) fn from_json(body: &[u8], most: usize) -> Result<Self, Problem> {
        let body: Body = json::parse(body)?;
        if body.items.is_empty() {
            return Err(Problem::new(Code::BadParameter, "items: the list is empty"));
        }
        if body.items.iter().filter(|item| item.image.is_some()).count() > most {
            return Err(too_many(most));
        }
        let mut named = BTreeMap::new();
        let mut item = |(index, item): (usize, BodyItem)| {
            if let Some(model) = item.model {
                named.entry(model).or_insert(index);
            }
            let subject = match (item.image, item.vector) {
                (Some(image), None) => Subject::Picture(picture_from_text(&image)?),
                (None, Some(vector)) => Subject::Vector(vector),
                _ => {
                    let detail = format!("items[{index}]: expected exactly one of `image` and `vector`");
                    return Err(Problem::new(Code::BadParameter, detail));
                }
            };
            let id = item.id.unwrap_or_else(new_id);
            Ok((Item { id, labels: item.labels, metadata: item.metadata, source: None }, subject))
        };
        let read = |(index, found)| item((index, found)).map_err(|problem: Problem| problem.at(index));
        let items = body.items.into_iter().enumerate().map(read).collect::<Result<_, _>>()?;
        Ok(Self { model: body.model, named, items })
    }
}

impl Draft {
    /// Its pictures with the positions of their items.
    pub(super) fn pictures_mut(&mut self) -> impl Iterator<Item = (usize, &mut Sent)> {
        self.items.iter_mut().enumerate().filter_map(|(position, (_, subject))| match subject {
            Subject::Picture(sent) => Some((position, sent)),
            Subject::Vector(_) => None,
        })
    }
}

/// An id for an item that came without: unique, and in the order of time.
fn new_id() -> String {
    Uuid::now_v7().to_string()
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(in crate::http) struct Body {
    #[serde(default)]
    model: Option<String>,
    items: Vec<BodyItem>,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct BodyItem {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    image: Option<String>,
    #[serde(default)]
    vector: Option<Vec<f32>>,
    /// The model that made the vector, or its fingerprint: it has to be that of the collection.
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    labels: Vec<String>,
    #[serde(default, deserialize_with = "json::distinct_names")]
    metadata: Map<String, Value>,
}

/// What the query says of pictures in a raw or multipart body.
///
/// `id` may be repeated, once for each picture in their order; `labels` may be repeated, or list several with commas, or
/// be a JSON list (for labels with a comma in them); `metadata` is a JSON object. Labels and metadata go to all pictures.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(try_from = "Vec<(String, String)>")]
#[schemars(!try_from, default)]
pub(in crate::http) struct Query {
    model: Option<String>,
    #[schemars(rename = "id")]
    ids: Vec<String>,
    labels: Vec<String>,
    metadata: Map<String, Value>,
}

impl TryFrom<Vec<(String, String)>> for Query {
    type Error = String;

    fn try_from(pairs: Vec<(String, String)>) -> Result<Self, String> {
        let mut query = Self::default();
        let mut metadata = None;
        for (name, value) in pairs {
            match name.as_str() {
                "id" => query.ids.push(value),
                "labels" if value.trim_start().starts_with('[') => {
                    let list: Vec<String> = serde_json::from_str(&value).map_err(|error| format!("labels: {error}"))?;
                    query.labels.extend(list);
                }
                "labels" => query.labels.extend(value.split(',').map(str::trim).map(str::to_owned)),
                "metadata" if metadata.is_none() => {
                    metadata = Some(json::distinct_object(&value).map_err(|error| format!("metadata: expected a JSON object: {error}"))?);
                }
                "model" if query.model.is_none() => query.model = Some(value),
                "metadata" | "model" => return Err(format!("duplicate field `{name}`")),
                _ => {
                    let name: String = name.chars().take(64).collect();
                    return Err(format!("unknown field `{name}`, expected one of `id`, `labels`, `metadata`, `model`"));
                }
            }
        }
        query.metadata = metadata.unwrap_or_default();
        Ok(query)
    }
}
