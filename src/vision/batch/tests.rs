//! The queue with an engine made up for the purpose: it returns a picture's first value and remembers its batches.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use futures::future::join_all;
use tokio::{sync::Semaphore, task::JoinHandle};

use super::*;

/// First value of pictures that make the engine fail or panic.
const FAILS: f32 = -1.0;
const PANICS: f32 = -2.0;
/// First value of a picture after which the engine fails on everything.
const BREAKS: f32 = -3.0;

#[derive(Clone, Default)]
struct Log {
    batches: Arc<Mutex<Vec<Vec<f32>>>>,
    begun: Arc<AtomicUsize>,
    broken: Arc<AtomicBool>,
}

impl Log {
    /// Batches after the rehearsals (whose pictures are all zero).
    fn batches(&self) -> Vec<Vec<f32>> {
        let batches = self.batches.lock().unwrap();
        batches.iter().filter(|batch| batch != &&[0.0]).cloned().collect()
    }
}

/// Runs only when it gets a permit, so that a test decides what waits when a batch is formed.
struct Fake {
    log: Log,
    gate: Arc<Semaphore>,
}

impl Engine for Fake {
    type Output = f32;

    fn run(&mut self, pictures: ArrayView4<'_, f32>) -> Result<Vec<f32>, EngineError> {
        let values: Vec<f32> = pictures.outer_iter().map(|picture| picture[[0, 0, 0]]).collect();
        if values != [0.0] {
            self.log.begun.fetch_add(1, Ordering::SeqCst);
            while let Err(error) = self.gate.try_acquire().map(tokio::sync::SemaphorePermit::forget) {
                assert_eq!(error, tokio::sync::TryAcquireError::NoPermits);
                thread::sleep(Duration::from_millis(1));
            }
        }
        self.log.batches.lock().unwrap().push(values.clone());
        assert!(!values.contains(&PANICS), "the engine was asked to panic");
        if values.contains(&BREAKS) {
            self.log.broken.store(true, Ordering::SeqCst);
        }
        if values.contains(&FAILS) || self.log.broken.load(Ordering::SeqCst) {
            return Err(EngineError("asked to fail".into()));
        }
        Ok(values)
    }
}

struct Bench {
    batcher: Arc<Batcher<f32>>,
    log: Log,
    gate: Arc<Semaphore>,
}

fn bench(workers: usize, pictures: usize, patches: usize) -> Bench {
    bench_of(workers, Budget { pictures, patches, patch_size: 8, delay: Duration::ZERO })
}

fn bench_of(workers: usize, budget: Budget) -> Bench {
    let log = Log::default();
    let gate = Arc::new(Semaphore::new(0));
    let engines = (0..workers).map(|_| Fake { log: log.clone(), gate: gate.clone() }).collect();
    let batcher = Batcher::start("fake", engines, budget, &picture(0.0, 8, 8)).unwrap();
    Bench { batcher: Arc::new(batcher), log, gate }
}

