//! Batch norm as a layer: its parameters, its running statistics, and which of them a pass uses.

use candle_core::{Device, Result, Tensor};

use super::Pass;
use super::parameters::{Group, Init, Random};
use crate::ops::batch_norm::{self, BatchNorm, Statistics};

/// PyTorch's defaults.
const EPS: f32 = 1e-5;
const MOMENTUM: f32 = 0.1;

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
    let statistics = Statistics::of(x, &**exchange)?;
    follow(running, &statistics)?;
    BatchNorm { statistics, eps: EPS, rectify, exchange: exchange.clone() }.forward(x, &flat, shortcut)
}

/// Moves running statistics: the mean, and the variance with Bessel's correction.
fn follow(running: &Group, statistics: &Statistics) -> Result<()> {
    let Statistics { rows, mean, variance } = statistics;
    let unbiased = *rows as f32 / (*rows as f32 - 1.0);
    let batch = mean.iter().copied().chain(variance.iter().map(|variance| variance * unbiased));
    let old = running.var().flatten_all()?.to_vec1::<f32>()?;
    let new: Vec<f32> = old.iter().zip(batch).map(|(old, batch)| (1.0 - MOMENTUM) * old + MOMENTUM * batch).collect();
    running.var().set(&Tensor::from_vec(new, old.len(), running.var().device())?)
}
