//! Batch norm as a layer: its parameters, its running statistics, and which of them a pass uses.

use candle_core::{Device, Result, Tensor};

use super::Pass;
use super::parameters::{Group, Init, Random};
use crate::ops::batch_norm::{self, BatchNorm, Statistics};
use crate::ops::host::is_host;

/// PyTorch's defaults.
const EPS: f32 = 1e-5;
const MOMENTUM: f64 = 0.1;

/// Weight and bias of `channels` channels under `name`.
pub(crate) fn parameters(name: &str, channels: usize, random: &mut impl Random, device: &Device) -> Result<Group> {
    let entry = |part: &str, value| (format!("{name}.{part}"), vec![channels], Init::Constant(value));
    Group::new(vec![entry("weight", 1.0), entry("bias", 0.0)], random, device)
}

/// Running mean and variance of `channels` channels under `name`. They are not trained: checkpoints keep them, nothing averages them.
pub(crate) fn running(name: &str, channels: usize, random: &mut impl Random, device: &Device) -> Result<Group> {
    let entry = |part: &str, value| (format!("{name}.{part}"), vec![channels], Init::Constant(value));
    Group::new(vec![entry("running_mean", 0.0), entry("running_var", 1.0)], random, device)
}

/// Normalises `x` `[…, channels]`, adds the shortcut if there is one, and rectifies if `rectify`.
///
/// Student and teacher normalise by the statistics of the batch, over all processes, and move the running ones towards them; evaluation uses the running ones.
///
/// # Errors
/// When shapes do not fit, or the device fails.
pub(crate) fn forward(
    x: &Tensor,
    parameters: &Group,
    running: &Group,
    shortcut: Option<&Tensor>,
    rectify: bool,
    pass: &Pass<'_>,
) -> Result<Tensor> {
    let flat = parameters.flat(pass.tracks());
    let Some(exchange) = pass.exchange() else {
        let stored = running.flat(false);
        let (mean, variance) = (running.view(&stored, 0)?, running.view(&stored, 1)?);
        return batch_norm::evaluated(x, &flat, shortcut, &mean, &variance, (EPS, rectify));
    };
    if !is_host(x.device()) {
        let (out, batch) = batch_norm::composed(x, &flat, shortcut, (EPS, rectify), exchange)?;
        follow(running, &batch)?;
        return Ok(out);
    }
    let statistics = Statistics::of(x, &**exchange)?;
    follow(running, &statistics.unbiased(x.device())?)?;
    BatchNorm { statistics, eps: EPS, rectify, exchange: exchange.clone() }.forward(x, &flat, shortcut)
}

/// Moves running statistics towards those of a batch, `[2 * channels]`.
fn follow(running: &Group, batch: &Tensor) -> Result<()> {
    let old = running.var().as_detached_tensor();
    running.var().set(&((old * (1.0 - MOMENTUM))? + (batch * MOMENTUM)?)?)
}
