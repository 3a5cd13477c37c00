//! torchvision's residual networks, as DINO trained them: `conv1`, `bn1`, `layer1` to `layer4`.

use super::super::Error;
use super::super::scope::Scope;
use super::super::spec::{Backbone, Conv, Linear, Resnet, Unit};
use super::{Read, is_harmless};

const LAYOUT: &str = "dino-resnet-pth";
/// Epsilon of torchvision's batch norms.
const EPS: f32 = 1e-5;

pub(super) fn read(mut scope: Scope) -> Result<Read, Error> {
    let stem = conv(&mut scope, "conv1", "bn1", 3, 2);
    let mut channels = stem.kernel.weight.shape.first().copied().unwrap_or(0);
    let mut stages = Vec::new();
    for stage in 1..=4 {
        let list = format!("layer{stage}");
        let count = scope.count(&list, Some(1));
        let mut units = Vec::new();
        for index in 0..count {
            let stride = if stage > 1 && index == 0 { 2 } else { 1 };
            units.push(unit(&mut scope, &format!("{list}.{index}"), &mut channels, stride));
        }
        stages.push(units);
    }
    let report = scope.finish(LAYOUT, is_harmless)?;
    Ok(Read {
        backbone: Backbone::Resnet(Resnet { stem, stages, dim: channels }),
        layout: LAYOUT,
        architecture: "dino-resnet",
        transform: None,
        report,
    })
}

fn unit(scope: &mut Scope, name: &str, channels: &mut usize, stride: usize) -> Unit {
    let input = *channels;
    // A bottleneck strides in its 3 x 3 convolution, the second; a basic unit in its first.
    let (count, strided) = if scope.has(&format!("{name}.conv3.weight")) { (3, 2) } else { (2, 1) };
    let mut convs = Vec::new();
    for index in 1..=count {
        let stride = if index == strided { stride } else { 1 };
        let conv = conv(scope, &format!("{name}.conv{index}"), &format!("{name}.bn{index}"), *channels, stride);
        *channels = conv.kernel.weight.shape.first().copied().unwrap_or(0);
        convs.push(conv);
    }
    let projected = scope.has(&format!("{name}.downsample.0.weight")) || input != *channels || stride != 1;
    let downsample = (format!("{name}.downsample.0"), format!("{name}.downsample.1"));
    let shortcut = projected.then(|| conv(scope, &downsample.0, &downsample.1, input, stride));
    Unit { convs, shortcut }
}

/// A convolution without a bias and the batch norm behind it, as one convolution.
fn conv(scope: &mut Scope, name: &str, norm: &str, input: usize, stride: usize) -> Conv {
    let weight_name = format!("{name}.weight");
    let [out, per_group, side, _] = scope.dims(&weight_name);
    let groups = input.checked_div(per_group).unwrap_or(1);
    if per_group * groups != input && out > 0 {
        scope.reject(&weight_name, &format!("reads {per_group} channels per group of {input}"));
    }
    let weight = scope.take(&weight_name, &[out, per_group, side, side]);
    let [scale, shift, mean, variance] =
        ["weight", "bias", "running_mean", "running_var"].map(|part| scope.take(&format!("{norm}.{part}"), &[out]).data);
    let factors: Vec<f32> = scale.iter().zip(&variance).map(|(scale, variance)| scale / (variance + EPS).sqrt()).collect();
    let bias = shift.iter().zip(&mean).zip(&factors).map(|((shift, mean), factor)| shift - mean * factor).collect();
    let mut kernel = Linear { weight, bias: None };
    kernel.scale_outputs(&factors);
    kernel.bias = Some(bias);
    if kernel.weight.shape.is_empty() {
        // Reading goes on only to find what else does not fit; the sizes still have to follow.
        kernel.weight.shape = vec![out, per_group, side, side];
    }
    Conv { kernel, stride, groups }
}
