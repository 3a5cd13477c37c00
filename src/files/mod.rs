//! Files of the command line's bulk work: [`table`] is what `import` reads, [`vectors`] what `embed` writes and `import` takes up
//! again, [`shard`] the part of it that one of several jobs does.

pub mod shard;
pub mod table;
pub mod vectors;
