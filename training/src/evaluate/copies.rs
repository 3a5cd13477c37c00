//! Pictures that were put into both halves of a split: figures of such a split are too good.
//!
//! ```
//! use dino_train::evaluate::copies::{self, Named};
//! use dino_vision::duplicates::Fingerprint;
//! use image::{Rgb, RgbImage, imageops};
//!
//! let wave = |x: u32| ((x as f32 * 0.07).sin() * 100.0 + 128.0) as u8;
//! let photo = RgbImage::from_fn(320, 200, |x, y| Rgb([wave(x), wave(y), wave(x + 2 * y)]));
//! let smaller = imageops::resize(&photo, 160, 100, imageops::FilterType::Triangle);
//! let named = |name: &str, picture| Named { names: vec![name.to_owned()], fingerprints: vec![Fingerprint::of(picture)] };
//! let found = copies::of(&named("val/cat/1.png", &smaller), &named("train/cat/9.png", &photo))?;
//! assert_eq!(found, [("val/cat/1.png".to_owned(), "train/cat/9.png".to_owned())]);
//! # Ok::<(), dino_vision::cancel::Cancelled>(())
//! ```

use std::collections::HashMap;

use dino_vision::cancel::Cancelled;
use dino_vision::duplicates::{Candidate, Candidates, Fingerprint, Options};

/// Pictures of one set, by name.
#[derive(Clone, Debug, Default)]
pub struct Named {
    /// Path of each below its root.
    pub names: Vec<String>,
    /// What copies of each are known by.
    pub fingerprints: Vec<Fingerprint>,
}

/// Pictures of one set with the same pixels as one of another set each: the name here, and the name there.
///
/// They may be encoded again, or of another size; see [`dino_vision::duplicates`].
///
/// # Errors
/// [`Cancelled`].
pub fn of(here: &Named, there: &Named) -> Result<Vec<(String, String)>, Cancelled> {
    let mut candidates = Candidates::new(None);
    let all = here.names.iter().zip(&here.fingerprints).chain(there.names.iter().zip(&there.fingerprints));
    for (id, fingerprint) in all {
        candidates.push(Candidate { id, fingerprint: Some(fingerprint), ..Candidate::default() });
    }
    let mut copies: HashMap<usize, usize> = HashMap::new();
    let found = candidates.compare(Options { min_similarity: None }, &|_| {})?;
    for group in &found.groups {
        let original = group.members.iter().map(|member| member.item).filter(|&item| item >= here.names.len()).min();
        let copied = group.members.iter().map(|member| member.item).filter(|&item| item < here.names.len());
        copies.extend(copied.filter_map(|item| Some((item, original?))));
    }
    let mut copies: Vec<(usize, usize)> = copies.into_iter().collect();
    copies.sort_unstable();
    Ok(copies.into_iter().map(|(item, original)| (candidates.id(item).to_owned(), candidates.id(original).to_owned())).collect())
}
