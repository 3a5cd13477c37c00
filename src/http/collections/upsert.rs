//! The items of an upsert, as they were sent: pictures or vectors, with what is said of them.

use std::collections::BTreeMap;

use bytes::Bytes;
use image::RgbImage;
use schemars::JsonSchema;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, Error},
};
use serde_json::{Map, Value, value::RawValue};
use uuid::Uuid;

use super::super::{
    body::Meter,
    drawn_mask::MaskSource,
    json::{self, AtMost, Component},
    openapi::body::OwnJson,
    problem::{Code, Problem},
    remote::ImageSource,
    submission::{JsonRequest, at_least_one, picture_from_text, too_many},
};
use crate::index::{Bounded, Item, MAX_DIM};
use dino_vision::{duplicates::Fingerprint, media};

/// The items of an upsert that are not embedded yet, at least one.
pub(super) struct Upsert {
    /// The model to embed with, or the one that made the vectors.
    pub(super) model: Option<String>,
    /// Models that single items say they come from, each with the position of the first such item.
    pub(super) named: BTreeMap<String, usize>,
    /// Whether the patches of each picture's rotations are stored with it.
    pub(super) rotations: bool,
    pub(super) items: Vec<(Item, ItemContent)>,
    /// Masks of pictures, by the position of their item.
    pub(super) masks: BTreeMap<usize, MaskSource>,
}

/// What an item's vector comes from.
pub(super) enum ItemContent {
    Picture(ImageSource),
    Vector(Vec<f32>),
}

/// What is kept of a picture that becomes an item, beside what the model makes of it.
#[derive(Clone)]
pub(super) struct Kept {
    /// What its copies are known by.
    pub(super) fingerprint: Box<Fingerprint>,
    /// A small JPEG, where one is stored.
    pub(super) thumbnail: Option<Vec<u8>>,
}

impl Kept {
    /// That of a picture, `with_thumbnail` or without.
    pub(super) fn of(picture: &RgbImage, with_thumbnail: bool) -> Self {
        let thumbnail = with_thumbnail.then(|| media::thumbnail(picture));
        Self { fingerprint: Box::new(Fingerprint::of(picture)), thumbnail }
    }
}

impl Upsert {
    /// The items of pictures in a raw or multipart body; their ids and labels are in the query.
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
        let items = pictures.into_iter().map(|picture| (item(), ItemContent::Picture(picture.into()))).collect();
        Ok(Self { model: query.model, named: BTreeMap::new(), rotations: query.rotations, items, masks: BTreeMap::new() })
    }

    /// The items of a JSON body with at most so many pictures, one by one, and what they take counted.
    pub(super) fn from_json(request: &JsonRequest, most: usize, meter: &mut Meter) -> Result<Self, Problem> {
        let (Body { model, rotations, items: list }, []) = json::parse_beside(&request.body, &request.query, &["items"], [])?;
        let (mut items, mut named, mut masks, mut pictures) = (Vec::new(), BTreeMap::new(), BTreeMap::new(), 0);
        json::each(list, |index, element| {
            let ReadItem { item, content, mask, model, taken } = read_item(element).map_err(|problem| problem.in_item(index))?;
            if matches!(content, ItemContent::Picture(_)) {
                pictures += 1;
                if pictures > most {
                    return Err(too_many(most));
                }
            }
            meter.take(taken)?;
            if let Some(model) = model {
                named.entry(model).or_insert(index);
            }
            if let Some(mask) = mask {
                masks.insert(index, mask);
            }
            items.push((item, content));
            Ok(())
        })
        .map_err(|mut problem| {
            if problem.index.is_none() && problem.code == Code::BadParameter {
                problem.detail = format!("items: {}", problem.detail).into();
            }
            problem
        })?;
        if items.is_empty() {
            return Err(Problem::new(Code::BadParameter, "items: the list is empty"));
        }
        Ok(Self { model, named, rotations, items, masks })
    }
}

/// Memory of an item beside its strings, numbers and metadata: its slot in a list that grows by doubling, and an id.
const ITEM: usize = 2 * size_of::<(Item, ItemContent)>() + 64;

