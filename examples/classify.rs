//! Classifies the pictures of a folder by their nearest neighbours among labelled ones, and prints the share that is right:
//!
//! `cargo run --release --package dino-vision --example classify -- models/demo LABELLED FOLDER`
//!
//! Both folders hold one folder for each class.

use std::path::Path;

use anyhow::{Context as _, Result};
use dino_vision::bulk::{self, Embedder, Workload, tree};
use dino_vision::embedding::Pooling;
use dino_vision::model::{Model, SessionOptions};
use dino_vision::vote::{DEFAULT_TEMPERATURE, vote, winner};

/// Neighbours that vote.
const K: usize = 5;

/// Class and vector of length 1 of every picture below a folder that can be read.
fn vectors(embedder: &mut Embedder, folder: &Path) -> Result<Vec<(String, Vec<f32>)>> {
    let entries = tree::list(folder)?.entries;
    let mut found = Vec::new();
    let embed = |worker: &mut bulk::Worker<'_>, index: usize| worker.embed(&bulk::read(&entries[index].path)?);
    embedder.each(entries.len(), embed, |indices, results| {
        for (index, result) in indices.zip(results) {
            let (Some(class), Ok((_, mut vector))) = (&entries[index].class, result) else { continue };
            let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
            for value in &mut vector {
                *value /= length;
            }
            found.push((class.clone(), vector));
        }
        anyhow::Ok(())
    })?;
    Ok(found)
}

/// The share of the pictures below `folder` whose class the vote of those below `labelled` finds.
pub(crate) fn accuracy(model: &Path, labelled: &Path, folder: &Path) -> Result<f64> {
    let mut embedder = Embedder::open(&Model::open(model)?, Pooling::Cls, &SessionOptions::default(), Workload::default())?;
    let labelled = vectors(&mut embedder, labelled)?;
    let asked = vectors(&mut embedder, folder)?;
    let mut right = 0;
    for (class, vector) in &asked {
        let similarity = |other: &[f32]| vector.iter().zip(other).map(|(a, b)| a * b).sum::<f32>();
        let mut neighbours: Vec<_> = labelled.iter().map(|(class, other)| (std::slice::from_ref(class), similarity(other))).collect();
        neighbours.sort_by(|a, b| b.1.total_cmp(&a.1));
        neighbours.truncate(K);
        right += usize::from(winner(&vote(neighbours, DEFAULT_TEMPERATURE), 0.0) == Some(class));
    }
    Ok(right as f64 / asked.len().max(1) as f64)
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, labelled, folder] = &arguments[..] else { anyhow::bail!("usage: classify MODEL LABELLED FOLDER") };
    let accuracy = accuracy(model.as_ref(), labelled.as_ref(), folder.as_ref()).context("cannot classify")?;
    serde_json::to_writer(std::io::stdout(), &serde_json::json!({ "accuracy": accuracy }))?;
    Ok(())
}
