//! Several processes, and several micro-batches, as one run.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod runs;

use std::path::{Path, PathBuf};
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use runs::{assert_same, checkpoints, command, let_it_work, log, losses, pictures, run, tensors, text};

const WHOLE: [&str; 2] = ["--batch-size", "8"];

fn succeeds(data: &Path, out: &Path, more: &[&str]) -> Output {
    let output = run(data, out, more);
    assert!(output.status.success(), "{}", text(&output));
    output
}

/// Processes that a process has started, with their ranks.
fn ranks(parent: u32) -> Vec<(usize, i32)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let Ok(process) = entry.file_name().to_string_lossy().parse::<i32>() else { continue };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        // The name in parentheses may hold anything; then follow the state and the parent.
        let parent_of = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse::<u32>().ok());
        let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
        let rank = environment.split(|byte| *byte == 0).find_map(|entry| entry.strip_prefix(b"RANK="));
        if let (Some(of), Some(rank)) = (parent_of, rank)
            && of == parent
        {
            found.push((String::from_utf8_lossy(rank).parse().unwrap(), process));
        }
    }
    found.sort_unstable();
    found
}

fn kill(process: i32, name: &str) {
    assert!(std::process::Command::new("kill").arg(format!("-{name}")).arg(process.to_string()).status().unwrap().success());
}

fn ends_within(mut child: Child, longest: Duration) -> Output {
    let started = Instant::now();
    while child.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < longest, "it hangs");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.wait_with_output().unwrap()
}

/// Two runs whose losses are not the same: what would make the comparisons of this file always true is seen.
fn assert_differ(a: &Path, b: &Path) {
    assert!(losses(a).iter().zip(losses(b)).any(|(a, b)| (a - b).abs() > 1e-3 * b.abs()));
}

#[test]
fn rotary_positions_are_changed_alike_in_all_processes_and_micro_batches() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    pictures(&data, 18);
    let rope = ["--pos-embed", "rope", "--rope-rescale-coords", "2", "--rope-shift-coords", "0.3", "--drop-path-rate", "0.2"];
    let with = |more: &[&'static str]| [&rope[..], more].concat();
    let whole = folder.path().join("whole");
    succeeds(&data, &whole, &with(&WHOLE));
    let out = folder.path().join("both");
    succeeds(&data, &out, &with(&["--processes", "2", "--accumulate", "2", "--batch-size", "2"]));
    assert_same(&out, &whole);
    let other = folder.path().join("unchanged");
    succeeds(&data, &other, &[&["--pos-embed", "rope", "--drop-path-rate", "0.2"][..], &WHOLE].concat());
    assert_ne!(losses(&other), losses(&whole), "they were changed");
}

#[test]
fn two_processes_with_half_the_batch_and_micro_batches_give_what_the_whole_batch_gives() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    // Two are left over in each epoch, others in each.
    pictures(&data, 18);
    let whole = folder.path().join("whole");
    succeeds(&data, &whole, &WHOLE);
    assert_eq!(losses(&whole).len(), 4);
    for (name, more) in [
        ("processes", &["--processes", "2", "--batch-size", "4"][..]),
        ("micro-batches", &["--accumulate", "4", "--batch-size", "2"]),
        ("both", &["--processes", "2", "--accumulate", "2", "--batch-size", "2"]),
    ] {
        let out = folder.path().join(name);
        let output = succeeds(&data, &out, more);
        assert_same(&out, &whole);
        assert_eq!(text(&output).matches("epoch 1 of 4").count(), 1, "one process tells how it goes: {}", text(&output));
    }
}

/// The run of one process, after holding that of two processes against it. Half the batch has other neighbours and another balance: the
/// comparison sees the difference.
fn over_all_processes(folder: &Path, parts: &[&str]) -> PathBuf {
    let data = folder.join("data");
    pictures(&data, 18);
    let run = |name: &str, more: &[&str]| {
        let out = folder.join(name);
        succeeds(&data, &out, &[more, parts].concat());
        out
    };
    let whole = run("whole", &WHOLE);
    assert_same(&run("processes", &["--processes", "2", "--batch-size", "4"]), &whole);
    assert_differ(&run("micro-batches", &["--accumulate", "2", "--batch-size", "4"]), &whole);
    whole
}

