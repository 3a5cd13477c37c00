//! Prints what the threshold between exact search and the graph is chosen by: computing time of both, and the graph's recall.
//!
//! `cargo run --release --example scan_and_graph`, about a minute.

#![expect(clippy::print_stdout, reason = "the measurement is the output")]

use anyhow::{Context, Result};
use dino_server::index::{Collection, EmbeddedStore, Item, ModelTag, NewItem, Options, Search, Spec};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

const DIM: usize = 384;

fn main() -> Result<()> {
    let mut rng = StdRng::seed_from_u64(20);
    let clusters: Vec<_> = (0..1000).map(|_| direction(&mut rng, 1.0)).collect();
    let mut vector = |i: usize| -> Vec<f32> {
        let near = direction(&mut rng, 0.8);
        clusters[i % clusters.len()].iter().zip(near).map(|(centre, near)| centre + near).collect()
    };
    for count in [5_000, 20_000] {
        let folder = tempfile::tempdir()?;
        let store = EmbeddedStore::open(folder.path(), Options { exact_below: usize::MAX, build_in_background: false, progress: false })?;
        let model = ModelTag { fingerprint: "measured".into(), precision: None };
        let (collection, _) = store.create(&"measured".parse()?, Spec { dim: DIM, model })?;
        let item = |i: usize, vector| NewItem { item: Item { id: i.to_string(), ..Item::default() }, vector, thumbnail: None };
        collection.upsert((0..count).map(|i| item(i, vector(i))).collect())?;
        let queries: Vec<_> = (0..200).map(&mut vector).collect();
        let time = |exact, ef| -> Result<f64> {
            let start = cpu_seconds()?;
            for query in &queries {
                collection.search(query, &Search { exact, ef, ..Search::default() })?;
            }
            Ok((cpu_seconds()? - start) * 1000.0 / queries.len() as f64)
        };
        println!("{count} items of {DIM}: scan {:.2} ms", time(true, 0)?);
        let start = cpu_seconds()?;
        collection.build_index()?;
        println!("    graph built in {:.1} s", cpu_seconds()? - start);
        for ef in [64, 128, 256] {
            let recall = collection.recall(20, ef, 200)?.recall;
            println!("    graph, ef {ef}: {:.2} ms, recall@20 {recall:.4}", time(false, ef)?);
        }
    }
    Ok(())
}

/// A vector of this length in any direction.
fn direction(rng: &mut StdRng, length: f32) -> Vec<f32> {
    // The sum of twelve uniform numbers is near enough to normal.
    let vector: Vec<f32> = (0..DIM).map(|_| (0..12).map(|_| rng.random::<f32>() - 0.5).sum()).collect();
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.into_iter().map(|x| x * length / norm).collect()
}

/// Seconds that all threads of this process have computed: unlike a clock it does not count what others do.
fn cpu_seconds() -> Result<f64> {
    let stat = fs_err::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = fields.get(11..13).context("/proc/self/stat is short")?;
    Ok(ticks.iter().map(|ticks| ticks.parse::<f64>()).sum::<Result<f64, _>>()? / 100.0)
}
