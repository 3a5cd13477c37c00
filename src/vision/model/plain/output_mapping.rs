//! Which of a graph's outputs is what, told by names and shapes.

use super::DryRunOutputs;
use crate::model::outputs::OutputGeometry;

/// Names under which others export one vector for each picture.
const POOLED: [&str; 4] = ["pooler_output", "embedding", "image_embeds", "sentence_embedding"];
/// Sides that patches have in published models, tried in this order where the graph does not show its own.
const PATCHES: [usize; 6] = [16, 14, 8, 32, 4, 7];
/// More tokens than this between CLS and the patches are no registers.
const MOST_REGISTERS: usize = 32;
/// Longer vectors than this are no features.
const MOST_NUMBERS: usize = 1 << 16;
/// Words in the names of outputs that classify.
const SCORES: [&str; 5] = ["logit", "prob", "score", "class", "softmax"];
/// Numbers of classes of the data sets that published models classify (ImageNet-1k, with background, ImageNet-21k as it is counted).
const CLASSES: [usize; 5] = [1000, 1001, 21_841, 21_843, 11_221];

/// Name and shape.
type Output<'a> = (&'a String, &'a Vec<usize>);

/// What the outputs mean.
pub(super) struct OutputMapping {
    /// Our name of each output that is used, and the graph's.
    pub(super) outputs: Vec<(&'static str, String)>,
    /// What kind of network it is.
    pub(super) architecture: &'static str,
    /// What their shapes follow from. The patch is 1 where there are none, the heads are 0 where the graph does not give them.
    pub(super) form: OutputGeometry,
    /// The one output that is used, where it looks like scores and not like features.
    pub(super) doubtful: Option<String>,
    /// All of this in words.
    pub(super) summary: String,
}

impl OutputMapping {
    /// Reads the answer to `batch` pictures of (height, width). `patch` is the side of a patch where the graph shows it.
    pub(super) fn of(answer: &DryRunOutputs, patch: Option<usize>, size: (usize, usize), batch: usize) -> Result<Self, String> {
        let shapes = || answer.shapes.iter().filter(|(_, shape)| shape.first() == Some(&batch) && !shape.contains(&0));
        let rank = |name: &str, axes: usize| shapes().find(|(found, shape)| found.as_str() == name && shape.len() == axes);
        let pooled = || {
            let flat = |shape: &[usize]| shape.len() >= 2 && shape[2..].iter().all(|side| *side == 1);
            POOLED.iter().find_map(|name| shapes().find(|(found, shape)| found == name && flat(shape)))
        };
        // An output of any name serves where no other has the same form.
        let only = |axes: usize| {
            let mut all = shapes().filter(|(_, shape)| shape.len() == axes);
            let first = all.next();
            first.filter(|_| all.next().is_none())
        };

        let mut tokens = rank("last_hidden_state", 3);
        let mut map = rank("feature_map", 4).or_else(|| rank("last_hidden_state", 4));
        let mut vector = pooled();
        if tokens.is_none() && map.is_none() && vector.is_none() {
            (tokens, map, vector) = (only(3), only(4), only(2));
        }
        let mut mapping = match (tokens, map, vector) {
            (Some((name, shape)), ..) => Self::transformer(name, shape, patch, size)?,
            (None, Some((name, shape)), vector) => Self::convolutional(name, shape, size, vector)?,
            (None, None, Some((name, shape))) => Self::vectors(name, shape),
            (None, None, None) => return Err(unclear(answer)),
        };
        if mapping.form.dim > MOST_NUMBERS {
            return Err(format!("its vectors have {} numbers; at most {MOST_NUMBERS} are features", mapping.form.dim));
        }
        if tokens.is_some() {
            mapping.add_ours(rank, batch, size);
        }
        if !mapping.agree(answer, size, batch) {
            return Err(unclear(answer));
        }
        mapping.describe(answer);
        Ok(mapping)
    }

