//! The ids of a table of vectors, which is too large to be held as a whole: they are looked through before anything else is read.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher as _, RandomState};
use std::path::Path;

use fs_err::File;
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use super::{Error, json};
use dino_vision::unicode::nfc;

/// Rows that are read at once.
const ROWS: usize = 8192;

/// The columns that the ids of a Parquet file are made of, by their places among all columns.
pub(super) struct Ids<'a> {
    pub(super) file: &'a Path,
    pub(super) path: usize,
    pub(super) id: Option<usize>,
}

impl Ids<'_> {
    /// The composed form of ids that look the same and are not: of such rows each keeps its own.
    ///
    /// # Errors
    /// [`Error::Repeated`] where two rows have one id, and [`Error::Format`].
    pub(super) fn alike(&self) -> Result<HashSet<String>, Error> {
        // Eight bytes a row tell nearly all of them apart; the others are looked at once more.
        let hasher = RandomState::new();
        let hash = |id: &str| hasher.hash_one(&*nfc(id));
        let mut hashes = Vec::new();
        self.each(|_, id| {
            hashes.push(hash(id));
            Ok(())
        })?;
        hashes.sort_unstable();
        let repeated: HashSet<u64> = hashes.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| pair[0]).collect();
        drop(hashes);
        if repeated.is_empty() {
            return Ok(HashSet::new());
        }
        let (mut rows, mut forms) = (HashMap::<String, usize>::new(), HashMap::<String, usize>::new());
        self.each(|row, id| {
            if !repeated.contains(&hash(id)) {
                return Ok(());
            }
            if let Some(first) = rows.insert(id.to_owned(), row) {
                return Err(Error::Repeated { path: self.file.to_owned(), id: id.to_owned(), first, second: row });
            }
            *forms.entry(nfc(id).into_owned()).or_default() += 1;
            Ok(())
        })?;
        Ok(forms.into_iter().filter(|(_, count)| *count > 1).map(|(form, _)| form).collect())
    }

    /// Hands out the number of each row, from 1, and its id as it stands there. Rows without a path have none.
    fn each(&self, mut take: impl FnMut(usize, &str) -> Result<(), Error>) -> Result<(), Error> {
        let malformed = |reason: String| Error::Format { path: self.file.to_owned(), reason };
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(self.file)?.into_parts().0);
        let builder = builder.map_err(|error| malformed(error.to_string()))?;
        let mut read: Vec<usize> = [Some(self.path), self.id].into_iter().flatten().collect();
        read.sort_unstable();
        read.dedup();
        let mask = ProjectionMask::roots(builder.parquet_schema(), read.iter().copied());
        let batches = builder.with_batch_size(ROWS).with_projection(mask).build().map_err(|error| malformed(error.to_string()))?;
        let mut row = 0;
        for batch in batches {
            let batch = batch.map_err(|error| malformed(error.to_string()))?;
            let texts = |column: usize| {
                let place = read.iter().position(|&other| other == column).unwrap_or_default();
                json::texts(batch.column(place)).map_err(|error| malformed(error.to_string()))
            };
            let (paths, ids) = (texts(self.path)?, self.id.map(texts).transpose()?);
            for (at, path) in paths.iter().enumerate() {
                row += 1;
                let Some(path) = path.as_deref().filter(|path| !path.is_empty()) else { continue };
                let own = ids.as_ref().and_then(|ids| ids[at].as_deref()).filter(|id| !id.is_empty());
                take(row, own.unwrap_or(path))?;
            }
        }
        Ok(())
    }
}
