//! A model folder: its manifest and its ONNX session.

pub mod manifest;
