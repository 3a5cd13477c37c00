//! Which databases hold collections together, as each of them has it written down.
//!
//! An id belongs to the database that a hash of it names. With another number or order of databases it would be looked for in another one,
//! so those are refused.

use sqlx::PgConnection;
use uuid::Uuid;

use super::super::Error;
use super::shards::{Shard, all};

/// What a database knows of those that it belongs to.
struct Membership {
    /// From 0.
    place: i32,
    /// Number of all.
    of: i32,
    /// The same in all of them.
    arrangement: String,
}

/// What is found in a database.
struct Found {
    membership: Option<Membership>,
    has_collections: bool,
}

/// Refuses a database that belongs to others: alone it would show parts of collections.
pub(super) async fn require_alone(connection: &mut PgConnection) -> Result<(), Error> {
    let Some(Membership { place, of, .. }) = read(connection).await?.membership else { return Ok(()) };
    let place = place + 1;
    Err(Error::Unsuitable(format!(
        "it is number {place} of {of} databases that hold collections together: name all of them in --index, in their order, with \
         commas between them"
    )))
}

async fn read(connection: &mut PgConnection) -> Result<Found, Error> {
    let row: Option<(i32, i32, String)> =
        sqlx::query_as("SELECT place, databases, arrangement FROM dino_arrangement").fetch_optional(&mut *connection).await?;
    let has_collections = sqlx::query_scalar("SELECT EXISTS (SELECT FROM dino_collections)").fetch_one(connection).await?;
    Ok(Found { membership: row.map(|(place, of, arrangement)| Membership { place, of, arrangement }), has_collections })
}

/// Refuses databases that are not those of one arrangement, in its order. Where none of them belongs to one, and all are empty, they make
/// a new one.
pub(super) async fn arrange(shards: &[Shard]) -> Result<(), Error> {
    let found = all(shards.iter().map(|shard| shard.run(async |connection| read(connection).await))).await?;
    let of = shards.len();
    for (place, found) in found.iter().enumerate() {
        check(place, of, found).map_err(|why| unsuitable(&shards[place], &why))?;
    }
    let known: Vec<&str> = found.iter().filter_map(|found| found.membership.as_ref()).map(|own| own.arrangement.as_str()).collect();
    let is_new = found.iter().all(|found| !found.has_collections);
    if known.len() == of && known.iter().all(|one| one == &known[0]) {
        return Ok(());
    }
    for (shard, found) in shards.iter().zip(&found) {
        if found.membership.is_none() && !is_new {
            return Err(unsuitable(shard, "it is empty, and others of its databases hold collections: restore it from its backup"));
        }
    }
    // Servers that start at the same time agree on what the first database says.
    let own = Uuid::now_v7().simple().to_string();
    let arrangement = shards[0].run(async |connection| join(connection, 0, of, &own).await).await?;
    for (place, shard) in shards.iter().enumerate() {
        let joined = shard.run(async |connection| join(connection, place, of, &arrangement).await).await?;
        if joined != arrangement {
            return Err(unsuitable(shard, &strange(place)));
        }
    }
    Ok(())
}

/// Says why a database cannot have this place.
fn check(place: usize, of: usize, found: &Found) -> Result<(), String> {
    match &found.membership {
        Some(own) if own.of as usize != of => Err(format!(
            "it is number {} of {} databases that hold collections together, and --index names {of}: name just those, in their order. To \
             spread collections over another number of databases, take snapshots of them and restore these into new ones",
            own.place + 1,
            own.of,
        )),
        Some(own) if own.place as usize != place => {
            Err(format!("it is number {} of its databases, and --index names it as number {}: name them in their order", own.place + 1, place + 1))
        }
        None if found.has_collections => Err(
            "it holds collections of its own: take snapshots of them with --index of that database alone, and restore these into new, empty \
             databases"
                .to_owned(),
        ),
        _ => Ok(()),
    }
}

fn strange(place: usize) -> String {
    format!(
        "number {} of --index belongs together with other databases than the first one, or is the same as one before it; where it was never \
         used, DELETE FROM dino_arrangement makes it a new one",
        place + 1
    )
}

fn unsuitable(shard: &Shard, why: &str) -> Error {
    Error::Unsuitable(format!("{}: {why}", shard.label()))
}

/// Writes the place down where there is none, and returns the arrangement that the database has then.
async fn join(connection: &mut PgConnection, place: usize, of: usize, arrangement: &str) -> Result<String, Error> {
    sqlx::query("INSERT INTO dino_arrangement (place, databases, arrangement) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
        .bind(place as i32)
        .bind(of as i32)
        .bind(arrangement)
        .execute(&mut *connection)
        .await?;
    let (own, all, found): (i32, i32, String) =
        sqlx::query_as("SELECT place, databases, arrangement FROM dino_arrangement").fetch_one(connection).await?;
    // The same database under two names has one place.
    Ok(if (own, all) == (place as i32, of as i32) { found } else { String::new() })
}
