//! A picture of a run's curves, drawn from its log.
//!
//! ```
//! use dino_train::{log::Log, show::plot::curves};
//!
//! let lines = Log::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo").as_ref()).lines()?;
//! let folder = tempfile::tempdir()?;
//! let picture = folder.path().join("curves.svg");
//! curves(&lines, &picture)?;
//! assert!(std::fs::read_to_string(picture)?.contains("<svg"));
//! # Ok::<(), anyhow::Error>(())
//! ```

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::files::write_atomically;
use crate::log::Line;

/// Draws loss, teacher entropy and ln K, or the parts of `LeJEPA`'s loss, over the epochs: an entropy that falls to 0 or rises to ln K is a
/// collapse. Below, where it was
/// measured, what the teacher could do, beside what the first weights could.
///
/// # Errors
/// When the picture cannot be written.
pub fn curves(points: &[Line], picture: &Path) -> Result<()> {
    let Some(last) = points.last() else { return Ok(()) };
    let values = points.iter().flat_map(|point| SERIES.iter().filter_map(|(_, _, value)| value(point)));
    let top = values.fold(0.0, f64::max) * 1.05;
    let mut svg = String::new();
    let epochs = (last.epoch as f64).max(2.0);
    draw(&mut svg, points, epochs, top).map_err(|e| anyhow!("{}: {e}", picture.display()))?;
    write_atomically(picture, svg.as_bytes())
}

/// Name, colour and value of a curve.
type Series = (&'static str, RGBColor, fn(&Line) -> Option<f64>);

/// Colours that differ in brightness too. A run has some of them.
const SERIES: [Series; 5] = [
    ("loss", RGBColor(0, 90, 181), |p| Some(p.loss)),
    ("teacher entropy", RGBColor(220, 90, 30), |p| p.teacher.map(|teacher| teacher.teacher_entropy)),
    ("ln K", RGBColor(150, 150, 150), |p| p.teacher.map(|teacher| teacher.ln_k)),
    ("prediction", RGBColor(220, 90, 30), |p| p.prediction),
    ("SIGReg", RGBColor(150, 150, 150), |p| p.sigreg),
];

fn draw(svg: &mut String, points: &[Line], epochs: f64, top: f64) -> Result<(), Box<dyn std::error::Error>> {
    const HEIGHT: u32 = 360;
    let measured = points.iter().any(|line| line.measured().is_some());
    let whole = SVGBackend::with_string(svg, (720, if measured { 2 * HEIGHT } else { HEIGHT })).into_drawing_area();
    whole.fill(&WHITE)?;
    let (area, below) = whole.split_vertically(HEIGHT);
    if measured {
        draw_measured(&below, points, epochs)?;
    }
    let mut chart =
        ChartBuilder::on(&area).margin(12).x_label_area_size(36).y_label_area_size(44).build_cartesian_2d(1.0..epochs, 0.0..top)?;
    let unit = if points.iter().any(|point| point.teacher.is_some()) { "nats" } else { "loss" };
    chart.configure_mesh().x_desc("epoch").y_desc(unit).light_line_style(BLACK.mix(0.04)).bold_line_style(BLACK.mix(0.1)).draw()?;
    for (name, colour, value) in SERIES {
        let curve: Vec<(f64, f64)> = points.iter().filter_map(|point| Some((point.epoch as f64, value(point)?))).collect();
        if curve.is_empty() {
            continue;
        }
        chart
            .draw_series(LineSeries::new(curve, colour.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    }
    chart.configure_series_labels().position(SeriesLabelPosition::LowerLeft).background_style(WHITE).border_style(BLACK.mix(0.2)).draw()?;
    whole.present()?;
    Ok(())
}

/// What the teacher could do after each epoch, in percent, and the line of the first weights.
fn draw_measured<D: DrawingBackend>(
    area: &DrawingArea<D, plotters::coord::Shift>,
    points: &[Line],
    epochs: f64,
) -> Result<(), Box<dyn std::error::Error>>
where
    D::ErrorType: 'static,
{
    let teacher: Vec<(f64, f64)> = points.iter().filter_map(|line| Some((line.epoch as f64, line.measured()?.figure()))).collect();
    let baseline = points.iter().rev().find_map(|line| line.baseline);
    let name = points.iter().find_map(Line::measured).map_or("", |measured| measured.name());
    let all = || teacher.iter().map(|point| point.1).chain(baseline.map(|baseline| baseline.figure()));
    let (low, high) = all().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    let margin = ((high - low) * 0.1).max(1.0);
    let mut chart = ChartBuilder::on(area)
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(44)
        .build_cartesian_2d(1.0..epochs, low - margin..high + margin)?;
    chart.configure_mesh().x_desc("epoch").y_desc("percent").light_line_style(BLACK.mix(0.04)).bold_line_style(BLACK.mix(0.1)).draw()?;
    let colour = RGBColor(0, 90, 181);
    chart
        .draw_series(LineSeries::new(teacher, colour.stroke_width(2)))?
        .label(name)
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
    if let Some(baseline) = baseline {
        let grey = RGBColor(110, 110, 110);
        chart
            .draw_series(LineSeries::new([(1.0, baseline.figure()), (epochs, baseline.figure())], grey.stroke_width(2)))?
            .label("before the run")
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], grey.stroke_width(2)));
    }
    chart.configure_series_labels().position(SeriesLabelPosition::LowerLeft).background_style(WHITE).border_style(BLACK.mix(0.2)).draw()?;
    Ok(())
}
