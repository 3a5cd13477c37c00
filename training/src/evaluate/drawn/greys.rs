//! What the greys of masks mean: brightness, or numbers.

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::bail;

use super::file::Stored;
use super::{HALF, VOID_NUMBER};

/// Pixels from a soft edge's grey to the black and to the white beside it, at most.
const REACH: u32 = 3;

/// What greys mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Greys {
    /// White objects on black, whose edges may be soft: they are cut at half.
    Brightness,
    /// 0 is background, 255 is left out, each other number is an object or a class.
    Numbers,
}

/// How many pixels have each value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts(pub [u64; 256]);

impl Default for Counts {
    fn default() -> Self {
        Self([0; 256])
    }
}

impl Counts {
    /// Counts values.
    pub fn of(values: impl IntoIterator<Item = u8>) -> Self {
        let mut counts = Self::default();
        values.into_iter().for_each(|value| counts.0[usize::from(value)] += 1);
        counts
    }

    /// Both together.
    #[must_use]
    pub fn merged(mut self, other: &Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(count, more)| *count += more);
        self
    }

    /// Pixels whose value is in a range.
    pub fn within(&self, values: Range<u8>) -> u64 {
        self.0[usize::from(values.start)..usize::from(values.end)].iter().sum()
    }

    /// Pixels that are white, 255.
    pub fn white(&self) -> u64 {
        self.0[usize::from(VOID_NUMBER)]
    }

    /// The rule for one mask: values between half and white, or black and white alone, are brightness, darker greys are numbers. `None`
    /// where white covers more than the numbers do, so that it may be an object with an edge, or what is left out.
    pub fn meaning(&self) -> Option<Greys> {
        let (low, high) = (self.within(1..HALF), self.within(HALF..VOID_NUMBER));
        match (low, high) {
            (0, _) | (_, 1..) => Some(Greys::Brightness),
            _ if self.white() > low => None,
            _ => Some(Greys::Numbers),
        }
    }
}

/// Masks that belong together, so that greys have to mean the same in all of them.
#[derive(Clone, Debug, Default)]
pub struct Folder {
    counts: Counts,
    /// Greys with both black and white near them.
    edges: u64,
    /// The first mask with a grey that is neither black nor white.
    shaded: Option<PathBuf>,
    /// The first mask that by itself has numbers.
    numbered: Option<PathBuf>,
}

impl Folder {
    /// One mask. Indices of a palette with colours are numbers in any case.
    pub fn of(path: &Path, mask: &Stored) -> Self {
        let counts = Counts::of(mask.values.iter().copied());
        let named = |holds: bool| holds.then(|| path.to_owned());
        if !mask.are_seen() {
            return Self { numbered: named(mask.values.iter().any(|value| *value > 0)), ..Self::default() };
        }
        let (shaded, numbered) = (counts.within(1..VOID_NUMBER) > 0, counts.meaning() == Some(Greys::Numbers));
        Self { counts, edges: edges(mask), shaded: named(shaded), numbered: named(numbered) }
    }

    /// Both together; `other` comes behind.
    #[must_use]
    pub fn merged(self, other: Self) -> Self {
        Self {
            counts: self.counts.merged(&other.counts),
            edges: self.edges + other.edges,
            shaded: self.shaded.or(other.shaded),
            numbered: self.numbered.or(other.numbered),
        }
    }

    /// Whether greys are the soft edges of white objects, by the rule for one mask; false where they are numbers, and where there are none
    /// but black and white. Numbers of half and more are common in folders, so white has to cover more than all greys, and these have to lie
    /// between it and black.
    ///
    /// # Errors
    /// Where they may be either, or are not the same in all masks: names a mask, and says `advice`.
    pub fn is_soft(&self, advice: &str) -> anyhow::Result<bool> {
        let Some(shaded) = &self.shaded else { return Ok(false) };
        // Without white there is nothing that greys could be the edges of.
        if self.counts.white() == 0 {
            return Ok(false);
        }
        let greys = self.counts.within(1..VOID_NUMBER);
        match (self.counts.meaning(), &self.numbered) {
            (Some(Greys::Numbers), _) => Ok(false),
            (Some(Greys::Brightness), None) if self.counts.white() > greys && 2 * self.edges > greys => Ok(true),
            (_, numbered) => bail!(
                "{}: the greys of these masks may be numbers, with 255 for what is left out, or the soft edges of white objects: {advice}",
                numbered.as_ref().unwrap_or(shaded).display()
            ),
        }
    }
}

/// Greys of a mask with both black and white near them.
fn edges(mask: &Stored) -> u64 {
    let (width, height) = mask.size;
    let around = |at: u32, side: u32| at.saturating_sub(REACH)..(at + REACH + 1).min(side);
    let row = |y: u32, x: Range<u32>| {
        let start = y as usize * width as usize;
        &mask.values[start + x.start as usize..start + x.end as usize]
    };
    let lies_between = |x: u32, y: u32| {
        let (mut black, mut white) = (false, false);
        for y in around(y, height) {
            for value in row(y, around(x, width)) {
                black |= *value == 0;
                white |= *value == VOID_NUMBER;
            }
        }
        black && white
    };
    let is_grey = |x: u32, y: u32| (1..VOID_NUMBER).contains(&row(y, x..x + 1)[0]);
    let places = (0..height).flat_map(|y| (0..width).map(move |x| (x, y)));
    places.filter(|&(x, y)| is_grey(x, y) && lies_between(x, y)).count() as u64
}

#[cfg(test)]
mod tests {
    use image::GrayImage;

    use super::super::file::stored;
    use super::*;

    #[test]
    fn greys_mean_the_same_in_all_masks_of_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let soft_of = |masks: &[&[u8]]| {
            let one = |(number, values): (usize, &&[u8])| {
                let path = folder.path().join(format!("{number}.png"));
                GrayImage::from_raw(values.len() as u32, 1, values.to_vec()).unwrap().save(&path).unwrap();
                Folder::of(&path, &stored(&path).unwrap())
            };
            let all = masks.iter().enumerate().map(one).fold(Folder::default(), Folder::merged);
            all.is_soft("do this").map_err(|error| error.to_string())
        };
        let white: &[u8] = &[0, 0, 255, 255, 255];
        let soft: &[u8] = &[0, 40, 200, 255, 255];
        assert_eq!(soft_of(&[white, soft]), Ok(true));
        assert_eq!(soft_of(&[white, white]), Ok(false));
        // Numbers: those of ADE20K, which has no 255, and those of VOC, with a border that is left out.
        assert_eq!(soft_of(&[&[0, 1, 149], &[150, 150, 3]]), Ok(false));
        assert_eq!(soft_of(&[&[0, 15, 15, 255], &[20, 20, 0, 255]]), Ok(false));
        let unclear: [([&[u8]; 2], &str); 5] = [
            ([soft, &[0, 1, 1, 1]], "1.png"),
            ([&[0, 1, 1, 255], &[0, 181, 181, 181]], "0.png"),
            ([&[0, 181, 181, 255], &[0, 0, 0, 0]], "0.png"),
            ([&[0, 0], &[0, 1, 255, 255]], "1.png"),
            // Few pixels have a class, and one of the numbers is above half.
            ([&[1, 5, 255, 255, 255], &[150, 255, 255, 255]], "0.png"),
        ];
        for (masks, named) in unclear {
            let error = soft_of(&masks).unwrap_err();
            assert!(error.contains(named) && error.ends_with("do this"), "{error}");
        }
    }
}
