//! Which of a graph's outputs is what, told by names and shapes.

use super::Answer;

/// Names under which others export one vector for each picture.
const POOLED: [&str; 4] = ["pooler_output", "embedding", "image_embeds", "sentence_embedding"];
/// Sides that patches have in published models, tried in this order where the graph does not show its own.
const PATCHES: [usize; 6] = [16, 14, 8, 32, 4, 7];
/// More tokens than this between CLS and the patches are no registers.
const MOST_REGISTERS: usize = 32;

/// Name and shape.
type Output<'a> = (&'a String, &'a Vec<usize>);

/// What the outputs mean.
pub(super) struct Roles {
    /// Our name of each output that is used, and the graph's.
    pub(super) outputs: Vec<(&'static str, String)>,
    /// What kind of network it is.
    pub(super) architecture: &'static str,
    /// Side of a patch, or of a cell of the feature map; 1 where there are none.
    pub(super) patch: usize,
    /// Length of the vectors.
    pub(super) dim: usize,
    /// Tokens between CLS and the patches.
    pub(super) registers: usize,
    /// Attention heads, where the graph gives their attention; else 0.
    pub(super) heads: usize,
    /// Blocks whose CLS token it gives.
    pub(super) last_blocks: usize,
    /// All of this in words.
    pub(super) summary: String,
}

impl Roles {
    /// Reads the answer to `batch` pictures of (height, width). `patch` is the side of a patch where the graph shows it.
    pub(super) fn of(answer: &Answer, patch: Option<usize>, size: (usize, usize), batch: usize) -> Result<Self, String> {
        let shapes = || answer.shapes.iter().filter(|(_, shape)| shape.first() == Some(&batch));
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
        let mut roles = match (tokens, map, vector) {
            (Some((name, shape)), ..) => Self::transformer(name, shape, patch, size)?,
            (None, Some((name, shape)), vector) => Self::convolutional(name, shape, size, vector)?,
            (None, None, Some((name, shape))) => Self::vectors(name, shape),
            (None, None, None) => return Err(unclear(answer)),
        };
        if tokens.is_some() {
            roles.add_ours(rank);
        }
        roles.describe(answer);
        Ok(roles)
    }

    /// Whether there is something for each part of the picture.
    pub(super) fn has_patches(&self) -> bool {
        self.outputs.iter().any(|(ours, _)| matches!(*ours, "last_hidden_state" | "feature_map"))
    }

    /// Whether the answer to other pictures has the shapes that it should have.
    pub(super) fn agree(&self, answer: &Answer, (height, width): (usize, usize), batch: usize) -> bool {
        let grid = [height / self.patch, width / self.patch];
        let tokens = 1 + self.registers + grid[0] * grid[1];
        self.outputs.iter().all(|(ours, theirs)| {
            let Some(shape) = answer.shapes.get(theirs) else { return false };
            shape[0] == batch
                && match *ours {
                    "last_hidden_state" => shape[1] == tokens,
                    "attention" => shape[2] == tokens,
                    "keys" => shape[1] == grid[0] * grid[1],
                    "feature_map" => shape[2..] == grid,
                    _ => true,
                }
        })
    }

    fn new(architecture: &'static str, patch: usize, dim: usize, output: (&'static str, &str)) -> Self {
        let outputs = vec![(output.0, output.1.to_owned())];
        Self { outputs, architecture, patch, dim, registers: 0, heads: 0, last_blocks: 0, summary: String::new() }
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
        Ok(Self { registers, ..Self::new("onnx-vit", patch, dim, ("last_hidden_state", name)) })
    }

    fn convolutional(name: &str, shape: &[usize], (height, width): (usize, usize), vector: Option<Output<'_>>) -> Result<Self, String> {
        let [_, dim, rows, columns] = *shape else { return Err(format!("its output `{name}` has the shape {shape:?}")) };
        let stride = height / rows.max(1);
        if rows == 0 || stride * rows != height || stride * columns != width {
            return Err(format!("its output `{name}` has {rows}x{columns} cells for {height}x{width} pixels, which are no squares"));
        }
        let mut roles = Self::new("onnx-convnet", stride, dim, ("feature_map", name));
        if let Some((name, _)) = vector.filter(|(_, shape)| shape[1] == dim) {
            roles.outputs.push(("embedding", name.clone()));
        }
        Ok(roles)
    }

    fn vectors(name: &str, shape: &[usize]) -> Self {
        Self::new("onnx-embedding", 1, shape[1], ("embedding", name))
    }

