//! Collections that no served model can be asked about.

use std::{sync::Arc, thread, time::Duration};

use super::App;
use crate::{
    index::{CollectionName, Error, Spec, Store},
    serving::Registry,
};

/// Collections that are named in the log, each in a line of its own.
const NAMED: usize = 20;
/// Between two tries to list the collections, while their store does not answer.
const PAUSE: Duration = Duration::from_secs(5);

/// Says in the log which collections hold vectors of a model that is not served: pictures cannot be compared with them. It looks on a
/// thread of its own, since a database may take its time, and again until the store answers.
pub fn report(app: &App) {
    let Some(store) = &app.store else { return };
    let (store, app) = (Arc::downgrade(store), Arc::downgrade(app));
    let look = move || {
        loop {
            // Neither is kept alive by this thread.
            let (Some(store), Some(app)) = (store.upgrade(), app.upgrade()) else { return };
            match unmatched_collections(&*store, &app.registry) {
                Ok(found) => return tell(&found),
                Err(error) => tracing::debug!(%error, "collections are not listed yet"),
            }
            drop((store, app));
            thread::sleep(PAUSE);
        }
    };
    if let Err(error) = thread::Builder::new().name("unmatched".into()).spawn(look) {
        tracing::warn!(%error, "no thread to look for collections of models that are not served");
    }
}

/// Their items are not counted: that may take longer than a database is waited for.
fn unmatched_collections(store: &dyn Store, registry: &Registry) -> Result<Vec<(CollectionName, Spec)>, Error> {
    let served = registry.all();
    let is_served = |spec: &Spec| served.iter().any(|model| model.fingerprint() == spec.model.fingerprint);
    Ok(store.specs()?.into_iter().filter(|(_, spec)| !is_served(spec)).collect())
}

fn tell(found: &[(CollectionName, Spec)]) {
    for (name, spec) in found.iter().take(NAMED) {
        tracing::warn!(
            collection = %name, fingerprint = spec.model.fingerprint,
            "the collection belongs to no model that is served: pictures are refused there (409 model_mismatch); serve its model, or \
             bring it over to another one with `dino-server reembed`"
        );
    }
    if found.len() > NAMED {
        tracing::warn!("{} further collections belong to no model that is served", found.len() - NAMED);
    }
}
