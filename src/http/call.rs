//! What is known of the request that a task works on, without every function handing it on.

use std::{
    sync::{Arc, OnceLock},
    time::Instant,
};

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::Response,
};

use super::{App, keys::Key};

/// One request.
#[derive(Clone, Default)]
struct Call(Arc<Known>);

#[derive(Default)]
struct Known {
    key: OnceLock<Arc<Key>>,
    /// The model that it ran, once that is known.
    model: OnceLock<String>,
    /// When the model was done with all of its pictures.
    inferred: OnceLock<Instant>,
}

tokio::task_local! {
    static CALL: Call;
}

/// Follows a request through the server, and counts it.
pub(super) async fn follow(State(app): State<App>, path: Option<MatchedPath>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let call = Call::default();
    let response = CALL.scope(call.clone(), next.run(request)).await;
    let path = path.as_ref().map_or("", MatchedPath::as_str);
    let model = call.0.model.get().map_or("", String::as_str);
    app.metrics.answered(path, model, response.status(), began.elapsed());
    response
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

/// Notes that the answer is written, which is what comes after the model.
pub(super) fn is_encoded(app: &App) {
    let _ = CALL.try_with(|call| {
        if let (Some(model), Some(inferred)) = (call.0.model.get(), call.0.inferred.get()) {
            app.metrics.encoded(model, inferred.elapsed());
        }
    });
}
