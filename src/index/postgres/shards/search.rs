//! The nearest items of all databases: first which ones these are, then they alone are read.

use sqlx::PgConnection;

use super::super::super::{Error, Filter, Neighbour, Search};
use super::super::record::Record;
use super::super::search::{Ranked, rank, read_ranked};
use super::all;
use super::collection::Part;

/// Times that a search looks again where items changed before they were read.
const ATTEMPTS: usize = 10;

/// The neighbours of a normalised query `[dim]`, nearest first.
pub(super) async fn search(parts: &[Part], query: &[f32], options: &Search<'_>) -> Result<Vec<Neighbour>, Error> {
    let mut found = Vec::new();
    for _ in 0..ATTEMPTS {
        let rank = async |connection: &mut PgConnection, record: &Record| rank(connection, record, query, options).await;
        let mut ranked = placed(all(parts.iter().map(|part| part.read(&rank))).await?);
        ranked.sort_unstable_by(|(a, _), (b, _)| a.order(b));
        ranked.truncate(options.k);
        let read = all(parts.iter().map(|part| read(part, query, options.filter, &ranked))).await?;
        let are_same = read.iter().all(|(_, are_same)| *are_same);
        found = read.into_iter().flat_map(|(found, _)| found).collect();
        if are_same {
            break;
        }
    }
    found.sort_unstable();
    Ok(found)
}

/// Those of the items that are in this part.
async fn read(part: &Part, query: &[f32], filter: Option<&Filter>, ranked: &[(Ranked, usize)]) -> Result<(Vec<Neighbour>, bool), Error> {
    let own: Vec<&Ranked> = ranked.iter().filter(|(_, place)| *place == part.place()).map(|(one, _)| one).collect();
    if own.is_empty() {
        return Ok((Vec::new(), true));
    }
    part.read(async |connection, record| read_ranked(connection, record, query, filter, &own).await).await
}

/// What all databases answer, each with the place of its database.
pub(super) fn placed<T>(answers: Vec<Vec<T>>) -> Vec<(T, usize)> {
    answers.into_iter().enumerate().flat_map(|(place, answer)| answer.into_iter().map(move |one| (one, place))).collect()
}
