//! What a run shows of itself at the end of an epoch: figures, pictures, event files and the report. None of it changes what is learnt.
//!
//! ```
//! use candle_core::Device;
//! use dino_train::backbone::{Backbone, vit::VitConfig};
//! use dino_train::{data::loader::generator, exchange::Alone, run::observer::{Observer, Options}};
//! use dino_vision::transform::Transform;
//!
//! let photos = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/caltech101-val");
//! let run = tempfile::tempdir()?;
//! let options = Options { knn_every: 1, ..Options::default() };
//! let transform = Transform { crop: Some((32, 32)), ..Transform::evaluation() };
//! let observer = Observer::open(options, true, run.path(), photos.as_ref(), 10, &transform)?;
//!
//! let config = VitConfig { img_size: 32, patch_size: 16, dim: 16, depth: 1, heads: 2, ..VitConfig::default() };
//! let backbone = Backbone::new(config.into(), &mut generator(0, 0, 0, 0), &Device::Cpu)?;
//! let measured = observer.look(&backbone, &Device::Cpu, &Alone, 1)?.unwrap();
//! assert!((0.0..=100.0).contains(&measured.figure()));
//! # Ok::<(), anyhow::Error>(())
//! ```

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use candle_core::Device;
use dino_vision::transform::Transform;
use dino_vision::tsne;

use crate::backbone::Backbone;
use crate::data::labelled::Labelled;
use crate::evaluate::agreement::Crops;
use crate::evaluate::online::{Embedded, Online};
use crate::evaluate::watch::Watch;
use crate::exchange::Exchange;
use crate::files::write_atomically;
use crate::log::{Line, Measured};
use crate::run::report::{self, Run};
use crate::show::events::Events;
use crate::show::scatter::Scatter;

/// What is shown, and how often.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Epochs between k-NN figures, 0 for none.
    pub knn_every: usize,
    /// Measure in each epoch what the features can do, by k-NN where there are classes: for a run that is compared with its first weights.
    pub compares: bool,
    /// Gallery and queries; without them every fifth picture of the training folder is classified by the others.
    pub knn_folders: Option<(PathBuf, PathBuf)>,
    /// Epochs between pictures of the attention and of the features, 0 for none.
    pub pictures_every: usize,
    /// Picture or folder whose attention is drawn; without it, some of the training folder.
    pub watch: Option<PathBuf>,
}

/// Most pictures of the k-NN figures that nothing but a comparison asks for.
const COMPARED: usize = 5000;

/// Points of the map of features, and its steps.
const POINTS: usize = 3000;
const STEPS: usize = 500;

/// Looks at a run after each epoch.
#[derive(Debug)]
pub struct Observer {
    options: Options,
    run: PathBuf,
    epochs: usize,
    online: Option<Online>,
    /// In place of k-NN where there are no classes.
    crops: Option<Crops>,
    watch: Option<Watch>,
    events: Option<Events>,
}

impl Observer {
    /// Opens all folders, so that what is missing comes out before the first step. A process that does not lead helps with k-NN figures, and
    /// shows nothing.
    ///
    /// # Errors
    /// When a folder is missing, or has no pictures.
    pub fn open(options: Options, leads: bool, run: &Path, data: &Path, epochs: usize, transform: &Transform) -> Result<Self> {
        let (mut online, mut crops) = (None, None);
        if options.knn_every > 0 || options.knn_folders.is_some() && options.compares {
            online = Some(Online::open(options.knn_folders.clone(), data, transform.clone())?);
        } else if options.compares {
            const UNKNOWN: &str = "";
            let all = Arc::new(Labelled::open_any(data, 0, UNKNOWN)?);
            let classes = all.classes();
            if classes.len() > 1 && classes.last().is_some_and(|last| last != UNKNOWN) {
                online = Some(Online::split(&all, COMPARED, transform.clone())?);
            } else if leads {
                crops = Some(Crops::new(&all, transform.clone())?);
            }
        }
        let watch = match options.pictures_every {
            every if every == 0 || !leads => None,
            _ => Some(Watch::open(options.watch.as_deref().unwrap_or(data), transform.clone())?),
        };
        Ok(Self { options, run: run.to_owned(), epochs, online, crops, watch, events: None })
    }

    /// Whether the run is compared with its first weights.
    pub fn compares(&self) -> bool {
        self.options.compares
    }

