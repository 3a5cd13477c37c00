//! What no setting shows by itself: values out of range, and settings that do not go together.

use anyhow::{Result, bail, ensure};

use super::{FfnLayer, Method, PosEmbed, PrecisionChoice, Recipe};
use crate::backbone::BackboneConfig;
use crate::backbone::convnext::CELL;
use crate::backbone::positions::PositionCode;
use crate::backbone::resnet::ResnetConfig;
use crate::backbone::stem::Stem;
use crate::backbone::vit::VitConfig;
use crate::dino::loss::Centering;
use crate::kernels::matmul::has_bf16;

/// Most directions of `SIGReg`: each takes memory for every crop of a step.
const MOST_SLICES: usize = 16_384;
/// Bytes of a queue of outputs.
const LARGEST_QUEUE: usize = 8 << 30;

impl Recipe {
    /// Checks what one setting alone cannot show.
    ///
    /// # Errors
    /// Names the setting, and what it should be.
    pub fn check(&self) -> Result<()> {
        let (global, local) = self.crop_sizes(self.epochs);
        let sizes = [
            ("global-crops-size", self.global_crops_size),
            ("local-crops-size", self.local_crops_size),
            ("final-global-crops-size", global),
            ("final-local-crops-size", local),
        ];
        for (name, size) in sizes {
            let patch = if self.arch.is_resnet() || self.arch.is_convnext() { 1 } else { self.patch_size };
            ensure!(patch > 0 && size >= patch && size.is_multiple_of(patch), "--{name} {size} is no multiple of --patch-size {patch}");
            ensure!(
                !self.arch.is_convnext() || size.is_multiple_of(CELL),
                "--{name} {size} is no multiple of {CELL}, the pixels along a cell of a {}",
                self.arch
            );
            ensure!(size <= 4096, "--{name} {size} is more than 4096");
        }
        for (name, scale) in [("global-crops-scale", &self.global_crops_scale), ("local-crops-scale", &self.local_crops_scale)] {
            let [low, high] = scale[..] else { bail!("--{name} takes two numbers") };
            ensure!(
                0.0 < low && low <= high && high <= 1.0,
                "--{name} {low} {high}: two shares are wanted, the lower first, above 0 and at most 1"
            );
        }
        let [low, high] = self.blur_sigma[..] else { bail!("--blur-sigma takes two numbers") };
        // A crop's own side bounds the work of a blur.
        ensure!(
            0.0 < low && low <= high && high <= 64.0,
            "--blur-sigma {low} {high}: two deviations are wanted, the lower first, above 0 and at most 64"
        );
        let positive = [
            ("batch-size-per-gpu", self.batch_size_per_gpu),
            ("accumulate", self.accumulate),
            ("epochs", self.epochs),
            ("out-dim", self.out_dim),
            ("head-hidden-dim", self.head_hidden_dim),
            ("head-bottleneck-dim", self.head_bottleneck_dim),
            ("sigreg-slices", self.sigreg_slices),
        ];
        for (name, value) in positive {
            ensure!(value > 0, "--{name} must be at least 1");
        }
        self.check_bounds()?;
        ensure!(
            self.final_epochs <= self.epochs,
            "--final-epochs {} is more than the {} of --epochs, of which they are the last",
            self.final_epochs,
            self.epochs
        );
        ensure!(
            self.final_epochs > 0 || (self.final_global_crops_size.is_none() && self.final_local_crops_size.is_none()),
            "--final-global-crops-size and --final-local-crops-size are those of the last --final-epochs: give these too"
        );
        ensure!(self.shrink != Some(0), "--shrink must be at least 1");
        let temperatures = [("teacher-temp", self.teacher_temp), ("warmup-teacher-temp", self.warmup_teacher_temp)];
        for (name, value) in temperatures {
            ensure!(value > 0.0 && value.is_finite(), "--{name} {value} must be above 0");
        }
        for (name, value) in [("momentum-teacher", self.momentum_teacher), ("drop-path-rate", self.drop_path_rate)] {
            ensure!((0.0..1.0).contains(&value), "--{name} {value} must be from 0 up to, but not, 1");
        }
        ensure!((0.0..=1.0).contains(&self.center_momentum), "--center-momentum {} must be from 0 to 1", self.center_momentum);
        let rates = [
            ("lr", self.lr),
            ("min-lr", self.min_lr),
            ("weight-decay", self.weight_decay),
            ("weight-decay-end", self.weight_decay_end),
            ("clip-grad", self.clip_grad),
            ("koleo-loss-weight", self.koleo_loss_weight.unwrap_or(0.0)),
            ("ibot-loss-weight", self.ibot_loss_weight),
            ("gram-loss-weight", self.gram_loss_weight),
            ("layer-scale", f64::from(self.layer_scale.unwrap_or(0.0))),
        ];
        for (name, value) in rates {
            ensure!(value >= 0.0 && value.is_finite(), "--{name} {value} must be a number of at least 0");
        }
        ensure!(
            self.warmup_epochs <= self.epochs,
            "--warmup-epochs {} is more than --epochs {}: lower it",
            self.warmup_epochs,
            self.epochs
        );
        ensure!(
            self.sinkhorn_queue == 0 || self.centering == Centering::SinkhornKnopp,
            "--sinkhorn-queue is for --centering sinkhorn_knopp: give both, or neither"
        );
        let shares =
            [("mask-probability", self.mask_probability), ("mask-ratio-min", self.mask_ratio_min), ("mask-ratio-max", self.mask_ratio_max)];
        for (name, value) in shares {
            ensure!((0.0..=1.0).contains(&value), "--{name} {value} must be from 0 to 1");
        }
        ensure!(self.mask_ratio_min <= self.mask_ratio_max, "--mask-ratio-min is above --mask-ratio-max: give the lower share first");
        ensure!(self.ibot_out_dim != Some(0), "--ibot-out-dim must be at least 1");
        ensure!(
            self.ibot_out_dim.is_none() || self.ibot_head().is_some(),
            "--ibot-out-dim is for --method dinov2 with --ibot-separate-head true"
        );
        self.check_losses()?;
        self.check_lejepa()?;
        self.check_going_on()?;
        self.check_backbone()
    }

