//! Objects that a storage refuses one by one: archived ones, those with a key of their own, those of another owner.
//!
//! Credentials that are wrong, lack a permission or have expired refuse all objects, with the same answers. So another object of the same
//! bucket is asked for: only where the storage gives that one, the refused one is to blame.

use std::io::{self, ErrorKind};
use std::sync::LazyLock;

use parking_lot::Mutex;

use super::address::Address;
use super::{Found, Picture, Place};
use crate::files::objects;

/// Most objects of a listing that are asked for.
const MOST_ASKED: usize = 16;

/// Objects that may be asked for.
#[derive(Default)]
struct Known {
    /// Of each bucket the one that was read last.
    read: Vec<objects::Place>,
    /// Some of all that a command reads, from its beginning to its end.
    listed: Vec<objects::Place>,
}

static KNOWN: LazyLock<Mutex<Known>> = LazyLock::new(Mutex::default);

/// Keeps some of what was listed, of all parts.
pub(super) fn note_listed(found: &[Found]) {
    let all = || {
        found.iter().filter_map(|found| match found {
            Found::Picture(Picture { place: Place::At(Address::Object(object)), .. }) => Some(object),
            _ => None,
        })
    };
    let step = all().count().div_ceil(MOST_ASKED).max(1);
    KNOWN.lock().listed = all().step_by(step).cloned().collect();
}

/// Keeps an object that was read.
pub(super) fn note_read(object: &objects::Place) {
    let mut known = KNOWN.lock();
    match known.read.iter().position(|other| other.is_beside(object)) {
        Some(at) => known.read[at] = object.clone(),
        None => known.read.push(object.clone()),
    }
}

/// Whether the storage refuses this object and gives others of its bucket.
pub(super) fn is_alone(object: &objects::Place, error: &io::Error) -> bool {
    if error.kind() != ErrorKind::PermissionDenied {
        return false;
    }
    let known = KNOWN.lock();
    let others = known.read.iter().chain(&known.listed).filter(|other| other.is_beside(object) && *other != object);
    let others: Vec<objects::Place> = others.cloned().collect();
    drop(known);
    for other in others {
        match other.is_given() {
            Ok(true) => {
                note_read(&other);
                return true;
            }
            Ok(false) => {}
            // The storage is away.
            Err(_) => return false,
        }
    }
    false
}
