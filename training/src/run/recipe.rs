//! A training run's settings: the public script's flags under their own names, and ours.
//!
//! ```
//! use dino_train::run::recipe::{Arch, Recipe};
//!
//! let recipe: Recipe = toml::from_str("arch = \"vit_base\"\npatch-size = 8")?;
//! recipe.check()?;
//! assert_eq!((recipe.arch, recipe.backbone().dim()), (Arch::VitBase, 768));
//! let names: Vec<String> = recipe.differences(&Recipe::default()).into_iter().map(|(name, _)| name).collect();
//! assert_eq!(names, ["arch", "patch-size"]);
//! # Ok::<(), anyhow::Error>(())
//! ```

use anyhow::{Context, Result};
use clap::ValueEnum;
use dino_vision::transform::{IMAGENET_MEAN, IMAGENET_STD, Interpolation, Resize, Transform};
use serde::{Deserialize, Serialize};

mod arch;
mod changes;
mod check;
mod preset;
mod schedules;

use crate::backbone::convnext::{self, ConvnextConfig};
use crate::backbone::positions::{PositionCode, RotaryJitter};
use crate::backbone::resnet::{Kind, ResnetConfig};
use crate::backbone::stem::Stem;
use crate::backbone::vit::VitConfig;
use crate::backbone::{Backbone, BackboneConfig};
use crate::data::augment::Augmentation;
use crate::dino::gram::{Gram, Negatives};
use crate::dino::head::HeadConfig;
use crate::dino::ibot::Ibot;
use crate::dino::learner::Learner;
use crate::dino::lejepa::Lejepa;
use crate::dino::loss::Centering;
use crate::dino::masks::Masking;
use crate::dino::optimizer::Algorithm;
use crate::dino::sinkhorn::Queue;
use crate::kernels::matmul::{Precision, has_bf16};
pub use arch::Arch;
pub use changes::FIXED;
pub use preset::Preset;
pub use schedules::Schedules;

