//! The links of a finished graph, side by side, in memory and in a file.

use std::io::Write;

use super::walk::Layer;
use crate::index::embedded::large_pages;

/// Links of a node on the layers above the bottom, where it has twice as many. With this and the width of the search while
/// building recall is measured in BENCHMARKS.md.
pub(super) const LINKS: usize = 16;

/// All links. Each node has room for as many as it may have, and their number before them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Links {
    /// Where searches begin: a node of the highest layer.
    pub(super) entry: u32,
    /// `[nodes, 1 + most(0)]`.
    bottom: Vec<u32>,
    upper: Vec<UpperLayer>,
}

/// A layer above the bottom.
#[derive(Debug, PartialEq, Eq)]
struct UpperLayer {
    /// The nodes on it, ascending.
    nodes: Vec<u32>,
    /// `[nodes, 1 + most(1)]`.
    links: Vec<u32>,
}

impl Links {
    /// Most links of a node on a layer.
    pub(super) const fn most(layer: usize) -> usize {
        if layer == 0 { 2 * LINKS } else { LINKS }
    }

    /// The links of each node, from the bottom layer up.
    pub(super) fn new(entry: u32, nodes: impl ExactSizeIterator<Item = Vec<Vec<u32>>>) -> Self {
        let mut links = Self { entry, bottom: large_pages::with_capacity(nodes.len() * (1 + Self::most(0))), upper: Vec::new() };
        for (node, layers) in (0..).zip(nodes) {
            for (layer, neighbours) in layers.iter().enumerate() {
                if layer > links.upper.len() {
                    links.upper.push(UpperLayer { nodes: Vec::new(), links: Vec::new() });
                }
                let into = match layer.checked_sub(1) {
                    None => &mut links.bottom,
                    Some(above) => {
                        links.upper[above].nodes.push(node);
                        &mut links.upper[above].links
                    }
                };
                let end = into.len() + 1 + Self::most(layer);
                into.push(neighbours.len() as u32);
                into.extend(neighbours);
                into.resize(end, 0);
            }
        }
        links
    }

    pub(super) fn bottom(&self) -> impl Layer {
        Bottom(&self.bottom)
    }

    /// The layers above the bottom, the highest first.
    pub(super) fn upper(&self) -> impl Iterator<Item = impl Layer> {
        self.upper.iter().rev()
    }

    /// Writes entry, number of layers above the bottom, nodes and then links of each, the links of the bottom; all u32,
    /// little-endian, lists with their length before them.
    pub(super) fn write_to(&self, out: &mut impl Write) -> std::io::Result<()> {
        let mut number = |number: u32| out.write_all(&number.to_le_bytes());
        number(self.entry)?;
        number(self.upper.len() as u32)?;
        for list in self.upper.iter().flat_map(|layer| [&layer.nodes, &layer.links]).chain([&self.bottom]) {
            number(list.len() as u32)?;
            list.iter().copied().try_for_each(&mut number)?;
        }
        Ok(())
    }

    /// What [`write_to`](Self::write_to) made of a graph over so many rows; `None` for anything else.
    pub(super) fn from_bytes(bytes: &[u8], rows: usize) -> Option<Self> {
        let (numbers, []) = bytes.as_chunks() else { return None };
        let mut numbers = numbers.iter().map(|&number| u32::from_le_bytes(number));
        let (entry, layers) = (numbers.next()?, numbers.next()?);
        let mut list = || {
            let length = numbers.next()? as usize;
            (length <= numbers.len()).then(|| {
                let mut list = large_pages::with_capacity(length);
                list.extend(numbers.by_ref().take(length));
                list
            })
        };
        let upper = (0..layers).map(|_| Some(UpperLayer { nodes: list()?, links: list()? })).collect::<Option<Vec<_>>>()?;
        let links = Self { entry, bottom: list()?, upper };
        (numbers.len() == 0 && links.is_sound(rows)).then_some(links)
    }

    /// Whether no link leads out of the graph.
    fn is_sound(&self, rows: usize) -> bool {
        let inside = |node: &u32| (*node as usize) < rows;
        let sound = |links: &[u32], nodes: usize, most: usize| {
            let mut each = links.chunks_exact(1 + most);
            links.len() == nodes * (1 + most) && each.all(|node| node[0] as usize <= most && node[1..].iter().all(inside))
        };
        let layer = |layer: &UpperLayer| {
            sound(&layer.links, layer.nodes.len(), Self::most(1)) && layer.nodes.is_sorted() && layer.nodes.iter().all(inside)
        };
        inside(&self.entry) && sound(&self.bottom, rows, Self::most(0)) && self.upper.iter().all(layer)
    }
}

struct Bottom<'a>(&'a [u32]);

impl Layer for Bottom<'_> {
    fn neighbours(&self, node: u32, into: &mut Vec<u32>) {
        into.extend_from_slice(neighbours::<{ Links::most(0) }>(self.0, node as usize));
    }
}

impl Layer for &UpperLayer {
    fn neighbours(&self, node: u32, into: &mut Vec<u32>) {
        if let Ok(at) = self.nodes.binary_search(&node) {
            into.extend_from_slice(neighbours::<{ Links::most(1) }>(&self.links, at));
        }
    }
}

/// The links of the node at a place.
fn neighbours<const MOST: usize>(links: &[u32], at: usize) -> &[u32] {
    let node = &links[at * (1 + MOST)..][..=MOST];
    &node[1..][..node[0] as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_come_back_and_others_are_refused() {
        let nodes = vec![vec![vec![1, 2]], vec![vec![0], vec![2]], vec![vec![0, 1], vec![1], vec![]]];
        let links = Links::new(2, nodes.into_iter());
        assert_eq!((links.bottom.len(), links.upper().count()), (3 * 33, 2));
        let mut found = Vec::new();
        links.bottom().neighbours(2, &mut found);
        links.upper().nth(1).unwrap().neighbours(1, &mut found);
        assert_eq!(found, [0, 1, 2]);

        let mut bytes = Vec::new();
        links.write_to(&mut bytes).unwrap();
        assert_eq!(Links::from_bytes(&bytes, 3), Some(links));
        assert_eq!(Links::from_bytes(&bytes, 2), None);
        for end in 0..bytes.len() {
            assert_eq!(Links::from_bytes(&bytes[..end], 3), None, "cut at {end}");
        }
        for at in 0..bytes.len() / 4 {
            let mut wrong = bytes.clone();
            wrong[at * 4 + 3] = 0x7f;
            assert_eq!(Links::from_bytes(&wrong, 3), None, "number {at} is huge");
        }
    }
}