impl Bench {
    /// Opens the gate once so many jobs wait.
    async fn release_when_waiting(&self, jobs: usize) {
        while self.batcher.queue.len() < jobs {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.gate.add_permits(1000);
    }

    /// Gives the only worker a picture that it holds until the gate opens, so that others queue up behind it.
    async fn occupy(&self, value: f32) -> JoinHandle<Result<Answer<f32>, Failure>> {
        self.ready().await;
        let batcher = self.batcher.clone();
        let held = tokio::spawn(async move { batcher.run(picture(value, 8, 8), soon()).await });
        while self.log.begun.load(Ordering::SeqCst) == 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        held
    }

    async fn ready(&self) {
        while !self.batcher.health().is_ready() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
}

fn picture(value: f32, height: usize, width: usize) -> Array3<f32> {
    Array3::from_elem((3, height, width), value)
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[tokio::test]
async fn sizes_run_together_and_answers_stay_with_their_pictures() {
    let bench = bench(1, 8, 1000);
    let sizes = [(8, 8), (16, 8), (8, 8), (8, 16), (16, 8), (8, 8), (16, 8)];
    let first = bench.occupy(100.0).await;
    let rest = sizes.iter().enumerate().map(|(i, &(h, w))| bench.batcher.run(picture(i as f32 + 1.0, h, w), soon()));
    let (first, answers, ()) = tokio::join!(first, join_all(rest), bench.release_when_waiting(sizes.len()));
    assert_eq!(first.unwrap().unwrap().output, 100.0);
    let outputs: Vec<f32> = answers.into_iter().map(|answer| answer.unwrap().output).collect();
    assert_eq!(outputs, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    assert_eq!(bench.log.batches(), [vec![100.0], vec![1.0, 3.0, 6.0], vec![2.0, 5.0, 7.0], vec![4.0]]);
}

#[tokio::test]
async fn a_batch_keeps_to_its_budget_in_patches() {
    // 16x16 pixels are 4 patches: two of them fit 9.
    let bench = bench(1, 8, 9);
    let first = bench.occupy(9.0).await;
    let rest = (1..=5).map(|i| bench.batcher.run(picture(i as f32, 16, 16), soon()));
    let (_, _, ()) = tokio::join!(first, join_all(rest), bench.release_when_waiting(5));
    assert_eq!(bench.log.batches(), [vec![9.0], vec![1.0, 2.0], vec![3.0, 4.0], vec![5.0]]);
}

#[tokio::test]
async fn a_picture_larger_than_the_budget_runs_alone() {
    let bench = bench(1, 8, 1);
    bench.gate.add_permits(1);
    assert_eq!(bench.batcher.run(picture(5.0, 64, 64), soon()).await.unwrap().output, 5.0);
}

#[tokio::test]
async fn who_stopped_waiting_is_not_run() {
    let bench = bench(1, 1, 1000);
    let first = bench.occupy(1.0).await;
    let gone = tokio::time::timeout(Duration::from_millis(50), bench.batcher.run(picture(2.0, 8, 8), soon()));
    let last = bench.batcher.run(picture(3.0, 8, 8), soon());
    let release = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        bench.gate.add_permits(10);
    };
    let (first, gone, last, ()) = tokio::join!(first, gone, last, release);
    assert!(first.unwrap().is_ok() && gone.is_err() && last.is_ok());
    assert_eq!(bench.log.batches(), [vec![1.0], vec![3.0]]);
}

#[tokio::test]
async fn a_passed_deadline_is_told_and_not_run() {
    let bench = bench(1, 1, 1000);
    let first = bench.occupy(1.0).await;
    let late = bench.batcher.run(picture(2.0, 8, 8), Instant::now() + Duration::from_millis(20));
    let release = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        bench.gate.add_permits(10);
    };
    let (first, late, ()) = tokio::join!(first, late, release);
    assert!(first.unwrap().is_ok());
    assert!(matches!(late, Err(Failure::Expired)));
    assert_eq!(bench.log.batches(), [vec![1.0]]);
}

#[tokio::test]
async fn a_picture_the_engine_cannot_take_leaves_its_neighbours_alone() {
    let bench = bench(1, 8, 1000);
    let first = bench.occupy(9.0).await;
    let rest = [1.0, FAILS, 3.0].map(|value| bench.batcher.run(picture(value, 8, 8), soon()));
    let (_, answers, ()) = tokio::join!(first, join_all(rest), bench.release_when_waiting(3));
    assert_eq!(answers[0].as_ref().unwrap().output, 1.0);
    assert!(matches!(answers[1], Err(Failure::Engine(_))));
    assert_eq!(answers[2].as_ref().unwrap().output, 3.0);
    assert!(bench.batcher.health().is_ready());
}

#[tokio::test]
async fn errors_that_do_not_end_take_a_worker_out_of_service() {
    let bench = bench(1, 1, 1000);
    bench.ready().await;
    bench.gate.add_permits(1000);
    let run = async |value| bench.batcher.run(picture(value, 8, 8), soon()).await;
    // Pictures that it cannot take, however many.
    for _ in 0..10 {
        assert!(matches!(run(FAILS).await, Err(Failure::Engine(_))));
    }
    assert!(run(5.0).await.is_ok() && bench.batcher.health().is_ready());
    for _ in 0..3 {
        assert!(matches!(run(BREAKS).await, Err(Failure::Engine(_))));
    }
    assert!(matches!(run(5.0).await, Err(Failure::WorkerLost)));
    assert_eq!((bench.batcher.health().lost, bench.batcher.health().is_ready()), (1, false));
}

#[tokio::test]
async fn a_lost_worker_shows_and_the_others_go_on() {
    let bench = bench(2, 1, 1000);
    bench.ready().await;
    bench.gate.add_permits(10);
    let fell = bench.batcher.run(picture(PANICS, 8, 8), soon()).await;
    assert!(matches!(fell, Err(Failure::WorkerLost)));
    assert_eq!(bench.batcher.run(picture(4.0, 8, 8), soon()).await.unwrap().output, 4.0);
    let health = bench.batcher.health();
    assert_eq!((health.lost, health.is_ready()), (1, false));
}

#[tokio::test]
async fn without_workers_callers_get_an_error() {
    let bench = bench(1, 1, 1000);
    let fell = bench.occupy(PANICS).await;
    let behind = bench.batcher.run(picture(1.0, 8, 8), soon());
    let (fell, behind, ()) = tokio::join!(fell, behind, bench.release_when_waiting(1));
    assert!(matches!(fell.unwrap(), Err(Failure::WorkerLost)));
    assert!(matches!(behind, Err(Failure::WorkerLost)));
    let later = bench.batcher.run(picture(1.0, 8, 8), soon()).await;
    assert!(matches!(later, Err(Failure::WorkerLost)));
}

#[tokio::test]
async fn many_at_once_each_get_their_own() {
    let bench = bench(3, 4, 1000);
    bench.gate.add_permits(1000);
    let answers = join_all((1..200).map(|i| {
        let side = 8 * (1 + i % 3);
        bench.batcher.run(picture(i as f32, side, 8), soon())
    }))
    .await;
    for (i, answer) in (1..200).zip(answers) {
        assert_eq!(answer.unwrap().output, i as f32);
    }
}

#[tokio::test]
async fn a_batch_with_room_waits_for_others_and_a_full_one_does_not() {
    let delay = Duration::from_secs(2);
    let bench = bench_of(2, Budget { pictures: 3, patches: 1000, patch_size: 8, delay });
    bench.ready().await;
    bench.gate.add_permits(1000);
    let run = async |value, after: u64, height| {
        tokio::time::sleep(Duration::from_millis(after)).await;
        bench.batcher.run(picture(value, height, 8), soon()).await.unwrap()
    };
    // The last fills the batch of its size; the one of another size, which came before them, has no picture to run with.
    let (other, first, second, third) = tokio::join!(run(4.0, 0, 16), run(1.0, 10, 8), run(2.0, 10, 8), run(3.0, 50, 8));
    for answer in [first, second, third] {
        assert_eq!(answer.batch, 3);
        assert!(answer.waited < delay, "a full batch waited for {:?}", answer.waited);
    }
    assert_eq!(other.batch, 1);
    assert!(other.waited >= delay && other.waited < 2 * delay, "waited for {:?}", other.waited);
}