/// All settings of a run. In a TOML file they have the names of the flags, without the leading dashes.
#[derive(Clone, Debug, PartialEq, clap::Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Recipe {
    /// Backbone to train: `vit_tiny`, `vit_small`, `vit_base`, resnet18, resnet50, `convnext_tiny`, `convnext_small`, `convnext_base` or
    /// `convnext_large`. ViT-small with patch 16 is the best start; tiny is for small data and quick looks. Residual networks want another
    /// optimiser and weight decay: see --preset resnet50
    #[arg(long, default_value_t = Recipe::default().arch, help_heading = "Backbone")]
    pub arch: Arch,
    /// Side of a patch of a ViT in pixels. Smaller patches give better features and finer masks, and cost with the square
    #[arg(long, value_parser = dino_program::flags::at_least_one(), default_value_t = Recipe::default().patch_size, help_heading = "Backbone")]
    pub patch_size: usize,
    /// Dimension of the features, in place of the arch's own. A ResNet or `ConvNeXt` is made narrower or wider by it
    #[arg(long, value_parser = dino_program::flags::one_to(16_384), help_heading = "Backbone")]
    pub dim: Option<usize>,
    /// Number of blocks of a ViT, in place of the arch's own
    #[arg(long, value_parser = dino_program::flags::one_to(256), help_heading = "Backbone")]
    pub depth: Option<usize>,
    /// Attention heads of a ViT, in place of the arch's own
    #[arg(long, value_parser = dino_program::flags::one_to(1024), help_heading = "Backbone")]
    pub heads: Option<usize>,
    /// Register tokens of a ViT beside CLS. Four keep its attention free of outliers in large ones
    #[arg(long, value_parser = dino_program::flags::up_to(1024), default_value_t = Recipe::default().registers, help_heading = "Backbone")]
    pub registers: usize,
    /// First value of factors on each branch of the blocks of a ViT or `ConvNeXt` (layer scale), 0 for none. Where it is not given: 1e-6 of a
    /// `ConvNeXt`, 1e-5 with --method dinov2, else none
    #[arg(long, value_parser = dino_program::flags::from_zero::<f32>, help_heading = "Backbone")]
    pub layer_scale: Option<f32>,
    /// The MLP of a ViT's blocks. Public weights of DINOv2's giant and of DINOv3's S+ and H+ have swiglu
    #[arg(long, value_enum, default_value_t = Recipe::default().ffn_layer, help_heading = "Backbone")]
    pub ffn_layer: FfnLayer,
    /// Columns of the hidden layer of --ffn-layer swiglu. Where it is not given: 8/3 of the dimension, a multiple of 8
    #[arg(long, value_parser = dino_program::flags::one_to(65_536), help_heading = "Backbone")]
    pub ffn_hidden: Option<usize>,
    /// How the patches of a ViT learn where they are: a table of positions, or rotations of queries and keys as in DINOv3
    #[arg(long, value_enum, default_value_t = Recipe::default().pos_embed, help_heading = "Backbone")]
    pub pos_embed: PosEmbed,
    /// Base of the periods of --pos-embed rope
    #[arg(long, value_parser = dino_program::flags::above_zero::<f64>, default_value_t = Recipe::default().rope_base, help_heading = "Backbone")]
    pub rope_base: f64,
    /// Shift the rows and columns of --pos-embed rope by up to this much in training; they are from -1 to 1
    #[arg(long, value_parser = dino_program::flags::from_zero::<f64>, help_heading = "Backbone")]
    pub rope_shift_coords: Option<f64>,
    /// Multiply rows and columns each by a factor of up to this much, or divide them, in training
    #[arg(long, value_parser = dino_program::flags::from_one::<f64>, help_heading = "Backbone")]
    pub rope_jitter_coords: Option<f64>,
    /// Multiply both by one factor of up to this much, or divide them, in training. DINOv3's largest was trained with 2
    #[arg(long, value_parser = dino_program::flags::from_one::<f64>, help_heading = "Backbone")]
    pub rope_rescale_coords: Option<f64>,
    /// How a ViT embeds its patches
    #[arg(long, value_enum, default_value_t = Recipe::default().stem, help_heading = "Backbone")]
    pub stem: Stem,
    /// Stochastic depth of a ViT or `ConvNeXt`: share of the last block's branches that is dropped, less in earlier blocks
    #[arg(long, value_parser = dino_program::flags::below_one::<f64>, default_value_t = Recipe::default().drop_path_rate, help_heading = "Backbone")]
    pub drop_path_rate: f64,

    /// Dimension of the head's output. Large values work well for large and varied data
    #[arg(long, value_parser = dino_program::flags::one_to(1 << 20), default_value_t = Recipe::default().out_dim, help_heading = "Head")]
    pub out_dim: usize,
    /// Keep the norms of the head's last layer at 1. More stable; false can do better with a small ViT
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, value_parser = clap::builder::BoolishValueParser::new(), default_value_t = Recipe::default().norm_last_layer, help_heading = "Head")]
    pub norm_last_layer: bool,
    /// Batch norms behind the head's hidden layers. The public ResNet-50 was trained with them; ViTs are better without
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, value_parser = clap::builder::BoolishValueParser::new(), default_value_t = Recipe::default().use_bn_in_head, help_heading = "Head")]
    pub use_bn_in_head: bool,
    /// Columns of the head's hidden layers
    #[arg(long, value_parser = dino_program::flags::one_to(65_536), default_value_t = Recipe::default().head_hidden_dim, help_heading = "Head")]
    pub head_hidden_dim: usize,
    /// Columns of the head's bottleneck; with --method lejepa the dimension of the embeddings, 128 where it is not given
    #[arg(long, value_parser = dino_program::flags::one_to(65_536), default_value_t = Recipe::default().head_bottleneck_dim, help_heading = "Head")]
    pub head_bottleneck_dim: usize,

    /// First momentum of the teacher, raised to 1 by a cosine. Use a higher one with small batches: 0.9995 for 256 pictures
    #[arg(long, value_parser = dino_program::flags::below_one::<f64>, default_value_t = Recipe::default().momentum_teacher, help_heading = "Teacher")]
    pub momentum_teacher: f64,
    /// Temperature of the teacher at the start. Lower it if the loss does not fall
    #[arg(long, value_parser = dino_program::flags::above_zero::<f64>, default_value_t = Recipe::default().warmup_teacher_temp, help_heading = "Teacher")]
    pub warmup_teacher_temp: f64,
    /// Temperature of the teacher after its warm-up. Above 0.07 training tends to be unstable; start with 0.04
    #[arg(long, value_parser = dino_program::flags::above_zero::<f64>, default_value_t = Recipe::default().teacher_temp, help_heading = "Teacher")]
    pub teacher_temp: f64,
    /// Epochs over which the teacher's temperature rises
    #[arg(long, default_value_t = Recipe::default().warmup_teacher_temp_epochs, help_heading = "Teacher")]
    pub warmup_teacher_temp_epochs: usize,

    /// Momentum of the centre that is taken from the teacher's output. Towards 1 it lags behind, and one output may take all
    #[arg(long, value_parser = dino_program::flags::share::<f64>, default_value_t = Recipe::default().center_momentum, help_heading = "Teacher")]
    pub center_momentum: f64,

    /// How the teacher's output is kept from being the same for all pictures
    #[arg(long, value_enum, default_value_t = Recipe::default().centering, help_heading = "Teacher")]
    pub centering: Centering,
    /// Earlier outputs of the teacher that --centering `sinkhorn_knopp` balances with those of a step, 0 for none. Wanted where a step has
    /// fewer global crops than the head has outputs: two to four times --out-dim. Each takes 4 bytes x --out-dim, in checkpoints too
    #[arg(long, default_value_t = Recipe::default().sinkhorn_queue, value_name = "N", help_heading = "Teacher")]
    pub sinkhorn_queue: usize,

    /// What is learnt: dino compares whole pictures; dinov2 hides patches from the student as well, and asks it what the teacher says of them;
    /// lejepa has no teacher, and settings of its own where they are not given: those of --preset lejepa
    #[arg(long, value_enum, default_value_t = Recipe::default().method, help_heading = "Loss")]
    pub method: Method,
    /// Weight of the term that keeps the features of different pictures apart (KoLeo), 0 for none. Where it is not given: 0.1 with --method
    /// dinov2, else none
    #[arg(long, value_parser = dino_program::flags::from_zero::<f64>, help_heading = "Loss")]
    pub koleo_loss_weight: Option<f64>,
    /// Share of the term that spreads the embeddings like a Gaussian (`SIGReg`) in the loss of --method lejepa; the rest is that of the term
    /// that brings the views of a picture together
    #[arg(long, value_parser = dino_program::flags::share::<f64>, default_value_t = Recipe::default().lejepa_weight, value_name = "LAMBDA", help_heading = "Loss")]
    pub lejepa_weight: f64,
    /// Random directions that it looks along in each step
    #[arg(long, value_parser = dino_program::flags::at_least_one(), default_value_t = Recipe::default().sigreg_slices, value_name = "N", help_heading = "Loss")]
    pub sigreg_slices: usize,
    /// Weight of the loss of hidden patches (iBOT) with --method dinov2, 0 for none
    #[arg(long, value_parser = dino_program::flags::from_zero::<f64>, default_value_t = Recipe::default().ibot_loss_weight, help_heading = "Loss")]
    pub ibot_loss_weight: f64,
    /// Give patches a head of their own. Wanted for large ViTs; one head for both is DINOv2's choice for small data
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, value_parser = clap::builder::BoolishValueParser::new(), default_value_t = Recipe::default().ibot_separate_head, help_heading = "Loss")]
    pub ibot_separate_head: bool,
    /// Outputs of the patches' own head, in place of --out-dim
    #[arg(long, value_parser = dino_program::flags::one_to(1 << 20), help_heading = "Loss")]
    pub ibot_out_dim: Option<usize>,
    /// Weight of the term that keeps patches as similar to each other as an anchor has them (--gram-anchor, --gram-update-epochs; Gram anchoring of DINOv3), 0 for none
    #[arg(long, value_parser = dino_program::flags::from_zero::<f64>, default_value_t = Recipe::default().gram_loss_weight, help_heading = "Loss")]
    pub gram_loss_weight: f64,
    /// Let the anchor see the global crops at this size in pixels, without changes of colour and blur, and bring its features to the grid of
    /// the student's: finer features, as DINOv3 has them. Without it the anchor sees the very crops of the networks
    #[arg(long, value_parser = dino_program::flags::at_least_one(), help_heading = "Loss")]
    pub gram_crops_size: Option<usize>,
    /// Make the teacher the anchor after every so many epochs, 0 for never. Without --gram-anchor the term begins with the first of them
    #[arg(long, default_value_t = Recipe::default().gram_update_epochs, help_heading = "Loss")]
    pub gram_update_epochs: usize,
    /// Compare the patches of all crops of a batch there, not those of each crop alone
    #[arg(long, value_name = "BOOL", action = clap::ArgAction::Set, value_parser = clap::builder::BoolishValueParser::new(), default_value_t = Recipe::default().gram_across_crops, help_heading = "Loss")]
    pub gram_across_crops: bool,
    /// What becomes of negative similarities there
    #[arg(long, value_enum, default_value_t = Recipe::default().gram_negatives, help_heading = "Loss")]
    pub gram_negatives: Negatives,
    /// Share of the global crops whose patches are hidden at all
    #[arg(long, value_parser = dino_program::flags::share::<f64>, default_value_t = Recipe::default().mask_probability, help_heading = "Loss")]
    pub mask_probability: f64,
    /// Least share of such a crop's patches that is hidden
    #[arg(long, value_parser = dino_program::flags::share::<f64>, default_value_t = Recipe::default().mask_ratio_min, help_heading = "Loss")]
    pub mask_ratio_min: f64,
    /// Largest share of such a crop's patches that is hidden
    #[arg(long, value_parser = dino_program::flags::share::<f64>, default_value_t = Recipe::default().mask_ratio_max, help_heading = "Loss")]
    pub mask_ratio_max: f64,

    /// Weight decay at the start. 0.04 works well for ViTs
    #[arg(long, value_parser = dino_program::flags::from_zero::<f64>, default_value_t = Recipe::default().weight_decay, help_heading = "Optimisation")]
    pub weight_decay: f64,
    /// Weight decay at the end of its cosine. A larger decay late in training helps ViTs
    #[arg(long, value_parser = dino_program::flags::from_zero::<f64>, default_value_t = Recipe::default().weight_decay_end, help_heading = "Optimisation")]
    pub weight_decay_end: f64,
    /// Largest norm of each parameter's gradient, 0 for none. Helps larger ViTs with larger learning rates
    #[arg(long, value_parser = dino_program::flags::from_zero::<f64>, default_value_t = Recipe::default().clip_grad, help_heading = "Optimisation")]
    pub clip_grad: f64,
    /// Pictures of a batch, in each process
    #[arg(long, value_parser = dino_program::flags::at_least_one(), visible_alias = "batch-size", default_value_t = Recipe::default().batch_size_per_gpu, help_heading = "Optimisation")]
    pub batch_size_per_gpu: usize,
    /// Batches whose gradients are added up for one step: as a batch that is so many times as large, in the memory of one
    #[arg(long, value_parser = dino_program::flags::at_least_one(), default_value_t = Recipe::default().accumulate, help_heading = "Optimisation")]
    pub accumulate: usize,
    /// Epochs of the run; the schedules are laid out over them
    #[arg(long, value_parser = dino_program::flags::at_least_one(), default_value_t = Recipe::default().epochs, help_heading = "Optimisation")]
    pub epochs: usize,
    /// Epochs at the start in which the head's last layer stays as it is. Raise it if the loss does not fall
    #[arg(long, default_value_t = Recipe::default().freeze_last_layer, help_heading = "Optimisation")]
    pub freeze_last_layer: usize,
    /// Highest learning rate for a batch of 256 pictures: it is scaled by the pictures of a step / 256
    #[arg(long, value_parser = dino_program::flags::from_zero::<f64>, default_value_t = Recipe::default().lr, help_heading = "Optimisation")]
    pub lr: f64,
    /// Epochs of linear warm-up of the learning rate
    #[arg(long, default_value_t = Recipe::default().warmup_epochs, help_heading = "Optimisation")]
    pub warmup_epochs: usize,
    /// Learning rate at the end of the cosine, not scaled
    #[arg(long, value_parser = dino_program::flags::from_zero::<f64>, default_value_t = Recipe::default().min_lr, help_heading = "Optimisation")]
    pub min_lr: f64,
    /// Factor of the learning rate from each block of a ViT to the one before it, 1 for one rate: early blocks change little. 0.75 to 0.9
    /// to go on from public weights
    #[arg(long, value_parser = dino_program::flags::part::<f64>, default_value_t = Recipe::default().layer_decay, help_heading = "Optimisation")]
    pub layer_decay: f64,
    /// Further factor of the learning rate of a ViT's patch embedding; DINOv2 takes 0.2
    #[arg(long, value_parser = dino_program::flags::from_zero::<f64>, default_value_t = Recipe::default().patch_embed_lr_mult, help_heading = "Optimisation")]
    pub patch_embed_lr_mult: f64,
    /// Epochs at the start in which the heads alone are trained. The backbone has its own warm-up of --warmup-epochs then
    #[arg(long, default_value_t = Recipe::default().freeze_backbone_epochs, help_heading = "Optimisation")]
    pub freeze_backbone_epochs: usize,
    /// Train low-rank adapters of this rank on the linear layers of a ViT's blocks (low-rank adaptation) in place of the backbone, 0 for none. They are
    /// merged into the teacher as it is averaged. They want a learning rate some ten times as high
    #[arg(long, default_value_t = Recipe::default().lora_rank, help_heading = "Optimisation")]
    pub lora_rank: usize,
    /// Optimiser
    #[arg(long, value_enum, default_value_t = Recipe::default().optimizer, help_heading = "Optimisation")]
    pub optimizer: Algorithm,
    /// Arithmetic of the linear layers; weights and everything else stay float32
    #[arg(long, value_enum, default_value_t = Recipe::default().precision, help_heading = "Optimisation")]
    pub precision: PrecisionChoice,

    /// Share of the picture's area that a global crop covers, lowest and highest. With --local-crops-number 0 use 0.14 1
    #[arg(long, value_parser = dino_program::flags::part::<f64>, num_args = 2, value_names = ["LOW", "HIGH"], default_values_t = Recipe::default().global_crops_scale, help_heading = "Crops")]
    pub global_crops_scale: Vec<f64>,
    /// Side of the two global crops in pixels; also the size that the position table is made for
    #[arg(long, value_parser = dino_program::flags::at_least_one(), default_value_t = Recipe::default().global_crops_size, help_heading = "Crops")]
    pub global_crops_size: usize,
    /// Number of local crops, 0 for none
    #[arg(long, default_value_t = Recipe::default().local_crops_number, help_heading = "Crops")]
    pub local_crops_number: usize,
    /// Share of the picture's area that a local crop covers, lowest and highest
    #[arg(long, value_parser = dino_program::flags::part::<f64>, num_args = 2, value_names = ["LOW", "HIGH"], default_values_t = Recipe::default().local_crops_scale, help_heading = "Crops")]
    pub local_crops_scale: Vec<f64>,
    /// Side of the local crops in pixels
    #[arg(long, value_parser = dino_program::flags::at_least_one(), default_value_t = Recipe::default().local_crops_size, help_heading = "Crops")]
    pub local_crops_size: usize,
    /// Last epochs, of --epochs, that are trained with larger crops: most is learnt from small crops at a fraction of the time, and the
    /// features are then used at the larger size (Zhang et al. 2025, `FastDINOv2`). 0 for none
    #[arg(long, default_value_t = Recipe::default().final_epochs, help_heading = "Crops")]
    pub final_epochs: usize,
    /// Side of the global crops in the last --final-epochs; twice --global-crops-size where it is not given
    #[arg(long, value_parser = dino_program::flags::at_least_one(), help_heading = "Crops")]
    pub final_global_crops_size: Option<usize>,
    /// Side of the local crops in the last --final-epochs; twice --local-crops-size where it is not given
    #[arg(long, value_parser = dino_program::flags::at_least_one(), help_heading = "Crops")]
    pub final_local_crops_size: Option<usize>,
    /// Deviation of the Gaussian blur in pixels of a crop, lowest and highest. The default is the public script's, for crops of 224
    /// pixels: with smaller crops lower it by as much, or little is left to see (0.1 0.4 for crops of 48)
    #[arg(long, value_parser = dino_program::flags::above_zero::<f64>, num_args = 2, value_names = ["LOW", "HIGH"], default_values_t = Recipe::default().blur_sigma, help_heading = "Crops")]
    pub blur_sigma: Vec<f64>,
    /// Reduce pictures to this many pixels on their shorter side when they are read. Saves time and memory with small crops
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Crops")]
    pub shrink: Option<u32>,

    /// Decides the initial weights, the order of pictures and all crops
    #[arg(long, default_value_t = Recipe::default().seed, help_heading = "Run")]
    pub seed: u64,
}

