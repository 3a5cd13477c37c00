//! The server as a whole program, over real HTTP, with the real ONNX Runtime and a tiny model.

mod answers;
mod faults;
mod formats;
mod harness;
mod lifecycle;
mod pictures;
mod requests;