#[test]
fn balanced_outputs_and_features_apart_are_those_of_all_processes() {
    let folder = tempfile::tempdir().unwrap();
    let parts = ["--centering", "sinkhorn_knopp", "--sinkhorn-queue", "20", "--koleo-loss-weight", "0.1", "--stem", "conv"];
    let whole = over_all_processes(folder.path(), &parts);
    // The queue keeps some of the outputs of a step, and the same ones.
    let queue = |run: &Path| tensors(run, "queue")[0].1.clone();
    let (own, all) = (queue(&folder.path().join("processes")), queue(&whole));
    assert!(all.len() == 20 * 32 && own.iter().zip(&all).all(|(a, b)| (a - b).abs() < 1e-4), "{own:?}, not {all:?}");
}

#[test]
fn embeddings_are_spread_over_the_pictures_of_all_processes() {
    let folder = tempfile::tempdir().unwrap();
    // As below: the projector has batch norms.
    let parts = ["--method", "lejepa", "--optimizer", "sgd", "--lejepa-weight", "0.1", "--sigreg-slices", "64"];
    over_all_processes(folder.path(), &parts);
}

#[test]
fn masks_and_the_loss_of_patches_are_those_of_all_processes() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    pictures(&data, 18);
    for (centering, separate) in [("centering", "true"), ("sinkhorn_knopp", "true"), ("centering", "false")] {
        let run = |name: &str, more: &[&str]| {
            let out = folder.path().join(format!("{centering}-{separate}-{name}"));
            let parts = "--method dinov2 --koleo-loss-weight 0 --registers 2 --layer-scale 0.5 --centering";
            let parts: Vec<&str> = parts.split(' ').chain([centering, "--ibot-separate-head", separate]).collect();
            succeeds(&data, &out, &[more, &parts].concat());
            out
        };
        let whole = run("whole", &WHOLE);
        let two = ["--processes", "2", "--batch-size", "4"];
        // Some of eight have no masked patches.
        let eight = ["--processes", "8", "--batch-size", "1"];
        for (name, more) in [("two", two), ("eight", eight)] {
            let out = run(name, &more);
            assert_same(&out, &whole);
            let (own, all) = (tensors(&out, "ibot_center"), tensors(&whole, "ibot_center"));
            assert!(own[0].1.iter().zip(&all[0].1).all(|(a, b)| (a - b).abs() < 1e-4), "{own:?}, not {all:?}");
            assert_eq!(all[0].1.iter().any(|centre| *centre != 0.0), centering == "centering");
        }
    }
}

#[test]
fn patches_are_held_to_an_anchor() {
    let folder = tempfile::tempdir().unwrap();
    let (data, first) = (folder.path().join("data"), folder.path().join("first"));
    pictures(&data, 16);
    succeeds(&data, &first, &WHOLE);
    let anchor = checkpoints(&first).pop().unwrap();
    let held = |name: &str, weight: &str, more: &[&str]| {
        let out = folder.path().join(name);
        succeeds(&data, &out, &[&["--gram-loss-weight", weight, "--gram-anchor", anchor.to_str().unwrap()], more].concat());
        out
    };
    let (whole, processes) = (held("whole", "1", &WHOLE), held("processes", "1", &["--processes", "2", "--batch-size", "4"]));
    assert_same(&processes, &whole);
    // An anchor of the run itself, that sees larger crops.
    let own = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        let gram = ["--gram-loss-weight", "1", "--gram-update-epochs", "1", "--gram-crops-size", "48"];
        succeeds(&data, &out, &[&gram, more].concat());
        out
    };
    assert_same(&own("own-processes", &["--processes", "2", "--batch-size", "4"]), &own("own-whole", &WHOLE));
    let last = |out: &Path| {
        let log = std::fs::read_to_string(out.join("log.jsonl")).unwrap();
        serde_json::from_str::<serde_json::Value>(log.lines().last().unwrap()).unwrap()["gram"].as_f64().unwrap()
    };
    assert!(last(&held("strong", "100", &WHOLE)) / 100.0 < last(&whole), "a larger weight holds them closer");
    let alone = run(&data, &folder.path().join("alone"), &["--gram-loss-weight", "1"]);
    assert!(text(&alone).contains("--gram-anchor"), "{}", text(&alone));
}