/// What is learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum Method {
    /// whole pictures, by all crops (Caron et al. 2021)
    Dino,
    /// whole pictures and hidden patches (Oquab et al. 2023)
    Dinov2,
    /// embeddings that agree and are spread like a Gaussian, without a teacher (Balestriero and `LeCun` 2025)
    Lejepa,
}

/// The MLP of a transformer block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum FfnLayer {
    /// two layers with GELU between them, the hidden one four times as wide as the dimension
    #[default]
    Mlp,
    /// a gate with `SiLU` times a value (`SwiGLU`)
    Swiglu,
}

/// How patches learn where they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum PosEmbed {
    /// a table that is added to them
    #[default]
    Learned,
    /// rotary positions
    Rope,
}

/// Arithmetic that can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum PrecisionChoice {
    /// float32 throughout
    F32,
    /// operands of matrix products rounded to bfloat16, on processors that multiply such (Intel AMX, AVX512-BF16) and on GPUs, which round
    /// the products too
    Bf16,
    /// the fastest that trains as f32 does: bf16 where the processor has it, else f32; on a GPU `TensorFloat32`
    Auto,
}

impl PrecisionChoice {
    fn resolve(self) -> Precision {
        if self == Self::Bf16 || (self == Self::Auto && has_bf16()) { Precision::Bf16 } else { Precision::F32 }
    }
}

