//! Connections: a pool of them, timeouts, and whether the database answers.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection};
use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};
use tokio::time;

use super::super::Error;
use super::arrangement::{self, Role};
use super::error::{is_full, is_worth_retrying, why_slow};
use super::open::Open;
use super::runtime::Runtime;
use super::{Connections, address, schema};
use dino_vision::cancel::{self, Cancelled};

/// Longest wait for a connection. Where the server is down, the pool tries again and again meanwhile.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// Most connections for work in the background beside those that build indexes: one deletes tables, one deletes parts of collections.
const BACKGROUND_CONNECTIONS: usize = 2;
/// Most indexes that are built at once: a restore, which is answered after its own, seldom waits for one that takes hours.
const BUILDS: usize = 3;
/// Times in a row that nobody answers about long work, after which it is given up.
const UNANSWERED: u32 = 5;
/// How often the database checks, while a statement runs, whether its client is still connected.
const CLIENT_CHECK: &str = "1s";
/// Attempts of a transaction that conflicts with others.
pub(super) const ATTEMPTS: usize = 5;

/// A database, for threads that may block.
pub(super) struct Database {
    /// Runs the connections.
    runtime: Arc<Runtime>,
    /// What it is called in messages.
    label: Arc<str>,
    /// What it has to be, at each connection.
    role: Arc<Role>,
    pool: PgPool,
    /// A permit for each connection of the pool: a call that waits for other calls does not count as an unreachable database.
    permits: Semaphore,
    /// As many again for work on whole collections, each with a connection of its own.
    long_permits: Semaphore,
    /// For the same work that no request waits for.
    background_permits: Semaphore,
    /// For building indexes, which may take hours: cleaning up does not wait for them.
    build_permits: Semaphore,
    /// For the one connection that asks whether a database that does not answer in time takes connections.
    probe: Semaphore,
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
    pub(super) fn new(options: PgConnectOptions, connections: u32, timeout: Duration, runtime: &Arc<Runtime>, role: Role) -> Self {
        let role = Arc::new(role);
        let of_connection = Arc::clone(&role);
        let pool = runtime.enter(|| {
            PgPoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(ACQUIRE_TIMEOUT)
                .after_connect(move |connection, _| {
                    let role = Arc::clone(&of_connection);
                    Box::pin(async move {
                        set_up(connection, timeout).await?;
                        // The pool tries again, until a caller has waited for long enough.
                        role.admit(connection).await.map_err(|error| {
                            tracing::error!("a connection to a database of the collections is refused: {error}");
                            sqlx::Error::Protocol(error.to_string())
                        })
                    })
                })
                .connect_lazy_with(options.clone())
        });
        Self {
            runtime: Arc::clone(runtime),
            label: address::label(&options).into(),
            role,
            pool,
            permits: Semaphore::new(connections as usize),
            long_permits: Semaphore::new(connections as usize),
            background_permits: Semaphore::new(BACKGROUND_CONNECTIONS),
            build_permits: Semaphore::new(BUILDS),
            probe: Semaphore::new(1),
            options,
            timeout,
            prepared: OnceCell::new(),
            reachable: AtomicBool::new(false),
            failures: AtomicU64::new(0),
        }
    }

    /// What waits for it.
    pub(super) fn runtime(&self) -> &Runtime {
        &self.runtime
    }

    /// What it is called in messages: host and name.
    pub(super) fn label(&self) -> &Arc<str> {
        &self.label
    }

    /// Does `work` with a connection of the pool; again, where its transaction conflicts with another one.
    pub(super) fn run<T>(&self, work: impl AsyncFn(&mut PgConnection) -> Result<T, Error>) -> Result<T, Error> {
        self.runtime.block_on(self.run_async(work))
    }