/// An item with the model that it names, its mask, and the memory that they take in bytes.
struct ReadItem {
    item: Item,
    content: ItemContent,
    mask: Option<MaskSource>,
    model: Option<String>,
    taken: usize,
}

fn read_item(element: &RawValue) -> Result<ReadItem, Problem> {
    if !element.get().starts_with('{') {
        return Err(Problem::new(Code::BadParameter, "expected an object"));
    }
    let item: BodyItem = json::parse(element.get().as_bytes(), &["image", "mask", "metadata"])?;
    let refused = |why: &'static str| Problem::new(Code::BadParameter, why);
    let (content, of_content) = match (item.image, item.vector) {
        (Some(image), None) => {
            let text = json::text(image).ok_or_else(|| refused("image: expected base64, a data URI or an address"))?;
            let source = picture_from_text(text)?;
            let bytes = source.bytes.len();
            (ItemContent::Picture(source), bytes)
        }
        (None, Some(vector)) => {
            let vector = vector.into_vector();
            let bytes = vector.capacity() * size_of::<f32>();
            (ItemContent::Vector(vector), bytes)
        }
        _ => return Err(refused("expected exactly one of `image` and `vector`")),
    };
    let Metadata { members, memory } = item.metadata;
    let id = item.id.unwrap_or_else(new_id);
    let labels = item.labels.0;
    let model = item.model;
    // The model's name twice: as a key among those that are named, in a node of their own.
    let of_model = model.as_ref().map_or(0, |model| 2 * model.len() + 128);
    let texts = id.len() + of_model + labels.iter().map(|label| size_of::<String>() + label.len()).sum::<usize>();
    let own = Item { id, labels, metadata: members, ..Item::default() };
    let mask = item.mask;
    let of_mask = mask.as_ref().map_or(0, |mask| mask.bytes() + size_of::<(usize, MaskSource)>());
    let taken = ITEM + of_content + of_mask + memory + texts;
    Ok(ReadItem { item: own, content, mask, model, taken })
}

impl Problem {
    /// Says in which item it is.
    fn in_item(mut self, index: usize) -> Self {
        if matches!(self.code, Code::BadParameter | Code::BadJson) {
            let is_named =
                self.detail.split_once(": ").is_some_and(|(name, _)| name.chars().all(|c| c.is_alphanumeric() || "[].".contains(c)));
            let joint = if is_named { "." } else { ": " };
            self.detail = format!("items[{index}]{joint}{}", self.detail).into();
        }
        self.at(index)
    }
}

impl Upsert {
    /// Its pictures with the positions of their items.
    pub(super) fn pictures_mut(&mut self) -> impl Iterator<Item = (usize, &mut ImageSource)> {
        self.items.iter_mut().enumerate().filter_map(|(position, (_, content))| match content {
            ItemContent::Picture(source) => Some((position, source)),
            ItemContent::Vector(_) => None,
        })
    }
}

/// An id for an item that came without: unique, and in the order of time.
fn new_id() -> String {
    Uuid::now_v7().to_string()
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "UpsertRequest")]
pub(in crate::http) struct Body<'a> {
    /// The model to embed pictures with, or the one that made all vectors; it has to be that of the collection.
    #[serde(default)]
    model: Option<String>,
    /// In a collection of patches: store those of the picture turned by 45, 90, … 315 degrees too. Each counts as a picture.
    #[serde(default)]
    rotations: bool,
    /// At least one.
    #[serde(borrow)]
    #[schemars(with = "Vec<BodyItem<'static>>")]
    items: &'a RawValue,
}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "UpsertItem")]
struct BodyItem<'a> {
    /// Up to 512 bytes; an item of that id is replaced. One that is unique is made where there is none.
    #[serde(default)]
    id: Option<String>,
    /// Base64, a data URI, or a URL. Either this or `vector`.
    #[serde(default, borrow)]
    #[schemars(with = "Option<String>")]
    image: Option<&'a RawValue>,
    /// In a collection of patches, what of the picture its labels show: `/segment?collection=…` paints others by it.
    #[serde(default)]
    mask: Option<MaskSource>,
    /// As many numbers as the collection has dimensions. Either this or `image`.
    #[serde(default)]
    #[schemars(with = "Option<Vec<f32>>")]
    vector: Option<AtMost<Component, MAX_DIM>>,
    // More than an item may have, since repeated ones count once.
    #[serde(default)]
    #[schemars(with = "Vec<String>")]
    labels: AtMost<String, 1024>,
    /// The model that made the vector, or its fingerprint: it has to be that of the collection.
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    #[schemars(with = "Map<String, Value>")]
    metadata: Metadata,
}