impl Default for Recipe {
    /// The defaults of the public script, which are those of the paper's ViT-S/16 baseline.
    fn default() -> Self {
        Self {
            arch: Arch::VitSmall,
            patch_size: 16,
            dim: None,
            depth: None,
            heads: None,
            drop_path_rate: 0.1,
            registers: 0,
            layer_scale: None,
            ffn_layer: FfnLayer::Mlp,
            ffn_hidden: None,
            pos_embed: PosEmbed::Learned,
            rope_base: 100.0,
            rope_shift_coords: None,
            rope_jitter_coords: None,
            rope_rescale_coords: None,
            stem: Stem::Patch,
            out_dim: 65536,
            norm_last_layer: true,
            use_bn_in_head: false,
            head_hidden_dim: 2048,
            head_bottleneck_dim: 256,
            momentum_teacher: 0.996,
            warmup_teacher_temp: 0.04,
            teacher_temp: 0.04,
            warmup_teacher_temp_epochs: 0,
            center_momentum: 0.9,
            centering: Centering::Centering,
            sinkhorn_queue: 0,
            method: Method::Dino,
            koleo_loss_weight: None,
            lejepa_weight: 0.02,
            sigreg_slices: 256,
            ibot_loss_weight: 1.0,
            ibot_separate_head: false,
            ibot_out_dim: None,
            gram_loss_weight: 0.0,
            gram_crops_size: None,
            gram_update_epochs: 0,
            gram_across_crops: false,
            gram_negatives: Negatives::Kept,
            mask_probability: 0.5,
            mask_ratio_min: 0.1,
            mask_ratio_max: 0.5,
            weight_decay: 0.04,
            weight_decay_end: 0.4,
            clip_grad: 3.0,
            batch_size_per_gpu: 64,
            accumulate: 1,
            epochs: 100,
            freeze_last_layer: 1,
            lr: 5e-4,
            warmup_epochs: 10,
            min_lr: 1e-6,
            layer_decay: 1.0,
            patch_embed_lr_mult: 1.0,
            freeze_backbone_epochs: 0,
            lora_rank: 0,
            optimizer: Algorithm::Adamw,
            precision: PrecisionChoice::F32,
            global_crops_scale: vec![0.4, 1.0],
            global_crops_size: 224,
            local_crops_number: 8,
            local_crops_scale: vec![0.05, 0.4],
            local_crops_size: 96,
            final_epochs: 0,
            final_global_crops_size: None,
            final_local_crops_size: None,
            blur_sigma: vec![0.1, 2.0],
            shrink: None,
            seed: 0,
        }
    }
}

