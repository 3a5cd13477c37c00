//! Connections: a pool of them, timeouts, and whether the database answers.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};
use tokio::time;

use super::super::Error;
use super::error::is_worth_retrying;
use super::schema;
use super::{Connections, IndexUrl};
use dino_vision::cancel::{self, Cancelled};

/// Longest wait for a connection. Where the server is down, the pool tries again and again meanwhile.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// Most connections for work in the background: one builds an index, one deletes tables.
const BACKGROUND_CONNECTIONS: usize = 2;
/// How often the database checks, while a statement runs, whether its client is still connected.
const CLIENT_CHECK: &str = "1s";
/// Attempts of a transaction that conflicts with others.
const ATTEMPTS: usize = 5;

/// A database, for threads that may block.
pub(super) struct Database {
    /// Runs the connections; taken when this is dropped.
    runtime: Option<Runtime>,
    pool: PgPool,
    /// A permit for each connection of the pool: a call that waits for other calls does not count as an unreachable database.
    permits: Semaphore,
    /// As many again for work on whole collections, each with a connection of its own.
    long_permits: Semaphore,
    /// For the same work that no request waits for.
    background_permits: Semaphore,
    options: PgConnectOptions,
    /// Longest that one call may take.
    timeout: Duration,
    /// Whether the tables are those of this program.
    prepared: OnceCell<()>,
    reachable: AtomicBool,
    failures: AtomicU64,
}

impl Database {
    /// Gets ready to connect. The server is not asked yet.
    pub(super) fn new(url: &IndexUrl, connections: u32, timeout: Duration) -> Result<Self, Error> {
        let options = url.options()?;
        let runtime = Builder::new_multi_thread().worker_threads(1).thread_name("postgres").enable_all().build()?;
        let pool = {
            let _inside = runtime.enter();
            PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .after_connect(move |connection, _| Box::pin(set_up(connection, timeout)))
                .connect_lazy_with(options.clone())
        };
        Ok(Self {
            runtime: Some(runtime),
            pool,
            permits: Semaphore::new(connections as usize),
            long_permits: Semaphore::new(connections as usize),
            background_permits: Semaphore::new(BACKGROUND_CONNECTIONS),
            options,
            timeout,
            prepared: OnceCell::new(),
            reachable: AtomicBool::new(false),
            failures: AtomicU64::new(0),
        })
    }

    /// Does `work` with a connection of the pool; again, where its transaction conflicts with another one.
    pub(super) fn run<T>(&self, work: impl AsyncFn(&mut PgConnection) -> Result<T, Error>) -> Result<T, Error> {
        self.wait(async {
            // The other half of the time is for the work.
            let _permit = acquire(&self.permits, self.timeout / 2).await?;
            let mut connection = self.pool.acquire().await?;
            let repeated = async {
                // Not polled, and so not run, where the tables were prepared before.
                let migration = schema::migrate(&mut connection);
                self.prepared.get_or_try_init(|| migration).await?;
                for _ in 1..ATTEMPTS {
                    match work(&mut *connection).await {
                        Err(error) if is_worth_retrying(&error) => {}
                        outcome => return outcome,
                    }
                }
                work(&mut *connection).await
            };
            let outcome = time::timeout(self.timeout, repeated).await.unwrap_or_else(|_| {
                let seconds = self.timeout.as_secs_f64();
                Err(Error::Unreachable(format!("no answer within {seconds} s")))
            });
            if matches!(outcome, Err(Error::Unreachable(_) | Error::Cancelled(_))) {
                // It may be in the middle of a statement.
                connection.close_on_drop();
            }
            outcome
        })
    }

    /// Asks whether it answers. Where all connections are in use, their last outcome is the answer.
    pub(super) fn check(&self) -> Result<(), Error> {
        if self.permits.available_permits() == 0 && self.reachable.load(Ordering::Relaxed) {
            return Ok(());
        }
        // The pool tests a connection before it hands it out.
        self.run(async |_| Ok(()))
    }

    /// Does `work` that may take as long as it needs, with a connection of its own.
    pub(super) fn run_long<T>(&self, work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>) -> Result<T, Error> {
        self.run_apart(&self.long_permits, self.timeout / 2, work)
    }

    /// As [`run_long`](Self::run_long), for work that no request waits for: it waits without a timeout.
    pub(super) fn run_in_background<T>(&self, work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>) -> Result<T, Error> {
        self.run_apart(&self.background_permits, Duration::MAX, work)
    }

    fn run_apart<T>(
        &self,
        permits: &Semaphore,
        timeout: Duration,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.run(async |_| Ok(()))?;
        self.wait(async {
            let _permit = acquire(permits, timeout).await?;
            let connecting = time::timeout(ACQUIRE_TIMEOUT, self.options.connect()).await;
            let mut connection = connecting.map_err(|_| Error::Unreachable("no connection in time".to_owned()))??;
            set_up(&mut connection, Duration::ZERO).await?;
            let outcome = work(&mut connection).await;
            connection.close().await?;
            outcome
        })
    }

    fn wait<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let runtime = self.runtime.as_ref().expect("only dropping takes it");
        let outcome = runtime.block_on(work);
        if matches!(outcome, Err(Error::Busy | Error::Cancelled(_))) {
            // The server was not asked, or the request was cancelled before its answer.
            return outcome;
        }
        let reached = !matches!(outcome, Err(Error::Unreachable(_)));
        if let Err(Error::Unreachable(reason)) = &outcome {
            self.failures.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(reason, "no answer of the database of the collections");
        }
        if self.reachable.swap(reached, Ordering::Relaxed) != reached {
            if let Err(Error::Unreachable(reason)) = &outcome {
                tracing::error!(reason, "the database of the collections cannot be reached");
            } else {
                tracing::info!("the database of the collections can be reached");
            }
        }
        outcome
    }

    /// What is known without asking the database.
    pub(super) fn connections(&self) -> Connections {
        let (all, idle) = (self.pool.size() as usize, self.pool.num_idle());
        Connections {
            busy: all.saturating_sub(idle),
            idle,
            reachable: self.reachable.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
        }
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Dropping it would block, which panics on threads of another runtime.
            runtime.shutdown_background();
        }
    }
}

/// Waits for a permit, unless the request is cancelled meanwhile.
async fn acquire(permits: &Semaphore, timeout: Duration) -> Result<SemaphorePermit<'_>, Error> {
    let waited = cancel::current().run_until_cancelled_owned(time::timeout(timeout, permits.acquire())).await;
    let permit = waited.ok_or(Cancelled)?.map_err(|_| Error::Busy)?;
    Ok(permit.expect("it is never closed"))
}

/// Settings of a new connection. A limit of zero is none.
async fn set_up(connection: &mut PgConnection, limit: Duration) -> sqlx::Result<()> {
    let limit = limit.as_millis();
    // Filters and vectors differ from one call to the next: a plan that fits all of them fits none. A write that is
    // acknowledged is durable, whatever the database's own default is.
    // A statement whose connection was closed ends, where the database can look for that: from PostgreSQL 14 on, and not on
    // every system.
    let settings = format!(
        "DO $$ BEGIN PERFORM set_config('client_connection_check_interval', '{CLIENT_CHECK}', false); \
         EXCEPTION WHEN undefined_object OR invalid_parameter_value THEN NULL; END $$; \
         SET client_min_messages = warning; SET plan_cache_mode = force_custom_plan; SET statement_timeout = {limit}; \
         SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    );
    connection.execute(sqlx::raw_sql(AssertSqlSafe(settings))).await.map(drop)
}
