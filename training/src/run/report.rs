//! One HTML file that shows a run: curves, where it looks, the map of its features, its settings. It needs nothing from outside.
//!
//! ```
//! use dino_train::run::report::Run;
//!
//! let run = Run::open(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo").as_ref())?;
//! assert!(run.html()?.contains("<svg"));
//! # Ok::<(), anyhow::Error>(())
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::files::write_atomically;
use crate::log::{Line, Log, Measured};
use crate::run::state;
use crate::run::verdict::Verdict;
use crate::show::scatter::escape;

mod chart;

use chart::{Chart, Curve};

/// Name of the file in a run's folder.
pub const FILE: &str = "report.html";
/// Folder of a run that holds its pictures.
pub const PICTURES: &str = "pictures";
/// The map of features in it.
pub const MAP: &str = "tsne.svg";

/// Name of the line that shows what the first weights could do.
const BASELINE: &str = "before the run";

const STYLE: &str = include_str!("report/style.css");
/// Most epochs whose attention is shown, spread over the run.
const COLUMNS: usize = 8;

/// A run's folder.
#[derive(Clone, Debug)]
pub struct Run {
    folder: PathBuf,
    lines: Vec<Line>,
}

impl Run {
    /// Reads the log of a run.
    ///
    /// # Errors
    /// When there is none with a whole line.
    pub fn open(folder: &Path) -> Result<Self> {
        let lines = Log::new(folder).lines()?;
        ensure!(!lines.is_empty(), "{} holds no log.jsonl with an epoch: give the folder of a training run", folder.display());
        Ok(Self { folder: folder.to_owned(), lines })
    }

    /// Writes the report into the folder.
    ///
    /// # Errors
    /// When a picture cannot be read, or the report cannot be written.
    pub fn write(&self) -> Result<()> {
        write_atomically(&self.folder.join(FILE), self.html()?.as_bytes())
    }

    /// The report.
    ///
    /// # Errors
    /// When a picture cannot be read.
    pub fn html(&self) -> Result<String> {
        let name = self.folder.canonicalize().ok().and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        let name = escape(&name.unwrap_or_else(|| "run".to_owned()));
        let mut html = format!(
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
             <meta name=\"color-scheme\" content=\"light dark\"><title>{name}: training report</title><style>{STYLE}</style></head>\
             <body><main><h1>{name}</h1>\n"
        );
        html.push_str(&self.summary());
        html.push_str("<section class=\"charts\">\n");
        for chart in self.charts() {
            html.push_str(&chart.svg());
        }
        html.push_str("</section>\n");
        html.push_str(&self.attention()?);
        let map = self.folder.join(PICTURES).join(MAP);
        if map.is_file() {
            html.push_str("<section><h2>Map of the features (t-SNE)</h2><p>Each point is a picture that the k-NN evaluation classifies, coloured by its class; training sees no classes. Rest on a point for its name.</p><div class=\"map\">");
            html.push_str(&fs_err::read_to_string(&map)?);
            html.push_str("</div></section>\n");
        }
        html.push_str(&self.settings()?);
        html.push_str("</main></body></html>\n");
        Ok(html)
    }

    /// Figures of the last epoch.
    fn summary(&self) -> String {
        let last = self.lines[self.lines.len() - 1];
        let seconds: f64 = self.lines.iter().map(|line| line.seconds).sum();
        let pictures: f64 = self.lines.iter().map(|line| line.images_per_second * line.seconds).sum();
        let mut figures = vec![
            ("epochs".to_owned(), last.epoch.to_string()),
            ("steps".to_owned(), last.step.to_string()),
            ("loss".to_owned(), format!("{:.3}", last.loss)),
            ("pictures / s".to_owned(), format!("{:.1}", pictures / seconds.max(1e-9))),
            ("hours of training".to_owned(), format!("{:.2}", seconds / 3600.0)),
        ];
        if let Some(teacher) = last.teacher {
            figures.insert(3, ("teacher entropy of ln K".to_owned(), format!("{:.2} / {:.2}", teacher.teacher_entropy, teacher.ln_k)));
        }
        if let (Some(prediction), Some(sigreg)) = (last.prediction, last.sigreg) {
            figures.insert(3, ("prediction, SIGReg".to_owned(), format!("{prediction:.3}, {sigreg:.2}")));
        }
        let best = self.lines.iter().filter_map(|line| line.knn.map(|knn| (line.epoch, knn))).max_by(|a, b| a.1.top1.total_cmp(&b.1.top1));
        if let Some((epoch, knn)) = best {
            let figure = format!("{:.1} / {:.1} %", knn.top1, knn.mean_class);
            figures.push((format!("best k-NN top-1 / mean over classes, epoch {epoch}"), figure));
        }
        let verdict = Verdict::of(&self.lines).map(|verdict| format!("<p>So far {}.</p>\n", verdict.sentence()));
        let mut html = verdict.unwrap_or_default() + "<dl class=\"figures\">";
        for (name, figure) in figures {
            let _ = write!(html, "<div><dt>{name}</dt><dd>{figure}</dd></div>");
        }
        html + "</dl>\n"
    }

