//! Trains DINO vision backbones, evaluates them and exports them to ONNX.

#![deny(unsafe_code)]

pub mod accumulate;
pub mod backbone;
pub mod checkpoint;
pub mod cli;
pub mod data;
pub mod device;
pub mod diagnostics;
pub mod draw;
pub mod evaluate;
pub mod events;
pub mod exchange;
pub mod export;
pub mod finetune;
mod hash;
pub mod head;
pub mod kernels;
pub mod learner;
pub mod lock;
pub mod log;
pub mod loss;
pub mod network;
pub mod observer;
pub mod onnx;
pub mod ops;
pub mod optimizer;
pub mod plot;
pub mod process;
pub mod progress;
pub mod random;
pub mod recipe;
pub mod report;
pub mod scatter;
pub mod schedule;
pub mod trainer;
