//! What is connected, as groups in an order of their own.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Serialize;

use super::Candidates;
use super::forest::Forest;
use crate::cancel::{self, Cancelled};

/// What connects a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "DuplicateKind")]
pub enum Kind {
    /// All of its items have the same pixels: encoded again, or at another size.
    Copy,
    /// Its items look alike, and not all of them have the same pixels.
    Similar,
}

/// An item of a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Member {
    /// Its number among the candidates.
    pub item: usize,
    /// Cosine with the first item of the group; `None` where there are no vectors.
    pub similarity: Option<f32>,
    /// Whether it has the same pixels as the first item.
    pub same_pixels: bool,
    /// Number of the largest item with the same pixels, where that is another one.
    pub copy_of: Option<usize>,
}

/// Items that are connected.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// What connects them.
    pub kind: Kind,
    /// The least similarity of an item to the first: far below what was asked for where a group is a chain.
    pub lowest_similarity: Option<f32>,
    /// At least two items. The first has the most pixels, of equal ones the least id; the others follow by similarity to it.
    pub members: Vec<Member>,
}

/// Groups in the order of the ids of their first items.
///
/// # Errors
/// [`Cancelled`].
pub(super) fn of(items: &Candidates, copies: &mut Forest, connected: &mut Forest) -> Result<Vec<Group>, Cancelled> {
    let mut by_root: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    for item in 0..items.len() {
        if connected.size(item as u32) > 1 {
            by_root.entry(connected.root(item as u32)).or_default().push(item);
        }
    }
    let mut groups = Vec::with_capacity(by_root.len());
    for members in by_root.into_values() {
        cancel::check()?;
        groups.push(group(items, copies, members));
    }
    groups.sort_unstable_by(|a, b| first_id(items, a).cmp(first_id(items, b)));
    Ok(groups)
}

fn first_id<'a>(items: &'a Candidates, group: &Group) -> &'a str {
    items.id(group.members[0].item)
}

fn group(items: &Candidates, copies: &mut Forest, mut members: Vec<usize>) -> Group {
    members.sort_unstable_by_key(|&item| (Reverse(items.pixels(item)), items.id(item)));
    let first = members[0];
    // The first member of each class of pixels is its largest.
    let mut largest: BTreeMap<u32, usize> = BTreeMap::new();
    let root_of_first = copies.root(first as u32);
    let member = |item: usize| {
        let root = copies.root(item as u32);
        let head = *largest.entry(root).or_insert(item);
        Member {
            item,
            similarity: items.similarity(first, item),
            same_pixels: root == root_of_first,
            copy_of: (head != item).then_some(head),
        }
    };
    let mut members: Vec<Member> = members.into_iter().map(member).collect();
    // Equal ones stay in the order of their sizes and ids.
    members[1..].sort_by(|a, b| b.similarity.unwrap_or(0.0).total_cmp(&a.similarity.unwrap_or(0.0)));
    let kind = if largest.len() == 1 { Kind::Copy } else { Kind::Similar };
    let lowest_similarity = members.iter().filter_map(|member| member.similarity).min_by(f32::total_cmp);
    Group { kind, lowest_similarity, members }
}
