//! Transactions on several databases, which are committed once all of them can be.

use std::time::Duration;

use sqlx::pool::PoolConnection;
use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres};
use tokio::sync::SemaphorePermit;
use tokio::time;

use super::super::Error;
use super::database::{ATTEMPTS, Backend, Database, backend};
use super::error::is_worth_retrying;

/// What databases do by default is not known, and with a stricter isolation a commit may fail.
pub(super) const BEGIN: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// A transaction. Where it is dropped before [`commit`](Self::commit), its connection is closed, and nothing of it stays.
pub(super) struct Open<'a> {
    database: &'a Database,
    connection: Option<Held>,
    limit: Limit,
    _permit: SemaphorePermit<'a>,
}

enum Limit {
    /// Longest that one step may take.
    Step(Duration),
    /// None while the database does the work, in this process of its own.
    Backend(Backend),
}

enum Held {
    Pooled(PoolConnection<Postgres>),
    Own(PgConnection),
}

impl Held {
    fn get(&mut self) -> &mut PgConnection {
        match self {
            Self::Pooled(connection) => connection,
            Self::Own(connection) => connection,
        }
    }
}

impl<'a> Open<'a> {
    /// With a connection of the pool; each step has a limit.
    pub(super) async fn pooled(
        database: &'a Database,
        connection: PoolConnection<Postgres>,
        permit: SemaphorePermit<'a>,
        limit: Duration,
    ) -> Result<Self, Error> {
        Self::begin(database, Held::Pooled(connection), permit, Limit::Step(limit)).await
    }

    /// With a connection of its own.
    pub(super) async fn own(
        database: &'a Database,
        mut connection: PgConnection,
        permit: SemaphorePermit<'a>,
        limit: Option<Duration>,
    ) -> Result<Self, Error> {
        let limit = match limit {
            Some(limit) => Limit::Step(limit),
            None => Limit::Backend(backend(&mut connection).await?),
        };
        Self::begin(database, Held::Own(connection), permit, limit).await
    }

    async fn begin(database: &'a Database, held: Held, permit: SemaphorePermit<'a>, limit: Limit) -> Result<Self, Error> {
        let mut open = Self { database, connection: Some(held), limit, _permit: permit };
        open.statement(BEGIN).await?;
        Ok(open)
    }

    /// Does `work` in the transaction.
    pub(super) async fn step<T>(&mut self, work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>) -> Result<T, Error> {
        let connection = self.connection.as_mut().expect("only committing takes it").get();
        let outcome = match &self.limit {
            Limit::Step(limit) => match time::timeout(*limit, work(connection)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(self.database.late(*limit).await),
            },
            Limit::Backend(backend) => self.database.watched(backend, work(connection)).await,
        };
        self.database.note(outcome)
    }

    /// Does `work`, which is all of the transaction so far: again, where it conflicts with that of another.
    pub(super) async fn step_again<T>(&mut self, work: impl AsyncFn(&mut PgConnection) -> Result<T, Error>) -> Result<T, Error> {
        for _ in 1..ATTEMPTS {
            match self.step(&work).await {
                Err(error) if is_worth_retrying(&error) => {
                    self.statement("ROLLBACK").await?;
                    self.statement(BEGIN).await?;
                }
                outcome => return outcome,
            }
        }
        self.step(&work).await
    }

    /// Makes it durable and visible.
    pub(super) async fn commit(mut self) -> Result<(), Error> {
        self.statement("COMMIT").await?;
        match self.connection.take() {
            // It is durable, however this connection ends.
            Some(Held::Own(connection)) => drop(connection.close().await),
            // Back to the pool, in the state that it came in.
            pooled => drop(pooled),
        }
        Ok(())
    }

    async fn statement(&mut self, sql: &'static str) -> Result<(), Error> {
        self.step(async |connection| Ok(sqlx::raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop)?)).await
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if let Some(Held::Pooled(connection)) = &mut self.connection {
            connection.close_on_drop();
        }
    }
}
