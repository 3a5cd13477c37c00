//! A transformer that can be trained further, from the weights of a checkpoint of any layout.

use candle_core::Device;

use super::parameters::{Entry, Group};
use super::vit::{Vit, VitConfig};
use crate::checkpoint::{self, Interpolation, Linear, Mlp, Norm, Positions};
use crate::data::loader::generator;
use crate::kernels::matmul::Precision;

/// Why weights are not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The network has parts that are not trained here.
    #[error("this backbone {0}, which is not trained here: give a DINO ViT (of the public release, or of dino-train)")]
    Unsupported(String),
    /// Shapes do not fit, or the device fails.
    #[error(transparent)]
    Device(#[from] candle_core::Error),
}

/// The weights `vit` as variables, with stochastic depth of `drop_path` in training.
///
/// CLS comes with its position added, so that the position table's first row is zero: the network computes the same.
///
/// # Errors
/// [`Error::Unsupported`] for registers, gated MLPs, rotary positions, and tables that are resampled in another way.
pub fn vit(vit: &checkpoint::Vit, drop_path: f64, precision: Precision, device: &Device) -> Result<Vit, Error> {
    let unsupported = |what: &str| Err(Error::Unsupported(what.to_owned()));
    let Positions::Learned { table, interpolation: Interpolation::ScaleFactor } = &vit.positions else {
        return unsupported("has positions that are rotary, or resampled in another way than DINO's");
    };
    if vit.registers() > 0 {
        return unsupported("has register tokens");
    }
    if (vit.eps - 1e-6).abs() > 1e-9 {
        return unsupported("has layer norms of another epsilon than 1e-6");
    }
    let side = table.shape[0];
    let config = VitConfig {
        img_size: side * vit.patch_size,
        patch_size: vit.patch_size,
        dim: vit.dim,
        depth: vit.blocks.len(),
        heads: vit.heads,
        drop_path,
        precision,
    };
    let mut values: Vec<Vec<Vec<f32>>> = vec![
        vec![vit.prefix.data.clone()],
        vec![[vec![0.0; vit.dim], table.data.clone()].concat()],
        vec![vit.patch.weight.data.clone()],
        vec![bias(&vit.patch, vit.dim)],
    ];
    for block in &vit.blocks {
        let Mlp::Plain { input, output } = &block.mlp else { return unsupported("has gated MLPs") };
        let norm = |norm: &Norm| [norm.weight.clone(), norm.bias.clone()];
        let linear = |linear: &Linear, rows: usize| [linear.weight.data.clone(), bias(linear, rows)];
        let hidden = input.weight.shape[0];
        let parts = [
            norm(&block.norm1),
            linear(&block.qkv, 3 * vit.dim),
            linear(&block.proj, vit.dim),
            norm(&block.norm2),
            linear(input, hidden),
            linear(output, vit.dim),
        ];
        values.push(parts.concat());
    }
    values.extend([vec![vit.norm.weight.clone()], vec![vit.norm.bias.clone()]]);
    // Every value is replaced below.
    let loaded = Vit::new(config, &mut generator(0, 0, 0, 0), device)?;
    for (group, values) in loaded.groups().iter().zip(&values) {
        fill(group, values)?;
    }
    Ok(loaded)
}

fn bias(linear: &Linear, rows: usize) -> Vec<f32> {
    linear.bias.clone().unwrap_or_else(|| vec![0.0; rows])
}

fn fill(group: &Group, values: &[Vec<f32>]) -> Result<(), Error> {
    let misfit =
        |(entry, values): (&Entry, &Vec<f32>)| (entry.len() != values.len()).then(|| format!("has {} of another size", entry.name));
    if let Some(what) = group.entries().iter().zip(values).find_map(misfit) {
        return Err(Error::Unsupported(what));
    }
    group.var().set(&candle_core::Tensor::from_vec(values.concat(), group.var().elem_count(), group.var().device())?)?;
    Ok(())
}
