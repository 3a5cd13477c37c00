//! The nearest items of all databases: first which ones these are, then they alone are read.

use sqlx::PgConnection;

use super::super::super::{Error, Filter, Neighbour, Search};
use super::super::record::Record;
use super::super::search::{Ranked, Reread, rank, read_ranked};
use super::all;
use super::collection::Part;

/// Rankings of a search at most. One is used up where more items than it has to spare change before they are read.
const ATTEMPTS: usize = 3;
/// Items that are ranked beyond those that are asked for.
const SPARE: usize = 16;

/// The neighbours of a normalised query `[dim]`, nearest first.
pub(super) async fn search(parts: &[Part], query: &[f32], options: &Search<'_>) -> Result<Vec<Neighbour>, Error> {
    let mut read = Reread::default();
    for _ in 0..ATTEMPTS {
        let ranked = ranked(parts, query, options).await?;
        read = Reread::default();
        let mut rest = &ranked.items[..];
        while read.unchanged < options.k && !rest.is_empty() {
            let (next, others) = rest.split_at(rest.len().min(options.k - read.unchanged));
            for part in all(parts.iter().map(|part| reread(part, query, options.filter, next))).await? {
                read.found.extend(part.found);
                read.unreadable += part.unreadable;
                read.unchanged += part.unchanged;
            }
            rest = others;
        }
        if read.unchanged >= options.k || ranked.are_all {
            break;
        }
    }
    read.found.sort_unstable();
    // An item that cannot be read takes its place.
    read.found.truncate(options.k.saturating_sub(read.unreadable));
    Ok(read.found)
}

/// Items, nearest first, each with the place of its database.
struct RankedItems {
    items: Vec<(Ranked, usize)>,
    /// Whether there are no others.
    are_all: bool,
}

/// The nearest items of all databases: at least as many as are asked for, where there are so many.
async fn ranked(parts: &[Part], query: &[f32], options: &Search<'_>) -> Result<RankedItems, Error> {
    let most = options.k.saturating_add(SPARE);
    let wider = Search { k: most, ..*options };
    let rank = async |connection: &mut PgConnection, record: &Record| rank(connection, record, query, &wider).await;
    let answers = all(parts.iter().map(|part| part.read(&rank))).await?;
    // A database that had more to give has others beyond its last one: so far it is known which items come next.
    let known = answers.iter().filter(|answer| answer.len() >= most).filter_map(|answer| answer.last()).min_by(|a, b| a.order(b)).cloned();
    let mut items = placed(answers);
    items.sort_unstable_by(|(a, _), (b, _)| a.order(b));
    if let Some(last) = &known {
        items.truncate(items.partition_point(|(one, _)| one.order(last).is_le()));
    }
    Ok(RankedItems { items, are_all: known.is_none() })
}

/// Those of the items that are in this part.
async fn reread(part: &Part, query: &[f32], filter: Option<&Filter>, ranked: &[(Ranked, usize)]) -> Result<Reread, Error> {
    let own: Vec<&Ranked> = ranked.iter().filter(|(_, place)| *place == part.place()).map(|(one, _)| one).collect();
    if own.is_empty() {
        return Ok(Reread::default());
    }
    part.read(async |connection, record| read_ranked(connection, record, query, filter, &own).await).await
}

/// What all databases answer, each with the place of its database.
pub(super) fn placed<T>(answers: Vec<Vec<T>>) -> Vec<(T, usize)> {
    answers.into_iter().enumerate().flat_map(|(place, answer)| answer.into_iter().map(move |one| (one, place))).collect()
}
