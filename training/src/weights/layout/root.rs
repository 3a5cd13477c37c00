//! Where in a checkpoint the network is: what the names of its tensors begin with.
//!
//! Training scripts, wrappers and frameworks put names of their own before a backbone's (`teacher.`, `module.`, `_orig_mod.`,
//! `state_dict.model.`). None of them is guessed: a root counts where the signature of a layout follows it.

use std::collections::BTreeMap;

use super::super::store::Store;
use super::super::{Error, Key, Options};
use super::{Names, SIGNATURES};

/// Parts of roots that every reader of such checkpoints expects; others are worth a note.
const USUAL: [&str; 10] =
    ["teacher", "student", "module", "backbone", "state_dict", "model", "vit", "dinov2", "dinov2_with_registers", "dinov3_vit"];

/// The root of the network that `options` ask for, and its family.
pub(super) fn find(store: &Store, options: &Options, notes: &mut Vec<String>) -> Result<(String, Names), Error> {
    let roots = roots(store);
    if roots.is_empty() {
        return Err(Error::UnknownLayout(store.names().map(str::to_owned).collect()));
    }
    let root = match &options.prefix {
        Some(prefix) => named(&roots, prefix)?,
        None => chosen(&roots, options.key, notes)?,
    };
    if root.split_terminator('.').any(|part| !USUAL.contains(&part)) {
        notes.push(format!("the backbone is taken from `{root}`"));
    }
    Ok((root.to_owned(), roots[root]))
}

/// Every root under which the signature of a layout is found.
fn roots(store: &Store) -> BTreeMap<&str, Names> {
    let mut roots = BTreeMap::new();
    for name in store.names() {
        for (signature, names) in SIGNATURES {
            if let Some(root) = name.strip_suffix(signature).filter(|root| root.is_empty() || root.ends_with('.')) {
                roots.entry(root).or_insert(names);
            }
        }
    }
    roots
}

fn named<'a>(roots: &BTreeMap<&'a str, Names>, prefix: &str) -> Result<&'a str, Error> {
    let prefix = prefix.trim_end_matches('.');
    let found = roots.keys().find(|root| root.trim_end_matches('.') == prefix);
    found.copied().ok_or_else(|| Error::Unsupported(format!("no backbone begins with `{prefix}.`: --prefix may be {}", list(roots.keys()))))
}

fn chosen<'a>(roots: &BTreeMap<&'a str, Names>, key: Option<Key>, notes: &mut Vec<String>) -> Result<&'a str, Error> {
    let of = |wanted: Option<Key>| roots.keys().copied().filter(|root| side(root) == wanted).collect::<Vec<_>>();
    let (teachers, students) = (of(Some(Key::Teacher)), of(Some(Key::Student)));
    let candidates = match key {
        Some(Key::Teacher) => teachers,
        Some(Key::Student) => students,
        None => {
            let others = of(None);
            if !teachers.is_empty() && !students.is_empty() {
                notes.push("there are a teacher and a student; the teacher is taken (--key student takes the other)".to_owned());
            } else if teachers.is_empty() && others.is_empty() {
                notes.push("there is no teacher; the student is taken".to_owned());
            }
            [teachers, others, students].into_iter().find(|roots| !roots.is_empty()).unwrap_or_default()
        }
    };
    let is_average = |root: &&str| root.split('.').any(|part| part.split('_').any(|word| word == "ema"));
    let raw: Vec<&str> = candidates.iter().copied().filter(|root| !is_average(root)).collect();
    match (candidates.as_slice(), raw.as_slice()) {
        ([], _) => {
            let name = if key == Some(Key::Teacher) { "teacher" } else { "student" };
            Err(Error::Unsupported(format!("there is no {name} in this checkpoint; leave out --key")))
        }
        ([one], _) => Ok(one),
        (_, [one]) => {
            let averages = list(candidates.iter().filter(|root| is_average(root)));
            let shown = if one.is_empty() { "the names without a prefix".to_owned() } else { format!("`{one}`") };
            notes.push(format!("{shown} is taken; the moving average of the weights is there too: --prefix takes {averages}"));
            Ok(one)
        }
        _ => Err(Error::Unsupported(format!(
            "there are several backbones in this checkpoint: name one with --prefix, which may be {}",
            list(candidates.iter())
        ))),
    }
}

/// Whether a root names the teacher or the student of a training run.
pub(in crate::weights) fn side(root: &str) -> Option<Key> {
    root.split('.').find_map(|part| {
        let is = |word: &str| part.split('_').any(|piece| piece == word);
        if is("teacher") {
            Some(Key::Teacher)
        } else if is("student") {
            Some(Key::Student)
        } else {
            None
        }
    })
}

/// The teacher or the student, where the wrappers ahead of a tensor's name say one: those of `student.head.weight` do, those of
/// `blocks.0.attn.teacher_scale` do not.
pub(in crate::weights) fn wrapper_side(name: &str) -> Option<Key> {
    let (wrappers, _) = name.rsplit_once('.')?;
    let is_wrapper = |part: &&str| USUAL.contains(part) || side(part).is_some();
    wrappers.split('.').take_while(is_wrapper).find_map(side)
}

fn list<'a>(roots: impl Iterator<Item = &'a &'a str>) -> String {
    let quoted: Vec<String> = roots.map(|root| format!("`{root}`")).collect();
    quoted.join(", ")
}