    /// Of the pictures of k-NN figures; all processes have to see the same ones.
    pub fn fingerprint(&self) -> Option<String> {
        self.online.as_ref().map(Online::fingerprint)
    }

    /// What the features of a backbone can do, where the run measures it; in rank 0 alone. All processes make this call.
    ///
    /// # Errors
    /// When no picture can be read, the device fails, or another process is lost.
    pub fn measure(&self, backbone: &Backbone, device: &Device, exchange: &dyn Exchange) -> Result<Option<Measured>> {
        if let Some(online) = &self.online {
            return Ok(online.measure(backbone, device, exchange)?.map(|(knn, _)| Measured::Knn(knn)));
        }
        self.crops.as_ref().map(|crops| Ok(Measured::Agreement(crops.measure(backbone, device)?))).transpose()
    }

    /// Whether it is time for something every so many epochs, counted from 1.
    fn is_due(&self, every: usize, epoch: usize) -> bool {
        every > 0 && (epoch.is_multiple_of(every) || epoch == self.epochs)
    }

    /// Epochs between figures.
    fn figures_every(&self) -> usize {
        if self.options.knn_every == 0 && self.options.compares { 1 } else { self.options.knn_every }
    }

    /// Whether [`look`](Self::look) has something to do after an epoch, which may take long.
    pub fn looks(&self, epoch: usize) -> bool {
        self.is_due(self.options.pictures_every, epoch) || self.is_due(self.figures_every(), epoch)
    }

    /// Figures and pictures of the backbone after epoch `epoch`, counted from 1, where it is time for them; in rank 0 alone. All processes
    /// make this call.
    ///
    /// # Errors
    /// When no picture can be read, the device fails, a picture cannot be written, or another process is lost.
    pub fn look(&self, backbone: &Backbone, device: &Device, exchange: &dyn Exchange, epoch: usize) -> Result<Option<Measured>> {
        let folder = self.run.join(report::PICTURES);
        let pictures = self.is_due(self.options.pictures_every, epoch);
        // Residual networks have no attention to draw.
        if pictures && let (Some(watch), Some(vit)) = (&self.watch, backbone.vit()) {
            watch.draw(vit, device, epoch, &folder)?;
        }
        let figures = self.is_due(self.figures_every(), epoch);
        if let Some(crops) = self.crops.as_ref().filter(|_| figures) {
            return Ok(Some(Measured::Agreement(crops.measure(backbone, device)?)));
        }
        let Some(online) = self.online.as_ref().filter(|_| figures || pictures) else { return Ok(None) };
        let Some((knn, queries)) = online.measure(backbone, device, exchange)? else { return Ok(None) };
        if pictures {
            draw_map(queries, online.classes(), &folder)?;
        }
        Ok(Some(Measured::Knn(knn)))
    }

    /// Passes a line of the log on, and writes the report anew. A run does not end for what it shows of itself.
    pub fn show(&mut self, line: &Line) {
        let step = line.step;
        let shown = self.tell(line).and_then(|()| Run::open(&self.run)?.write());
        if let Err(error) = shown {
            tracing::warn!("after step {step}: {error:#}");
        }
    }

    fn tell(&mut self, line: &Line) -> Result<()> {
        let events = match self.events.take() {
            Some(events) => events,
            None => Events::create(&self.run, line.step)?,
        };
        self.events.insert(events).append(line).context("the event file cannot be written")
    }
}

/// A map of the features; of many pictures some.
fn draw_map(queries: Embedded, names: &[String], folder: &Path) -> Result<()> {
    let every = queries.classes.len().div_ceil(POINTS);
    let rows: Vec<usize> = (0..queries.classes.len()).step_by(every.max(1)).collect();
    let features = queries.features.select(ndarray::Axis(0), &rows);
    let places = match tsne::map(features, &tsne::Options { steps: STEPS, ..tsne::Options::default() }) {
        Ok(places) => places,
        Err(error) => {
            tracing::warn!("no map of the features is drawn: {error}");
            return Ok(());
        }
    };
    let classes: Vec<u32> = rows.iter().map(|&row| queries.classes[row]).collect();
    let titles: Vec<String> = rows.iter().map(|&row| queries.names[row].clone()).collect();
    let svg = Scatter { places: places.view(), classes: &classes, names, titles: &titles }.svg();
    fs_err::create_dir_all(folder)?;
    write_atomically(&folder.join(report::MAP), svg.as_bytes())
}
