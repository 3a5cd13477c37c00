//! Measures collections, for `tests/bench/index.py`: one JSON object a line.
//!
//! `index_bench graph|hnsw_rs|scan DATA` reads `DATA.npy` and `DATA.queries.npy` (float32, `[rows, dim]`) and `DATA.truth.npy` (int32
//! `[queries, 10]`). `index_bench million FOLDER` fills a store with a million vectors where there is none, and searches it.
//! `index_bench memory fill|build|open|restore FOLDER ROWS` says what one step takes at most, in times of the vectors.

#![expect(clippy::print_stdout, reason = "the measurement is the output")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use dino_server::index::{
    Collection, EmbeddedCollection, EmbeddedStore, IndexOptions, Item, ModelTag, NewItem, OnExisting, Search, Similarity, Spec,
    VectorFormat, snapshot,
};
use hnsw_rs::anndists::dist::distances::Distance;
use hnsw_rs::hnsw::Hnsw;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

const K: usize = 10;
/// Widths of the search in a graph.
const WIDTHS: [usize; 12] = [10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512];
const MILLION: usize = 1_000_000;
const DIM: usize = 384;
const CLUSTERS: usize = 1000;
/// Queries of the million.
const QUERIES: usize = 500;
/// Items in one write.
const WRITE: usize = 5000;
/// Bytes that are read to measure the memory.
const READ: usize = 1 << 30;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["graph", data] => graph(data),
        ["hnsw_rs", data] => hnsw_rs(data),
        ["scan", data] => scan(data),
        ["million", folder] => million(Path::new(folder)),
        ["memory", step, folder, rows] => memory(step, Path::new(folder), rows.parse()?),
        _ => bail!("index_bench graph|hnsw_rs|scan DATA, index_bench million FOLDER, or index_bench memory STEP FOLDER ROWS"),
    }
}

/// The graph at growing widths.
fn graph(data: &str) -> Result<()> {
    let (rows, questions) = (read_rows(&format!("{data}.npy"))?, Questions::read(data)?);
    let folder = tempfile::tempdir()?;
    let store = EmbeddedStore::open(folder.path(), options(VectorFormat::F32))?;
    let collection = fill(&store, &rows)?;
    drop(rows);
    let (before, start) = (resident()?, Instant::now());
    collection.build_index()?;
    let (seconds, memory) = (start.elapsed().as_secs_f64(), resident()?.saturating_sub(before));
    for threads in [1, 2] {
        for ef in WIDTHS {
            let asked = questions.ask(&*collection, threads, &Search { k: K, ef, ..Search::default() })?;
            print(&json!({"build_s": seconds, "graph_mb": memory, "ef": ef}), threads, &asked);
        }
    }
    Ok(())
}

/// `hnsw_rs` as it comes: its own copy of the vectors, its own search, with our product as its distance.
fn hnsw_rs(data: &str) -> Result<()> {
    let (rows, questions) = (read_rows(&format!("{data}.npy"))?, Questions::read(data)?);
    let [links, ef_construction] = ["M", "EF_CONSTRUCTION"].map(|name| std::env::var(name).ok());
    let (links, ef_construction) =
        (links.context("M is not set")?.parse()?, ef_construction.context("EF_CONSTRUCTION is not set")?.parse()?);
    let (before, start) = (resident()?, Instant::now());
    let hnsw = Hnsw::new(links, rows.len(), 16, ef_construction, CosineDistance);
    hnsw.parallel_insert(&rows.iter().zip(0..).collect::<Vec<_>>());
    let (seconds, memory) = (start.elapsed().as_secs_f64(), resident()?.saturating_sub(before));
    // Our graph has no copy of the vectors.
    let graph = memory.saturating_sub((rows.len() * rows[0].len() * 4) as u64 / 1_000_000);
    for threads in [1, 2] {
        for ef in WIDTHS {
            let search = |query: &[f32]| Ok(hnsw.search(query, K, ef).into_iter().map(|found| found.d_id as i32).collect());
            let asked = questions.ask_of(threads, &search)?;
            print(&json!({"build_s": seconds, "graph_mb": graph, "ef": ef}), threads, &asked);
        }
    }
    Ok(())
}