impl Recipe {
    /// With `auto` replaced by what it comes to on the CPU of this machine or on a GPU, so that a change of machine is noticed.
    #[must_use]
    pub fn resolved(&self, cpu: bool) -> Self {
        let precision = match self.precision.resolve() {
            Precision::Bf16 if self.precision == PrecisionChoice::Auto && !cpu => PrecisionChoice::F32,
            Precision::F32 => PrecisionChoice::F32,
            Precision::Bf16 => PrecisionChoice::Bf16,
        };
        Self { precision, ..self.clone() }
    }

    /// Sizes of the backbone.
    pub fn backbone(&self) -> BackboneConfig {
        let (precision, dinov2) = (self.precision.resolve(), self.method == Method::Dinov2);
        let positions = match self.pos_embed {
            PosEmbed::Learned => PositionCode::Learned,
            PosEmbed::Rope => {
                let (shift, jitter, rescale) = (self.rope_shift_coords, self.rope_jitter_coords, self.rope_rescale_coords);
                PositionCode::Rotary { base: self.rope_base, jitter: RotaryJitter { shift, jitter, rescale } }
            }
        };
        let vit = |dim: usize, depth, heads| {
            let dim = self.dim.unwrap_or(dim);
            // As in the public code.
            let hidden = || self.ffn_hidden.unwrap_or((dim * 4 * 2 / 3).next_multiple_of(8));
            BackboneConfig::Vit(VitConfig {
                img_size: self.global_crops_size,
                patch_size: self.patch_size,
                dim,
                gated: (self.ffn_layer == FfnLayer::Swiglu).then(hidden),
                positions,
                depth: self.depth.unwrap_or(depth),
                heads: self.heads.unwrap_or(heads),
                drop_path: self.drop_path_rate,
                stem: self.stem,
                registers: self.registers,
                layer_scale: self.layer_scale.or(dinov2.then_some(1e-5)).filter(|first| *first > 0.0),
                mask_token: dinov2,
                precision,
            })
        };
        let resnet = |kind, units| {
            let resnet = ResnetConfig { kind, units, width: 64, precision };
            let width = self.dim.map_or(resnet.width, |dim| dim * resnet.width / resnet.dim());
            BackboneConfig::Resnet(ResnetConfig { width, ..resnet })
        };
        let convnext = |depth, width: usize| {
            let width = self.dim.map_or(width, |dim| dim / 8);
            let layer_scale = Some(self.layer_scale.unwrap_or(convnext::LAYER_SCALE)).filter(|first| *first > 0.0);
            let (depths, dims) = ([3, 3, depth, 3], [1, 2, 4, 8].map(|factor| factor * width));
            BackboneConfig::Convnext(ConvnextConfig { depths, dims, drop_path: self.drop_path_rate, layer_scale, precision })
        };
        match self.arch {
            Arch::VitTiny => vit(192, 12, 3),
            Arch::VitSmall => vit(384, 12, 6),
            Arch::VitBase => vit(768, 12, 12),
            Arch::Resnet18 => resnet(Kind::Basic, [2, 2, 2, 2]),
            Arch::Resnet50 => resnet(Kind::Bottleneck, [3, 4, 6, 3]),
            Arch::ConvnextTiny => convnext(9, 96),
            Arch::ConvnextSmall => convnext(27, 96),
            Arch::ConvnextBase => convnext(27, 128),
            Arch::ConvnextLarge => convnext(27, 192),
        }
    }