    /// Sizes have the bounds of the flags also in a file of settings.
    fn check_bounds(&self) -> Result<()> {
        let bounded = [
            ("dim", self.dim.unwrap_or(1), 16_384),
            ("depth", self.depth.unwrap_or(1), 256),
            ("heads", self.heads.unwrap_or(1), 1024),
            ("registers", self.registers, 1024),
            ("ffn-hidden", self.ffn_hidden.unwrap_or(1), 65_536),
            ("out-dim", self.out_dim, 1 << 20),
            ("ibot-out-dim", self.ibot_out_dim.unwrap_or(1), 1 << 20),
            ("head-hidden-dim", self.head_hidden_dim, 65_536),
            ("head-bottleneck-dim", self.head_bottleneck_dim, 65_536),
        ];
        for (name, size, most) in bounded {
            ensure!(size <= most, "--{name} {size} is more than {most}");
        }
        ensure!(self.local_crops_number <= 64, "--local-crops-number {} is more than 64", self.local_crops_number);
        Ok(())
    }

    /// Whether the device, the CPU or a GPU, has the arithmetic that is asked for.
    ///
    /// # Errors
    /// Where it does not, with the setting to change.
    pub fn check_on(&self, cpu: bool) -> Result<()> {
        ensure!(
            self.precision != PrecisionChoice::Bf16 || !cpu || has_bf16(),
            "--precision bf16 needs a GPU, or a processor that multiplies bfloat16 values (Intel AMX or AVX512-BF16), which this one does \
             not: use auto or f32"
        );
        Ok(())
    }