    /// As [`run`](Self::run), for work on several databases.
    pub(super) async fn run_async<T>(&self, work: impl AsyncFn(&mut PgConnection) -> Result<T, Error>) -> Result<T, Error> {
        let outcome = async {
            // The other half of the time is for the work.
            let _permit = acquire(&self.permits, self.timeout / 2).await?;
            let mut connection = self.pool.acquire().await?;
            let repeated = async {
                self.prepare(&mut connection).await?;
                for _ in 1..ATTEMPTS {
                    match work(&mut *connection).await {
                        Err(error) if is_worth_retrying(&error) => {}
                        outcome => return outcome,
                    }
                }
                work(&mut *connection).await
            };
            let outcome = match time::timeout(self.timeout, repeated).await {
                Ok(outcome) => outcome,
                Err(_) => Err(self.late(self.timeout).await),
            };
            if matches!(outcome, Err(Error::Unreachable(_) | Error::Slow { .. } | Error::Cancelled(_))) {
                // It may be in the middle of a statement.
                connection.close_on_drop();
            }
            outcome
        };
        let outcome = outcome.await;
        self.note(outcome)
    }

    /// Brings the tables to the version of this program, the first time.
    async fn prepare(&self, connection: &mut PgConnection) -> Result<(), Error> {
        // Not polled, and so not run, where the tables were prepared before.
        let preparation = async {
            schema::migrate(connection).await?;
            if let Role::Alone(known) = &*self.role {
                arrangement::require_alone(connection).await?;
                known.get_or_init(|| ());
            }
            Ok(())
        };
        self.prepared.get_or_try_init(|| preparation).await.copied()
    }

    /// Notes that it has this place among several databases: later connections have to lead to it.
    pub(super) fn belongs(&self, place: i32, arrangement: &str) {
        if let Role::Part(known) = &*self.role {
            known.get_or_init(|| (place, arrangement.to_owned()));
        }
    }