    /// Sizes of the head.
    pub fn head(&self) -> HeadConfig {
        let is_projector = self.method == Method::Lejepa;
        HeadConfig {
            dim: self.backbone().dim(),
            hidden: self.head_hidden_dim,
            bottleneck: self.head_bottleneck_dim,
            out: (!is_projector).then_some(self.out_dim),
            batch_norm: self.use_bn_in_head || is_projector,
            norm_last_layer: self.norm_last_layer,
            precision: self.precision.resolve(),
        }
    }

    /// Sizes of the patches' own head, where they have one.
    pub fn ibot_head(&self) -> Option<HeadConfig> {
        let wanted = self.method == Method::Dinov2 && self.ibot_separate_head && self.ibot_loss_weight > 0.0;
        wanted.then(|| HeadConfig { out: Some(self.ibot_out_dim.unwrap_or(self.out_dim)), ..self.head() })
    }

    /// How patches are hidden from the student, where they are.
    pub fn masking(&self) -> Option<Masking> {
        let masking = Masking { probability: self.mask_probability, low: self.mask_ratio_min, high: self.mask_ratio_max };
        (self.method == Method::Dinov2).then_some(masking)
    }

    /// Gives a fresh learner the terms of the loss.
    ///
    /// # Errors
    /// When the device fails.
    pub fn set_losses(&self, learner: &mut Learner) -> candle_core::Result<()> {
        learner.loss.center_momentum = self.center_momentum;
        learner.loss.centering = self.centering;
        learner.loss.queue = Queue::new(self.sinkhorn_queue);
        let lejepa = Lejepa { weight: self.lejepa_weight, slices: self.sigreg_slices };
        learner.lejepa = (self.method == Method::Lejepa).then_some(lejepa);
        let dinov2 = self.method == Method::Dinov2;
        learner.koleo_weight = self.koleo_loss_weight.unwrap_or(if dinov2 { 0.1 } else { 0.0 });
        if dinov2 && self.ibot_loss_weight > 0.0 {
            let (k, device) = (learner.student.patch_head().config().columns(), learner.loss.centre().device().clone());
            let mut ibot = Ibot::new(self.ibot_loss_weight, k, &device)?;
            ibot.patches.center_momentum = self.center_momentum;
            ibot.patches.centering = self.centering;
            learner.ibot = Some(ibot);
        }
        Ok(())
    }

