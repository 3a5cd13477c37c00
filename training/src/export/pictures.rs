//! Pictures to measure and to calibrate with: a user's, or those that the program carries.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dino_vision::bulk::{self, tree};
use dino_vision::media::{self, Limits};
use dino_vision::model::manifest::{Cost, Manifest};
use dino_vision::model::{Precision, RawSession};
use include_dir::{Dir, include_dir};
use ndarray::{Array2, Array3, ArrayD, Axis};

use dino_vision::transform::Transform;

use super::Error;
use super::cost::{self, FEWEST};
use super::whitening;
use crate::show::progress;

/// A model's outputs by their names.
type Outputs = BTreeMap<String, ArrayD<f32>>;

/// One picture of each of a hundred classes of Caltech-101, the shorter side 128 pixels.
static BUNDLED: Dir<'_> = include_dir!("$CARGO_MANIFEST_DIR/../tests/data/caltech101-val");
/// Every so many of them are for calibration, the others for measuring.
const CALIBRATION: usize = 4;
/// Most pictures that are embedded: figures hardly change beyond, and the exporter stays quick.
const MOST: usize = 512;

/// Most pictures that whitening is computed of, as in DINO's paper.
const WHITENED: usize = 20_000;

/// Pictures to measure with.
pub(super) struct Pictures {
    /// Where they come from, for people.
    place: String,
    pictures: Vec<Picture>,
}

struct Picture {
    source: Source,
    class: Option<String>,
}

enum Source {
    File(PathBuf),
    Bytes(&'static [u8]),
}

impl Picture {
    /// What `take` makes of the model's outputs; `None` for a file that is no picture.
    fn run<T>(&self, session: &mut RawSession, transform: &Transform, take: impl Fn(&Outputs) -> T) -> Result<Option<T>, Error> {
        let bytes = match self.source.read() {
            Ok(bytes) => bytes,
            Err(error) if error.is_of_file() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let Ok(picture) = media::decode(&bytes, &Limits::default()) else { return Ok(None) };
        Ok(Some(take(&session.run(transform.apply(&picture).insert_axis(Axis(0)).view())?)))
    }
}

impl Source {
    fn read(&self) -> Result<Cow<'static, [u8]>, bulk::Error> {
        match self {
            Self::File(path) => Ok(bulk::read(path)?.into()),
            Self::Bytes(bytes) => Ok((*bytes).into()),
        }
    }
}

impl Pictures {
    /// Lists a folder of pictures, at most [`MOST`] of them, evenly spread.
    pub(super) fn list(folder: &Path) -> Result<Self, Error> {
        Self::some(folder, MOST)
    }

    /// Lists a folder of pictures for whitening, at most [`WHITENED`] of them, evenly spread.
    pub(super) fn for_whitening(folder: &Path) -> Result<Self, Error> {
        Self::some(folder, WHITENED)
    }

    fn some(folder: &Path, most: usize) -> Result<Self, Error> {
        let entries = tree::list(folder)?.entries;
        let count = entries.len().min(most);
        let chosen = (0..count).map(|index| &entries[index * entries.len() / count]);
        let pictures = chosen.map(|entry| Picture { source: Source::File(entry.path.clone()), class: entry.class.clone() });
        Ok(Self { place: folder.display().to_string(), pictures: pictures.collect() })
    }

    /// The bundled ones that are not for calibration.
    pub(super) fn bundled() -> Self {
        let chosen = bundled().enumerate().filter(|(index, _)| index % CALIBRATION != 0);
        let picture = |(class, bytes)| Picture { source: Source::Bytes(bytes), class };
        Self { place: "the program".to_owned(), pictures: chosen.map(|(_, found)| picture(found)).collect() }
    }