/// Most memory of one item's metadata, in bytes. Its JSON is bounded too, once all of it is known.
const MAX_METADATA_MEMORY: usize = 2 << 20;

/// An object, with the memory that it takes in bytes.
#[derive(Debug, Default)]
struct Metadata {
    members: Map<String, Value>,
    memory: usize,
}

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut left = MAX_METADATA_MEMORY;
        match Bounded::new(&mut left).deserialize(deserializer)? {
            Value::Object(members) => Ok(Self { members, memory: MAX_METADATA_MEMORY - left }),
            _ => Err(D::Error::custom("expected a JSON object")),
        }
    }
}

impl OwnJson for Body<'_> {
    const DESCRIPTION: &'static str = "Pictures are the body itself or parts named `image`, and what is said of them is in the query. JSON holds `items`, \
                                       each with its picture or its vector and what is said of it, and `model`, which may be in the query too; \
                                       `id`, `labels` and `metadata` in the query of a JSON body are refused.";
}

/// What the query says of pictures in a raw or multipart body; beside JSON it has `model` alone.
///
/// `id` may be repeated, once for each picture in their order; `labels` may be repeated, or list several with commas, or
/// be a JSON list (for labels with a comma in them); `metadata` is a JSON object. Labels and metadata go to all pictures.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(try_from = "Vec<(String, String)>")]
#[schemars(!try_from, default, rename = "UpsertOptions")]
pub(in crate::http) struct Query {
    /// The model to embed with; it has to be that of the collection.
    model: Option<String>,
    /// One for each picture, in their order, or none; not beside JSON.
    #[schemars(rename = "id")]
    ids: Vec<String>,
    /// Of all pictures, not beside JSON. Labels with a comma in them are given as a string that holds a JSON list.
    labels: Vec<String>,
    /// Of all pictures, not beside JSON: an object.
    metadata: Map<String, Value>,
    /// In a collection of patches: store those of the picture turned by 45, 90, … 315 degrees too. Each counts as a picture.
    rotations: bool,
}

impl TryFrom<Vec<(String, String)>> for Query {
    type Error = String;

    fn try_from(pairs: Vec<(String, String)>) -> Result<Self, String> {
        let mut query = Self::default();
        let (mut metadata, mut rotations) = (None, None);
        for (name, value) in pairs {
            match name.as_str() {
                "id" => query.ids.push(value),
                "labels" if value.trim_start().starts_with('[') => {
                    let list: Vec<String> = serde_json::from_str(&value).map_err(|error| format!("labels: {error}"))?;
                    query.labels.extend(list);
                }
                "labels" => query.labels.extend(value.split(',').map(str::trim).map(str::to_owned)),
                "metadata" if metadata.is_none() => {
                    metadata = Some(
                        serde_json::from_str::<Metadata>(&value).map_err(|error| format!("metadata: expected a JSON object: {error}"))?,
                    );
                }
                "model" if query.model.is_none() => query.model = Some(value),
                "rotations" if rotations.is_none() => {
                    let given = value
                        .parse()
                        .map_err(|_| format!("rotations: expected true or false, not {:?}", value.get(..64).unwrap_or(&value)))?;
                    rotations = Some(given);
                }
                "metadata" | "model" | "rotations" => return Err(format!("duplicate field `{name}`")),
                _ => {
                    let name: String = name.chars().take(64).collect();
                    return Err(format!("unknown field `{name}`, expected one of `id`, `labels`, `metadata`, `model`, `rotations`"));
                }
            }
        }
        query.rotations = rotations.unwrap_or_default();
        query.metadata = metadata.map(|metadata| metadata.members).unwrap_or_default();
        Ok(query)
    }
}