    /// Settings of terms of the loss that the run does not have.
    fn check_losses(&self) -> Result<()> {
        let default = Self::default();
        let masking = |recipe: &Self| {
            [recipe.ibot_loss_weight, recipe.mask_probability, recipe.mask_ratio_min, recipe.mask_ratio_max].map(f64::to_bits)
        };
        ensure!(
            self.method == Method::Dinov2 || (masking(self) == masking(&default) && !self.ibot_separate_head),
            "--ibot-loss-weight, --ibot-separate-head and the --mask-… settings are for --method dinov2: leave them out, or give it"
        );
        ensure!(
            self.method != Method::Dinov2 || !self.use_bn_in_head,
            "--use-bn-in-head true is for --method dino: of DINOv2's masked patches a process may have none to norm"
        );
        let gram = |recipe: &Self| (recipe.gram_across_crops, recipe.gram_negatives, recipe.gram_crops_size, recipe.gram_update_epochs);
        ensure!(
            self.gram_loss_weight > 0.0 || gram(self) == gram(&default),
            "--gram-across-crops, --gram-negatives, --gram-crops-size and --gram-update-epochs are for --gram-loss-weight above 0"
        );
        ensure!(
            self.gram_update_epochs == 0 || self.gram_update_epochs < self.epochs,
            "--gram-update-epochs {} must be lower than --epochs {}: the anchor would never be used",
            self.gram_update_epochs,
            self.epochs
        );
        if let Some(size) = self.gram_crops_size {
            let patch = self.patch_size;
            ensure!(
                size >= self.global_crops_size && size.is_multiple_of(patch) && size <= 4096,
                "--gram-crops-size {size}: a multiple of --patch-size {patch} is wanted, from --global-crops-size {} to 4096",
                self.global_crops_size
            );
        }
        let queue = self.sinkhorn_queue.saturating_mul(self.out_dim).saturating_mul(size_of::<f32>());
        ensure!(
            queue <= LARGEST_QUEUE,
            "--sinkhorn-queue {} of --out-dim {} numbers each would take {} GB of memory and of every checkpoint: lower one of them",
            self.sinkhorn_queue,
            self.out_dim,
            queue / 1_000_000_000
        );
        Ok(())
    }

    /// `LeJEPA` has no teacher, and other methods have none of its settings.
    fn check_lejepa(&self) -> Result<()> {
        let default = Self::default();
        ensure!((0.0..=1.0).contains(&self.lejepa_weight), "--lejepa-weight {} must be from 0 to 1", self.lejepa_weight);
        ensure!(self.sigreg_slices <= MOST_SLICES, "--sigreg-slices {} is more than {MOST_SLICES}", self.sigreg_slices);
        if self.method != Method::Lejepa {
            let own = self.lejepa_weight.to_bits() == default.lejepa_weight.to_bits() && self.sigreg_slices == default.sigreg_slices;
            ensure!(own, "--lejepa-weight and --sigreg-slices are for --method lejepa: leave them out, or give it");
            return Ok(());
        }
        let of_teacher = |recipe: &Self| {
            let warmup = recipe.warmup_teacher_temp_epochs as f64;
            [recipe.momentum_teacher, recipe.center_momentum, recipe.teacher_temp, recipe.warmup_teacher_temp, warmup].map(f64::to_bits)
        };
        ensure!(
            of_teacher(self) == of_teacher(&default) && self.centering == default.centering && self.sinkhorn_queue == 0,
            "--momentum-teacher, --center-momentum, --teacher-temp, --warmup-teacher-temp, --warmup-teacher-temp-epochs, --centering and \
             --sinkhorn-queue are for a teacher, which --method lejepa does not have: leave them out"
        );
        ensure!(self.gram_loss_weight == 0.0, "--gram-loss-weight is for --method dino and dinov2: leave it out with --method lejepa");
        Ok(())
    }

