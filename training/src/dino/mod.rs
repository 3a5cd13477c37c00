//! What is learnt and how (Caron et al. 2021): networks, projection head, loss, optimiser, schedules, and one step of them.

pub mod accumulate;
pub mod gram;
pub mod head;
pub mod ibot;
pub mod koleo;
pub mod layer_decay;
pub mod learner;
pub mod loss;
pub mod masks;
pub mod network;
pub mod optimizer;
pub mod schedule;
pub mod sinkhorn;