    /// A transaction that stays open while others are opened on other databases.
    pub(super) async fn open(&self) -> Result<Open<'_>, Error> {
        let outcome = async {
            let permit = acquire(&self.permits, self.timeout / 2).await?;
            let mut connection = self.pool.acquire().await?;
            self.prepare(&mut connection).await?;
            Open::pooled(self, connection, permit, self.timeout).await
        };
        let outcome = outcome.await;
        self.note(outcome)
    }

    /// As [`open`](Self::open), with a connection of its own. Without a limit each step may take as long as it needs.
    pub(super) async fn open_long(&self, limit: Option<Duration>) -> Result<Open<'_>, Error> {
        self.open_apart(&self.long_permits, self.timeout / 2, limit).await
    }

    /// As [`open_long`](Self::open_long), for work that no request waits for.
    pub(super) async fn open_background(&self) -> Result<Open<'_>, Error> {
        self.open_apart(&self.background_permits, Duration::MAX, None).await
    }

    async fn open_apart<'a>(&'a self, permits: &'a Semaphore, timeout: Duration, limit: Option<Duration>) -> Result<Open<'a>, Error> {
        self.run_async(async |_| Ok(())).await?;
        let outcome = async {
            let permit = acquire(permits, timeout).await?;
            let connection = self.connect(limit).await?;
            Open::own(self, connection, permit, limit).await
        };
        let outcome = outcome.await;
        self.note(outcome)
    }

    /// Longest that one call may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Waits for a permit of `permits`, as long as for a connection.
    pub(super) async fn wait_for<'a>(&self, permits: &'a Semaphore) -> Result<SemaphorePermit<'a>, Error> {
        acquire(permits, self.timeout / 2).await
    }

    /// A connection of its own, whose statements have this limit of time.
    async fn connect(&self, limit: Option<Duration>) -> Result<PgConnection, Error> {
        let mut connection = self.reach().await?;
        set_up(&mut connection, limit.unwrap_or_default()).await?;
        self.role.admit(&mut connection).await?;
        Ok(connection)
    }

    async fn reach(&self) -> Result<PgConnection, Error> {
        let connecting = time::timeout(ACQUIRE_TIMEOUT, self.options.connect()).await;
        Ok(connecting.map_err(|_| Error::Unreachable("no connection in time".to_owned()))??)
    }

    /// Why there was no answer within `limit`: the database is busy where it takes a new connection.
    pub(super) async fn late(&self, limit: Duration) -> Error {
        let reason = format!("no answer within {} s", limit.as_secs_f64());
        if self.takes_connections().await {
            return self.slow(format!("{reason}; a write that was under way may have happened or not"));
        }
        Error::Unreachable(reason)
    }

    /// Waits for work that has no limit of time. A connection whose other end has vanished says nothing: so the process that it leads to is
    /// looked for time and again, over another one.
    pub(super) async fn watched<T>(&self, backend: &Backend, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let (mut work, mut unanswered) = (pin!(work), 0);
        while unanswered < UNANSWERED {
            if let Ok(outcome) = time::timeout(self.timeout, &mut work).await {
                return outcome;
            }
            match time::timeout(ACQUIRE_TIMEOUT, self.has(backend)).await {
                Ok(Ok(true)) => unanswered = 0,
                Ok(Ok(false)) => break,
                // The network may be away for a moment, and a pooler has no connection to spare.
                Ok(Err(_)) | Err(_) => unanswered += 1,
            }
        }
        Err(Error::Unreachable("the connection that the work was done over is lost".to_owned()))
    }

    async fn has(&self, (backend, since): &Backend) -> sqlx::Result<bool> {
        let mut connection = self.options.connect().await?;
        let sql = "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1 AND backend_start::text = $2)";
        let found = sqlx::query_scalar(sql).bind(backend).bind(since).fetch_one(&mut connection).await?;
        drop(connection.close().await);
        Ok(found)
    }

    /// One call asks at a time: the others, whose connections count too, go by what is known.
    async fn takes_connections(&self) -> bool {
        let Ok(_permit) = self.probe.try_acquire() else { return self.reachable.load(Ordering::Relaxed) };
        match time::timeout(ACQUIRE_TIMEOUT, self.options.connect()).await {
            Ok(connected) => connected.as_ref().err().is_none_or(is_full),
            Err(_) => false,
        }
    }

    fn slow(&self, reason: String) -> Error {
        Error::Slow { database: self.label.to_string(), reason }
    }

    /// Asks whether it answers. Where all connections are in use, their last outcome is the answer.
    pub(super) async fn check(&self) -> Result<(), Error> {
        if self.permits.available_permits() == 0 && self.reachable.load(Ordering::Relaxed) {
            return Ok(());
        }
        // The pool tests a connection before it hands it out.
        self.run_async(async |_| Ok(())).await
    }

    /// Does `work` that may take as long as it needs, with a connection of its own.
    pub(super) async fn run_long<T>(&self, work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>) -> Result<T, Error> {
        self.run_apart(&self.long_permits, self.timeout / 2, work).await
    }

    /// As [`run_long`](Self::run_long), for work that no request waits for: it waits without a timeout.
    pub(super) async fn run_in_background<T>(&self, work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>) -> Result<T, Error> {
        self.run_apart(&self.background_permits, Duration::MAX, work).await
    }

    /// As [`run_in_background`](Self::run_in_background), for building an index.
    pub(super) async fn run_build<T>(&self, work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>) -> Result<T, Error> {
        self.run_apart(&self.build_permits, Duration::MAX, work).await
    }

    async fn run_apart<T>(
        &self,
        permits: &Semaphore,
        timeout: Duration,
        work: impl AsyncFnOnce(&mut PgConnection) -> Result<T, Error>,
    ) -> Result<T, Error> {
        self.run_async(async |_| Ok(())).await?;
        let outcome = async {
            let _permit = acquire(permits, timeout).await?;
            let mut connection = self.connect(None).await?;
            let backend = backend(&mut connection).await?;
            let outcome = self.watched(&backend, work(&mut connection)).await;
            if !matches!(outcome, Err(Error::Unreachable(_))) {
                // What was done is done, however this connection ends.
                drop(connection.close().await);
            }
            outcome
        };
        let outcome = outcome.await;
        self.note(outcome)
    }

    /// Notes whether the database answered, and says where it only was busy.
    pub(super) fn note<T>(&self, outcome: Result<T, Error>) -> Result<T, Error> {
        let outcome = outcome.map_err(|error| match why_slow(&error) {
            Some(reason) => self.slow(reason.to_owned()),
            None => error,
        });
        if matches!(outcome, Err(Error::Busy | Error::Cancelled(_))) {
            // The server was not asked, or the request was cancelled before its answer.
            return outcome;
        }
        let reached = !matches!(outcome, Err(Error::Unreachable(_)));
        if let Err(Error::Unreachable(reason)) = &outcome {
            self.failures.fetch_add(1, Ordering::Relaxed);
            tracing::debug!(reason, database = &*self.label, "no answer of the database of the collections");
        }
        if self.reachable.swap(reached, Ordering::Relaxed) != reached {
            if let Err(Error::Unreachable(reason)) = &outcome {
                tracing::error!(reason, database = &*self.label, "the database of the collections cannot be reached");
            } else {
                tracing::info!(database = &*self.label, "the database of the collections can be reached");
            }
        }
        outcome
    }

    /// What is known without asking the database.
    pub(super) fn connections(&self) -> Connections {
        let all = self.pool.size() as usize;
        // The pool counts them apart: for a moment the second count may lie below zero, which is a very large number.
        let idle = self.pool.num_idle().min(all);
        Connections {
            busy: all - idle,
            idle,
            reachable: self.reachable.load(Ordering::Relaxed),
            failures: self.failures.load(Ordering::Relaxed),
            databases: Vec::new(),
        }
    }
}

