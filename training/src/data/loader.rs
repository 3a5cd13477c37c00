//! Batches of crops, made ahead of the training step by worker threads, in an order that only the seed decides.
//!
//! ```
//! use dino_train::data::loader::{batches, generator};
//! use rand::RngExt as _;
//!
//! assert_eq!(batches(10, 4), 2);
//! // Seed, purpose, epoch and picture decide a draw, and nothing else.
//! let draw = |picture| generator(7, 1, 0, picture).random::<u64>();
//! assert_eq!(draw(3), draw(3));
//! assert_ne!(draw(3), draw(4));
//! ```

use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread;

use image::RgbImage;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::augment::Augmentation;
use super::pictures::Pictures;

/// Batches that each of one or two workers may be ahead.
const AHEAD: usize = 2;

/// Crops of one batch, view by view.
#[derive(Debug)]
pub struct Batch {
    /// `[2 * pictures, 3, size, size]`.
    pub global: Vec<f32>,
    /// The global crops as an anchor sees them, `[2 * pictures, 3, size, size]`, where it sees others.
    pub anchored: Vec<f32>,
    /// `[local crops * pictures, 3, size, size]`.
    pub local: Vec<f32>,
    /// Which pictures they are of.
    pub pictures: Vec<usize>,
    /// Their places in the order of the epoch, by which random numbers are drawn for them.
    pub places: Vec<u64>,
}

/// What a loader does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    /// Crops of each picture.
    pub augmentation: Augmentation,
    /// Pictures of a batch.
    pub batch: usize,
    /// Number of this process.
    pub rank: usize,
    /// Number of processes: each takes every so many-th picture of the same order, as PyTorch's `DistributedSampler`.
    pub world: usize,
    /// Decides the order and all crops.
    pub seed: u64,
    /// Worker threads.
    pub workers: usize,
}

/// A generator for one purpose: the same arguments give the same numbers, whatever was drawn before. So nothing of it needs to be stored.
pub fn generator(seed: u64, purpose: u64, epoch: u64, index: u64) -> ChaCha8Rng {
    let mut key = [0; 32];
    for (bytes, value) in key.chunks_exact_mut(8).zip([seed, purpose, epoch, index]) {
        bytes.copy_from_slice(&value.to_le_bytes());
    }
    ChaCha8Rng::from_seed(key)
}

const ORDER: u64 = 1;
const CROPS: u64 = 2;

/// Full batches in an epoch; the rest of the pictures is left for another epoch's order.
pub fn batches(pictures: usize, batch: usize) -> usize {
    pictures / batch.max(1)
}

/// This process's batches of one epoch, those of the given numbers. Workers stop when the receiver is dropped.
pub fn epoch(pictures: &Arc<Pictures>, plan: Plan, epoch: usize, numbers: Range<usize>) -> impl Iterator<Item = Batch> + use<> {
    let mut order: Vec<usize> = (0..pictures.len()).collect();
    order.shuffle(&mut generator(plan.seed, ORDER, epoch as u64, 0));
    let order = Arc::new(order);
    let Range { start: first, end: count } = numbers;
    let workers = plan.workers.clamp(1, count.saturating_sub(first).max(1));
    let channels: Vec<Receiver<Batch>> = (0..workers)
        .map(|worker| {
            // Many are far enough ahead with the batch that each of them holds.
            let (sender, receiver) = sync_channel(if workers > 2 { 0 } else { AHEAD });
            let (pictures, order) = (Arc::clone(pictures), Arc::clone(&order));
            thread::spawn(move || {
                for number in (first + worker..count).step_by(workers) {
                    let Some(batch) = load(&pictures, &order, &plan, epoch, number) else { return };
                    if sender.send(batch).is_err() {
                        return;
                    }
                }
            });
            receiver
        })
        .collect();
    (first..count).map_while(move |number| channels[(number - first) % workers].recv().ok())
}

/// None when no picture at all can be read.
fn load(pictures: &Pictures, order: &[usize], plan: &Plan, epoch: usize, number: usize) -> Option<Batch> {
    let Plan { augmentation, batch: size, .. } = plan;
    let (global_len, anchor_len, local_len) = (augmentation.global_len(), augmentation.anchor_len(), augmentation.local_len());
    let mut batch = Batch {
        global: vec![0.0; 2 * size * global_len],
        anchored: vec![0.0; 2 * size * anchor_len],
        local: vec![0.0; augmentation.local_crops * size * local_len],
        pictures: Vec::with_capacity(*size),
        places: Vec::with_capacity(*size),
    };
    for slot in 0..*size {
        let place = (number * size + slot) * plan.world + plan.rank;
        let (index, picture) = readable(pictures, order, place)?;
        let mut random = generator(plan.seed, CROPS, epoch as u64, place as u64);
        for view in 0..2 {
            let crop = view * size + slot;
            let part = |len: usize| crop * len..(crop + 1) * len;
            augmentation.global(&picture, view, &mut random, &mut batch.global[part(global_len)], &mut batch.anchored[part(anchor_len)]);
        }
        for view in 0..augmentation.local_crops {
            let at = (view * size + slot) * local_len;
            augmentation.local(&picture, &mut random, &mut batch.local[at..at + local_len]);
        }
        batch.pictures.push(index);
        batch.places.push(place as u64);
    }
    Some(batch)
}

/// The picture at a place of the order; in place of an unreadable one the next that can be read.
fn readable(pictures: &Pictures, order: &[usize], place: usize) -> Option<(usize, Arc<RgbImage>)> {
    (0..order.len()).map(|step| order[(place + step) % order.len()]).find_map(|index| Some((index, pictures.get(index)?)))
}