    /// Settings of runs that go on from the weights of others.
    fn check_going_on(&self) -> Result<()> {
        ensure!(self.layer_decay > 0.0 && self.layer_decay <= 1.0, "--layer-decay {} must be above 0 and at most 1", self.layer_decay);
        let patch_embed = self.patch_embed_lr_mult;
        ensure!(patch_embed >= 0.0 && patch_embed.is_finite(), "--patch-embed-lr-mult {patch_embed} must be a number of at least 0");
        ensure!(
            self.freeze_backbone_epochs == 0 || self.freeze_backbone_epochs < self.epochs,
            "--freeze-backbone-epochs {} leaves the backbone none of the {} epochs: lower it",
            self.freeze_backbone_epochs,
            self.epochs
        );
        let rope = [self.rope_shift_coords, self.rope_jitter_coords, self.rope_rescale_coords];
        ensure!(
            self.pos_embed == PosEmbed::Rope
                || (rope.iter().all(Option::is_none) && self.rope_base.to_bits() == Self::default().rope_base.to_bits()),
            "--rope-base and the --rope-…-coords settings are for --pos-embed rope: leave them out, or give it"
        );
        ensure!((1.0..=1e6).contains(&self.rope_base), "--rope-base {} must be from 1 to a million", self.rope_base);
        let shift = self.rope_shift_coords.unwrap_or(0.0);
        ensure!((0.0..=1000.0).contains(&shift), "--rope-shift-coords {shift} must be from 0 to 1000");
        for (name, factor) in [("jitter", self.rope_jitter_coords), ("rescale", self.rope_rescale_coords)] {
            let factor = factor.unwrap_or(1.0);
            ensure!((1.0..=1000.0).contains(&factor), "--rope-{name}-coords {factor} must be a factor from 1 to 1000");
        }
        ensure!(
            self.ffn_layer == FfnLayer::Swiglu || self.ffn_hidden.is_none(),
            "--ffn-hidden is for --ffn-layer swiglu: leave it out, or give it"
        );
        ensure!(self.ffn_hidden != Some(0), "--ffn-hidden must be at least 1");
        let dim = self.backbone().dim();
        ensure!(self.lora_rank <= dim, "--lora-rank {} is more than the backbone's dimension, {dim}", self.lora_rank);
        Ok(())
    }

    fn check_backbone(&self) -> Result<()> {
        match self.backbone() {
            BackboneConfig::Vit(VitConfig { heads, depth, dim, patch_size, stem, positions, .. }) => {
                ensure!(
                    heads > 0 && depth > 0 && dim > 0 && dim.is_multiple_of(heads),
                    "a backbone of dim {dim}, depth {depth} and {heads} heads cannot be built: dim must be a multiple of heads"
                );
                ensure!(
                    positions == PositionCode::Learned || (dim / heads).is_multiple_of(4),
                    "--pos-embed rope needs heads of a multiple of 4 channels: {dim} channels and {heads} heads make {}",
                    dim / heads
                );
                stem.channels(patch_size, dim)?;
            }
            BackboneConfig::Resnet(resnet) => {
                ensure!(self.layer_scale.is_none(), "--layer-scale is for ViTs and ConvNeXts: leave it out with --arch {}", self.arch);
                self.check_convolutional(resnet.dim(), ResnetConfig { width: 1, ..resnet }.dim())?;
            }
            BackboneConfig::Convnext(convnext) => self.check_convolutional(convnext.dim(), 8)?,
        }
        Ok(())
    }

