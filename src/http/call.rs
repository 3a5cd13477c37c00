//! What is known of the request that a task works on, without every function handing it on; and its deadline.
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

/// One request.
#[derive(Clone)]
struct Call(Arc<Known>);

struct Known {
    /// When it has to be answered; `None` for [`WITHOUT_DEADLINE`].
    deadline: Option<Instant>,
    key: OnceLock<Arc<Key>>,
    /// The model that it ran, once that is known.
    model: OnceLock<String>,
    /// When the model was done with all of its pictures.
    inferred: OnceLock<Instant>,
}

tokio::task_local! {
    static CALL: Call;
}

/// Follows a request through the server until its deadline, and counts it.
pub(super) async fn follow(State(app): State<App>, path: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let path = path.as_ref().map_or("", MatchedPath::as_str);
    let deadline = has_deadline(path).then(|| began + app.limits.time);
    let call = Call(Arc::new(Known { deadline, key: OnceLock::new(), model: OnceLock::new(), inferred: OnceLock::new() }));
    let answering = CALL.scope(call.clone(), async {
        let response = next.run(request).await;
        // Open routes answer with what the program holds anyway.
        if is_open(path) { response } else { answer::count(&app, key(), response).await }
    });
    let response = match deadline {
        Some(deadline) => timeout_at(deadline, answering).await.unwrap_or_else(|_| deadline_passed(&app, path).into_response()),
        None => answering.await,
    };
    let model = call.0.model.get().map_or("", String::as_str);
    if let Some(inferred) = call.0.inferred.get()
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
    CALL.try_with(|call| call.0.deadline).ok().flatten()
}

/// Notes whose key the request has.
pub(super) fn has_key(key: Arc<Key>) {
    let _ = CALL.try_with(|call| call.0.key.set(key));
}

/// The key of the request that is being answered, if there are keys.
pub(super) fn key() -> Option<Arc<Key>> {
    CALL.try_with(|call| call.0.key.get().cloned()).ok().flatten()
}

/// Notes which model the request runs.
pub(super) fn runs(model: &str) {
    let _ = CALL.try_with(|call| call.0.model.set(model.to_owned()));
}

/// Notes that the model is done with it.
pub(super) fn is_inferred() {
    let _ = CALL.try_with(|call| call.0.inferred.set(Instant::now()));
}
