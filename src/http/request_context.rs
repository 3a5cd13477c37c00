//! The context of the request that a task works on: its deadline, its key, its model. Functions look it up instead of passing it on.
//!
//! There is one deadline for a request, made when its head arrives. Reading and parsing its body, fetching pictures, waiting,
//! inference, search, drawing and encoding all count against it. When it passes, the request's future is dropped, which stops
//! the work that was done for it (see [`cancel`](dino_vision::cancel)).

use std::sync::{Arc, OnceLock};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use tokio::time::{Instant, timeout_at};

use super::{
    App, answer,
    keys::{Key, is_open},
    problem::{Code, Problem},
};

/// Routes whose time is that of a transfer of any size, or of loading a model. They have limits of their own.
const WITHOUT_DEADLINE: [&str; 3] = ["/collections/{collection}/snapshot", "/collections/{collection}/restore", "/v1/models/{name}/reload"];

/// What is known of one request.
struct RequestContext {
    /// When it has to be answered; `None` for [`WITHOUT_DEADLINE`].
    deadline: Option<Instant>,
    key: OnceLock<Arc<Key>>,
    /// The model that it ran, once that is known.
    model: OnceLock<String>,
    /// When the model was done with all of its pictures.
    inferred: OnceLock<Instant>,
}

tokio::task_local! {
    static CURRENT: Arc<RequestContext>;
}

/// Answers a request within its deadline and its context, and counts it.
pub(super) async fn enter(State(app): State<App>, path: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let path = path.as_ref().map_or("", MatchedPath::as_str);
    let deadline = has_deadline(path).then(|| began + app.limits.time);
    let context = Arc::new(RequestContext { deadline, key: OnceLock::new(), model: OnceLock::new(), inferred: OnceLock::new() });
    let answering = CURRENT.scope(Arc::clone(&context), async {
        let response = next.run(request).await;
        // Open routes answer with what the program holds anyway.
        if is_open(path) { response } else { answer::count(&app, key(), response).await }
    });
    let response = match deadline {
        Some(deadline) => timeout_at(deadline, answering).await.unwrap_or_else(|_| deadline_passed(&app, path).into_response()),
        None => answering.await,
    };
    let model = context.model.get().map_or("", String::as_str);
    if let Some(inferred) = context.inferred.get()
        && response.status().is_success()
    {
        app.metrics.encoded(model, inferred.elapsed());
    }
    app.metrics.answered(path, model, response.status(), began.elapsed());
    response
}

/// Whether the requests of a route have a deadline.
pub(super) fn has_deadline(path: &str) -> bool {
    !WITHOUT_DEADLINE.contains(&path)
}

fn deadline_passed(app: &App, path: &str) -> Problem {
    let seconds = app.limits.time.as_secs_f64();
    let problem = Problem::new(
        Code::DeadlinePassed,
        format!(
            "not answered within {seconds} s of its head's arrival (--request-timeout): try later, or ask for less at once: \
             fewer pictures, queries or points, a smaller `k`"
        ),
    );
    if path == "/v1/embeddings" { problem.with_openai_error() } else { problem }
}

/// When the request that is being answered has to be answered; `None` where it may take its time.
pub(super) fn deadline() -> Option<Instant> {
    CURRENT.try_with(|context| context.deadline).ok().flatten()
}

/// Sets the key of the request.
pub(super) fn set_key(key: Arc<Key>) {
    let _ = CURRENT.try_with(|context| context.key.set(key));
}

/// The key of the request that is being answered, if there are keys.
pub(super) fn key() -> Option<Arc<Key>> {
    CURRENT.try_with(|context| context.key.get().cloned()).ok().flatten()
}

/// Sets the model that the request runs.
pub(super) fn set_model(model: &str) {
    let _ = CURRENT.try_with(|context| context.model.set(model.to_owned()));
}

/// Sets the time at which the model was done with all pictures.
pub(super) fn set_inferred() {
    let _ = CURRENT.try_with(|context| context.inferred.set(Instant::now()));
}
