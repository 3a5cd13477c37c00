//! Which databases hold collections together, as each of them has it written down.
//!
//! An id belongs to the database that a hash of it names. With another number or order of databases it would be looked for in another one,
//! so those are refused.

use std::sync::OnceLock;

use sqlx::{Connection, PgConnection};
use uuid::Uuid;

use super::super::Error;
use super::shards::{Shard, all};

/// Held by each connection of a server that knows its database alone, and for a moment by one that makes it one of several: a server that
/// goes on alone would show and change parts of collections. Any number will do that nothing else in the database uses.
const ALONE: i64 = 0x6469_6e6f_0003;
/// Held by a server that writes a place down.
const JOINING: i64 = 0x6469_6e6f_0004;

/// What a database knows of those that it belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Membership {
    /// From 0.
    place: i32,
    /// Number of all.
    of: i32,
    /// The same in all of them.
    arrangement: String,
    /// Of the first, whether all have theirs.
    is_complete: bool,
}

/// What a server takes a database for. It is known once the database was asked for the first time, and each later connection has to lead to
/// the same one: a name may come to mean another.
#[derive(Debug)]
pub(super) enum Role {
    /// It holds collections by itself.
    Alone(OnceLock<()>),
    /// It is one of several.
    Part(OnceLock<(i32, String)>),
}

impl Role {
    /// Gets a new connection ready for it, and refuses one to another database.
    pub(super) async fn admit(&self, connection: &mut PgConnection) -> Result<(), Error> {
        match self {
            Self::Alone(known) => {
                sqlx::query("SELECT pg_advisory_lock_shared($1)").bind(ALONE).execute(&mut *connection).await?;
                if known.get().is_some() { require_alone(connection).await } else { Ok(()) }
            }
            Self::Part(known) => {
                let Some((place, arrangement)) = known.get() else { return Ok(()) };
                match membership(connection).await? {
                    Some(own) if own.place == *place && own.arrangement == *arrangement => Ok(()),
                    _ => Err(Error::Unsuitable(format!(
                        "it is not the database that it was when this server first asked it (number {} of those of --index): its name leads \
                         to another one, or its tables are gone",
                        place + 1
                    ))),
                }
            }
        }
    }
}

/// What is found in a database.
struct Found {
    membership: Option<Membership>,
    has_collections: bool,
}

/// Refuses a database that belongs to others: alone it would show parts of collections.
pub(super) async fn require_alone(connection: &mut PgConnection) -> Result<(), Error> {
    let Some(Membership { place, of, .. }) = membership(connection).await? else { return Ok(()) };
    let place = place + 1;
    Err(Error::Unsuitable(format!(
        "it is number {place} of {of} databases that hold collections together: name all of them in --index, in their order, with \
         commas between them; {NEVER_USED}"
    )))
}

const NEVER_USED: &str = "where they were never used, DELETE FROM dino_arrangement in each of them makes them new ones";

async fn membership(connection: &mut PgConnection) -> Result<Option<Membership>, Error> {
    let select = sqlx::query_as("SELECT place, databases, arrangement, is_complete FROM dino_arrangement");
    let row: Option<(i32, i32, String, bool)> = select.fetch_optional(connection).await?;
    Ok(row.map(|(place, of, arrangement, is_complete)| Membership { place, of, arrangement, is_complete }))
}

async fn has_collections(connection: &mut PgConnection) -> Result<bool, Error> {
    Ok(sqlx::query_scalar("SELECT EXISTS (SELECT FROM dino_collections)").fetch_one(connection).await?)
}

async fn read(connection: &mut PgConnection) -> Result<Found, Error> {
    Ok(Found { membership: membership(connection).await?, has_collections: has_collections(connection).await? })
}

/// Refuses databases that are not those of one arrangement, in its order. Where none of them belongs to one, and all are empty, they make
/// a new one.
pub(super) async fn arrange(shards: &[Shard]) -> Result<(), Error> {
    let found = all(shards.iter().map(|shard| shard.run(async |connection| read(connection).await))).await?;
    let of = shards.len();
    for (place, found) in found.iter().enumerate() {
        check(place, of, found).map_err(|why| unsuitable(&shards[place], &why))?;
    }
    let known: Vec<&Membership> = found.iter().filter_map(|found| found.membership.as_ref()).collect();
    let is_new = found.iter().all(|found| !found.has_collections);
    let is_complete = known.iter().any(|own| own.is_complete);
    let arrangement = if known.len() == of && known.iter().all(|own| own.arrangement == known[0].arrangement) {
        known[0].arrangement.clone()
    } else {
        for (shard, found) in shards.iter().zip(&found) {
            if found.membership.is_none() && (is_complete || !is_new) {
                return Err(unsuitable(
                    shard,
                    &format!(
                        "it is empty, and others of its databases belong together without it: restore it from its backup; {NEVER_USED}"
                    ),
                ));
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
        arrangement
    };
    if !is_complete {
        shards[0]
            .run(async |connection| {
                sqlx::query("UPDATE dino_arrangement SET is_complete = true").execute(connection).await?;
                Ok(())
            })
            .await?;
    }
    for (place, shard) in shards.iter().enumerate() {
        shard.belongs(place as i32, &arrangement);
    }
    Ok(())
}

/// Says why a database cannot have this place.
fn check(place: usize, of: usize, found: &Found) -> Result<(), String> {
    match &found.membership {
        Some(own) if own.of as usize != of => Err(format!(
            "it is number {} of {} databases that hold collections together, and --index names {of}: name just those, in their order. To \
             spread collections over another number of databases, take snapshots of them and restore these into new ones; {NEVER_USED}",
            own.place + 1,
            own.of,
        )),
        Some(own) if own.place as usize != place => {
            Err(format!(
                "it is number {} of its databases, and --index names it as number {}: name them in their order; {NEVER_USED}",
                own.place + 1,
                place + 1
            ))
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
        "number {} of --index belongs together with other databases than the first one, or is the same as one before it; {NEVER_USED}",
        place + 1
    )
}

fn unsuitable(shard: &Shard, why: &str) -> Error {
    Error::Unsuitable(format!("{}: {why}", shard.label()))
}

/// Writes the place down where there is none, and returns the arrangement that the database has then. Refuses one that a server goes on to
/// use alone.
async fn join(connection: &mut PgConnection, place: usize, of: usize, arrangement: &str) -> Result<String, Error> {
    let mut transaction = connection.begin().await?;
    // One server after another.
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(JOINING).execute(&mut *transaction).await?;
    if membership(&mut transaction).await?.is_none() {
        let lock = sqlx::query_scalar("SELECT pg_try_advisory_xact_lock($1)").bind(ALONE);
        if !lock.fetch_one(&mut *transaction).await? {
            return Err(Error::Unsuitable(format!(
                "number {} of --index is in use by a server whose --index names it alone: stop that server",
                place + 1
            )));
        }
        if has_collections(&mut transaction).await? {
            return Err(Error::Unsuitable(format!("number {} of --index has got collections of its own meanwhile", place + 1)));
        }
        sqlx::query("INSERT INTO dino_arrangement (place, databases, arrangement) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
            .bind(place as i32)
            .bind(of as i32)
            .bind(arrangement)
            .execute(&mut *transaction)
            .await?;
    }
    let own = membership(&mut transaction).await?;
    transaction.commit().await?;
    // The same database under two names has one place.
    let own = own.filter(|own| (own.place as usize, own.of as usize) == (place, of));
    Ok(own.map(|own| own.arrangement).unwrap_or_default())
}