    fn charts(&self) -> Vec<Chart> {
        let curve = |name: &'static str, value: fn(&Line) -> Option<f64>| Curve {
            name,
            points: self.lines.iter().filter_map(|line| Some((line.epoch as f64, value(line)?))).collect(),
        };
        let has_teacher = self.lines.iter().any(|line| line.teacher.is_some());
        let (title, note) = if has_teacher {
            ("Loss and entropy of the teacher, in nats", "An entropy that falls to 0 or rises to ln K is a collapse.")
        } else {
            ("Loss", "The weighted mean of the two terms below.")
        };
        let charts = vec![
            Chart {
                title,
                note,
                curves: vec![
                    curve("loss", |line| Some(line.loss)),
                    curve("teacher entropy", |line| line.teacher.map(|teacher| teacher.teacher_entropy)),
                    curve("ln K", |line| line.teacher.map(|teacher| teacher.ln_k)),
                ],
            },
            Chart {
                title: "Prediction",
                note: "Squared distance of embeddings from the centre of their picture, a mean over dimensions.",
                curves: vec![curve("prediction", |line| line.prediction)],
            },
            Chart {
                title: "SIGReg",
                note: "How far the embeddings are from a Gaussian.",
                curves: vec![curve("SIGReg", |line| line.sigreg)],
            },
            Chart {
                title: "k-NN, in percent",
                note: "Of the teacher; neighbours vote for a class.",
                curves: vec![
                    curve("top-1", |line| line.knn.map(|knn| knn.top1)),
                    if self.lines.iter().any(|line| line.baseline.is_some()) {
                        curve(BASELINE, |line| line.baseline.filter(|baseline| matches!(baseline, Measured::Knn(_))).map(|b| b.figure()))
                    } else {
                        curve("top-5", |line| line.knn.map(|knn| knn.top5))
                    },
                    curve("mean over classes", |line| line.knn.map(|knn| knn.mean_class)),
                ],
            },
            Chart {
                title: "Crops of one picture that find each other, in percent",
                note: "Of the teacher, among those of other pictures.",
                curves: vec![
                    curve("agreement", |line| line.agreement.map(|agreement| agreement.agreement)),
                    curve(BASELINE, |line| line.baseline.filter(|b| matches!(b, Measured::Agreement(_))).map(|b| b.figure())),
                ],
            },
            Chart {
                title: "Divergence of the student from the teacher (KL), in nats",
                note: "Near 0, with the entropy near ln K, nothing is learnt.",
                curves: vec![curve("KL", |line| line.teacher.map(|teacher| teacher.kl))],
            },
            Chart {
                title: "Standard deviation of the features",
                note: "Of the teacher's, or without one the network's, over pictures; 0 is a collapse to one point.",
                curves: vec![
                    curve("deviation", |line| (line.feature_std_even > 0.0).then_some(line.feature_std)),
                    curve("spread evenly", |line| (line.feature_std_even > 0.0).then_some(line.feature_std_even)),
                ],
            },
            Chart { title: "Learning rate", note: "At the end of each epoch.", curves: vec![curve("lr", |line| Some(line.lr))] },
            Chart {
                title: "Momentum of the teacher",
                note: "At the end of each epoch.",
                curves: vec![curve("momentum", |line| line.teacher.map(|teacher| teacher.momentum))],
            },
            Chart {
                title: "Weight decay",
                note: "At the end of each epoch.",
                curves: vec![curve("weight decay", |line| Some(line.weight_decay))],
            },
            Chart {
                title: "Temperature of the teacher",
                note: "Lower is sharper.",
                curves: vec![curve("temperature", |line| line.teacher.map(|teacher| teacher.teacher_temp))],
            },
            Chart {
                title: "Pictures per second",
                note: "Wall time, without evaluation.",
                curves: vec![curve("pictures / s", |line| Some(line.images_per_second))],
            },
        ];
        let shown = |mut chart: Chart| {
            // A run has some of the figures.
            chart.curves.retain(|curve| !curve.points.is_empty());
            (!chart.curves.is_empty()).then_some(chart)
        };
        charts.into_iter().filter_map(shown).collect()
    }

    /// A row for each watched picture, a column for each epoch.
    fn attention(&self) -> Result<String> {
        let folder = self.folder.join(PICTURES);
        let mut files: BTreeMap<(usize, usize), PathBuf> = BTreeMap::new();
        if folder.is_dir() {
            for entry in fs_err::read_dir(&folder)? {
                let path = entry?.path();
                let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let Some((epoch, number)) = name.strip_prefix("attention-").and_then(|n| n.strip_suffix(".png")?.split_once('-')) else {
                    continue;
                };
                if let (Ok(epoch), Ok(number)) = (epoch.parse(), number.parse()) {
                    files.insert((number, epoch), path);
                }
            }
        }
        if files.is_empty() {
            return Ok(String::new());
        }
        let epochs: Vec<usize> = files.keys().map(|(_, epoch)| *epoch).collect::<BTreeSet<_>>().into_iter().collect();
        let columns = epochs.len().min(COLUMNS);
        let shown: Vec<usize> = (0..columns).map(|column| epochs[column * (epochs.len() - 1) / (columns - 1).max(1)]).collect();
        let mut html = "<section><h2>Where the teacher looks</h2><p>Attention of the last block's CLS token, mean over the heads: as a heat map, and the \
                        patches that hold 60 % of it over the picture.</p><div class=\"scroll\"><table class=\"attention\"><thead><tr><th>picture</th>"
            .to_owned();
        for epoch in &shown {
            let _ = write!(html, "<th>epoch {epoch}</th>");
        }
        html.push_str("</tr></thead><tbody>");
        for number in files.keys().map(|(number, _)| *number).collect::<BTreeSet<_>>() {
            let _ = write!(html, "<tr><td>{}</td>", image(&folder.join(format!("picture-{number}.png")), "the picture"));
            for &epoch in &shown {
                let tile = files.get(&(number, epoch)).map(|path| image(path, &format!("attention after epoch {epoch}")));
                let _ = write!(html, "<td>{}</td>", tile.unwrap_or_default());
            }
            html.push_str("</tr>");
        }
        Ok(html + "</tbody></table></div></section>\n")
    }

    /// The recipe in the newest checkpoint that can be read, else nothing.
    fn settings(&self) -> Result<String> {
        let newest = state::list(&self.folder)?.into_iter().rev().find_map(|path| state::Stored::describe(&path).ok());
        let Some(Value::Object(settings)) = newest.map(|description| serde_json::to_value(description.recipe)).transpose()? else {
            return Ok(String::new());
        };
        let mut html = "<section><h2>Settings</h2><div class=\"scroll\"><table class=\"settings\">".to_owned();
        for (name, value) in settings.iter().filter(|(_, value)| !value.is_null()) {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let _ = write!(html, "<tr><th>{}</th><td>{}</td></tr>", escape(name), escape(&value));
        }
        Ok(html + "</table></div></section>\n")
    }
}

