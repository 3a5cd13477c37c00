//! The linear heads on a model's features: those in its folder, and those that the options name.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{Named, Served};
use dino_vision::{
    head::{HeadError, LinearHead},
    model::Manifest,
    unicode::nfc,
};

/// Folder of a model folder that holds heads.
const FOLDER: &str = "heads";

/// A head that cannot be served.
#[derive(Debug, thiserror::Error)]
#[error("head `{name}`: {source}")]
pub struct HeadsError {
    /// What requests would have called it.
    pub name: String,
    /// What is wrong.
    pub source: HeadError,
}

/// No head of that name is served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no head `{name}`; {known}")]
pub struct UnknownHead {
    /// The name that was asked for, cut where it is long.
    pub name: String,
    /// The names there are, in a sentence.
    pub known: String,
}

impl UnknownHead {
    /// No head `name` in any of these models.
    pub fn new<'a>(name: &str, models: impl IntoIterator<Item = &'a Served>) -> Self {
        let known: Vec<_> = models.into_iter().flat_map(|served| served.heads().keys()).map(String::as_str).collect();
        let known = if known.is_empty() {
            "none is served here: train one with dino-train linear --out, and give it with --head".to_owned()
        } else {
            format!("known are {}", known.join(", "))
        };
        Self { name: name.chars().take(128).collect(), known }
    }
}

/// The heads in a model's folder, by the names of their own folders, which a Mac decomposes: composed (NFC).
pub(super) fn of_folder(model: &Path, manifest: &Manifest, fingerprint: &str) -> Result<BTreeMap<String, Arc<LinearHead>>, HeadsError> {
    let folder = model.join(FOLDER);
    let mut heads = BTreeMap::new();
    if !folder.is_dir() {
        return Ok(heads);
    }
    let failed = |name: &str, source: HeadError| HeadsError { name: name.to_owned(), source };
    for entry in fs_err::read_dir(&folder).map_err(|error| failed(FOLDER, error.into()))? {
        let path = entry.map_err(|error| failed(FOLDER, error.into()))?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()).filter(|name| !name.starts_with('.')) else { continue };
        let head = LinearHead::load(&path).map_err(|error| failed(name, error))?;
        head.description()
            .task
            .check_name(name)
            .and_then(|()| head.check_model(manifest, fingerprint))
            .map_err(|error| failed(name, error))?;
        if heads.insert(nfc(name).into_owned(), Arc::new(head)).is_some() {
            let reason = "another folder beside it has the same name in another Unicode form: give one of them another name".to_owned();
            let source = HeadError::Damaged { path: path.clone(), reason };
            return Err(failed(name, source));
        }
    }
    Ok(heads)
}

/// A head that the options name, loaded.
pub(super) struct NamedHead {
    pub(super) name: String,
    head: Arc<LinearHead>,
}

impl NamedHead {
    /// Whether it was trained on the features of this model.
    pub(super) fn fits(&self, served: &Served) -> bool {
        self.head.description().model_fingerprint == served.fingerprint
    }
}

/// Loads the heads that the options name.
pub(super) fn load(named: &[Named<PathBuf>]) -> Result<Vec<NamedHead>, HeadsError> {
    let load = |Named { name, path }: &Named<PathBuf>| match LinearHead::load(path) {
        Ok(head) => head.description().task.check_name(name).map(|()| NamedHead { name: name.clone(), head: Arc::new(head) }),
        Err(source) => Err(source),
    };
    let load = |named| load(named).map_err(|source| HeadsError { name: named.name.clone(), source });
    named.iter().map(load).collect()
}

/// Gives each head to the models whose features it was trained on.
pub(super) fn attach(models: &mut [Served], heads: &[NamedHead]) -> Result<(), HeadsError> {
    for named in heads {
        let NamedHead { name, head } = named;
        let failed = |source| HeadsError { name: name.clone(), source };
        if !models.iter().any(|served| named.fits(served)) {
            let models: Vec<_> = models.iter().map(Served::fingerprint).collect();
            return Err(failed(HeadError::OtherModel { head: head.description().model_fingerprint.clone(), models: models.join(", ") }));
        }
        // A model may be served under several names.
        for served in models.iter_mut().filter(|served| named.fits(served)) {
            head.check_model(&served.manifest, &served.fingerprint).map_err(failed)?;
            let task = head.description().task.name();
            tracing::info!(head = name, model = served.name, task, classes = head.description().classes.len(), "loaded");
            served.heads.insert(name.clone(), head.clone());
        }
    }
    Ok(())
}
