//! A list: one path or URL a line, with an id and a tab before it where it has one.

use std::collections::HashSet;
use std::io::{BufRead, Read as _};

use super::address::{Address, Base, without_secrets};
use super::packed::{self, Packed};
use super::{Error, Found, Listing, Picture, Place};

/// Longest line that is read, in bytes.
const LONGEST_LINE: u64 = 64 << 10;

/// Reads a list; paths begin at `base`.
pub(super) fn read(mut list: impl BufRead, name: &str, base: &Base) -> Result<Listing, Error> {
    let (mut listing, mut ids) = (Listing::default(), Ids::default());
    for number in 1_usize.. {
        let Some(line) = line(&mut list, name, number)? else { break };
        let line = line.trim_end_matches(['\n', '\r']);
        if line.is_empty() {
            continue;
        }
        let wrong = |reason| Error::Wrong(format!("{name}, line {number}: {reason}"));
        let (id, place) = line.split_once('\t').map_or((None, line), |(id, place)| (Some(id.to_owned()), place));
        let address = base.address(place).map_err(wrong)?;
        let id = ids.id(id, place).map_err(wrong)?;
        listing.found.push(found(&id, Vec::new(), address));
    }
    Ok(listing)
}

/// Ids of entries that have none of their own: their addresses, without what is secret in them.
#[derive(Default)]
pub(super) struct Ids {
    /// Those that are shorter than their addresses.
    shortened: HashSet<String>,
}

impl Ids {
    /// The id of an entry.
    ///
    /// # Errors
    /// Where addresses differ in nothing but their queries.
    pub(super) fn id(&mut self, id: Option<String>, place: &str) -> Result<String, String> {
        if let Some(id) = id {
            return Ok(id);
        }
        let id = without_secrets(place).into_owned();
        if id.len() < place.len() && !self.shortened.insert(id.clone()) {
            return Err(format!("{id} came before with another query, which is no part of an id: give such pictures ids"));
        }
        Ok(id)
    }
}

/// A line of `list`, with its end; none behind the last.
pub(super) fn line(list: &mut impl BufRead, name: &str, number: usize) -> Result<Option<String>, Error> {
    let mut bytes = Vec::new();
    list.take(LONGEST_LINE).read_until(b'\n', &mut bytes)?;
    if bytes.len() as u64 == LONGEST_LINE && !bytes.ends_with(b"\n") {
        return Err(Error::Wrong(format!("{name}, line {number} is longer than {LONGEST_LINE} bytes")));
    }
    let text = String::from_utf8(bytes).map_err(|_| Error::Wrong(format!("{name}, line {number} is not UTF-8")))?;
    Ok((!text.is_empty()).then_some(text))
}

/// What stands behind an address that a list or manifest names.
pub(super) fn found(id: &str, labels: Vec<String>, address: Address) -> Found {
    match packed::Kind::of(address.path()).filter(|kind| kind.is_readable()) {
        Some(kind) => Found::Packed(Packed { id: id.to_owned(), address, kind }),
        None => Found::Picture(Picture { id: id.to_owned(), labels, place: Place::At(address) }),
    }
}
