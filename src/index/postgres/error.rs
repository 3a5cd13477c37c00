//! Errors of the database, sorted by what the caller can do about them.

use super::super::Error;

/// No such table.
const NO_TABLE: &str = "42P01";
/// No connection is free.
const TOO_MANY: &str = "53300";

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        let gone = match &error {
            sqlx::Error::Io(_)
            | sqlx::Error::Tls(_)
            | sqlx::Error::Protocol(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            sqlx::Error::Database(error) => error.code().is_some_and(|code| is_gone(&code)),
            _ => false,
        };
        if gone { Self::Unreachable(error.to_string()) } else { Self::Sql(Box::new(error)) }
    }
}

/// Codes of a server that is starting, stopping or full, or that closed the connection: appendix A of PostgreSQL's manual.
fn is_gone(code: &str) -> bool {
    code.starts_with("08") || [TOO_MANY, "57P01", "57P02", "57P03", "57P05"].contains(&code)
}

/// Whether the same transaction may succeed when it is repeated: it conflicted with another one.
pub(super) fn is_worth_retrying(error: &Error) -> bool {
    ["40001", "40P01"].iter().any(|code| has_code(error, code))
}

/// Whether work in the background is worth another try later: a database did not answer, or not in time.
pub(super) fn is_passing(error: &Error) -> bool {
    matches!(error, Error::Unreachable(_) | Error::PartUnreachable { .. } | Error::Slow { .. } | Error::Busy)
}

/// Whether a database refuses a connection because it has as many as it takes.
pub(super) fn is_full(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(sqlx::error::DatabaseError::code).is_some_and(|code| code == TOO_MANY)
}

/// Whether a table was deleted.
pub(super) fn is_missing_table(error: &Error) -> bool {
    has_code(error, NO_TABLE)
}

/// What a healthy database says that did not get to do something in time.
pub(super) fn why_slow(error: &Error) -> Option<&'static str> {
    [
        ("55P03", "a statement waited for too long for a lock that another transaction holds; nothing of it was done"),
        ("57014", "a statement took too long and was ended; nothing of it was done"),
    ]
    .into_iter()
    .find_map(|(code, reason)| has_code(error, code).then_some(reason))
}

/// Whether another transaction held the lock for too long.
pub(super) fn is_locked(error: &Error) -> bool {
    has_code(error, "55P03") || is_worth_retrying(error)
}

fn has_code(error: &Error, wanted: &str) -> bool {
    let Error::Sql(source) = error else { return false };
    let code = source.downcast_ref().and_then(sqlx::Error::as_database_error).and_then(sqlx::error::DatabaseError::code);
    code.is_some_and(|code| code == wanted)
}