    /// Whether there is something for each part of the picture.
    pub(super) fn has_patches(&self) -> bool {
        self.outputs.iter().any(|(ours, _)| matches!(*ours, "last_hidden_state" | "feature_map"))
    }

    /// Whether the answer to other pictures has the shapes that it should have.
    pub(super) fn agree(&self, answer: &DryRunOutputs, size: (usize, usize), batch: usize) -> bool {
        let fits = |ours: &str, shape: &Vec<usize>| self.form.fits(ours, shape, batch, size);
        self.outputs.iter().all(|(ours, theirs)| answer.shapes.get(theirs).is_some_and(|shape| fits(ours, shape)))
    }

    fn new(architecture: &'static str, patch: usize, dim: usize, output: (&'static str, &str)) -> Self {
        let outputs = vec![(output.0, output.1.to_owned())];
        let form = OutputGeometry { patch, dim, registers: 0, heads: 0, last_blocks: 0 };
        Self { outputs, architecture, form, doubtful: None, summary: String::new() }
    }

    fn transformer(name: &str, shape: &[usize], patch: Option<usize>, (height, width): (usize, usize)) -> Result<Self, String> {
        let (tokens, dim) = (shape[1], shape[2]);
        let registers = |patch: usize| {
            let whole = height.is_multiple_of(patch) && width.is_multiple_of(patch);
            let patches = (height / patch) * (width / patch);
            tokens.checked_sub(1 + patches).filter(|registers| whole && *registers <= MOST_REGISTERS)
        };
        // The first convolution of a convolutional network is smaller than what its tokens stand for.
        let found = patch.into_iter().chain(PATCHES).find_map(|patch| Some((patch, registers(patch)?)));
        let Some((patch, registers)) = found else {
            let patches = patch.map_or_else(String::new, |patch| format!(" of {patch} pixels"));
            return Err(format!(
                "its output `{name}` has {tokens} tokens for {height}x{width} pixels, which are not CLS, a few registers and the patches{patches}"
            ));
        };
        let mut mapping = Self::new("onnx-vit", patch, dim, ("last_hidden_state", name));
        mapping.form.registers = registers;
        Ok(mapping)
    }

    fn convolutional(name: &str, shape: &[usize], (height, width): (usize, usize), vector: Option<Output<'_>>) -> Result<Self, String> {
        let [_, dim, rows, columns] = *shape else { return Err(format!("its output `{name}` has the shape {shape:?}")) };
        let stride = height / rows.max(1);
        if rows == 0 || stride * rows != height || stride * columns != width {
            return Err(format!("its output `{name}` has {rows}x{columns} cells for {height}x{width} pixels, which are no squares"));
        }
        let mut mapping = Self::new("onnx-convnet", stride, dim, ("feature_map", name));
        if let Some((name, _)) = vector.filter(|(_, shape)| shape[1] == dim) {
            mapping.outputs.push(("embedding", name.clone()));
        }
        Ok(mapping)
    }

    fn vectors(name: &str, shape: &[usize]) -> Self {
        let says = name.to_ascii_lowercase();
        let scores = !POOLED.contains(&name) && (SCORES.iter().any(|word| says.contains(word)) || CLASSES.contains(&shape[1]));
        Self { doubtful: scores.then(|| name.to_owned()), ..Self::new("onnx-embedding", 1, shape[1], ("embedding", name)) }
    }

