//! `GET …/duplicates`: items with the same pixels, and items of the same scene.

mod cursor;
mod finder;

use std::{sync::Arc, time::Duration};

use axum::extract::State;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, de::Error as _};
use tokio::time::{Instant, timeout};

pub(crate) use self::finder::DuplicateFinder;
use self::{
    cursor::{Cursor, ReportId},
    finder::Key,
};
use super::{
    super::{
        App,
        answer::Encoder,
        parameters::{CollectionPath, PathOf, QueryOf},
        problem::{Code, Problem},
        request_context,
        response::JsonBody,
        versioned_cache::MemoryUse,
    },
    find, search_pool,
};
use crate::{
    index::{Collection, Filter, checksum},
    serving::Panicked,
};
use dino_vision::duplicates::{self, Candidates, DEFAULT_SIMILARITY, Fingerprint, Kind};

/// Most groups of a page.
const MOST_GROUPS: usize = 1000;
/// Items after which a page ends: groups may be large.
const PAGE_ITEMS: usize = 10_000;
/// When to ask again while items are compared.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// What is left of a request's time for its answer.
const TO_ANSWER: Duration = Duration::from_secs(1);

/// What may go wrong.
pub(super) const ERRORS: &[Code] = &[Code::UnknownCollection, Code::QueueFull, Code::ItemDamaged, Code::StoreFailed, Code::NotReady];

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "DuplicatesOptions")]
pub(in crate::http) struct Options {
    /// The least cosine of two items of one scene, 0.5 to 1.
    min_similarity: f32,
    /// Compare pixels alone: all groups are of the kind `copy`.
    same_pixels: bool,
    /// Most groups of the page, 1 to 1000.
    limit: usize,
    /// `next` of the page before.
    cursor: Option<String>,
    /// Only items that pass it are compared.
    #[schemars(with = "Option<Filter>")]
    filter: Option<FilterText>,
}

/// A filter and its JSON, by which what was found with it is known again.
#[derive(Debug)]
struct FilterText {
    filter: Filter,
    text: String,
}

impl<'de> Deserialize<'de> for FilterText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let filter = text.parse().map_err(D::Error::custom)?;
        Ok(Self { filter, text })
    }
}

impl Default for Options {
    fn default() -> Self {
        Self { min_similarity: DEFAULT_SIMILARITY, same_pixels: false, limit: 100, cursor: None, filter: None }
    }
}

impl Options {
    fn check(&self) -> Result<(), Problem> {
        let refused = |why: String| Err(Problem::new(Code::BadParameter, why));
        if !(0.5..=1.0).contains(&self.min_similarity) {
            return refused(format!("min_similarity: must lie between 0.5 and 1, not {}", self.min_similarity));
        }
        if !(1..=MOST_GROUPS).contains(&self.limit) {
            return refused(format!("limit: must lie between 1 and {MOST_GROUPS}, not {}", self.limit));
        }
        Ok(())
    }

    /// Where the page begins, where it is not the first.
    fn cursor(&self) -> Result<Option<Cursor>, Problem> {
        let Some(text) = self.cursor.as_deref().filter(|text| !text.is_empty()) else { return Ok(None) };
        let wrong = || Problem::new(Code::BadParameter, "cursor: is none that a page has given as `next`");
        Cursor::parse(text).map(Some).ok_or_else(wrong)
    }
}

/// A page of the groups of a collection.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DuplicatesResponse")]
pub(in crate::http) struct Answer<'a> {
    collection: &'a str,
    /// Items that were compared.
    count: usize,
    /// Those of them whose pixels are not known: they came as vectors, or were stored by a version that kept nothing of them. They are
    /// copies of the same file alone.
    without_fingerprint: usize,
    /// Groups on all pages.
    total: usize,
    /// In the order of the ids of their first items.
    groups: &'a [Group],
    /// What to pass as `cursor` for the next page; null at the end.
    next: Option<String>,
}

/// Items that are connected by the same pixels or by similarity. A group may be a chain, whose ends have little in common.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DuplicateGroup")]
struct Group {
    kind: Kind,
    /// The least similarity of an item to the first.
    lowest_similarity: f32,
    /// The first has the most pixels, of equal ones the least id; the others follow by similarity to it.
    items: Vec<Item>,
}

/// An item of a group.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DuplicateItem")]
struct Item {
    id: String,
    /// Cosine with the first item, right to about 0.001.
    similarity: f32,
    /// Whether it has the same pixels as the first item: encoded again, or of another size.
    same_pixels: bool,
    /// The largest item with the same pixels, where that is another one.
    #[serde(skip_serializing_if = "Option::is_none")]
    copy_of: Option<String>,
    /// Of its picture, in pixels, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    width: Option<u32>,
    /// Of its picture, in pixels, where that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    height: Option<u32>,
}

/// What was found in a collection.
pub(super) struct Report {
    id: ReportId,
    count: usize,
    without_fingerprint: usize,
    groups: Vec<Group>,
}

