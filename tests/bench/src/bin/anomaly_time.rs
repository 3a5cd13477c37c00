//! Prints what `/anomaly` takes beside inference: a picture of 900 patches against 100 stored pictures of as many, 384 dimensions each.
//!
//! `make bench-anomaly`. Vectors lie around a few hundred directions, as those of patches do; the scan takes the same time for any.

#![expect(clippy::print_stdout, reason = "the measurement is the output")]

use std::{hint::black_box, time::Instant};

use anyhow::Result;
use dino_vision::{
    anomaly::{Bank, PatchSet, Rows, enlarged, mean_of_largest},
    transform::PatchGrid,
};
use rand::{RngExt, SeedableRng, rngs::StdRng};

const GRID: PatchGrid = PatchGrid { rows: 30, columns: 30 };
const DIM: usize = 384;
const PICTURES: usize = 100;
const DIRECTIONS: usize = 300;
const ROUNDS: usize = 9;

fn main() -> Result<()> {
    let mut random = StdRng::seed_from_u64(1);
    let directions: Vec<Vec<f32>> = (0..DIRECTIONS).map(|_| (0..DIM).map(|_| random.random::<f32>() - 0.5).collect()).collect();
    let mut picture = || {
        let mut rows = Rows::new(DIM);
        for _ in 0..GRID.len() {
            let direction = &directions[random.random_range(0..DIRECTIONS)];
            let vector: Vec<f32> = direction.iter().map(|x| x + 0.4 * (random.random::<f32>() - 0.5)).collect();
            rows.push(vector.into_iter());
        }
        PatchSet { grid: GRID, foreground: vec![true; GRID.len()], coverage: None, rows }
    };
    let pictures: Vec<PatchSet> = (0..PICTURES).map(|_| picture()).collect();
    let mut bank = Bank::new(DIM, 1_000_000);
    let began = Instant::now();
    for (number, set) in pictures.iter().enumerate() {
        bank.add(&number.to_string(), 1, false, set)?;
    }
    println!("{PICTURES} pictures added in {:.2} s; {:.1} MB", began.elapsed().as_secs_f64(), bank.bytes() as f64 / 1e6);
    let queries = picture().rows;
    let milliseconds = measure(|| {
        black_box(bank.nearest(&queries)?);
        Ok(())
    })?;
    let products = 2.0 * (queries.len() * bank.len() * DIM) as f64;
    println!("nearest of {} patches among {}: {milliseconds:.1} ms, {:.0} GOP/s", queries.len(), bank.len(), products / milliseconds / 1e6);
    let threshold = measure(|| {
        black_box(bank.threshold(0.01, false)?);
        Ok(())
    })?;
    let distances: Vec<f32> = bank.nearest(&queries)?.iter().map(|nearest| nearest.map_or(0.0, |nearest| nearest.distance())).collect();
    let map = measure(|| {
        black_box((mean_of_largest(&distances, 0.01), enlarged(&distances, GRID, (1000, 1000))));
        Ok(())
    })?;
    println!("threshold {threshold:.2} ms; score, and a map of 1000 x 1000 pixels {map:.1} ms");
    let set = picture();
    let began = Instant::now();
    bank.add("new", 1, false, &set)?;
    let added = began.elapsed();
    let began = Instant::now();
    bank.remove(["7"])?;
    println!("a picture added in {:.0} ms, one removed in {:.0} ms", added.as_secs_f64() * 1e3, began.elapsed().as_secs_f64() * 1e3);
    let mut bounded = Bank::new(DIM, 20_000);
    let began = Instant::now();
    for (number, set) in pictures.iter().enumerate() {
        bounded.add(&number.to_string(), 1, false, set)?;
    }
    println!("{PICTURES} pictures added to at most 20,000 patches in {:.1} s; {} are kept", began.elapsed().as_secs_f64(), bounded.len());
    Ok(())
}

/// The median of several runs, in milliseconds.
fn measure(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        let began = Instant::now();
        run()?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
    }
    times.sort_unstable_by(f64::total_cmp);
    Ok(times[ROUNDS / 2])
}
