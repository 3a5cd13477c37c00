//! What `config.json` says of a network: one reader for transformers' and timm's.
//!
//! The names and shapes of tensors do not tell everything. A ViT with another activation, or a ResNet with blurred pooling, has
//! the tensors of the plain one and computes something else. So a setting that changes the mathematics is understood, or the
//! checkpoint is refused by its name; one that the tensors show as well has to agree with them.

use serde_json::{Map, Value as Json};

use super::super::spec::{Activation, Convnext, Mlp, Positions, Vit};
use super::super::store::Store;
use super::super::{Backbone, Error};
use super::Names;
use super::timm;

/// Settings of a network, from whichever of the two libraries.
#[derive(Debug, Default)]
pub(super) struct Config {
    settings: Map<String, Json>,
    /// timm's name of the network.
    pub(super) architecture: Option<String>,
    /// transformers' name of the network.
    kind: Option<String>,
}

/// What transformers calls the networks with the names of its ViT and DINOv2.
const HUGGING_FACE: [&str; 4] = ["vit", "vit_msn", "dinov2", "dinov2_with_registers"];
/// Its classes, without what follows the family (`Model`, `ForImageClassification`), for files that leave `model_type` out.
const CLASSES: [(&str, &str); 6] = [
    ("ViTMSN", "vit_msn"),
    ("ViT", "vit"),
    ("Dinov2WithRegisters", "dinov2_with_registers"),
    ("Dinov2", "dinov2"),
    ("DINOv3ViT", "dinov3_vit"),
    ("DINOv3ConvNext", "dinov3_convnext"),
];