#[test]
fn batch_norms_see_the_batch_of_all_processes() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    pictures(&data, 16);
    let run = |name: &str, more: &[&str]| {
        let out = folder.path().join(name);
        // Norms undo biases before them, whose gradients are truly zero: AdamW would make steps of their rounding noise.
        succeeds(&data, &out, &[more, &["--use-bn-in-head", "true", "--optimizer", "sgd"]].concat());
        out
    };
    let whole = run("whole", &WHOLE);
    let processes = run("processes", &["--processes", "2", "--batch-size", "4"]);
    assert_same(&processes, &whole);
    let statistics = |out: &Path| tensors(out, "teacher.head.mlp.1.running_var");
    assert_eq!(statistics(&whole).len(), 1);
    for (a, b) in statistics(&whole)[0].1.iter().zip(&statistics(&processes)[0].1) {
        assert!((a - b).abs() <= 1e-4 * b.abs(), "{a}, not {b}");
    }
    // Norms by half the batch are something else: the test sees the difference.
    let micro = run("micro-batches", &["--accumulate", "2", "--batch-size", "4"]);
    assert_differ(&micro, &whole);
}

#[test]
fn a_signal_to_one_process_stops_all_and_any_number_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    pictures(&data, 16);
    let epochs = ["--epochs", "40"];
    let whole = folder.path().join("whole");
    succeeds(&data, &whole, &[&epochs[..], &WHOLE].concat());
    let out = folder.path().join("stopped");
    let two = [&epochs[..], &["--processes", "2", "--batch-size", "4", "--resume"]].concat();
    let mut child = command(&data, &out, &two).spawn().unwrap();
    let_it_work(&mut child, &out, Duration::from_millis(50));
    let (_, second) = ranks(child.id())[1];
    kill(second, "TERM");
    let output = ends_within(child, Duration::from_mins(1));
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("stopped after"), "{}", text(&output));
    // The same pictures for each step on another number of processes; then on two again.
    let one = [&epochs[..], &WHOLE, &["--resume"]].concat();
    let mut child = command(&data, &out, &one).spawn().unwrap();
    let_it_work(&mut child, &out, Duration::from_millis(100));
    kill(child.id().cast_signed(), "KILL");
    child.wait().unwrap();
    succeeds(&data, &out, &two);
    assert_same(&out, &whole);
    let other = run(&data, &out, &[&epochs[..], &["--batch-size", "5", "--resume"]].concat());
    assert_eq!(other.status.code(), Some(1));
    assert!(text(&other).contains("--batch-size-per-gpu"), "{}", text(&other));
}

#[test]
fn a_process_that_is_killed_ends_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data, 24);
    let more = ["--epochs", "100000", "--warmup-epochs", "1", "--processes", "3", "--batch-size", "2"];
    let mut child = command(&data, &out, &more).spawn().unwrap();
    let_it_work(&mut child, &out, Duration::from_millis(50));
    let processes = ranks(child.id());
    assert_eq!(processes.iter().map(|(rank, _)| *rank).collect::<Vec<_>>(), [0, 1, 2]);
    kill(processes[1].1, "KILL");
    let output = ends_within(child, Duration::from_secs(40));
    let said = text(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("rank 1 was ended by signal 9") && said.contains("rank 1 has ended, so rank 2 ends too"), "{said}");
    for (rank, process) in processes {
        assert!(!Path::new("/proc").join(process.to_string()).exists(), "rank {rank} still runs");
    }
    assert!(!checkpoints(&out).is_empty());
}

