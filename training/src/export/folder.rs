//! A model folder that is being written: its ONNX files, tried and measured.
//!
//! Memory decides the order. The weights are dropped before a graph is tried, which maps them into memory from the file that was just
//! written, and read again for 8 bits, which change them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dino_vision::model::manifest::{self, Cost, Data, File, Manifest};
use dino_vision::model::{Precision, RawSession};
use ndarray::Array4;

use super::onnx::{self, Extras, Format, Places, Plan, Target};
use super::pictures::Pictures;
use super::whitening::Whitening;
use super::{Error, Measured, Options, file_name, int8};
use crate::weights::{self, Backbone, Checkpoint, Vit};

/// The graph of a file for a few runs, while it is loaded.
const MAPPED: &str = "mapped.onnx";

/// A model folder that is being written.
pub(super) struct Folder {
    path: PathBuf,
    external: bool,
    pub(super) manifest: Manifest,
    /// For each precision, a graph whose weights lie in its files.
    graphs: BTreeMap<&'static str, Vec<u8>>,
}

impl Folder {
    /// An empty folder.
    pub(super) fn create(path: &Path, manifest: Manifest, external: bool) -> Result<Self, Error> {
        fs_err::create_dir(path)?;
        Ok(Self { path: path.to_owned(), external, manifest, graphs: BTreeMap::new() })
    }

    /// Writes the ONNX file of a precision. Returns where its weights lie.
    fn write(&mut self, backbone: &Backbone, precision: Precision, format: Format<'_>, extras: &Extras) -> Result<Places, Error> {
        let name = file_name(precision);
        let written = onnx::write(backbone, format, extras, Target { folder: &self.path, name, external: self.external })?;
        let data = written.data.map(|sha256| Data { name: onnx::data_name(name), sha256 });
        let file = File { name: name.to_owned(), sha256: written.sha256, data, cost: None };
        self.manifest.files.insert(precision.as_str().to_owned(), file);
        self.graphs.insert(precision.as_str(), onnx::referring(backbone, format, extras, &written.places)?);
        Ok(written.places)
    }

    /// A session of a precision that was written, which ran once.
    fn tried(&self, precision: Precision) -> Result<RawSession, Error> {
        let mut session = self.session(&self.graphs[precision.as_str()])?;
        try_model(&mut session, &self.manifest)?;
        Ok(session)
    }

    /// A session of a graph whose weights lie in the files of this folder.
    fn session(&self, graph: &[u8]) -> Result<RawSession, Error> {
        let path = self.path.join(MAPPED);
        fs_err::write(&path, graph)?;
        let session = RawSession::of_mapped_file(&path);
        fs_err::remove_file(&path)?;
        Ok(session?)
    }

    fn save(&self) -> Result<(), Error> {
        let json = serde_json::to_vec_pretty(&self.manifest).map_err(std::io::Error::from)?;
        Ok(fs_err::write(self.path.join(Manifest::FILE_NAME), json)?)
    }

    fn set_cost(&mut self, precision: Precision, cost: Cost) {
        if let Some(file) = self.manifest.files.get_mut(precision.as_str()) {
            file.cost = Some(cost);
        }
    }
}

/// What narrow precisions are compared with.
struct Reference {
    pictures: Pictures,
    exact: Vec<Option<Vec<f32>>>,
}

impl Reference {
    fn cost(&self, session: &mut RawSession, manifest: &Manifest, precision: Precision) -> Result<Cost, Error> {
        self.pictures.compare(&self.exact, &self.pictures.embed(session, &manifest.transform, precision)?)
    }
}

