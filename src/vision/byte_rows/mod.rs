//! Vectors as bytes, and the cosines of many with many: [`anomaly`](crate::anomaly) and [`in_context`](crate::in_context) compare patches
//! so, and [`duplicates`](crate::duplicates) pictures.

mod products;
mod rows;
mod tiles;

pub(crate) use products::{Left, Right};
pub use rows::Rows;
pub(crate) use tiles::{BLOCK, each_tile};