    /// The term that holds patches to an anchor; `is_own` where that is a teacher of this run.
    pub fn gram(&self, anchor: Backbone, is_own: bool) -> Gram {
        Gram { weight: self.gram_loss_weight, anchor, across: self.gram_across_crops, negatives: self.gram_negatives, is_own }
    }

    /// Sides of the global and of the local crops in an epoch, counted from 0.
    pub fn crop_sizes(&self, epoch: usize) -> (usize, usize) {
        let (global, local) = (self.global_crops_size, self.local_crops_size);
        if self.final_epochs == 0 || epoch + self.final_epochs < self.epochs {
            (global, local)
        } else {
            (self.final_global_crops_size.unwrap_or(2 * global), self.final_local_crops_size.unwrap_or(2 * local))
        }
    }

    /// Crops of each picture in an epoch, counted from 0.
    ///
    /// # Errors
    /// When a scale does not have two numbers.
    pub fn augmentation(&self, epoch: usize) -> Result<Augmentation> {
        let pair = |scale: &[f64]| Some((*scale.first()?, *scale.get(1)?));
        let (global, local) = self.crop_sizes(epoch);
        Ok(Augmentation {
            global_size: global as u32,
            global_scale: pair(&self.global_crops_scale).context("--global-crops-scale takes two numbers")?,
            // Larger crops at the end of a run are no reason for the anchor to see less than the networks.
            anchor_size: self.gram_crops_size.map(|size| size.max(global) as u32),
            local_crops: self.local_crops_number,
            local_size: local as u32,
            local_scale: pair(&self.local_crops_scale).context("--local-crops-scale takes two numbers")?,
            blur_sigma: pair(&self.blur_sigma).context("--blur-sigma takes two numbers")?,
        })
    }