    /// Takes up what only our own exporter writes beside the tokens, where its shape fits.
    fn add_ours<'a>(&mut self, rank: impl Fn(&str, usize) -> Option<Output<'a>>, batch: usize, size: (usize, usize)) {
        for ours in ["attention", "keys", "last_blocks"] {
            let Some((name, shape)) = rank(ours, 3) else { continue };
            let form = match ours {
                "attention" => OutputGeometry { heads: shape[1], ..self.form },
                "last_blocks" => OutputGeometry { last_blocks: shape[1], ..self.form },
                _ => self.form,
            };
            if form.fits(ours, shape, batch, size) {
                self.form = form;
                self.outputs.push((ours, name.clone()));
            }
        }
    }

    fn describe(&mut self, answer: &DryRunOutputs) {
        let used = |name: &str| self.outputs.iter().any(|(_, theirs)| theirs == name);
        let as_what = |(ours, theirs): &(&str, String)| if ours == theirs { theirs.clone() } else { format!("{theirs} as {ours}") };
        let outputs = self.outputs.iter().map(as_what).collect::<Vec<_>>().join(", ");
        let unused: Vec<_> = answer.shapes.keys().map(String::as_str).filter(|name| !used(name)).collect();
        let unused = if unused.is_empty() { String::new() } else { format!(" (not used: {})", unused.join(", ")) };
        let form = match self.architecture {
            "onnx-vit" => format!("patches of {} pixels, {} registers", self.form.patch, self.form.registers),
            "onnx-convnet" => {
                let pooled = used_as(&self.outputs, "embedding");
                format!("one cell for {} pixels{}", self.form.patch, if pooled { "" } else { ", pooled by their mean" })
            }
            _ => "one vector for each picture, nothing for its parts".to_owned(),
        };
        self.summary = format!("outputs {outputs}{unused}; {} numbers, {form}", self.form.dim);
    }
}

