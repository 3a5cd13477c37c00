//! Trains DINO vision backbones, evaluates them and exports them to ONNX.

#![deny(unsafe_code)]

pub mod backbone;
pub mod cli;
pub mod data;
pub mod device;
pub mod dino;
pub mod distill;
pub mod evaluate;
pub mod exchange;
pub mod export;
mod files;
pub mod finetune;
pub mod kernels;
pub mod log;
pub mod ops;
pub mod process;
pub mod run;
pub mod show;
pub mod weights;
