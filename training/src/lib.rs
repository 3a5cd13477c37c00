//! Trains DINO vision backbones, evaluates them and exports them to ONNX.

pub mod checkpoint;
pub mod cli;
pub mod evaluate;
pub mod export;
mod hash;
pub mod onnx;
