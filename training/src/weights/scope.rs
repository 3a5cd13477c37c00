//! The part of a checkpoint that holds one network, under the names of its layout.

use std::collections::{BTreeMap, BTreeSet};

use super::layout::{side, wrapper_side};
use super::spec::{Linear, Norm};
use super::store::{Store, Tensor};
use super::{Error, Report};

/// Tensors under one wrapper and prefix. Every tensor that a layout takes is checked against the shape it needs; what
/// does not fit is collected, so that one error names all of it.
pub(super) struct Scope<'a> {
    store: &'a Store,
    /// Name inside the scope → full name.
    names: BTreeMap<String, String>,
    /// Names beside the backbone, for example those of its projection head.
    beside: Vec<String>,
    /// Names that the user knows not to belong to the backbone.
    ignored: &'a [String],
    used: BTreeSet<String>,
    missing: BTreeSet<String>,
    wrong: BTreeSet<String>,
    not_finite: BTreeSet<String>,
    failure: Option<Error>,
    root: String,
}

impl<'a> Scope<'a> {
    /// The tensors whose names start with `root`, without those that are `ignored`: a name, or all names below it.
    pub(super) fn new(store: &'a Store, root: &str, ignored: &'a [String]) -> Result<Self, Error> {
        let root = root.to_owned();
        // `teacher.` of `teacher.backbone.`
        let parent = root.trim_end_matches('.').rfind('.').map_or("", |at| &root[..=at]);
        let is_of_other_network = |name: &str| wrapper_side(name) != side(&root);
        let mut names = BTreeMap::new();
        let mut beside = Vec::new();
        for name in store.names() {
            if let Some(inner) = name.strip_prefix(&root)
                && !(root.is_empty() && is_of_other_network(name))
            {
                if let Some(other) = names.insert(without_chunk(inner), name.to_owned()) {
                    return Err(Error::Unsupported(format!("{other} and {name} are the same block's tensor")));
                }
            } else if name.starts_with(parent) && !is_of_other_network(name) {
                beside.push(name.to_owned());
            }
        }
        Ok(Self {
            store,
            names,
            beside,
            ignored,
            used: BTreeSet::new(),
            missing: BTreeSet::new(),
            wrong: BTreeSet::new(),
            not_finite: BTreeSet::new(),
            failure: None,
            root,
        })
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// Whether any name starts with `prefix`.
    pub(super) fn has_any(&self, prefix: &str) -> bool {
        self.names.range(prefix.to_owned()..).next().is_some_and(|(name, _)| name.starts_with(prefix))
    }

    /// Shape of a tensor that may be there.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        self.store.shape(self.names.get(name)?)
    }

    /// The shape of a tensor that must be there and have `N` axes. Other sizes are derived from it.
    pub(super) fn dims<const N: usize>(&mut self, name: &str) -> [usize; N] {
        if let Some(shape) = self.shape(name) {
            if let Ok(shape) = shape.try_into() {
                return shape;
            }
            let wrong = format!("{} is {shape:?}, {N} axes are needed", self.names[name]);
            self.wrong.insert(wrong);
        } else {
            // Notes that it is missing, or why it cannot be read.
            self.take(name, &[]);
        }
        [0; N]
    }

    /// One more than the highest n of the names `{list}.{n}.…`, at least `known`.
    pub(super) fn count(&self, list: &str, known: Option<usize>) -> usize {
        let index = |name: &String| name.strip_prefix(list)?.strip_prefix('.')?.split_once('.')?.0.parse::<usize>().ok();
        let highest = self.names.keys().filter_map(index).max();
        // A stray huge index would otherwise be answered with as many missing blocks.
        highest.map_or(0, |highest| highest.saturating_add(1)).max(known.unwrap_or(0)).min(1000)
    }

    /// Takes a tensor of the given shape. If it is missing or does not fit, this is noted and an empty one returned.
    pub(super) fn take(&mut self, name: &str, shape: &[usize]) -> Tensor {
        if self.has(name) {
            return self.optional(name, shape).unwrap_or_default();
        }
        self.missing.insert(format!("{}{name}", self.root));
        Tensor::default()
    }

    /// Takes a tensor that may be absent.
    pub(super) fn optional(&mut self, name: &str, shape: &[usize]) -> Option<Tensor> {
        let full = self.names.get(name)?.clone();
        self.used.insert(name.to_owned());
        if let Some(reason) = self.store.why_no_weight(&full) {
            self.wrong.insert(format!("{full} {reason}"));
        } else if let Some(found) = self.store.shape(&full).filter(|found| *found != shape) {
            self.wrong.insert(format!("{full} is {found:?}, the layout needs {shape:?}"));
        }
        // Nothing more is read once it is clear that the checkpoint does not fit.
        if self.failure.is_some() || !self.wrong.is_empty() || !self.missing.is_empty() {
            return Some(Tensor::default());
        }
        match self.store.read(&full) {
            Ok(tensor) => {
                if tensor.data.iter().any(|value| !value.is_finite()) {
                    self.not_finite.insert(full);
                }
                Some(tensor)
            }
            Err(error) => {
                self.failure = Some(error);
                Some(Tensor::default())
            }
        }
    }