/// Writes, tries and measures the files of all precisions, then the manifest. Returns what the user should know.
pub(super) fn write(
    path: &Path,
    checkpoint: Checkpoint,
    extras: &Extras,
    options: &Options,
    files: &mut Folder,
    work: &Path,
) -> Result<Vec<String>, Error> {
    let wants = |precision| options.precisions.contains(&precision);
    let [single, half, bytes] = [Precision::F32, Precision::F16, Precision::Int8].map(wants);
    let pictures = match &options.measured {
        _ if !half && !bytes => None,
        Measured::Not => None,
        Measured::Bundled => Some(Pictures::bundled()),
        Measured::Folder(folder) => Some(Pictures::list(folder)?),
    };
    let Checkpoint { backbone, sha256, .. } = checkpoint;
    let mut extras = extras.clone();
    if let Some(folder) = &options.whiten {
        let whitening = whitening(&backbone, folder, &extras, files, work)?;
        files.manifest.whitening = Some(manifest::Whitening { pictures: whitening.pictures, sha256: whitening.sha256() });
        extras.whitening = Some(whitening);
    }
    let extras = &extras;

    // 8 bits are calibrated in float32, and what narrow precisions cost is the distance from it, even where it is not wanted.
    let mut beside = None;
    let places = if single {
        files.write(&backbone, Precision::F32, Format::F32, extras)?
    } else if bytes || pictures.is_some() {
        let reference = beside.insert(Folder::create(&work.join("reference"), files.manifest.clone(), files.external)?);
        reference.write(
            &backbone,
            Precision::F32,
            Format::F32,
            &Extras { size: extras.size, whitening: extras.whitening.clone(), ..Extras::default() },
        )?
    } else {
        Places::new()
    };
    if half {
        files.write(&backbone, Precision::F16, Format::F16, extras)?;
    }
    let taps = match &backbone {
        _ if !bytes => None,
        Backbone::Vit(vit) => Some(onnx::taps(vit, int8::step(&files.manifest), &places)?),
        Backbone::Resnet(_) | Backbone::Convnext(_) => return Err(onnx::Error::Int8Convolutional.into()),
    };
    drop(backbone);

    let mut reference = None;
    if single || pictures.is_some() {
        let mut session = beside.as_ref().unwrap_or(files).tried(Precision::F32)?;
        if let Some(pictures) = pictures {
            let exact = pictures.embed(&mut session, &files.manifest.transform, Precision::F32)?;
            reference = Some(Reference { pictures, exact });
        }
    }
    if half {
        let mut session = files.tried(Precision::F16)?;
        if let Some(reference) = &reference {
            let cost = reference.cost(&mut session, &files.manifest, Precision::F16)?;
            files.set_cost(Precision::F16, cost);
        }
    }
    let mut notes = Vec::new();
    if let Some(taps) = taps {
        let rows = int8::rows(beside.as_ref().unwrap_or(files).session(&taps)?, &files.manifest)?;
        let again = weights::load(path, &options.checkpoint)?;
        let (Backbone::Vit(mut vit), true) = (again.backbone, again.sha256 == sha256) else { return Err(Error::Changed(path.to_owned())) };
        let plan = onnx::fit(&mut vit, &rows);
        drop(rows);
        notes = write_int8(files, vit, plan, extras, reference.as_ref())?;
    }
    files.save()?;
    Ok(notes)
}

/// The whitening of the embeddings that the backbone as it is gives of a folder's pictures.
fn whitening(backbone: &Backbone, pictures: &Path, extras: &Extras, files: &Folder, work: &Path) -> Result<Whitening, Error> {
    let mut plain = Folder::create(&work.join("plain"), files.manifest.clone(), files.external)?;
    plain.write(backbone, Precision::F32, Format::F32, &Extras { size: extras.size, ..Extras::default() })?;
    let mut session = plain.tried(Precision::F32)?;
    let rows = Pictures::for_whitening(pictures)?.rows(&mut session, &files.manifest)?;
    drop(session);
    fs_err::remove_dir_all(&plain.path)?;
    Whitening::fit(rows, &pictures.display().to_string())
}

/// Writes a fitted transformer in 8 bits. Where they lose too much, the layers that lose most go back to float32.
fn write_int8(files: &mut Folder, vit: Vit, mut plan: Plan, extras: &Extras, reference: Option<&Reference>) -> Result<Vec<String>, Error> {
    let backbone = Backbone::Vit(vit);
    let mut notes = Vec::new();
    loop {
        files.write(&backbone, Precision::Int8, Format::Int8(&plan), extras)?;
        let mut session = files.tried(Precision::Int8)?;
        let Some(reference) = reference else { return Ok(notes) };
        let cost = reference.cost(&mut session, &files.manifest, Precision::Int8)?;
        files.set_cost(Precision::Int8, cost);
        let enough = int8::is_enough(&cost);
        if !enough && int8::widen(&mut plan) {
            continue;
        }
        if plan.floats() > 0 {
            notes.push(format!("int8: {} matrix products stay in float32, because 8 bits lose too much in them", plan.floats()));
        }
        if !enough {
            notes.push("int8 costs this model much of what it tells apart, see the figures: f16 or f32 is the better choice".to_owned());
        }
        return Ok(notes);
    }
}

/// Runs the model once on a picture of noise and refuses it if any answer is no number.
fn try_model(session: &mut RawSession, manifest: &Manifest) -> Result<(), Error> {
    let side = manifest.patch_size as usize;
    // A pattern whose period the patches do not share, on a grid that is not square.
    let (height, width) = manifest.static_size.map_or((2 * side, 3 * side), |(height, width)| (height as usize, width as usize));
    let pixels = Array4::from_shape_fn((1, 3, height, width), |(_, channel, row, column)| {
        ((channel * 7919 + row * 104_729 + column * 1_299_709) % 1009) as f32 / 252.0 - 2.0
    });
    let outputs = session.run(pixels.view())?;
    match outputs.into_iter().find(|(_, numbers)| numbers.iter().any(|number| !number.is_finite())) {
        Some((name, _)) => Err(Error::NotFinite(name)),
        None => Ok(()),
    }
}