    /// Settings that convolutional networks do not have. Theirs have `dim` channels at last, which can be any multiple of `step`.
    fn check_convolutional(&self, dim: usize, step: usize) -> Result<()> {
        let arch = self.arch;
        let plain = self.stem == Stem::Patch
            && self.registers == 0
            && self.ffn_layer == FfnLayer::Mlp
            && self.pos_embed == PosEmbed::Learned
            && self.method != Method::Dinov2
            && self.gram_loss_weight == 0.0
            && self.lora_rank == 0
            && self.layer_decay >= 1.0
            && self.patch_embed_lr_mult >= 1.0;
        ensure!(
            plain,
            "--stem, --registers, --ffn-layer, --pos-embed, --gram-loss-weight, --layer-decay, --patch-embed-lr-mult, --lora-rank and \
             --method dinov2 are for ViTs: leave them out with --arch {arch}"
        );
        ensure!(self.depth.is_none() && self.heads.is_none(), "--depth and --heads are for ViTs: leave them out with --arch {arch}");
        let dim = self.dim.unwrap_or(dim);
        ensure!(dim > 0 && dim.is_multiple_of(step), "--dim {dim}: the dimension of a {arch} must be a multiple of {step}");
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::recipe::Arch;

    #[test]
    fn the_defaults_are_sound_and_bad_settings_are_named() {
        Recipe::default().check().unwrap();
        let bad = |change: fn(&mut Recipe)| {
            let mut recipe = Recipe::default();
            change(&mut recipe);
            recipe.check().unwrap_err().to_string()
        };
        assert!(bad(|r| r.final_epochs = 101).contains("--final-epochs 101"));
        assert!(bad(|r| r.final_global_crops_size = Some(448)).contains("--final-epochs"));
        assert!(bad(|r| (r.final_epochs, r.final_local_crops_size) = (1, Some(100))).contains("--final-local-crops-size 100"));
        assert!(bad(|r| r.global_crops_size = 100).contains("--global-crops-size 100"));
        assert!(bad(|r| r.local_crops_scale = vec![0.4, 0.05]).contains("--local-crops-scale"));
        assert!(bad(|r| r.teacher_temp = 0.0).contains("--teacher-temp"));
        assert!(bad(|r| r.heads = Some(5)).contains("heads"));
        assert!(bad(|r| r.warmup_epochs = 200).contains("--warmup-epochs"));
        assert!(bad(|r| r.shrink = Some(0)).contains("--shrink"));
        assert!(bad(|r| r.mask_probability = 0.9).contains("--method dinov2"));
        assert!(bad(|r| r.ibot_separate_head = true).contains("--method dinov2"));
        assert!(bad(|r| (r.method, r.use_bn_in_head) = (Method::Dinov2, true)).contains("--use-bn-in-head"));
        assert!(bad(|r| r.out_dim = 1_000_000_000_000).contains("--out-dim 1000000000000 is more than 1048576"));
        assert!(bad(|r| r.gram_across_crops = true).contains("--gram-loss-weight"));
        assert!(bad(|r| r.gram_update_epochs = 2).contains("--gram-loss-weight"));
        for size in [0, 208, 230, 4112] {
            let recipe = Recipe { gram_loss_weight: 1.0, gram_crops_size: Some(size), ..Recipe::default() };
            assert!(recipe.check().unwrap_err().to_string().contains("--gram-crops-size"), "{size}");
        }
        assert!(bad(|r| (r.gram_loss_weight, r.gram_update_epochs) = (1.0, r.epochs)).contains("--gram-update-epochs"));
        assert!(bad(|r| r.ffn_hidden = Some(64)).contains("--ffn-layer swiglu"));
        assert!(bad(|r| (r.ffn_layer, r.ffn_hidden) = (FfnLayer::Swiglu, Some(0))).contains("--ffn-hidden"));
        assert!(bad(|r| r.rope_rescale_coords = Some(2.0)).contains("--pos-embed rope"));
        assert!(bad(|r| r.rope_base = 1000.0).contains("--pos-embed rope"));
        assert!(bad(|r| (r.pos_embed, r.rope_base) = (PosEmbed::Rope, f64::NAN)).contains("--rope-base"));
        assert!(bad(|r| (r.pos_embed, r.rope_shift_coords) = (PosEmbed::Rope, Some(f64::INFINITY))).contains("--rope-shift-coords"));
        assert!(bad(|r| (r.pos_embed, r.rope_rescale_coords) = (PosEmbed::Rope, Some(0.5))).contains("--rope-rescale-coords 0.5"));
        assert!(bad(|r| (r.pos_embed, r.dim, r.heads) = (PosEmbed::Rope, Some(36), Some(6))).contains("multiple of 4"));
        let queue = bad(|r| (r.centering, r.sinkhorn_queue) = (Centering::SinkhornKnopp, 131_072));
        assert!(queue.contains("34 GB"), "{queue}");
        assert!(bad(|r| r.freeze_backbone_epochs = 100).contains("--freeze-backbone-epochs"));
        assert!(bad(|r| (r.arch, r.lora_rank) = (Arch::Resnet18, 4)).contains("--lora-rank"));
        assert!(bad(|r| (r.arch, r.layer_scale) = (Arch::Resnet18, Some(0.1))).contains("--layer-scale"));
        assert!(bad(|r| r.lr = f64::NAN).contains("--lr"));
    }

    #[test]
    fn a_convnext_has_settings_of_its_own() {
        let recipe = Recipe { arch: Arch::ConvnextTiny, dim: Some(16), layer_scale: Some(0.1), ..Recipe::default() };
        recipe.check().unwrap();
        let refused = |change: fn(&mut Recipe)| {
            let mut recipe = recipe.clone();
            change(&mut recipe);
            recipe.check().unwrap_err().to_string()
        };
        let of_vits: [fn(&mut Recipe); 11] = [
            |r| r.stem = Stem::Conv,
            |r| r.registers = 4,
            |r| r.ffn_layer = FfnLayer::Swiglu,
            |r| r.pos_embed = PosEmbed::Rope,
            |r| r.method = Method::Dinov2,
            |r| r.gram_loss_weight = 1.0,
            |r| r.lora_rank = 4,
            |r| r.layer_decay = 0.9,
            |r| r.patch_embed_lr_mult = 0.2,
            |r| r.depth = Some(3),
            |r| r.heads = Some(3),
        ];
        for change in of_vits {
            let said = refused(change);
            assert!(said.contains("are for ViTs") && said.contains("--arch convnext_tiny"), "{said}");
        }
        assert!(refused(|r| r.dim = Some(20)).contains("multiple of 8"));
        assert!(refused(|r| r.local_crops_size = 48).contains("--local-crops-size 48 is no multiple of 32"));
    }

    #[test]
    fn a_method_without_a_teacher_takes_no_settings_of_one() {
        let lejepa = || Recipe { method: Method::Lejepa, ..Recipe::default() };
        lejepa().check().unwrap();
        Recipe { koleo_loss_weight: Some(0.1), arch: crate::run::recipe::Arch::Resnet18, ..lejepa() }.check().unwrap();
        let bad = |change: fn(&mut Recipe)| {
            let mut recipe = lejepa();
            change(&mut recipe);
            recipe.check().unwrap_err().to_string()
        };
        let changes: [fn(&mut Recipe); 7] = [
            |r| r.momentum_teacher = 0.99,
            |r| r.center_momentum = 0.8,
            |r| r.teacher_temp = 0.07,
            |r| r.warmup_teacher_temp = 0.02,
            |r| r.warmup_teacher_temp_epochs = 3,
            |r| r.centering = Centering::SinkhornKnopp,
            |r| (r.centering, r.sinkhorn_queue) = (Centering::SinkhornKnopp, 64),
        ];
        for change in changes {
            let said = bad(change);
            assert!(said.contains("--method lejepa does not have"), "{said}");
        }
        assert!(bad(|r| r.gram_loss_weight = 1.0).contains("--gram-loss-weight"));
        assert!(bad(|r| r.mask_probability = 0.4).contains("--method dinov2"));
        assert!(bad(|r| r.ibot_loss_weight = 2.0).contains("--method dinov2"));
        assert!(bad(|r| r.lejepa_weight = 1.5).contains("--lejepa-weight 1.5"));
        assert!(bad(|r| r.sigreg_slices = 0).contains("--sigreg-slices"));
        assert!(bad(|r| r.sigreg_slices = 20_000).contains("--sigreg-slices 20000"));
        for own in [Recipe { lejepa_weight: 0.1, ..Recipe::default() }, Recipe { sigreg_slices: 64, ..Recipe::default() }] {
            assert!(own.check().unwrap_err().to_string().contains("are for --method lejepa"));
        }
    }
}
