//! `dino-train retrieval-eval`: landmarks found again, as the DINO paper measures it on revisited Oxford and Paris.

use std::path::PathBuf;

use anyhow::{Context as _, ensure};
use dino_vision::bulk::Worker;
use dino_vision::embedding::{Pooling, pool};
use dino_vision::transform::{Transform, fit_within};
use dino_vision::unit_rows;
use image::RgbImage;
use ndarray::{Array1, Array3, Axis, stack};
use serde::Serialize;

use super::backbone::BackboneArgs;
use crate::evaluate::descriptors::{Unreadable, rows};
use crate::evaluate::input::{bilinear, whole_patches};
use crate::evaluate::ranking::order;
use crate::evaluate::revisited::{Figures, Protocol, Truth};

/// Find pictures of the landmark that a query shows (revisited Oxford and Paris), by CLS of whole pictures. The figures are the mean average
/// precision and the mean precision of the first 1, 5 and 10 pictures, in percent.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    backbone: BackboneArgs,
    /// Folder of the data sets: DIR/NAME/jpg with the pictures, and `DIR/NAME/gnd_NAME.pkl` as it is published, or the same as JSON.
    #[arg(long, visible_alias = "data-path", value_name = "DIR")]
    data: PathBuf,
    /// Which data set: roxford5k, rparis6k, or another of the same form.
    #[arg(long, value_name = "NAME", default_value = "roxford5k")]
    dataset: String,
    /// Add the features of each picture at three sizes: as it is, and by 0.7 and 0.5.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_value = "false", default_missing_value = "true", value_parser = clap::builder::BoolishValueParser::new(), action = clap::ArgAction::Set)]
    multiscale: bool,
    /// Longest side in pixels; smaller pictures stay as they are. The paper takes 224 for Oxford, and 512 with --multiscale for Paris.
    #[arg(long, visible_alias = "imsize", value_name = "PIXELS", default_value_t = 224, value_parser = clap::value_parser!(u32).range(16..=4096))]
    image_size: u32,
}

/// The last line of the output; what no query asks for is null.
#[derive(Debug, Serialize)]
struct Report {
    easy: Option<Figures>,
    medium: Option<Figures>,
    hard: Option<Figures>,
    queries: usize,
    pictures: usize,
}

/// Runs the verb.
///
/// # Errors
/// Where a picture is missing or cannot be read, or the model does not run.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let folder = args.data.join(&args.dataset);
    let named = |end: &str| folder.join(format!("gnd_{}.{end}", args.dataset));
    let truth = [named("pkl"), named("json")].into_iter().find(|file| file.is_file());
    let truth = truth.with_context(|| format!("neither {} nor the same as .json is there", named("pkl").display()))?;
    let truth = Truth::read(&truth)?;
    let files = |names: &[String]| names.iter().map(|name| folder.join("jpg").join(format!("{name}.jpg"))).collect::<Vec<PathBuf>>();
    let (pictures, queries) = (files(&truth.imlist), files(&truth.qimlist));
    let missing = pictures.iter().chain(&queries).find(|file| !file.is_file());
    ensure!(missing.is_none(), "{} is missing", missing.map(|file| file.display().to_string()).unwrap_or_default());

    let backbone = args.backbone.open(0)?;
    ensure!(
        backbone.model.only_size().is_none(),
        "{} takes pictures of one size alone, and here each keeps its shape: export it without --static",
        args.backbone.model
    );
    let mut embedder = backbone.embedder(Pooling::Cls)?;
    let look = Look {
        transform: backbone.model.manifest().transform.clone(),
        patch: backbone.model.manifest().patch_size,
        side: args.image_size,
        multiscale: args.multiscale,
    };
    let mut features = |what: &str, files: &[PathBuf]| {
        let rows = rows(what, &mut embedder, files, Unreadable::Fails, |worker, picture| look.describe(worker, picture))?;
        Ok::<_, anyhow::Error>(unit_rows::scaled(rows.view()))
    };
    let (pictures, queries) = (features("pictures", &pictures)?, features("queries", &queries)?);
    let orders: Vec<Vec<usize>> = queries.dot(&pictures.t()).axis_iter(Axis(0)).map(|row| order(row, row.len())).collect();
    let figures = |protocol| truth.evaluate(&orders, protocol);
    let [easy, medium, hard] = [Protocol::Easy, Protocol::Medium, Protocol::Hard].map(figures);
    print(&Report { easy, medium, hard, queries: queries.nrows(), pictures: pictures.nrows() })
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
fn print(report: &Report) -> anyhow::Result<()> {
    println!("{} queries, {} pictures    mAP     mP@1    mP@5   mP@10", report.queries, report.pictures);
    for (name, figures) in [("easy", report.easy), ("medium", report.medium), ("hard", report.hard)] {
        let Some(Figures { map, mp1, mp5, mp10 }) = figures else { continue };
        println!("{name:<24} {map:8.2} {mp1:8.2} {mp5:7.2} {mp10:7.2}");
    }
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}

/// How a picture becomes a vector.
struct Look {
    transform: Transform,
    patch: u32,
    side: u32,
    multiscale: bool,
}

impl Look {
    fn describe(&self, worker: &mut Worker<'_>, picture: &RgbImage) -> anyhow::Result<Vec<f32>> {
        let planes = self.transform.normalise(&fit_within(picture, self.side));
        let scales: &[f64] = if self.multiscale { &[1.0, std::f64::consts::FRAC_1_SQRT_2, 0.5] } else { &[1.0] };
        let mut sum = Array1::<f32>::zeros(0);
        for scale in scales {
            let (input, _) = whole_patches(&scaled(&planes, *scale), self.patch)?;
            let outputs = worker.run(input)?;
            let cls: Array1<f32> = pool(&outputs, worker.registers(), Pooling::Cls)?.into_iter().collect();
            sum = if sum.is_empty() { cls } else { sum + cls };
        }
        // Its length is of no matter: rows are brought to length 1.
        Ok(sum.to_vec())
    }
}

/// The planes at another size, without antialiasing.
fn scaled(planes: &Array3<f32>, scale: f64) -> Array3<f32> {
    if scale >= 1.0 {
        return planes.clone();
    }
    let (_, height, width) = planes.dim();
    let length = |side: usize| (side as f64 * scale) as usize;
    let scaled: Vec<_> = planes.outer_iter().map(|plane| bilinear(plane, (length(height), length(width)), 1.0 / scale)).collect();
    let views: Vec<_> = scaled.iter().map(|plane| plane.view()).collect();
    stack(Axis(0), &views).expect("planes of one size")
}