    /// The embedding of each picture; `None` for a file that is no picture.
    pub(super) fn embed(
        &self,
        session: &mut RawSession,
        transform: &Transform,
        precision: Precision,
    ) -> Result<Vec<Option<Vec<f32>>>, Error> {
        tracing::info!("measuring {precision} on {} pictures", self.pictures.len());
        let bar = progress::bar(self.pictures.len(), &format!("measure {precision}"));
        // CLS, or what a convolutional network pooled.
        let embedding = |outputs: &Outputs| match (outputs.get("last_hidden_state"), outputs.get("embedding")) {
            (Some(tokens), _) => tokens.index_axis(Axis(1), 0).iter().copied().collect(),
            (None, Some(pooled)) => pooled.iter().copied().collect(),
            (None, None) => Vec::new(),
        };
        let answers = self.pictures.iter().map(|picture| picture.run(session, transform, embedding)).inspect(|_| bar.inc(1)).collect();
        bar.finish_and_clear();
        answers
    }

    /// What whitening is computed of, of each picture that can be read: `[pictures, 2 D]`.
    pub(super) fn rows(&self, session: &mut RawSession, manifest: &Manifest) -> Result<Array2<f64>, Error> {
        let progress = progress::bar(self.pictures.len(), "whitening");
        let mut rows = Vec::new();
        for picture in &self.pictures {
            let row = |outputs: &Outputs| {
                let tokens = outputs.get("last_hidden_state")?.index_axis(Axis(0), 0).into_dimensionality().ok()?;
                Some(whitening::row(tokens, manifest.registers as usize))
            };
            rows.extend(picture.run(session, &manifest.transform, row)?.flatten().unwrap_or_default());
            progress.inc(1);
        }
        progress.finish_and_clear();
        let columns = 2 * manifest.dim as usize;
        Ok(Array2::from_shape_vec((rows.len() / columns, columns), rows).expect("each picture gives a whole row"))
    }

    /// Compares two answers of [`Self::embed`].
    pub(super) fn compare(&self, exact: &[Option<Vec<f32>>], narrow: &[Option<Vec<f32>>]) -> Result<Cost, Error> {
        let both = exact.iter().zip(narrow).zip(&self.pictures);
        let both: Vec<_> = both.filter_map(|((exact, narrow), picture)| Some((exact.as_ref()?, narrow.as_ref()?, picture))).collect();
        if both.len() < FEWEST {
            return Err(Error::Pictures { place: self.place.clone(), found: both.len(), needed: FEWEST });
        }
        let classes: Vec<_> = both.iter().map(|(.., picture)| picture.class.as_deref()).collect();
        let matrix = |vectors: Vec<&[f32]>| {
            let dim = vectors[0].len();
            let numbers = vectors.concat().into_iter().map(f64::from).collect();
            Array2::from_shape_vec((both.len(), dim), numbers).expect("a model's embeddings have one length")
        };
        let exact = matrix(both.iter().map(|(exact, ..)| exact.as_slice()).collect());
        let narrow = matrix(both.iter().map(|(_, narrow, _)| narrow.as_slice()).collect());
        Ok(cost::compare(exact, narrow, &classes))
    }
}

/// The bundled pictures for calibration, as inputs `[3, H, W]` of a model.
pub(super) fn for_calibration(transform: &Transform) -> impl ExactSizeIterator<Item = Array3<f32>> {
    bundled().step_by(CALIBRATION).map(|(_, bytes)| {
        let picture = media::decode(bytes, &Limits::default()).expect("the bundled pictures are whole, which a test checks");
        transform.apply(&picture)
    })
}

/// Class and bytes of each bundled picture, in one order everywhere.
fn bundled() -> impl ExactSizeIterator<Item = (Option<String>, &'static [u8])> {
    let mut files: Vec<_> = BUNDLED.dirs().flat_map(Dir::files).collect();
    files.sort_by_key(|file| file.path());
    files.into_iter().map(|file| {
        let class = file.path().parent().and_then(|folder| folder.file_name()).map(|name| name.to_string_lossy().into_owned());
        (class, file.contents())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bundled_pictures_are_whole_and_part_of_them_are_for_calibration() {
        let inputs: Vec<_> = for_calibration(&Transform::evaluation()).collect();
        assert!(inputs.iter().all(|input| input.dim() == (3, 224, 224)));
        let measured = Pictures::bundled().pictures;
        assert_eq!((inputs.len(), measured.len()), (25, 75));
        for picture in measured {
            let bytes = picture.source.read().unwrap();
            media::decode(&bytes, &Limits::default()).unwrap();
            assert!(picture.class.is_some());
        }
    }
}