/// 1 - cosine similarity of normalised vectors.
struct CosineDistance;

impl Distance<f32> for CosineDistance {
    fn eval(&self, a: &[f32], b: &[f32]) -> f32 {
        (1.0 - Similarity::default().dot(a, b)).max(0.0)
    }
}

/// Exact search, and how fast the same cores read memory.
fn scan(data: &str) -> Result<()> {
    let (rows, questions) = (read_rows(&format!("{data}.npy"))?, Questions::read(data)?);
    let bytes = (rows.len() * rows[0].len() * 4) as f64;
    let folder = tempfile::tempdir()?;
    let store = EmbeddedStore::open(folder.path(), options(VectorFormat::F32))?;
    let collection = fill(&store, &rows)?;
    drop(rows);
    let memory: Vec<u64> = vec![1; READ / 8];
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        // One query at a time, spread over the threads.
        let asked = pool.install(|| questions.ask(&*collection, 1, &Search { k: K, exact: true, ..Search::default() }))?;
        let read = || memory.chunks(memory.len() / threads).collect::<Vec<_>>();
        let bandwidth = (0..5).map(|_| seconds_of(|| pool.install(|| sum(&read())))).fold(f64::INFINITY, f64::min);
        let extra = json!({"gb_per_s": bytes * asked.qps / 1e9, "memory_gb_per_s": READ as f64 / bandwidth / 1e9});
        print(&extra, threads, &asked);
    }
    Ok(())
}

/// A million vectors: memory, recall and time of a search, with vectors as bytes and as floats.
fn million(folder: &Path) -> Result<()> {
    let asked_file = folder.join("questions.json");
    if !asked_file.exists() {
        fs_err::create_dir_all(folder)?;
        let questions = fill_million(folder)?;
        fs_err::write(&asked_file, serde_json::to_vec(&(questions.queries, questions.truth))?)?;
        // Memory is measured in a process that has done nothing else.
        println!("{}", json!({"filled": MILLION}));
        return Ok(());
    }
    let (queries, truth) = serde_json::from_slice(&fs_err::read(&asked_file)?)?;
    let questions = Questions { queries, truth };
    let vectors = if std::env::var("VECTORS").is_ok_and(|vectors| vectors == "f32") { VectorFormat::F32 } else { VectorFormat::Int8 };
    let start = Instant::now();
    let store = EmbeddedStore::open(&folder.join("store"), options(vectors))?;
    let opened = start.elapsed().as_secs_f64();
    let collection = store.collection(&"measured".parse()?)?;
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        for exact in [false, true] {
            let asked = pool.install(|| questions.ask(&*collection, 1, &Search { k: K, exact, ..Search::default() }))?;
            let extra =
                json!({"opened_s": opened, "exact": exact, "ms": 1000.0 / asked.qps, "resident_mb": resident()?, "peak_mb": peak()?});
            print(&extra, threads, &asked);
        }
    }
    Ok(())
}

/// One step in the life of a collection, in a process of its own: the most memory that it took.
fn memory(step: &str, folder: &Path, rows: usize) -> Result<()> {
    let (data, file) = (folder.join("store"), folder.join("measured.dino"));
    let start = Instant::now();
    match step {
        "fill" => {
            fs_err::create_dir_all(folder)?;
            let mut rng = StdRng::seed_from_u64(20);
            let store = EmbeddedStore::open(&data, options(VectorFormat::F32))?;
            let (collection, _) = store.create(&"measured".parse()?, spec(DIM))?;
            for first in (0..rows).step_by(WRITE) {
                collection.upsert((first..rows.min(first + WRITE)).map(|id| item(id, direction(&mut rng, 1.0))).collect())?;
            }
            snapshot::save(&*collection, &file)?;
        }
        // As a server does that finds an index due: the collection is loaded, then the graph is built and saved.
        "build" => EmbeddedStore::open(&data, options(VectorFormat::F32))?.collection(&"measured".parse()?)?.build_index()?,
        "open" => {
            let store = EmbeddedStore::open(&data, IndexOptions { exact_below: 1, ..options(VectorFormat::F32) })?;
            let info = store.collection(&"measured".parse()?)?.info()?;
            ensure!(info.index.indexed == rows, "the saved index was not used");
        }
        "restore" => {
            let other = tempfile::tempdir_in(folder)?;
            let store = EmbeddedStore::open(other.path(), options(VectorFormat::F32))?;
            ensure!(snapshot::restore(&store, &file, None, OnExisting::Refuse)?.info()?.count == rows, "items are missing");
        }
        _ => bail!("fill, build, open or restore"),
    }
    let (peak, vectors) = (peak()?, rows as f64 * DIM as f64 * 4.0 / 1e6);
    println!(
        "{}",
        json!({"step": step, "peak_mb": peak, "vectors_mb": vectors, "times": peak as f64 / vectors, "s": start.elapsed().as_secs_f64()})
    );
    Ok(())
}

