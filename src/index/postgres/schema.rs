//! What the database has to be, and the tables that it gets.

use sqlx::{Connection, PgConnection};

use super::super::Error;

/// Each brings the tables from the version before it to its own; the first is version 1. What has been released is never
/// changed.
const MIGRATIONS: [&str; 5] = [
    include_str!("migrations/1.sql"),
    include_str!("migrations/2.sql"),
    include_str!("migrations/3.sql"),
    include_str!("migrations/4.sql"),
    include_str!("migrations/5.sql"),
];

/// Held while tables are changed, so that servers that start together do it one after the other. Any number will do that
/// nothing else in the database uses.
const LOCK: i64 = 0x6469_6e6f_0001;

/// Oldest pgvector whose index can go on until it has found enough.
const PGVECTOR: [u32; 2] = [0, 8];

/// Brings the tables to the version of this program.
pub(super) async fn migrate(connection: &mut PgConnection) -> Result<(), Error> {
    let mut transaction = connection.begin().await?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)").bind(LOCK).execute(&mut *transaction).await?;
    require_utf8(&mut transaction).await?;
    require_pgvector(&mut transaction).await?;
    sqlx::query("CREATE TABLE IF NOT EXISTS dino_schema (version integer PRIMARY KEY)").execute(&mut *transaction).await?;
    let found: Option<i32> = sqlx::query_scalar("SELECT max(version) FROM dino_schema").fetch_one(&mut *transaction).await?;
    let found = found.unwrap_or(0) as usize;
    let newest = MIGRATIONS.len();
    if found > newest {
        let reason = format!("its tables have version {found}, this program reads up to {newest}: use a newer one");
        return Err(Error::Unsuitable(reason));
    }
    for (version, migration) in (1..).zip(MIGRATIONS).skip(found) {
        tracing::info!(version, "bringing the tables of the collections to a new version");
        sqlx::raw_sql(migration).execute(&mut *transaction).await?;
        sqlx::query("INSERT INTO dino_schema VALUES ($1)").bind(version).execute(&mut *transaction).await?;
    }
    transaction.commit().await?;
    Ok(())
}

async fn require_utf8(connection: &mut PgConnection) -> Result<(), Error> {
    let encoding: String = sqlx::query_scalar("SELECT current_setting('server_encoding')").fetch_one(connection).await?;
    if encoding == "UTF8" {
        return Ok(());
    }
    Err(Error::Unsuitable(format!("its encoding is {encoding}: make one with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0")))
}

/// Makes the extension where this role may, and refuses one that is too old.
async fn require_pgvector(connection: &mut PgConnection) -> Result<(), Error> {
    const VERSION: &str = "SELECT extversion FROM pg_extension WHERE extname = 'vector'";
    let mut version: Option<String> = sqlx::query_scalar(VERSION).fetch_optional(&mut *connection).await?;
    if version.is_none() {
        let made = sqlx::query("CREATE EXTENSION vector").execute(&mut *connection).await;
        made.map_err(|error| {
            Error::Unsuitable(format!("it has no extension vector, and none could be made ({error}): install pgvector, then let a superuser run CREATE EXTENSION vector"))
        })?;
        version = sqlx::query_scalar(VERSION).fetch_optional(&mut *connection).await?;
    }
    let version = version.unwrap_or_default();
    let numbers: Vec<u32> = version.split('.').map_while(|part| part.parse().ok()).collect();
    if numbers.as_slice() < PGVECTOR.as_slice() {
        return Err(Error::Unsuitable(format!(
            "its pgvector is {version}, from 0.8 on it does: install that, then run ALTER EXTENSION vector UPDATE"
        )));
    }
    Ok(())
}
