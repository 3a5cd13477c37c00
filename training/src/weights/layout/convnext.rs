//! `ConvNeXt`, as DINOv3 distilled it: Meta's own names, Hugging Face's `DINOv3ConvNextModel`, and timm's.

use std::collections::BTreeMap;

use super::super::Error;
use super::super::scope::Scope;
use super::super::spec::{Backbone, Conv, Convnext, ConvnextBlock, ConvnextStage, Linear};
use super::super::store::Tensor;
use super::{Hints, Read, is_harmless};

/// Epsilon of the norms of all releases.
const EPS: f64 = 1e-6;

/// What the layers are called.
struct Dialect {
    layout: &'static str,
    /// What stands before `stages`.
    prefix: &'static str,
    /// The list of a stage's blocks, behind the stage.
    blocks: &'static str,
    /// Convolution, norm and the two layers of the MLP in a block.
    block: [&'static str; 4],
    norm: &'static str,
}

const META: Dialect =
    Dialect { layout: "dinov3-convnext-pth", prefix: "", blocks: "", block: ["dwconv", "norm", "pwconv1", "pwconv2"], norm: "norm" };
const HUGGING_FACE: Dialect = Dialect {
    layout: "hf-dinov3-convnext",
    prefix: "",
    blocks: ".layers",
    block: ["depthwise_conv", "layer_norm", "pointwise_conv1", "pointwise_conv2"],
    norm: "layer_norm",
};
const TIMM: Dialect =
    Dialect { layout: "timm-convnext", prefix: "", blocks: ".blocks", block: ["conv_dw", "norm", "mlp.fc1", "mlp.fc2"], norm: "head.norm" };

impl Dialect {
    fn of(scope: &Scope) -> Self {
        if scope.has_any("downsample_layers.") {
            META
        } else if scope.has_any("stem.") {
            TIMM
        } else if scope.has_any("model.stages.") {
            // The names of the modules of transformers 5, whose files keep the older ones.
            Self { prefix: "model.", ..HUGGING_FACE }
        } else {
            HUGGING_FACE
        }
    }

    /// Part 0 or 1 of what makes the stage's cells.
    fn downsample(&self, stage: usize, part: usize) -> String {
        match (self.layout, stage) {
            (layout, _) if layout == META.layout => format!("downsample_layers.{stage}.{part}"),
            (layout, 0) if layout == TIMM.layout => format!("stem.{part}"),
            (layout, _) if layout == TIMM.layout => format!("stages.{stage}.downsample.{part}"),
            _ => format!("{}stages.{stage}.downsample_layers.{part}", self.prefix),
        }
    }

    /// The list of a stage's blocks.
    fn blocks(&self, stage: usize) -> String {
        format!("{}stages.{stage}{}", self.prefix, self.blocks)
    }

    /// Meta's name of what is called `name` here.
    fn in_meta(&self, name: &str) -> String {
        let below = |name: &str, place: &str| name.strip_prefix(place)?.strip_prefix('.').map(str::to_owned);
        for stage in 0..4 {
            for part in 0..2 {
                if let Some(rest) = below(name, &self.downsample(stage, part)) {
                    return format!("{}.{rest}", META.downsample(stage, part));
                }
            }
            if let Some((number, rest)) = below(name, &self.blocks(stage)).as_deref().and_then(|rest| rest.split_once('.')) {
                let renamed = self.block.iter().zip(META.block).find_map(|(theirs, ours)| Some(format!("{ours}.{}", below(rest, theirs)?)));
                return format!("{}.{number}.{}", META.blocks(stage), renamed.unwrap_or_else(|| rest.to_owned()));
            }
        }
        below(name, self.norm).map_or_else(|| name.to_owned(), |rest| format!("{}.{rest}", META.norm))
    }
}

/// Every tensor that [`read`] reads, under Meta's names, layer scales included.
pub(super) fn tensors(scope: &Scope) -> Result<BTreeMap<String, Tensor>, Error> {
    let dialect = Dialect::of(scope);
    // timm's final norm lies beside the classifier, which is left out.
    let norm = format!("{}.", dialect.norm);
    let tensors = scope.tensors(|name| is_harmless_here(name) && !name.starts_with(&norm))?;
    Ok(tensors.into_iter().map(|(name, tensor)| (dialect.in_meta(&name), tensor)).collect())
}

/// Meta's module keeps its final norm in a list too, beside places for those of other stages.
fn is_harmless_here(name: &str) -> bool {
    is_harmless(name) || name.starts_with("norms.")
}

pub(super) fn read(mut scope: Scope, hints: &Hints) -> Result<Read, Error> {
    let dialect = Dialect::of(&scope);
    let (mut stages, mut channels) = (Vec::new(), 3);
    for index in 0..4 {
        stages.push(stage(&mut scope, &dialect, index, &mut channels));
    }
    let norm = scope.norm(dialect.norm, channels);
    let report = scope.finish(dialect.layout, is_harmless_here)?;
    let eps = hints.config.eps()?.unwrap_or(EPS) as f32;
    let backbone = Backbone::Convnext(Convnext { stages, norm, eps });
    Ok(Read { backbone, layout: dialect.layout, architecture: "dinov3-convnext", transform: None, report })
}

fn stage(scope: &mut Scope, dialect: &Dialect, index: usize, channels: &mut usize) -> ConvnextStage {
    let input = *channels;
    // The first stage cuts, then norms; the others the other way round.
    let (cut, norm) = if index == 0 { (0, 1) } else { (1, 0) };
    let (cut, norm) = (dialect.downsample(index, cut), dialect.downsample(index, norm));
    let [out, ..]: [usize; 4] = scope.dims(&format!("{cut}.weight"));
    let side = if index == 0 { 4 } else { 2 };
    let downsample = Linear {
        weight: scope.take(&format!("{cut}.weight"), &[out, input, side, side]),
        bias: Some(scope.take(&format!("{cut}.bias"), &[out]).data),
    };
    let norm = scope.norm(&norm, if index == 0 { out } else { input });
    *channels = out;
    let list = dialect.blocks(index);
    let count = scope.count(&list, Some(1));
    let blocks = (0..count).map(|number| block(scope, dialect, &format!("{list}.{number}"), out)).collect();
    ConvnextStage { downsample, norm, blocks }
}

fn block(scope: &mut Scope, dialect: &Dialect, name: &str, dim: usize) -> ConvnextBlock {
    let [depthwise, norm, input, output] = dialect.block.map(|part| format!("{name}.{part}"));
    let [_, _, side, _]: [usize; 4] = scope.dims(&format!("{depthwise}.weight"));
    let mut kernel = Linear {
        weight: scope.take(&format!("{depthwise}.weight"), &[dim, 1, side, side]),
        bias: Some(scope.take(&format!("{depthwise}.bias"), &[dim]).data),
    };
    if side % 2 == 0 && side > 0 {
        scope.reject(&format!("{depthwise}.weight"), "has a kernel of even length");
    }
    if kernel.weight.shape.is_empty() {
        // Reading goes on only to find what else does not fit; the sizes still have to follow.
        kernel.weight.shape = vec![dim, 1, side, side];
    }
    let norm = scope.norm(&norm, dim);
    let [width, _]: [usize; 2] = scope.dims(&format!("{input}.weight"));
    let input = scope.linear(&input, width, dim);
    let mut output = scope.linear(&output, dim, width);
    if let Some(scale) = scope.all_or_none(&format!("{name}.gamma"), &[dim]) {
        output.scale_outputs(&scale.data);
    }
    ConvnextBlock { depthwise: Conv { kernel, stride: 1, groups: dim }, norm, input, output }
}
