//! Prints what comparing all items of a collection with each other takes: 100,000 vectors of 384 numbers in clusters, and as many random
//! fingerprints, both with near-copies among them.
//!
//! `make bench-duplicates`. The number of items may be given.

#![expect(clippy::print_stdout, reason = "the measurement is the output")]

use std::time::Instant;

use anyhow::{Context as _, Result};
use dino_vision::duplicates::{Candidate, Candidates, DEFAULT_SIMILARITY, Fingerprint, Options};
use rand::{RngExt, SeedableRng, rngs::StdRng};

const DIM: usize = 384;
/// Items of a cluster, as pictures of one class; their cosines are about 0.8.
const CLUSTER: usize = 100;
/// One item in so many is a near-copy of the one before it.
const COPIED: usize = 20;

fn main() -> Result<()> {
    let count: usize = std::env::args().nth(1).map_or(Ok(100_000), |count| count.parse()).context("the number of items")?;
    let mut random = StdRng::seed_from_u64(1);
    let mut candidates = Candidates::new(Some(DIM));
    let (mut centre, mut vector, mut stored) = (Vec::new(), Vec::new(), stored_fingerprint());
    for number in 0..count {
        if number.is_multiple_of(CLUSTER) {
            centre = (0..DIM).map(|_| random.random::<f32>() - 0.5).collect();
        }
        if number % COPIED == 1 {
            for x in &mut vector {
                *x += 0.05 * (random.random::<f32>() - 0.5);
            }
            stored[1] ^= 3;
        } else {
            vector = centre.iter().map(|x| x + 0.5 * (random.random::<f32>() - 0.5)).collect();
            random.fill(&mut stored[1..33]);
        }
        let fingerprint = Fingerprint::from_bytes(&stored);
        candidates.push(Candidate {
            id: &format!("{number:07}"),
            fingerprint: fingerprint.as_ref(),
            vector: &vector,
            ..Candidate::default()
        });
    }
    println!("{count} items of {DIM} numbers take {} MB", kilobytes("VmRSS")? / 1000);
    for (what, min_similarity) in [("pixels", None), ("pixels and scenes", Some(DEFAULT_SIMILARITY))] {
        let (began, used) = (Instant::now(), processor_seconds()?);
        let found = candidates.compare(Options { min_similarity }, &|_| {})?;
        let (seconds, processor) = (began.elapsed().as_secs_f64(), processor_seconds()? - used);
        println!(
            "{what}: {seconds:.1} s, {processor:.1} s of processors, peak {} MB; {} groups, {} pairs, {} of them in memory at most",
            kilobytes("VmHWM")? / 1000,
            found.groups.len(),
            found.pairs.found,
            found.pairs.held
        );
    }
    Ok(())
}

/// The stored form of some fingerprint.
fn stored_fingerprint() -> Vec<u8> {
    Fingerprint::of(&image::RgbImage::from_fn(64, 64, |x, y| image::Rgb([(x * 37 % 256) as u8, (y * 91 % 256) as u8, 0]))).to_bytes()
}

/// A value of /proc/self/status.
fn kilobytes(name: &str) -> Result<u64> {
    let status = fs_err::read_to_string("/proc/self/status")?;
    let value = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).context("a line of /proc/self/status")?;
    Ok(value.trim().trim_end_matches(" kB").parse()?)
}

/// Time of all processors that this program has used.
fn processor_seconds() -> Result<f64> {
    /// Of Linux, in a second.
    const TICKS: f64 = 100.0;
    let stat = fs_err::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks: f64 = [11, 12].iter().map(|&at: &usize| fields.get(at).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0)).sum();
    Ok(ticks / TICKS)
}
