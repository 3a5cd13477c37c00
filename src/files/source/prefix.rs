//! A prefix of an object storage, as a folder.

use dino_vision::bulk::tree;

use super::address::Address;
use super::list::found;
use super::{Error, Found, Listing};
use crate::files::objects::Place;

pub(super) fn list(root: &Place) -> Result<Listing, Error> {
    let objects = root.list().map_err(|error| Error::Storage(format!("{}: {error}", root.url())))?;
    let mut listing = Listing::default();
    for (name, place) in objects {
        if name.split('/').any(|part| part.starts_with('.')) {
            continue;
        }
        let class = tree::uppermost(&name).map(str::to_owned);
        let found: Found = found(&name, class.into_iter().collect(), Address::Object(place));
        listing.found.push(found);
    }
    Ok(listing)
}
