//! A prefix of an object storage, as a folder.

use dino_vision::bulk::tree;

use super::address::Address;
use super::list::found;
use super::{Error, Found, Listing};
use crate::files::objects::Place;

pub(super) fn list(root: &Place) -> Result<Listing, Error> {
    let objects = root.list().map_err(|error| Error::Storage(format!("{}: {error}", root.url())))?;
    let are_folders: Vec<bool> = objects.iter().map(|(name, place)| place.size() == Some(0) && is_folder(&objects, name)).collect();
    let mut listing = Listing::default();
    for ((name, place), is_folder) in objects.into_iter().zip(are_folders) {
        // Consoles and file systems write an empty object `cat/` for a folder, which is listed as `cat`.
        if is_folder || name.split('/').any(|part| part.starts_with('.')) {
            continue;
        }
        let class = tree::uppermost(&name).map(str::to_owned);
        let found: Found = found(&name, class.into_iter().collect(), Address::Object(place));
        listing.found.push(found);
    }
    Ok(listing)
}

/// Whether others are below this name. The objects are in the order of their names.
fn is_folder(objects: &[(String, Place)], name: &str) -> bool {
    let below = format!("{name}/");
    let next = objects.partition_point(|(other, _)| *other < below);
    objects.get(next).is_some_and(|(other, _)| other.starts_with(&below))
}
