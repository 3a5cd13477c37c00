//! Flags of the commands that read many pictures.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use dino_server::files::shard::Shard;
use dino_server::files::source::address::{Address, without_secrets};
use dino_server::files::source::{self, Columns, Options, Place, Source};
use dino_vision::bulk;
use dino_vision::bulk::names::Finder;

/// Pictures that are read at once where they come through a network.
pub(crate) const READERS: usize = 16;

#[derive(clap::Args)]
pub(crate) struct ImagesArgs {
    /// Where the pictures are: a folder, with tar, Parquet and Arrow files in it or not; tar files or a pattern of them
    /// (`shards/{0000..0012}.tar`); .parquet or .arrow files; a manifest with id, path or url, and label (.jsonl, .csv, .tsv); a
    /// list (.txt), or - for one on stdin: a path, file:// or http(s):// URL a line, with an id and a tab before it if wanted. Such files
    /// may be behind http(s):// URLs too. In folders every file is tried, whatever its name.
    #[arg(long, value_name = "WHERE", required_unless_present = "arrow")]
    pub(crate) images: Option<PathBuf>,
    /// Column of Parquet and Arrow files, or of --arrow, that holds the pictures: of bytes, or Hugging Face's struct of bytes and path
    /// [default: image, else the only such column].
    #[arg(long, value_name = "NAME")]
    pub(crate) image_column: Option<String>,
    /// Column of Parquet and Arrow files with the pictures' ids [default: id, else the file and the number of the row].
    #[arg(long, value_name = "NAME")]
    id_column: Option<String>,
    /// Column of Parquet and Arrow files with the labels [default: label or labels].
    #[arg(long, value_name = "NAME")]
    label_column: Option<String>,
    /// Take only part I (from 0) of N. N jobs with a file each share the pictures, and need not know of each other. Pictures in
    /// files of their own are divided by their ids; tar, Parquet and Arrow files as a whole where there are N or more of them.
    /// `auto` asks the variables of Slurm, Kubernetes (with `DINO_SHARD_COUNT`) or AWS Batch.
    #[arg(long, default_value_t = Shard::WHOLE, value_name = "I/N|auto", value_parser = Shard::of_flag)]
    pub(crate) shard: Shard,
    /// Leave out pictures whose host does not answer, as those that are broken. Without it such a run ends with exit code 1, and starting it again
    /// asks for them again.
    #[arg(long)]
    pub(crate) skip_unreachable: bool,
}

impl ImagesArgs {
    pub(crate) fn open(&self) -> anyhow::Result<Source> {
        let images = self.images.as_deref().context("give --images WHERE")?;
        let columns = Columns { image: self.image_column.clone(), id: self.id_column.clone(), label: self.label_column.clone() };
        open(images, &Options { shard: self.shard, columns, composed: None, counts_repeated: true })
    }

    pub(crate) fn shown(&self) -> String {
        self.images.as_deref().map(shown).unwrap_or_default()
    }
}

/// Opens what `--images` names, which has to hold something.
pub(crate) fn open(images: &Path, options: &Options) -> anyhow::Result<Source> {
    let source = source::open(images, options)?;
    if source.is_empty {
        for failure in &source.failures {
            super::skipped(&failure.path, &failure.reason);
        }
        anyhow::bail!("no file in {}{}", shown(images), if source.failures.is_empty() { "" } else { " that is read here" });
    }
    Ok(source)
}

/// The bytes of a picture; where there is no such file, of the one whose name differs in its Unicode form alone.
///
/// # Errors
/// Those of [`Place::read`].
pub(crate) fn read(place: &Place, finder: &Finder) -> Result<Vec<u8>, bulk::Error> {
    place.read().or_else(|error| match (&error, place) {
        (bulk::Error::Read(ErrorKind::NotFound), Place::At(Address::File(path))) => {
            finder.find(path).map_or(Err(error), |path| bulk::read(&path))
        }
        _ => Err(error),
    })
}

/// Says which files were found by names of another form.
#[expect(clippy::print_stderr, reason = "for the user of the command")]
pub(crate) fn other_forms(finder: &Finder) {
    if let (count, Some(first)) = finder.found() {
        eprintln!("found {count} files under another Unicode form of their name, the first: {}", first.display());
    }
}

pub(crate) fn shown(images: &Path) -> String {
    if images == Path::new("-") { "the list on stdin".to_owned() } else { without_secrets(&images.display().to_string()).into_owned() }
}