    /// Takes a tensor that a layout has in all of its blocks or in none.
    pub(super) fn all_or_none(&mut self, name: &str, shape: &[usize]) -> Option<Tensor> {
        let inside = inside_block(name);
        let somewhere = self.names.keys().any(|other| inside_block(other) == inside);
        somewhere.then(|| self.take(name, shape))
    }

    /// Notes a problem with a tensor that only the layout can see.
    pub(super) fn reject(&mut self, name: &str, reason: &str) {
        let full = self.names.get(name).map_or(name, String::as_str);
        self.wrong.insert(format!("{full} {reason}"));
    }

    /// `{name}.weight` `[out, in]` and `{name}.bias` `[out]`.
    pub(super) fn linear(&mut self, name: &str, out: usize, input: usize) -> Linear {
        let weight = self.take(&format!("{name}.weight"), &[out, input]);
        let bias = self.take(&format!("{name}.bias"), &[out]).data;
        Linear { weight, bias: Some(bias) }
    }

    /// The same for a layer that may have no bias in any block.
    pub(super) fn linear_maybe_biased(&mut self, name: &str, out: usize, input: usize) -> Linear {
        let weight = self.take(&format!("{name}.weight"), &[out, input]);
        let bias = self.all_or_none(&format!("{name}.bias"), &[out]).map(|bias| bias.data);
        Linear { weight, bias }
    }

    /// `{name}.weight` and `{name}.bias`, `[dim]` each.
    pub(super) fn norm(&mut self, name: &str, dim: usize) -> Norm {
        let weight = self.take(&format!("{name}.weight"), &[dim]).data;
        let bias = self.take(&format!("{name}.bias"), &[dim]).data;
        Norm { weight, bias }
    }

    /// All tensors as they are, without those that are left out.
    pub(super) fn tensors(&self, is_harmless: impl Fn(&str) -> bool) -> Result<BTreeMap<String, Tensor>, Error> {
        let kept = self.names.iter().filter(|(name, full)| !is_harmless(name) && !self.is_ignored(name, full));
        kept.map(|(name, full)| Ok((name.clone(), self.store.read(full)?))).collect()
    }

    /// Whether the user knows a tensor not to belong to the backbone.
    fn is_ignored(&self, name: &str, full: &str) -> bool {
        self.ignored.iter().any(|ignored| [name, full].iter().any(|name| is_at_or_below(name, ignored)))
    }

    /// Ends the reading: an error that names everything that did not fit, or what was used and what was not.
    pub(super) fn finish(self, layout: &'static str, is_harmless: impl Fn(&str) -> bool) -> Result<Report, Error> {
        if !self.missing.is_empty() || !self.wrong.is_empty() {
            return Err(Error::Misfit { layout, missing: self.missing.into_iter().collect(), wrong: self.wrong.into_iter().collect() });
        }
        if let Some(failure) = self.failure {
            return Err(failure);
        }
        if !self.not_finite.is_empty() {
            return Err(Error::NotFinite(self.not_finite.into_iter().collect()));
        }
        let mut report = Report { used: self.used.len(), unneeded: Vec::new(), notes: Vec::new() };
        let mut unused = Vec::new();
        let left: Vec<_> = self.names.iter().filter(|(name, _)| !self.used.contains(*name)).collect();
        for ignored in self.ignored {
            let inside = left.iter().any(|(name, full)| [name, full].iter().any(|name| is_at_or_below(name, ignored)));
            let taken = |full: &str| self.used.iter().any(|name| self.names[name] == full);
            if !inside && !self.store.names().any(|full| is_at_or_below(full, ignored) && !taken(full)) {
                let reason = "names no tensor that would be left out: there is none by that name, or the backbone uses it";
                return Err(Error::Unsupported(format!("--ignore {ignored} {reason}")));
            }
        }
        for (name, full) in left {
            let list = if self.is_ignored(name, full) || is_harmless(name) { &mut report.unneeded } else { &mut unused };
            list.push(full.to_owned());
        }
        if !unused.is_empty() {
            return Err(Error::Unused { layout, names: unused });
        }
        report.unneeded.extend(self.beside);
        Ok(report)
    }
}

/// Whether `name` is `place`, or lies below it.
fn is_at_or_below(name: &str, place: &str) -> bool {
    let place = place.trim_end_matches('.');
    name.strip_prefix(place).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// The part of a name behind its first number: `blocks.3.attn.qkv.bias` → `attn.qkv.bias`.
fn inside_block(name: &str) -> Option<&str> {
    let mut rest = name;
    while let Some((part, behind)) = rest.split_once('.') {
        if is_number(part) {
            return Some(behind);
        }
        rest = behind;
    }
    None
}

pub(super) fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// `blocks.0.3.norm1.weight` → `blocks.3.norm1.weight`: training in shards groups the blocks in
/// chunks, and the second number goes on counting from chunk to chunk.
fn without_chunk(name: &str) -> String {
    let chunked = || {
        let (chunk, rest) = name.strip_prefix("blocks.")?.split_once('.')?;
        let (block, _) = rest.split_once('.')?;
        (is_number(chunk) && is_number(block)).then(|| format!("blocks.{rest}"))
    };
    chunked().unwrap_or_else(|| name.to_owned())
}