/// A picture inside the file; nothing where it cannot be read.
fn image(path: &Path, what: &str) -> String {
    let Ok(bytes) = fs_err::read(path) else { return String::new() };
    format!("<img alt=\"{}\" src=\"data:image/png;base64,{}\">", escape(what), STANDARD.encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_shows_the_log_and_nothing_from_outside() {
        let run = tempfile::tempdir().unwrap();
        assert!(Run::open(run.path()).is_err());
        let line = |epoch: usize| {
            serde_json::json!({
                "epoch": epoch, "step": epoch * 10, "loss": 3.0 / epoch as f64, "ln_k": 4.0, "teacher_entropy": 2.0, "kl": 0.5, "lr": 0.1,
                "weight_decay": 0.0, "momentum": 0.9, "teacher_temp": 0.04, "images_per_second": 10.0, "seconds": 1.0,
                "broken_pictures": 0, "knn": {"k": 5, "top1": 12.5 * epoch as f64, "top5": 80.0, "mean_class": 40.0},
            })
        };
        fs_err::write(run.path().join("log.jsonl"), format!("{}\n{}\n", line(1), line(2))).unwrap();
        let pictures = run.path().join(PICTURES);
        fs_err::create_dir(&pictures).unwrap();
        fs_err::write(pictures.join(MAP), "<svg><circle/></svg>").unwrap();
        for name in ["picture-0.png", "attention-0001-0.png", "attention-0002-0.png"] {
            image::RgbImage::new(2, 2).save(pictures.join(name)).unwrap();
        }
        Run::open(run.path()).unwrap().write().unwrap();
        let html = fs_err::read_to_string(run.path().join(FILE)).unwrap();
        for part in ["25.0 / 40.0 %", "epoch 1</th><th>epoch 2", "mean over classes", "<circle/>", "Learning rate"] {
            assert!(html.contains(part), "{part}");
        }
        assert_eq!(html.matches("<img ").count(), 3);
        let outside = html.replace("http://www.w3.org/2000/svg", "");
        assert!(!outside.contains("http") && !outside.contains("<script") && !outside.contains("<link"));
    }
}
