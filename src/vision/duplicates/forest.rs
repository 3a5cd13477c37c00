//! Sets of items that grow together (union-find).

/// Which items are connected.
#[derive(Clone, Debug)]
pub(super) struct Forest {
    parents: Vec<u32>,
    sizes: Vec<u32>,
}

impl Forest {
    /// Items that are each alone.
    pub(super) fn new(count: usize) -> Self {
        Self { parents: (0..count as u32).collect(), sizes: vec![1; count] }
    }

    /// What stands for the set of `item`.
    pub(super) fn root(&mut self, mut item: u32) -> u32 {
        while self.parents[item as usize] != item {
            let above = self.parents[self.parents[item as usize] as usize];
            self.parents[item as usize] = above;
            item = above;
        }
        item
    }

    /// Connects two items; false where they were connected before.
    pub(super) fn unite(&mut self, a: u32, b: u32) -> bool {
        let (a, b) = (self.root(a), self.root(b));
        if a == b {
            return false;
        }
        let (large, small) = if self.sizes[a as usize] >= self.sizes[b as usize] { (a, b) } else { (b, a) };
        self.parents[small as usize] = large;
        self.sizes[large as usize] += self.sizes[small as usize];
        true
    }

    /// Number of items in the set of `item`.
    pub(super) fn size(&mut self, item: u32) -> usize {
        let root = self.root(item);
        self.sizes[root as usize] as usize
    }
}