fn used_as(outputs: &[(&'static str, String)], name: &str) -> bool {
    outputs.iter().any(|(ours, _)| *ours == name)
}

fn unclear(answer: &DryRunOutputs) -> String {
    let outputs: Vec<_> = answer.shapes.iter().map(|(name, shape)| format!("{name} {shape:?}")).collect();
    format!(
        "it is not clear which of its outputs ({}) holds the features; wanted is last_hidden_state [batch, tokens, D] or pooler_output [batch, D]",
        outputs.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn answer(shapes: &[(&str, &[usize])]) -> DryRunOutputs {
        let shapes = shapes.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect::<BTreeMap<_, _>>();
        DryRunOutputs { shapes, finite: true }
    }

    fn mapping(shapes: &[(&str, &[usize])], patch: Option<usize>) -> Result<OutputMapping, String> {
        OutputMapping::of(&answer(shapes), patch, (224, 224), 1)
    }

    #[test]
    fn patches_and_registers_are_told_from_the_tokens() {
        for (tokens, patch, registers) in [(197, 16, 0), (201, 16, 4), (257, 14, 0), (261, 14, 4), (785, 8, 0), (50, 32, 0)] {
            let mapping = mapping(&[("last_hidden_state", &[1, tokens, 384])], None).unwrap();
            assert_eq!((mapping.form.patch, mapping.form.registers, mapping.form.dim), (patch, registers, 384), "{tokens}");
        }
        // The stem of a ConvNeXt cuts out 4 pixels, its tokens stand for 32.
        assert_eq!(mapping(&[("last_hidden_state", &[1, 50, 768])], Some(4)).unwrap().form.patch, 32);
        let error = mapping(&[("last_hidden_state", &[1, 196, 384])], Some(16)).err().unwrap();
        assert!(error.contains("196 tokens") && error.contains("16 pixels"), "{error}");
    }

    #[test]
    fn the_pooler_is_left_aside_where_there_are_tokens_and_used_where_not() {
        let both = mapping(&[("last_hidden_state", &[1, 197, 384]), ("pooler_output", &[1, 384])], Some(16)).unwrap();
        assert_eq!(both.outputs, [("last_hidden_state", "last_hidden_state".to_owned())]);
        assert!(both.summary.contains("not used: pooler_output"), "{}", both.summary);
        let alone = mapping(&[("pooler_output", &[1, 384])], None).unwrap();
        assert_eq!((alone.architecture, alone.outputs[0].0), ("onnx-embedding", "embedding"));
        assert!(!alone.has_patches());
    }

    #[test]
    fn a_feature_map_goes_with_its_pooled_vector() {
        let shapes: [(&str, &[usize]); 2] = [("last_hidden_state", &[1, 768, 7, 7]), ("pooler_output", &[1, 768, 1, 1])];
        let mapping = mapping(&shapes, Some(4)).unwrap();
        assert_eq!((mapping.architecture, mapping.form.patch, mapping.form.dim), ("onnx-convnet", 32, 768));
        assert_eq!(mapping.outputs.len(), 2);
        let alone = super::OutputMapping::of(&answer(&shapes[..1]), None, (224, 224), 1).unwrap();
        assert!(alone.summary.contains("pooled by their mean"), "{}", alone.summary);
    }

    #[test]
    fn outputs_of_other_names_serve_where_there_is_no_doubt() {
        assert_eq!(mapping(&[("1234", &[1, 384])], Some(14)).unwrap().outputs, [("embedding", "1234".to_owned())]);
        let error = mapping(&[("a", &[1, 384]), ("b", &[1, 1000])], None).err().unwrap();
        assert!(error.contains("a [1, 384], b [1, 1000]"), "{error}");
    }

    #[test]
    fn answers_to_other_sizes_have_to_follow_the_size() {
        let mapping = mapping(&[("last_hidden_state", &[1, 197, 384])], Some(16)).unwrap();
        assert!(mapping.agree(&answer(&[("last_hidden_state", &[2, 1 + 15 * 16, 384])]), (240, 256), 2));
        assert!(!mapping.agree(&answer(&[("last_hidden_state", &[2, 197, 384])]), (240, 256), 2));
        assert!(!mapping.agree(&answer(&[("last_hidden_state", &[1, 1 + 15 * 16, 384])]), (240, 256), 2));
    }

    #[test]
    fn answers_of_other_ranks_and_lengths_do_not_agree() {
        let mapping = mapping(&[("last_hidden_state", &[1, 197, 384])], Some(16)).unwrap();
        let longer: &[usize] = &[2, 1 + 15 * 16, 384, 2];
        for shape in [&[][..], &[2], &[2, 241], longer, &[2, 241, 0], &[2, 241, 385]] {
            assert!(!mapping.agree(&answer(&[("last_hidden_state", shape)]), (240, 256), 2), "{shape:?}");
        }
    }

    #[test]
    fn what_does_not_go_with_the_tokens_is_left_aside() {
        let tokens: (&str, &[usize]) = ("last_hidden_state", &[1, 197, 384]);
        let used = |name: &str, shape: &[usize]| {
            let mapping = mapping(&[tokens, (name, shape)], Some(16)).unwrap();
            (mapping.outputs.len() == 2, mapping.form.heads, mapping.form.last_blocks)
        };
        assert_eq!(used("attention", &[1, 6, 197]), (true, 6, 0));
        assert_eq!(used("attention", &[1, 6, 196]), (false, 0, 0));
        assert_eq!(used("keys", &[1, 196, 384]), (true, 0, 0));
        assert_eq!(used("keys", &[1, 197, 384]), (false, 0, 0));
        assert_eq!(used("last_blocks", &[1, 4, 384]), (true, 0, 4));
        assert_eq!(used("last_blocks", &[1, 4, 383]), (false, 0, 0));
    }

    #[test]
    fn nothing_and_too_much_are_no_features() {
        for shape in [&[1, 0, 384][..], &[1, 197, 0], &[1, 0], &[1, 0, 1 << 40, 1 << 20], &[1, 4, 0, 1 << 60], &[], &[1, 1 << 20]] {
            assert!(mapping(&[("last_hidden_state", shape)], Some(16)).is_err(), "{shape:?}");
            assert!(mapping(&[("out", shape)], None).is_err(), "{shape:?}");
        }
    }

    #[test]
    fn the_scores_of_a_classifier_are_doubtful() {
        let doubtful = |name: &str, count| mapping(&[(name, &[1, count])], None).unwrap().doubtful.is_some();
        assert!(doubtful("logits", 384) && doubtful("class_probs", 10) && doubtful("output", 1000));
        assert!(!doubtful("output", 384) && !doubtful("pooler_output", 1000));
    }
}