#[test]
fn a_launcher_that_is_killed_leaves_a_checkpoint_and_no_processes() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data, 24);
    let mut child = command(&data, &out, &["--epochs", "100000", "--processes", "3", "--batch-size", "2"]).spawn().unwrap();
    let_it_work(&mut child, &out, Duration::from_millis(50));
    let processes = ranks(child.id());
    kill(child.id().cast_signed(), "KILL");
    // The first process still holds the other end of what it says.
    let output = child.wait_with_output().unwrap();
    assert!(text(&output).contains("stopped after"), "{}", text(&output));
    let started = Instant::now();
    let runs = |process: &i32| std::fs::read_to_string(format!("/proc/{process}/stat")).is_ok_and(|stat| !stat.contains(") Z "));
    while processes.iter().any(|(_, process)| runs(process)) {
        assert!(started.elapsed() < Duration::from_secs(20), "processes are left");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A port of one test, below those that systems choose for others: neither another test's process nor a connection has it.
fn port(test: u32) -> String {
    (20_000 + (4 * std::process::id() + test) % 10_000).to_string()
}

#[test]
fn processes_of_several_machines_take_their_secret_from_the_environment() {
    const SECRET: &str = "0123456789abcdef";
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data, 16);
    let port = port(1);
    let start = |rank: &str, address: &str, secret: Option<&str>| {
        let mut command = command(&data, &out, &["--epochs", "1", "--warmup-epochs", "0", "--exchange-minutes", "0.5"]);
        command.envs([("RANK", rank), ("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "1")]);
        command.envs([("MASTER_ADDR", address), ("MASTER_PORT", port.as_str())]);
        command.env_remove("DINO_EXCHANGE_SECRET").envs(secret.map(|secret| ("DINO_EXCHANGE_SECRET", secret)));
        command.stdout(Stdio::null()).spawn().unwrap()
    };
    let refused = |address: &str, secret: Option<&str>, named: &str| {
        let output = ends_within(start("1", address, secret), Duration::from_mins(1));
        assert!(output.status.code() == Some(1) && text(&output).contains(named), "{address}: {}", text(&output));
    };
    // Nothing is sent to this address.
    refused("192.0.2.7", None, "rank 0 is at 192.0.2.7, on another machine or open to others: set DINO_EXCHANGE_SECRET");
    refused("127.0.1.1", None, "set DINO_EXCHANGE_SECRET");
    refused("127.0.1.1", Some("short"), "at least 16 characters are wanted");

    // The first machine's own name is mapped to this address, as Debian does it.
    let first = start("0", "127.0.1.1", Some(SECRET));
    refused("127.0.1.1", Some("0123456789abcdeF"), "do all have the same DINO_EXCHANGE_SECRET?");
    let second = ends_within(start("1", "127.0.1.1", Some(SECRET)), Duration::from_mins(1));
    let first = ends_within(first, Duration::from_mins(1));
    let said = text(&first);
    assert!(first.status.success() && second.status.success(), "{said}{}", text(&second));
    assert!(said.contains("another DINO_EXCHANGE_SECRET, or none") && said.contains("on 2 processes"), "{said}");
}

#[test]
fn of_the_processes_of_any_launcher_the_first_tells_how_it_goes() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    pictures(&data, 16);
    let port = port(2);
    for (world, rank, on_machine) in [
        ("WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE"),
        ("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
        ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_STEP_TASKS_PER_NODE"),
    ] {
        let out = folder.path().join(world);
        let start = |number: &str| {
            let mut command = command(&data, &out, &["--epochs", "1", "--warmup-epochs", "0"]);
            command.envs([(world, "2"), (rank, number), (on_machine, "2"), ("MASTER_PORT", port.as_str())]);
            command.stdout(Stdio::null()).spawn().unwrap()
        };
        let started = ["0", "1"].map(start);
        let [first, second] = started.map(|child| ends_within(child, Duration::from_mins(1)));
        let (of_first, of_second) = (text(&first), text(&second));
        assert!(first.status.success() && second.status.success(), "{world}: {of_first}{of_second}");
        assert!(of_first.contains("on 2 processes") && !of_second.contains("on 2 processes"), "{world}: {of_second}");
    }
}

#[test]
fn processes_with_other_settings_are_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let (data, out) = (folder.path().join("data"), folder.path().join("run"));
    pictures(&data, 16);
    let port = port(0);
    let start = |rank: &str, more: &[&str]| {
        let mut command = command(&data, &out, more);
        command.envs([("RANK", rank), ("WORLD_SIZE", "2"), ("MASTER_PORT", &port)]).stdout(Stdio::null());
        command.spawn().unwrap()
    };
    let refused = |of_first: &[&str], of_second: &[&str]| {
        let (first, second) = (start("0", of_first), start("1", of_second));
        let (first, second) = (ends_within(first, Duration::from_mins(1)), ends_within(second, Duration::from_mins(1)));
        assert_eq!((first.status.code(), second.status.code()), (Some(1), Some(1)));
        assert!(text(&first).contains("rank 1 has ended"), "{}", text(&first));
        text(&second)
    };
    let said = refused(&["--lr", "0.02"], &["--lr", "0.03"]);
    assert!(said.contains("rank 1 has another --lr than rank 0"), "{said}");

    let [own, other] = ["own", "other"].map(|name| folder.path().join(name));
    classes(&own, 3);
    classes(&other, 4);
    let [own, other] = [&own, &other].map(|folder| folder.to_str().unwrap());
    let measured = |train| ["--knn-every", "1", "--knn-train", train, "--knn-val", own];
    let said = refused(&measured(own), &measured(other));
    assert!(said.contains("rank 1 sees other pictures for --knn-every than rank 0"), "{said}");
}

/// Pictures of three classes; one file of each is damaged.
fn classes(folder: &Path, each: u32) {
    for class in 0..3 {
        let folder = folder.join(format!("class-{class}"));
        pictures(&folder, each);
        std::fs::write(folder.join("broken.png"), "no picture").unwrap();
    }
}

/// More pictures than the first batches of three processes, so that some have none of the last.
#[test]
fn processes_share_the_k_nn_figures() {
    let folder = tempfile::tempdir().unwrap();
    let [data, train, val] = ["data", "train", "val"].map(|name| folder.path().join(name));
    pictures(&data, 12);
    classes(&train, 70);
    classes(&val, 30);
    let figures = |name: &str, processes: &str, batch: &str| {
        let out = folder.path().join(name);
        let [train, val] = [&train, &val].map(|folder| folder.to_str().unwrap());
        let measured = ["--epochs", "2", "--knn-every", "1", "--knn-train", train, "--knn-val", val];
        succeeds(&data, &out, &[&measured[..], &["--processes", processes, "--batch-size", batch]].concat());
        log(&out).iter().map(|line| line["knn"].clone()).collect::<Vec<_>>()
    };
    let alone = figures("alone", "1", "12");
    assert!(alone.len() == 2 && alone.iter().all(|knn| knn["pictures"] == 90), "{alone:?}");
    for (name, processes, batch) in [("two", "2", "6"), ("three", "3", "4")] {
        for (found, wanted) in figures(name, processes, batch).iter().zip(&alone) {
            assert_eq!(found["pictures"], wanted["pictures"]);
            for figure in ["top1", "mean_class"] {
                let [found, wanted] = [found, wanted].map(|knn| knn[figure].as_f64().unwrap());
                // A picture whose votes are nearly even may fall to either side.
                assert!((found - wanted).abs() <= 100.0 / 90.0 + 1e-9, "{name}: {figure} {found}, not {wanted}");
            }
        }
    }
}

/// Highest resident memory of a run in bytes.
fn peak(data: &Path, out: &Path, more: &[&str]) -> u64 {
    let mut child = command(data, out, more).spawn().unwrap();
    let mut highest = 0;
    while child.try_wait().unwrap().is_none() {
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        highest = highest.max(line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0));
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    highest << 10
}

#[test]
fn micro_batches_need_less_memory() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    pictures(&data, 64);
    let sizes = ["--dim", "48", "--patch-size", "4", "--depth", "6", "--epochs", "1", "--warmup-epochs", "0"];
    let whole = peak(&data, &folder.path().join("whole"), &[&sizes[..], &["--batch-size", "64"]].concat());
    let micro = peak(&data, &folder.path().join("micro"), &[&sizes[..], &["--batch-size", "4", "--accumulate", "16"]].concat());
    // What the program itself needs is in both.
    assert!(micro * 3 < whole * 2, "{micro} bytes, not well below {whole}");
    assert_same(&folder.path().join("micro"), &folder.path().join("whole"));
}
