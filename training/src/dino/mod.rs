//! What is learnt and how (Caron et al. 2021): networks, projection head, loss, optimiser, schedules, and one step of them.
//!
//! ```
//! use candle_core::{Device, Tensor};
//! use dino_train::dino::{
//!     accumulate::Accumulated, head::HeadConfig, learner::{Learner, Step, Views}, network::Network, optimizer::{Algorithm, Settings},
//! };
//! use dino_train::{backbone::vit::VitConfig, data::loader::generator, exchange::alone, kernels::matmul::Precision};
//!
//! let vit = VitConfig { img_size: 32, patch_size: 16, dim: 16, depth: 1, heads: 2, ..VitConfig::default() };
//! let precision = Precision::F32;
//! let head = HeadConfig { dim: 16, hidden: 32, bottleneck: 8, out: Some(64), batch_norm: false, norm_last_layer: true, precision };
//! let mut random = generator(0, 0, 0, 0);
//! let student = Network::new(vit, head, &mut random, &Device::Cpu)?;
//! let mut learner = Learner::new(student, Algorithm::Adamw, alone())?;
//!
//! // Two global crops of two pictures.
//! let global = Tensor::randn(0.0_f32, 1.0, (4, 3, 32, 32), &Device::Cpu)?;
//! let mut batches = Accumulated::default();
//! learner.add(&mut batches, Views { global: &global, local: None, anchored: None, masks: None }, 0.04, &mut random)?;
//! let optimizer = Settings { lr: 1e-3, weight_decay: 0.04, clip: 3.0, freeze_last_layer: false };
//! let report = learner.step(batches, &Step { optimizer, momentum: 0.996, teacher_temp: 0.04 }, false)?;
//! assert!(report.means.teacher_entropy <= 64_f64.ln() + 1e-3);
//! assert!(report.means.loss >= report.means.teacher_entropy - 1e-3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod accumulate;
pub mod gram;
pub mod head;
pub mod ibot;
pub mod koleo;
pub mod layer_decay;
pub mod learner;
pub mod lejepa;
pub mod loss;
pub mod masks;
pub mod network;
#[cfg(test)]
mod on_device;
pub mod optimizer;
pub mod schedule;
pub mod sinkhorn;
