//! One HTML file that shows what a dense head has learnt: pictures, their masks, and its answers.

use std::fmt::Write as _;
use std::io::Cursor;
use std::path::Path;

use anyhow::Result;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dino_vision::transform::PatchGrid;
use image::imageops::{self, FilterType};
use image::{ImageFormat, Rgb, RgbImage};
use ndarray::{Array1, Array2};
use serde_json::Value;

use super::pairs::Pair;
use super::{Eye, Figures, Kind, Look, whole};
use crate::evaluate::video::labels::nearest;
use crate::files::write_atomically;
use crate::show::draw::{blend, hex};
use crate::show::scatter::escape;

/// Name of the file beside the head's.
pub(super) const FILE: &str = "report.html";
/// Pictures that are shown, spread over all.
const SHOWN: usize = 12;
/// Longer side of a picture in pixels.
const SIDE: u32 = 320;
/// Share of a colour over the picture.
const SHARE: f32 = 0.65;

const STYLE: &str = "body{margin:0;font:15px/1.5 system-ui,sans-serif;background:#fff;color:#1d1d1f}main{max-width:66rem;margin:0 auto;\
padding:1.5rem}h1{font-size:1.6rem}table{border-collapse:collapse}th,td{text-align:left;padding:.2rem 1rem .2rem 0;vertical-align:top}\
td.figure{font-variant-numeric:tabular-nums}th{font-weight:400;color:#6b6b70}img{display:block;max-width:100%}\
i{display:inline-block;width:.8em;height:.8em;margin-right:.4em}\
@media(prefers-color-scheme:dark){body{background:#17181a;color:#e9e9ec}th{color:#a2a2a9}}";

/// What is shown.
pub(super) struct Report<'a, K> {
    pub(super) kind: &'a K,
    pub(super) head: &'a (Array2<f32>, Array1<f32>),
    pub(super) figures: &'a Figures,
    pub(super) summary: &'a Value,
}

impl<K: Kind> Report<'_, K> {
    /// Writes it, with some of the pictures of val.
    pub(super) fn write(&self, eye: &mut Eye, val: &[Pair], path: &Path) -> Result<()> {
        let step = val.len().div_ceil(SHOWN).max(1);
        let chosen: Vec<Pair> =
            val.iter().step_by(step).map(|pair| Pair { picture: pair.picture.clone(), mask: pair.mask.clone() }).collect();
        let draw = |look: &mut Look<'_, '_>, pair: &Pair, picture: &RgbImage| self.panels(look, pair, picture);
        let mut rows = String::new();
        eye.each("report", &chosen, draw, |at, panels| {
            let name = chosen[at].picture.file_name().unwrap_or_default().to_string_lossy();
            rows.push_str("<tr>");
            for panel in panels {
                let mut file = Cursor::new(Vec::new());
                panel.write_to(&mut file, ImageFormat::Png)?;
                let _ = write!(rows, "<td><img alt=\"\" src=\"data:image/png;base64,{}\"></td>", STANDARD.encode(file.into_inner()));
            }
            let _ = writeln!(rows, "</tr><tr><th colspan=\"3\">{}</th></tr>", escape(&name));
            Ok(())
        })?;
        write_atomically(path, self.html(&rows).as_bytes())
    }

    fn html(&self, rows: &str) -> String {
        let title = format!("Linear head: {}", K::TASK.name());
        let mut html = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
             <meta name=\"color-scheme\" content=\"light dark\"><title>{title}</title><style>{STYLE}</style></head><body><main><h1>{title}</h1>\n<table>"
        );
        for (name, value) in &self.figures.columns {
            let _ = write!(html, "<tr><th>{name}</th><td class=\"figure\">{value:.3}</td></tr>");
        }
        for name in ["lr", "epochs", "image_size", "pictures"] {
            let _ = write!(html, "<tr><th>{name}</th><td class=\"figure\">{}</td></tr>", self.summary[name]);
        }
        html.push_str("</table>\n<h2>Colours</h2>\n<table>");
        for (name, colour) in self.kind.legend() {
            let iou = self.figures.more.get("iou").and_then(|iou| iou[name.as_str()].as_f64());
            let iou = iou.map_or_else(String::new, |iou| format!("IoU {iou:.1} %"));
            let _ = write!(
                html,
                "<tr><td><i style=\"background:{}\"></i>{}</td><td class=\"figure\">{iou}</td></tr>",
                hex(colour),
                escape(&name)
            );
        }
        let _ = write!(
            html,
            "</table>\n<h2>Pictures of val</h2>\n<table><tr><th>picture</th><th>mask</th><th>the head's answer</th></tr>\n{rows}</table></main></body></html>\n"
        );
        html
    }

    /// The picture, its mask and the answer over it.
    fn panels(&self, look: &mut Look<'_, '_>, pair: &Pair, picture: &RgbImage) -> Result<[RgbImage; 3]> {
        let truth = self.kind.read(&pair.mask, picture.dimensions())?;
        let (input, grid) = look.input(picture);
        let (features, patches) = look.features(input, grid)?;
        let logits = features.dot(&self.head.0.t()) + &self.head.1;
        let scale = (f64::from(SIDE) / f64::from(picture.width().max(picture.height()))).min(1.0);
        let side = |side: u32| ((f64::from(side) * scale).round() as u32).max(1);
        let small = imageops::resize(picture, side(picture.width()), side(picture.height()), FilterType::Triangle);
        let answer = self.kind.answer(logits.view(), patches, whole(&small));
        let drawn = |labels: &[K::Label], grid: PatchGrid| {
            let (rows, columns) = (nearest(grid.rows, small.height() as usize), nearest(grid.columns, small.width() as usize));
            RgbImage::from_fn(small.width(), small.height(), |x, y| {
                let label = labels[rows[y as usize] * grid.columns + columns[x as usize]];
                let Rgb([r, g, b]) = *small.get_pixel(x, y);
                let grey = ((u32::from(r) * 3 + u32::from(g) * 6 + u32::from(b)) / 10) as u8;
                self.kind.colour(label).map_or(Rgb([0; 3]), |colour| blend(Rgb([grey; 3]), colour, SHARE))
            })
        };
        let panels = [drawn(&truth, whole(picture)), drawn(&answer, whole(&small))];
        let [truth, answer] = panels;
        Ok([small, truth, answer])
    }
}
