//! Vectors as bytes, and the cosines of many with many: [`anomaly`](crate::anomaly) compares patches so, and
//! [`duplicates`](crate::duplicates) pictures.

mod products;
mod rows;

pub(crate) use products::{Left, Right};
pub use rows::Rows;
