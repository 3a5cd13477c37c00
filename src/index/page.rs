//! Pages: a collection's items in the order of their ids, a part at a time.

use super::Error;
use super::item::Item;

/// Most items of one page.
pub const MAX_PAGE: usize = 1000;

/// One page of a collection's items.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// Items by id, in the order of its bytes.
    pub items: Vec<Item>,
    /// What to pass as `after` for the next page; `None` at the end.
    pub next: Option<String>,
}

/// Memory of its items from which on a page ends, in bytes.
const PAGE_MEMORY: usize = 16 << 20;

/// Collects the items of a page.
pub(super) struct PageBuilder {
    limit: usize,
    items: Vec<Item>,
    weight: usize,
    is_full: bool,
}

impl PageBuilder {
    /// For at most `limit` items, which [`check_page`] has checked.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, items: Vec::new(), weight: 0, is_full: false }
    }

    /// Adds the next item; false where it belongs to the next page. A page has at least one item, and ends early where they
    /// take much memory.
    pub(super) fn add(&mut self, item: Item) -> bool {
        self.is_full = self.items.len() == self.limit || self.weight >= PAGE_MEMORY;
        if !self.is_full {
            self.weight += item.weight();
            self.items.push(item);
        }
        !self.is_full
    }

    /// The page.
    pub(super) fn end(self) -> Page {
        let next = self.items.last().filter(|_| self.is_full).map(|item| item.id.clone());
        Page { items: self.items, next }
    }
}

/// Refuses pages that are empty or too large.
pub(super) fn check_page(limit: usize) -> Result<(), Error> {
    if limit == 0 || limit > MAX_PAGE {
        return Err(Error::InvalidParameter(format!("a page has 1 to {MAX_PAGE} items, not {limit}")));
    }
    Ok(())
}