    /// The evaluation transform of what has been trained up to an epoch, counted from 0: the paper's 256 / 224 ratio of shorter side to
    /// crop. A ResNet's crop is the nearest that its last map divides evenly.
    pub fn transform(&self, epoch: usize) -> Transform {
        let crop = self.crop_sizes(epoch).0 as u32;
        let crop = if self.arch.is_resnet() { ((crop + 16) / 32).max(1) * 32 } else { crop };
        Transform {
            resize: Resize::Shorter((f64::from(crop) * 256.0 / 224.0).round() as u32),
            crop: Some((crop, crop)),
            interpolation: Interpolation::Bicubic,
            mean: IMAGENET_MEAN,
            std: IMAGENET_STD,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_epochs_have_larger_crops() {
        let recipe = Recipe { epochs: 10, global_crops_size: 48, local_crops_size: 24, patch_size: 8, ..Recipe::default() };
        assert_eq!([0, 9, 10].map(|epoch| recipe.crop_sizes(epoch)), [(48, 24); 3]);
        let recipe = Recipe { final_epochs: 3, ..recipe };
        assert_eq!([0, 6, 7, 10].map(|epoch| recipe.crop_sizes(epoch)), [(48, 24), (48, 24), (96, 48), (96, 48)]);
        assert_eq!(recipe.transform(6).crop, Some((48, 48)));
        assert_eq!(recipe.transform(7).crop, Some((96, 96)));
        let recipe = Recipe { final_global_crops_size: Some(64), ..recipe };
        assert_eq!(recipe.crop_sizes(9), (64, 48));
    }
}
