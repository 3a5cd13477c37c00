//! Trains DINO vision backbones, evaluates them and exports them to ONNX.

pub mod backbone;
pub mod checkpoint;
pub mod cli;
pub mod data;
pub mod evaluate;
pub mod exchange;
pub mod export;
mod hash;
pub mod head;
pub mod kernels;
pub mod learner;
pub mod log;
pub mod loss;
pub mod network;
pub mod onnx;
pub mod ops;
pub mod optimizer;
pub mod plot;
pub mod process;
pub mod progress;
pub mod recipe;
pub mod schedule;
pub mod trainer;
