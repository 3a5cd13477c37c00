//! Flags that say how a checkpoint is read.

use dino_vision::transform::Interpolation;

use crate::weights::{self, Key, TransformOptions};

/// Which tensors of a checkpoint are the backbone's.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub(super) struct Network {
    /// What the names of the backbone's tensors begin with, where a checkpoint holds several networks, such as `state_dict_ema`.
    #[arg(long, value_name = "NAME")]
    prefix: Option<String>,
    /// A tensor that does not belong to the backbone, or what the names of several begin with before a dot; may be given several times.
    #[arg(long, value_name = "NAME")]
    ignore: Vec<String>,
}

/// What a checkpoint does not say by itself.
#[derive(Clone, Debug, Default, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Attention heads, where the checkpoint does not say them and they are not one for each 64 channels.
    #[arg(long, value_parser = dino_program::flags::at_least_one(), value_name = "N")]
    heads: Option<usize>,
    #[command(flatten)]
    network: Network,
    /// How a learned table of positions is resampled for other sizes of pictures: dino-bicubic-scale as the code of DINO and DINOv2 does it,
    /// bicubic-size as transformers does, bicubic-antialias as timm does. The names of the tensors say it in most cases.
    #[arg(long, value_name = "WAY", value_parser = positions)]
    positions: Option<weights::Interpolation>,
    /// Length in pixels that the shorter side of a picture gets, in place of what the checkpoint's folder says.
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=4096))]
    size: Option<u32>,
    /// Side in pixels of the central square that is cut out then.
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(u32).range(1..=4096))]
    crop: Option<u32>,
    /// Mean of red, green and blue, pixels in 0 to 1, as 0.485,0.456,0.406.
    #[arg(long, value_name = "R,G,B", value_parser = three)]
    mean: Option<[f32; 3]>,
    /// Standard deviation of red, green and blue, pixels in 0 to 1, as 0.229,0.224,0.225.
    #[arg(long, value_name = "R,G,B", value_parser = deviation)]
    std: Option<[f32; 3]>,
    /// Filter that pictures are resized with: bilinear, bicubic or lanczos.
    #[arg(long, value_name = "FILTER", value_parser = interpolation)]
    interpolation: Option<Interpolation>,
}

impl Network {
    /// The same for the reader.
    pub(super) fn options(&self) -> weights::Options {
        weights::Options { prefix: self.prefix.clone(), ignore: self.ignore.clone(), ..weights::Options::default() }
    }
}

impl Args {
    /// The same for the reader, with the network that `key` chooses.
    pub(super) fn options(&self, key: Option<Key>) -> weights::Options {
        let Self { heads, ref network, positions, size, crop, mean, std, interpolation } = *self;
        weights::Options {
            heads,
            key,
            positions,
            transform: TransformOptions { size, crop, mean, std, interpolation },
            ..network.options()
        }
    }
}

fn positions(text: &str) -> Result<weights::Interpolation, String> {
    let known = weights::Interpolation::ALL;
    known
        .into_iter()
        .find(|way| way.name() == text)
        .ok_or_else(|| format!("known are {}", known.map(weights::Interpolation::name).join(", ")))
}

fn three(text: &str) -> Result<[f32; 3], String> {
    let numbers: Option<Vec<f32>> =
        text.split(',').map(|number| number.trim().parse().ok().filter(|number: &f32| number.is_finite())).collect();
    numbers.and_then(|numbers| numbers.try_into().ok()).ok_or_else(|| "expected three numbers, such as 0.485,0.456,0.406".into())
}

fn deviation(text: &str) -> Result<[f32; 3], String> {
    three(text).and_then(|numbers| {
        if numbers.iter().all(|number| number.is_normal() && *number > 0.0) { Ok(numbers) } else { Err("a deviation is above 0".into()) }
    })
}

fn interpolation(text: &str) -> Result<Interpolation, String> {
    match text {
        "bilinear" => Ok(Interpolation::Bilinear),
        "bicubic" => Ok(Interpolation::Bicubic),
        "lanczos" => Ok(Interpolation::Lanczos),
        _ => Err("known are bilinear, bicubic and lanczos".into()),
    }
}
