//! Pictures that were put into both halves of a split: figures of such a split are too good.
//!
//! ```
//! use dino_train::evaluate::copies::{self, Fingerprint, Named};
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
use dino_vision::duplicates::{self, Candidate, Candidates, Options};
use image::RgbImage;
use sha2::{Digest as _, Sha256};

/// What copies of a picture are known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fingerprint {
    of_shape: duplicates::Fingerprint,
    /// SHA-256 of the size and the pixels of a flat picture (a white page, a black frame), which has no shape to be known by: its copies
    /// are those with just these pixels.
    of_pixels: Option<String>,
}

impl Fingerprint {
    /// That of a picture.
    pub fn of(picture: &RgbImage) -> Self {
        let of_shape = duplicates::Fingerprint::of(picture);
        let of_pixels = of_shape.is_flat().then(|| {
            let mut hash = Sha256::new();
            for side in [picture.width(), picture.height()] {
                hash.update(side.to_le_bytes());
            }
            hash.update(picture.as_raw());
            hex::encode(hash.finalize())
        });
        Self { of_shape, of_pixels }
    }
}

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
    for (id, Fingerprint { of_shape, of_pixels }) in all {
        candidates.push(Candidate { id, source: of_pixels.as_deref(), fingerprint: Some(of_shape), ..Candidate::default() });
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

#[cfg(test)]
mod tests {
    use image::{Rgb, RgbImage};

    use super::{Fingerprint, Named, of};

    #[test]
    fn flat_pictures_are_copies_where_their_pixels_are_the_same() {
        let flat = |side: u32, grey: u8| RgbImage::from_pixel(side, side, Rgb([grey; 3]));
        let named = |set: &str, pictures: &[RgbImage]| Named {
            names: (0..pictures.len()).map(|number| format!("{set}/{number}")).collect(),
            fingerprints: pictures.iter().map(Fingerprint::of).collect(),
        };
        let val = named("val", &[flat(40, 255), flat(40, 0), flat(30, 255), flat(40, 128)]);
        let train = named("train", &[flat(40, 128), flat(50, 0), flat(40, 255)]);
        let pair = |val: &str, train: &str| (val.to_owned(), train.to_owned());
        assert_eq!(of(&val, &train).unwrap(), [pair("val/0", "train/2"), pair("val/3", "train/0")]);
    }
}