/// A process of the database that serves a connection: its number, which another one may have later, and when it began.
pub(super) type Backend = (i32, String);

/// The process that a connection leads to.
pub(super) async fn backend(connection: &mut PgConnection) -> Result<Backend, Error> {
    let sql = "SELECT pid, backend_start::text FROM pg_stat_activity WHERE pid = pg_backend_pid()";
    Ok(sqlx::query_as(sql).fetch_one(connection).await?)
}

/// Waits for a permit, unless the request is cancelled meanwhile.
async fn acquire(permits: &Semaphore, timeout: Duration) -> Result<SemaphorePermit<'_>, Error> {
    let waited = cancel::current().run_until_cancelled_owned(time::timeout(timeout, permits.acquire())).await;
    let permit = waited.ok_or(Cancelled)?.map_err(|_| Error::Busy)?;
    Ok(permit.expect("it is never closed"))
}

/// Settings of a new connection. A limit of zero is none.
async fn set_up(connection: &mut PgConnection, limit: Duration) -> sqlx::Result<()> {
    // A lock is given up while the request still waits for an answer, which then says so.
    let (limit, lock_limit) = (limit.as_millis(), limit.as_millis() * 2 / 3);
    // Filters and vectors differ from one call to the next: a plan that fits all of them fits none. A write that is
    // acknowledged is durable, whatever the database's own default is.
    // A statement whose connection was closed ends, where the database can look for that: from PostgreSQL 14 on, and not on
    // every system.
    let settings = format!(
        "DO $$ BEGIN PERFORM set_config('client_connection_check_interval', '{CLIENT_CHECK}', false); \
         EXCEPTION WHEN undefined_object OR invalid_parameter_value THEN NULL; END $$; \
         SET client_min_messages = warning; SET plan_cache_mode = force_custom_plan; SET statement_timeout = {limit}; \
         SET lock_timeout = {lock_limit}; SET idle_in_transaction_session_timeout = 0; \
         SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
    );
    connection.execute(sqlx::raw_sql(AssertSqlSafe(settings))).await.map(drop)
}
