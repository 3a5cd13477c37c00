//! A folder: pictures, and tar, Parquet and Arrow files among them.

use std::borrow::Cow;
use std::path::Path;

use dino_vision::bulk::tree::{self, Entry};
use dino_vision::bulk::{compressed, names};
use dino_vision::unicode::nfc;

use super::address::Address;
use super::packed::{self, Packed};
use super::{Error, Failure, Found, Listing, Picture, Place, is_compressed, shown};

/// Lists `root`; `composed` says up to which length ids are composed.
pub(super) fn list(root: &Path, composed: Option<usize>) -> Result<Listing, Error> {
    let tree::Listing { mut entries, skipped } = tree::list(root)?;
    if let Some(longest) = composed {
        let names: Vec<&str> = entries.iter().map(|entry| entry.id.as_str()).collect();
        let ids: Vec<String> = names::ids(&names, longest).into_iter().map(Cow::into_owned).collect();
        for (entry, id) in entries.iter_mut().zip(ids) {
            entry.class = entry.class.take().map(|class| nfc(&class).into_owned());
            entry.id = id;
        }
    }
    let mut listing = Listing::default();
    for skipped in skipped {
        let id = skipped.path.strip_prefix(root).unwrap_or(&skipped.path).to_string_lossy().into_owned();
        listing.failures.push(Failure { id, path: shown(&skipped.path), reason: skipped.reason });
    }
    for Entry { path, id, class } in entries {
        if let Some(kind) = compressed::by_name(&path) {
            let reason = is_compressed("it", kind);
            listing.failures.push(Failure { id, path: shown(&path), reason });
            continue;
        }
        listing.found.push(match packed::Kind::of(&path).filter(|kind| kind.is_readable()) {
            Some(kind) => Found::Packed(Packed { id, address: Address::File(path), kind }),
            None => Found::Picture(Picture { id, labels: class.into_iter().collect(), place: Place::At(Address::File(path)) }),
        });
    }
    Ok(listing)
}