fn fill_million(folder: &Path) -> Result<Questions> {
    let mut rng = StdRng::seed_from_u64(20);
    let clusters: Vec<_> = (0..CLUSTERS).map(|_| direction(&mut rng, 1.0)).collect();
    let mut vector = |i: usize| -> Vec<f32> {
        let near = direction(&mut rng, 0.8);
        let sum: Vec<f32> = clusters[i % CLUSTERS].iter().zip(near).map(|(centre, near)| centre + near).collect();
        scaled(sum, 1.0)
    };
    let queries: Vec<_> = (0..QUERIES).map(&mut vector).collect();
    let mut nearest: Vec<Vec<(f32, i32)>> = vec![Vec::new(); QUERIES];
    let store = EmbeddedStore::open(&folder.join("store"), options(VectorFormat::Int8))?;
    let (collection, _) = store.create(&"measured".parse()?, spec(DIM))?;
    for first in (0..MILLION).step_by(WRITE) {
        let rows: Vec<_> = (first..first + WRITE).map(&mut vector).collect();
        for (query, nearest) in queries.iter().zip(&mut nearest) {
            nearest.extend((first as i32..).zip(&rows).map(|(row, vector)| (Similarity::default().dot(query, vector), row)));
            nearest.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
            nearest.truncate(K);
        }
        collection.upsert((first..).zip(rows).map(|(id, vector)| item(id, vector)).collect())?;
    }
    let truth = nearest.into_iter().map(|nearest| nearest.into_iter().map(|(_, row)| row).collect()).collect();
    Ok(Questions { queries, truth })
}

/// Queries and the rows that are truly nearest to each.
struct Questions {
    queries: Vec<Vec<f32>>,
    truth: Vec<Vec<i32>>,
}

struct Asked {
    qps: f64,
    recall: f64,
}

impl Questions {
    fn read(data: &str) -> Result<Self> {
        let truth = read_npy(&format!("{data}.truth.npy"), "<i4", i32::from_le_bytes)?;
        Ok(Self { queries: read_rows(&format!("{data}.queries.npy"))?, truth })
    }

    /// Asks all queries of a collection, on so many threads at a time.
    fn ask(&self, collection: &dyn Collection, threads: usize, search: &Search<'_>) -> Result<Asked> {
        self.ask_of(threads, &|query| {
            let hits = collection.search(query, search)?;
            // An id that is no number counts as wrong.
            Ok(hits.iter().map(|hit| hit.item.id.parse().unwrap_or(-1)).collect())
        })
    }

    /// Asks all queries of a function that returns row numbers, on so many threads at a time.
    fn ask_of(&self, threads: usize, search: &(dyn Fn(&[f32]) -> Result<Vec<i32>> + Sync)) -> Result<Asked> {
        // Once without a look at the clock.
        for query in self.queries.iter().take(20) {
            search(query)?;
        }
        let (next, found) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let start = Instant::now();
        let work = || -> Result<()> {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(query) = self.queries.get(at) else { return Ok(()) };
                let right = search(query)?.iter().filter(|id| self.truth[at].contains(id)).count();
                found.fetch_add(right, Ordering::Relaxed);
            }
        };
        if threads == 1 {
            work()?;
        } else {
            std::thread::scope(|scope| {
                let running: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
                running.into_iter().try_for_each(|thread| thread.join().expect("a search does not panic"))
            })?;
        }
        let seconds = start.elapsed().as_secs_f64();
        let wanted = self.truth.iter().map(Vec::len).sum::<usize>();
        Ok(Asked { qps: self.queries.len() as f64 / seconds, recall: found.into_inner() as f64 / wanted as f64 })
    }
}