impl Config {
    /// Reads the file, or what timm's training writes of a network into the checkpoint itself, for a network of this family.
    ///
    /// # Errors
    /// [`Error::Unsupported`] names the setting that is not understood.
    pub(super) fn read(json: Option<&Json>, store: &Store, names: Names) -> Result<Self, Error> {
        let Some(json) = json else { return Self::of_checkpoint(store, names) };
        let mut settings = json.as_object().ok_or_else(|| wrong("the file", "no object"))?.clone();
        // What is null is not said.
        settings.retain(|_, value| !value.is_null());
        let mut config = Self { settings, ..Self::default() };
        config.architecture = config.word("architecture")?.map(str::to_owned);
        config.kind = config.word("model_type")?.map(str::to_owned);
        if let Some(quantised) = config.settings.get("quantization_config") {
            return Err(wrong("quantization_config", &format!("{quantised}: quantised weights are not read, take the plain ones")));
        }
        match (&config.architecture, &config.kind) {
            (Some(_), None) => {}
            (Some(_), Some(kind)) if kind == "timm_wrapper" => config.kind = None,
            (Some(architecture), Some(kind)) => {
                return Err(wrong("architecture", &format!("timm's {architecture}, and model_type is transformers' {kind}")));
            }
            (None, _) => config.check_kind(names)?,
        }
        if let Some(architecture) = config.architecture.clone() {
            timm::check_name(&architecture, names, "config.json says (architecture)")?;
            let arguments = config.settings.remove("model_args").unwrap_or_default();
            if !(arguments.is_object() || arguments.is_null()) {
                return Err(wrong("model_args", &format!("{arguments}, an object is expected")));
            }
            for (name, value) in arguments.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null()) {
                timm::check_argument(&architecture, name, value)?;
                config.settings.insert(name.clone(), value.clone());
            }
            // timm reads them in model_args alone; who writes them beside it means a network that has them.
            for (name, value) in config.settings.iter().filter(|(name, _)| timm::changes_mathematics(name)) {
                timm::check_argument(&architecture, name, value)?;
            }
        }
        Ok(config)
    }

    /// `arch` of a checkpoint of timm's training. Other programs write words of their own there.
    fn of_checkpoint(store: &Store, names: Names) -> Result<Self, Error> {
        let arch = store.scalar("arch").and_then(Json::as_str).filter(|name| timm::is_name(name));
        if let Some(architecture) = arch {
            timm::check_name(architecture, names, "the checkpoint says (arch)")?;
        }
        Ok(Self { architecture: arch.map(str::to_owned), ..Self::default() })
    }

    fn check_kind(&mut self, names: Names) -> Result<(), Error> {
        if self.kind.is_none() {
            let classes = self.settings.get("architectures").and_then(Json::as_array).into_iter().flatten();
            for class in classes.filter_map(Json::as_str) {
                let family = ["Model", "For", "Backbone"].iter().filter_map(|end| class.find(end)).min().map_or(class, |end| &class[..end]);
                let known = CLASSES.iter().find(|(name, _)| *name == family);
                // One that is not known here is refused below, by its own name.
                self.kind = Some(known.map_or(class, |(_, kind)| kind).to_owned());
            }
        }
        let Some(kind) = self.kind.as_deref() else { return Ok(()) };
        let known = match names {
            Names::HuggingFace => HUGGING_FACE.contains(&kind),
            Names::HuggingFaceV3 => kind == "dinov3_vit",
            Names::Fused => HUGGING_FACE.contains(&kind) || kind == "dinov3_vit",
            Names::Convnext => kind == "dinov3_convnext",
            Names::Resnet => kind == "resnet",
            Names::Refused(_) => true,
        };
        if known { Ok(()) } else { Err(refused(&format!("config.json says that this is a `{kind}` (model_type or architectures)"))) }
    }

    /// Whether timm wrote the weights.
    pub(super) fn is_timms(&self) -> bool {
        self.architecture.is_some()
    }

    /// Whether there is one.
    pub(super) fn is_there(&self) -> bool {
        !self.settings.is_empty()
    }

    /// Attention heads of a network of width `dim`.
    ///
    /// # Errors
    /// Where what is said does not fit the width.
    pub(super) fn heads(&self, dim: usize) -> Result<Option<usize>, Error> {
        self.same_count("hidden_size", dim)?;
        self.same_count("embed_dim", dim)?;
        for name in ["num_attention_heads", "num_heads"] {
            if let Some(heads) = self.count(name)? {
                let fits = heads > 0 && dim.is_multiple_of(heads);
                let reason = || format!("{heads}, which does not divide the width {dim} of the tensors; --heads N says another number");
                return fits.then_some(Some(heads)).ok_or_else(|| wrong(name, &reason()));
            }
        }
        let Some((name, (width, heads))) = self.architecture.as_ref().and_then(|name| Some((name, timm::width_and_heads(name)?))) else {
            return Ok(None);
        };
        if self.count("embed_dim")?.unwrap_or(width) != dim || !dim.is_multiple_of(heads) {
            return Err(Error::Unsupported(format!(
                "timm's {name} is {width} wide and has {heads} heads, and the tensors are {dim} wide: say how many heads they have with --heads N"
            )));
        }
        Ok(Some(heads))
    }

    /// Number of blocks of a network of width `dim`.
    pub(super) fn depth(&self, dim: usize) -> Result<Option<usize>, Error> {
        let fits = self.count("hidden_size")?.is_none_or(|width| width == dim);
        Ok(self.count("num_hidden_layers")?.or(self.count("depth")?).filter(|_| fits))
    }

    /// Epsilon of the norms.
    pub(super) fn eps(&self) -> Result<Option<f64>, Error> {
        let eps = self.number("layer_norm_eps")?.or(self.number("norm_eps")?);
        match eps {
            Some(eps) if !(eps > 0.0 && eps < 1.0) => Err(wrong("layer_norm_eps", &format!("{eps}, a number between 0 and 1 is expected"))),
            eps => Ok(eps),
        }
    }

    /// Base of the rotary periods.
    pub(super) fn rope_base(&self) -> Result<Option<f64>, Error> {
        let mut base = self.number("rope_theta")?.or(self.number("rope_temperature")?);
        if let Some(scaling) = self.settings.get("rope_scaling") {
            return Err(wrong("rope_scaling", &format!("{scaling}, which is not known here")));
        }
        // transformers 5 keeps them together.
        if let Some(parameters) = self.settings.get("rope_parameters") {
            let said = parameters["rope_theta"].as_f64();
            let plain = parameters["rope_type"].as_str().unwrap_or("default") == "default";
            if !plain || said.is_none() || base.is_some_and(|base| Some(base) != said) {
                return Err(wrong("rope_parameters", &format!("{parameters}; known is rope_theta, a number, with the rope_type default")));
            }
            base = said;
        }
        match base {
            Some(base) if !(base > 0.0 && base.is_finite()) => Err(wrong("rope_theta", &format!("{base}, a number above 0 is expected"))),
            base => Ok(base),
        }
    }

    /// The activation of the MLPs, or of their gates.
    pub(super) fn activation(&self) -> Result<Option<Activation>, Error> {
        for name in ["hidden_act", "act_layer"] {
            let Some(word) = self.word(name)? else { continue };
            // timm takes classes too: `torch.nn.SiLU`.
            let last = word.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
            return match last.as_str() {
                // The second is the same formula, written in Python.
                "gelu" | "gelu_python" => Ok(Some(Activation::Gelu)),
                "silu" | "swish" => Ok(Some(Activation::Silu)),
                _ => Err(wrong(name, &format!("{word}, an activation that is not supported"))),
            };
        }
        Ok(None)
    }

    /// A truth value.
    pub(super) fn flag(&self, name: &str) -> Result<Option<bool>, Error> {
        self.typed(name, "true or false", Json::as_bool)
    }

    fn word(&self, name: &str) -> Result<Option<&str>, Error> {
        self.typed(name, "a string", Json::as_str)
    }

    fn number(&self, name: &str) -> Result<Option<f64>, Error> {
        self.typed(name, "a number", Json::as_f64)
    }

    /// A whole number, or one for both axes, as in `[16, 16]`.
    fn count(&self, name: &str) -> Result<Option<usize>, Error> {
        let one = |value: &Json| match value.as_array().map(Vec::as_slice) {
            Some([rows, columns]) if rows == columns => rows.as_u64(),
            _ => value.as_u64(),
        };
        Ok(self.typed(name, "a whole number", one)?.map(|number| number as usize))
    }

    fn counts(&self, name: &str) -> Result<Option<Vec<usize>>, Error> {
        let each = |value: &Json| value.as_array()?.iter().map(|one| one.as_u64().map(|number| number as usize)).collect();
        self.typed(name, "a list of whole numbers", each)
    }

    fn typed<'a, T>(&'a self, name: &str, expected: &str, read: impl Fn(&'a Json) -> Option<T>) -> Result<Option<T>, Error> {
        let Some(value) = self.settings.get(name) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| wrong(name, &format!("{value}, {expected} is expected")))
    }

    /// Compares what is said with the network that was read.
    ///
    /// # Errors
    /// [`Error::Unsupported`] names the setting that another network has.
    pub(super) fn check(&self, backbone: &Backbone) -> Result<(), Error> {
        match backbone {
            Backbone::Vit(vit) => self.check_vit(vit),
            Backbone::Convnext(convnext) => self.check_convnext(convnext),
            Backbone::Resnet(resnet) => {
                if let Some(other) = self.word("hidden_act")?.filter(|name| *name != "relu") {
                    return Err(wrong("hidden_act", &format!("{other}, ResNets have relu here")));
                }
                self.same_count("num_features", resnet.dim)
            }
        }
    }

    fn check_vit(&self, vit: &Vit) -> Result<(), Error> {
        let Some(block) = vit.blocks.first() else { return Ok(()) };
        let (input, gate) = match &block.mlp {
            Mlp::Plain { input, .. } => (input, None),
            Mlp::Gated { input, activation, .. } => (input, Some(*activation)),
        };
        let (rows, is_gated) = (input.weight.shape[0], gate.is_some());
        for (name, found) in [
            ("hidden_size", vit.dim),
            ("embed_dim", vit.dim),
            ("num_features", vit.dim),
            ("num_hidden_layers", vit.blocks.len()),
            ("depth", vit.blocks.len()),
            ("patch_size", vit.patch_size),
            ("num_channels", 3),
            ("in_chans", 3),
            ("num_register_tokens", vit.registers()),
            ("reg_tokens", vit.registers()),
            ("num_reg_tokens", vit.registers()),
            ("intermediate_size", if is_gated { rows / 2 } else { rows }),
        ] {
            self.same_count(name, found)?;
        }
        for (name, found) in [
            ("qkv_bias", block.qkv.bias.is_some()),
            ("proj_bias", block.proj.bias.is_some()),
            ("use_gated_mlp", is_gated),
            ("use_swiglu_ffn", is_gated),
            ("swiglu_mlp", is_gated),
            ("class_token", true),
        ] {
            if self.flag(name)?.is_some_and(|said| said != found) {
                return Err(wrong(name, &format!("{}, and the tensors are those of {found}", !found)));
            }
        }
        if let Some(ratio) = self.number("mlp_ratio")? {
            let hidden = (vit.dim as f64 * ratio).min(f64::from(u32::MAX)) as usize;
            // Of a gate: timm's packed one, transformers' in whole eights, or timm's two layers.
            let gated = [hidden, (hidden * 2 / 3).div_ceil(8) * 16, 2 * hidden];
            if !(if is_gated { gated.contains(&rows) } else { hidden == rows }) {
                return Err(wrong(
                    "mlp_ratio",
                    &format!("{ratio}, and the MLPs of the tensors have {rows} rows at a width of {}", vit.dim),
                ));
            }
        }
        if let (Positions::Learned { table, .. }, Some(image)) = (&vit.positions, self.count("image_size")?)
            && image / vit.patch_size.max(1) != table.shape[0]
        {
            let pixels = table.shape[0] * vit.patch_size;
            return Err(wrong("image_size", &format!("{image}, and the positions of the tensors are those of {pixels} pixels")));
        }
        if let Some(name) = self.word("mlp_layer")?.filter(|name| name.to_ascii_lowercase().contains("swiglupacked") != is_gated) {
            return Err(wrong(
                "mlp_layer",
                &format!("{name}, and the tensors are those of {}", if is_gated { "a gate" } else { "no gate" }),
            ));
        }
        // The gate of DINOv2 is SiLU, whatever its configuration says.
        let follows = !(is_gated && self.kind.as_deref().is_some_and(|kind| kind.starts_with("dinov2")));
        match self.activation()? {
            Some(said) if follows && said != gate.unwrap_or(Activation::Gelu) => {
                let name = if self.is_timms() { "act_layer" } else { "hidden_act" };
                Err(wrong(name, &format!("{said:?}, and the MLPs of these tensors have {:?} here", gate.unwrap_or(Activation::Gelu))))
            }
            _ => Ok(()),
        }
    }

    fn check_convnext(&self, convnext: &Convnext) -> Result<(), Error> {
        let widths: Vec<_> = convnext.stages.iter().map(|stage| stage.downsample.weight.shape[0]).collect();
        let depths: Vec<_> = convnext.stages.iter().map(|stage| stage.blocks.len()).collect();
        for (name, found) in [("hidden_sizes", &widths), ("dims", &widths), ("depths", &depths)] {
            if self.counts(name)?.is_some_and(|said| said != *found) {
                return Err(wrong(name, &format!("{}, and the tensors have {found:?}", self.settings[name])));
            }
        }
        for (name, found) in [("num_channels", 3), ("in_chans", 3), ("num_features", convnext.dim())] {
            self.same_count(name, found)?;
        }
        match self.activation()? {
            Some(Activation::Silu) => Err(wrong("hidden_act", "SiLU, ConvNeXts have GELU here")),
            _ => Ok(()),
        }
    }

    fn same_count(&self, name: &str, found: usize) -> Result<(), Error> {
        match self.count(name)? {
            Some(said) if said != found => Err(wrong(name, &format!("{said}, and the tensors have {found}"))),
            _ => Ok(()),
        }
    }
}

/// What a setting is, and why that cannot be.
fn wrong(name: &str, what: &str) -> Error {
    Error::Unsupported(format!("config.json: {name} is {what}. If it belongs to other weights, move it aside"))
}

/// A network that is not computed here.
pub(super) fn refused(what: &str) -> Error {
    Error::Unsupported(format!(
        "{what}, whose mathematics is not known here: its tensors have known names, but the export would compute something else. If it is a \
         plain ViT, ResNet or ConvNeXt all the same, move config.json aside, or save the state_dict alone"
    ))
}

#[cfg(test)]
mod tests;