    /// Takes up what only our own exporter writes beside the tokens, if its shape fits.
    fn add_ours<'a>(&mut self, rank: impl Fn(&str, usize) -> Option<Output<'a>>) {
        if let Some((name, shape)) = rank("attention", 3) {
            self.heads = shape[1];
            self.outputs.push(("attention", name.clone()));
        }
        if let Some((name, _)) = rank("keys", 3).filter(|(_, shape)| shape[2] == self.dim) {
            self.outputs.push(("keys", name.clone()));
        }
        if let Some((name, shape)) = rank("last_blocks", 3).filter(|(_, shape)| shape[2] == self.dim) {
            self.last_blocks = shape[1];
            self.outputs.push(("last_blocks", name.clone()));
        }
    }

    fn describe(&mut self, answer: &Answer) {
        let used = |name: &str| self.outputs.iter().any(|(_, theirs)| theirs == name);
        let as_what = |(ours, theirs): &(&str, String)| if ours == theirs { theirs.clone() } else { format!("{theirs} as {ours}") };
        let outputs = self.outputs.iter().map(as_what).collect::<Vec<_>>().join(", ");
        let unused: Vec<_> = answer.shapes.keys().map(String::as_str).filter(|name| !used(name)).collect();
        let unused = if unused.is_empty() { String::new() } else { format!(" (not used: {})", unused.join(", ")) };
        let form = match self.architecture {
            "onnx-vit" => format!("patches of {} pixels, {} registers", self.patch, self.registers),
            "onnx-convnet" => {
                let pooled = used_as(&self.outputs, "embedding");
                format!("one cell for {} pixels{}", self.patch, if pooled { "" } else { ", pooled by their mean" })
            }
            _ => "one vector for each picture, nothing for its parts".to_owned(),
        };
        self.summary = format!("outputs {outputs}{unused}; {} numbers, {form}", self.dim);
    }
}

fn used_as(outputs: &[(&'static str, String)], name: &str) -> bool {
    outputs.iter().any(|(ours, _)| *ours == name)
}

fn unclear(answer: &Answer) -> String {
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

    fn answer(shapes: &[(&str, &[usize])]) -> Answer {
        let shapes = shapes.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect::<BTreeMap<_, _>>();
        Answer { shapes, finite: true }
    }

    fn roles(shapes: &[(&str, &[usize])], patch: Option<usize>) -> Result<Roles, String> {
        Roles::of(&answer(shapes), patch, (224, 224), 1)
    }

    #[test]
    fn patches_and_registers_are_told_from_the_tokens() {
        for (tokens, patch, registers) in [(197, 16, 0), (201, 16, 4), (257, 14, 0), (261, 14, 4), (785, 8, 0), (50, 32, 0)] {
            let roles = roles(&[("last_hidden_state", &[1, tokens, 384])], None).unwrap();
            assert_eq!((roles.patch, roles.registers, roles.dim), (patch, registers, 384), "{tokens}");
        }
        // The stem of a ConvNeXt cuts out 4 pixels, its tokens stand for 32.
        assert_eq!(roles(&[("last_hidden_state", &[1, 50, 768])], Some(4)).unwrap().patch, 32);
        let error = roles(&[("last_hidden_state", &[1, 196, 384])], Some(16)).err().unwrap();
        assert!(error.contains("196 tokens") && error.contains("16 pixels"), "{error}");
    }

    #[test]
    fn the_pooler_is_left_aside_where_there_are_tokens_and_used_where_not() {
        let both = roles(&[("last_hidden_state", &[1, 197, 384]), ("pooler_output", &[1, 384])], Some(16)).unwrap();
        assert_eq!(both.outputs, [("last_hidden_state", "last_hidden_state".to_owned())]);
        assert!(both.summary.contains("not used: pooler_output"), "{}", both.summary);
        let alone = roles(&[("pooler_output", &[1, 384])], None).unwrap();
        assert_eq!((alone.architecture, alone.outputs[0].0), ("onnx-embedding", "embedding"));
        assert!(!alone.has_patches());
    }

    #[test]
    fn a_feature_map_goes_with_its_pooled_vector() {
        let shapes: [(&str, &[usize]); 2] = [("last_hidden_state", &[1, 768, 7, 7]), ("pooler_output", &[1, 768, 1, 1])];
        let roles = roles(&shapes, Some(4)).unwrap();
        assert_eq!((roles.architecture, roles.patch, roles.dim), ("onnx-convnet", 32, 768));
        assert_eq!(roles.outputs.len(), 2);
        let alone = super::Roles::of(&answer(&shapes[..1]), None, (224, 224), 1).unwrap();
        assert!(alone.summary.contains("pooled by their mean"), "{}", alone.summary);
    }

    #[test]
    fn outputs_of_other_names_serve_where_there_is_no_doubt() {
        assert_eq!(roles(&[("1234", &[1, 384])], Some(14)).unwrap().outputs, [("embedding", "1234".to_owned())]);
        let error = roles(&[("a", &[1, 384]), ("b", &[1, 1000])], None).err().unwrap();
        assert!(error.contains("a [1, 384], b [1, 1000]"), "{error}");
    }

    #[test]
    fn answers_to_other_sizes_have_to_follow_the_size() {
        let roles = roles(&[("last_hidden_state", &[1, 197, 384])], Some(16)).unwrap();
        assert!(roles.agree(&answer(&[("last_hidden_state", &[2, 1 + 15 * 16, 384])]), (240, 256), 2));
        assert!(!roles.agree(&answer(&[("last_hidden_state", &[2, 197, 384])]), (240, 256), 2));
        assert!(!roles.agree(&answer(&[("last_hidden_state", &[1, 1 + 15 * 16, 384])]), (240, 256), 2));
    }
}