fn print(extra: &Value, threads: usize, asked: &Asked) {
    let mut line = json!({"threads": threads, "qps": asked.qps, "recall": asked.recall});
    if let (Some(line), Some(extra)) = (line.as_object_mut(), extra.as_object()) {
        line.extend(extra.clone());
    }
    println!("{line}");
}

/// Without a graph until one is built.
fn options(vectors: VectorFormat) -> IndexOptions {
    IndexOptions { exact_below: usize::MAX, build_in_background: false, progress: false, vectors }
}

fn spec(dim: usize) -> Spec {
    Spec::pictures(dim, ModelTag { fingerprint: "measured".into(), precision: None })
}

fn item(id: usize, vector: Vec<f32>) -> NewItem {
    NewItem { item: Item { id: id.to_string(), ..Item::default() }, vector, thumbnail: None, patches: None }
}

fn fill(store: &EmbeddedStore, rows: &[Vec<f32>]) -> Result<Arc<EmbeddedCollection>> {
    let (collection, _) = store.create(&"measured".parse()?, spec(rows[0].len()))?;
    for (number, rows) in rows.chunks(WRITE).enumerate() {
        collection.upsert((number * WRITE..).zip(rows).map(|(id, vector)| item(id, vector.clone())).collect())?;
    }
    Ok(collection)
}

fn read_rows(path: &str) -> Result<Vec<Vec<f32>>> {
    let rows = read_npy(path, "<f4", f32::from_le_bytes)?;
    ensure!(!rows.is_empty(), "{path} is empty");
    Ok(rows)
}

/// The rows of a `.npy` file of two axes.
fn read_npy<T>(path: &str, descr: &str, number: fn([u8; 4]) -> T) -> Result<Vec<Vec<T>>> {
    let bytes = fs_err::read(path)?;
    let length = usize::from(u16::from_le_bytes(*bytes.get(8..10).context("it is cut")?.as_array().context("two bytes")?));
    let header = String::from_utf8_lossy(bytes.get(10..10 + length).context("it is cut")?);
    ensure!(header.contains(descr), "{path}: {header}");
    let shape = header.split_once("'shape': (").and_then(|(_, shape)| shape.split_once(')')).context("no shape")?.0;
    let dim: usize = shape.split(',').nth(1).context("not two axes")?.trim().parse()?;
    Ok(bytes[10 + length..].chunks_exact(4 * dim).map(|row| row.as_chunks().0.iter().copied().map(number).collect()).collect())
}

/// A vector of this length in any direction.
fn direction(rng: &mut StdRng, length: f32) -> Vec<f32> {
    // The sum of twelve uniform numbers is near enough to normal.
    scaled((0..DIM).map(|_| (0..12).map(|_| rng.random::<f32>() - 0.5).sum()).collect(), length)
}

fn scaled(vector: Vec<f32>, length: f32) -> Vec<f32> {
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    vector.into_iter().map(|x| x * length / norm).collect()
}

/// Adds up numbers, each part on a thread of its own.
fn sum(parts: &[&[u64]]) -> u64 {
    use rayon::prelude::*;
    parts.par_iter().map(|part| part.iter().fold(0, |sum: u64, number| sum.wrapping_add(*number))).reduce(|| 0, u64::wrapping_add)
}

fn seconds_of<T>(work: impl FnOnce() -> T) -> f64 {
    let start = Instant::now();
    std::hint::black_box(work());
    start.elapsed().as_secs_f64()
}

/// Memory of this process now, in MB.
fn resident() -> Result<u64> {
    status("VmRSS:")
}

/// The most that it ever had.
fn peak() -> Result<u64> {
    status("VmHWM:")
}

fn status(field: &str) -> Result<u64> {
    let status = fs_err::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? / 1000)
}