impl MemoryUse for Report {
    fn bytes(&self) -> usize {
        let of_item = |item: &Item| size_of::<Item>() + item.id.len() + item.copy_of.as_ref().map_or(0, String::len);
        let of_group = |group: &Group| size_of::<Group>() + group.items.iter().map(of_item).sum::<usize>();
        size_of::<Self>() + self.groups.iter().map(of_group).sum::<usize>()
    }
}

impl Report {
    fn new(id: ReportId, candidates: &Candidates, groups: &[duplicates::Group]) -> Self {
        let item = |member: &duplicates::Member| {
            let size = candidates.fingerprint(member.item).map(Fingerprint::size);
            Item {
                id: candidates.id(member.item).to_owned(),
                similarity: member.similarity.unwrap_or(0.0),
                same_pixels: member.same_pixels,
                copy_of: member.copy_of.map(|largest| candidates.id(largest).to_owned()),
                width: size.map(|(width, _)| width),
                height: size.map(|(_, height)| height),
            }
        };
        let group = |group: &duplicates::Group| Group {
            kind: group.kind,
            lowest_similarity: group.lowest_similarity.unwrap_or(0.0),
            items: group.members.iter().map(item).collect(),
        };
        Self {
            id,
            count: candidates.len(),
            without_fingerprint: candidates.without_fingerprint(),
            groups: groups.iter().map(group).collect(),
        }
    }

    /// The groups after a cursor, and the cursor of the page after them.
    fn page(&self, cursor: Option<&Cursor>, limit: usize) -> (&[Group], Option<Cursor>) {
        let start = cursor.map_or(0, |cursor| self.groups.partition_point(|group| group.items[0].id <= cursor.after));
        let (mut end, mut items) = (start, 0);
        while end < self.groups.len() && end - start < limit && items < PAGE_ITEMS {
            items += self.groups[end].items.len();
            end += 1;
        }
        let next = || Cursor { report: self.id.clone(), after: self.groups[end - 1].items[0].id.clone() };
        (&self.groups[start..end], (end < self.groups.len()).then(next))
    }
}

/// Compares the items of a collection with each other.
pub(super) async fn handle(
    State(app): State<App>,
    PathOf(path): PathOf<CollectionPath>,
    QueryOf(options): QueryOf<Options>,
) -> Result<JsonBody<Answer<'static>>, Problem> {
    let collection = find(&app, &path.collection).await?;
    options.check()?;
    let cursor = options.cursor()?;
    let Options { min_similarity, same_pixels, limit, filter, .. } = options;
    let key = Key {
        collection: collection.name().clone(),
        number: collection.number(),
        min_similarity: (!same_pixels).then(|| min_similarity.to_bits()),
        filter: filter.as_ref().map(|filter| checksum::of_bytes(filter.text.as_bytes())),
    };
    let wanted = cursor.as_ref().map(|cursor| &cursor.report);
    let known = wanted.and_then(|report| app.duplicates.find_for_next_page(&key, report));
    let report = match known {
        Some(report) => report,
        None => find_or_compare(&app, &key, &collection, filter.map(|filter| filter.filter), wanted).await?,
    };
    app.duplicates.keep_for_next_page(&key, &report.id);
    let encoder = Encoder::new(&app);
    let encode = move || {
        let (groups, next) = report.page(cursor.as_ref(), limit);
        encoder.json(&Answer {
            collection: collection.name().as_str(),
            count: report.count,
            without_fingerprint: report.without_fingerprint,
            total: report.groups.len(),
            groups,
            next: next.map(|cursor| cursor.to_string()),
        })
    };
    app.pool.run(encode).await?
}

/// What was found in the collection as it is now, which has to be `wanted` where a page before was of that.
async fn find_or_compare(
    app: &App,
    key: &Key,
    collection: &Arc<dyn Collection>,
    filter: Option<Filter>,
    wanted: Option<&ReportId>,
) -> Result<Arc<Report>, Problem> {
    let asked = Arc::clone(collection);
    let version = search_pool(app).run(move || asked.version()).await??;
    let is_wanted = |report: &ReportId| wanted.is_none_or(|wanted| wanted == report);
    if !is_wanted(&ReportId::of(key, version)) {
        return Err(gone());
    }
    if let Some(report) = app.duplicates.find(key, version) {
        return Ok(report);
    }
    let flight = app.duplicates.flight(key);
    let left = request_context::deadline().map_or(app.limits.time, |deadline| deadline.saturating_duration_since(Instant::now()));
    let longest = left.saturating_sub(TO_ANSWER).max(left / 2);
    if let Ok(outcome) = timeout(longest, finder::compare(app, &flight, key, collection, filter)).await {
        return outcome.ok_or(Panicked)?.and_then(|report| if is_wanted(&report.id) { Ok(report) } else { Err(gone()) });
    }
    let detail = format!(
        "the items of collection {} are still being compared with each other ({} %), and that goes on: ask again",
        key.collection,
        flight.percent()
    );
    Err(Problem { retry_after: Some(RETRY_AFTER), ..Problem::new(Code::NotReady, detail) })
}

fn gone() -> Problem {
    let detail = "cursor: the answer that it belongs to is of other options, or of what the collection held before, and is kept no longer: start again \
                  with the first page";
    Problem::new(Code::BadParameter, detail)
}
