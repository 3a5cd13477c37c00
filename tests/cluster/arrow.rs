//! The examples for Ray and Spark on a cluster of two workers on this machine. Processes are killed half-way, and the rows are those of one
//! process all the same.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use arrow_array::cast::AsArray;
use arrow_array::types::Float32Type;
use arrow_array::{Array, ArrayRef};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tempfile::TempDir;

use super::{PROGRAM, Rows, model, pictures, rows};

const PICTURES: usize = 500;
/// Bytes of answers after which a process is killed: some 80 of its 250 rows.
const ANSWERED: u64 = 20_000;
/// Longest that a cluster may take.
const LONGEST: Duration = Duration::from_mins(4);

/// Pictures, one file that is none, and what one process makes of them.
struct Job {
    folder: TempDir,
    wanted: Rows,
}

impl Job {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let images = folder.path().join("images");
        pictures(&images, PICTURES);
        fs_err::write(images.join("broken.png"), "no picture").unwrap();
        // By this name the processes of this test are told from others.
        symlink(PROGRAM, folder.path().join("dino-server")).unwrap();
        let alone = folder.path().join("alone/");
        let mut command = Command::new(PROGRAM);
        command.args(["embed", "--images"]).arg(&images).arg("--model").arg(model()).arg("--out").arg(format!("{}/", alone.display()));
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let wanted = rows(&alone);
        assert_eq!(wanted.len(), PICTURES);
        Self { folder, wanted }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Starts an example, with a home of its own.
    fn start(&self, mut command: Command, example: &str) -> Child {
        let log = fs_err::File::create(self.path("log")).unwrap().into_parts().0;
        command.arg(root().join("examples").join(example)).arg(self.path("images")).arg(self.path("out"));
        command.arg("--program").arg(self.path("dino-server")).arg("--model").arg(model()).args(["--rows", "32"]);
        command.env("HOME", self.folder.path()).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.spawn().unwrap()
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&fs_err::read(self.path("log")).unwrap()).into_owned()
    }

    /// Kills what `victim` says belongs to one of the run's programs, when that has answered a part of its rows.
    fn kill_half_way(&self, run: &mut Child, victim: impl Fn(u32) -> u32) {
        let begin = Instant::now();
        let program = self.path("dino-server").into_os_string().into_string().unwrap();
        loop {
            let is_half_way = |process: &u32| command_line(*process).starts_with(&program) && written(*process) > ANSWERED;
            if let Some(found) = processes().find(is_half_way) {
                let victim = victim(found);
                assert!(Command::new("kill").args(["-9", &victim.to_string()]).status().unwrap().success());
                while command_line(found).starts_with(&program) {
                    thread::sleep(Duration::from_millis(5));
                }
                return;
            }
            assert!(run.try_wait().unwrap().is_none(), "it ended before a process was half-way: {}", self.log());
            if begin.elapsed() > LONGEST {
                run.kill().unwrap();
                panic!("no process came half-way: {}", self.log());
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn has_every_row(&self, mut run: Child) {
        let begin = Instant::now();
        while run.try_wait().unwrap().is_none() {
            if begin.elapsed() > LONGEST {
                run.kill().unwrap();
                panic!("it does not end: {}", self.log());
            }
            thread::sleep(Duration::from_millis(100));
        }
        assert!(run.wait().unwrap().success(), "{}", self.log());
        let (mut found, mut failed) = (Rows::new(), Vec::new());
        for (path, vector, error) in answers(&self.path("out")) {
            let name = path.rsplit('/').next().unwrap().to_owned();
            match vector {
                Some(vector) => assert!(error.is_none() && found.insert(name.clone(), vector).is_none(), "{name} twice"),
                None => failed.push((name, error)),
            }
        }
        assert!(matches!(&failed[..], [(name, Some(_))] if name == "broken.png"), "{failed:?}");
        assert_eq!(found.len(), PICTURES);
        assert_eq!(found, self.wanted);
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A program of the environment that `tests/cluster/engines.sh` makes.
fn engine(name: &str) -> PathBuf {
    let path = root().join(".cache/engines/bin").join(name);
    assert!(path.exists(), "run tests/cluster/engines.sh .cache/engines first, as `make test-cluster` does");
    path
}

fn processes() -> impl Iterator<Item = u32> {
    fs_err::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// Empty of a process that has ended.
fn command_line(process: u32) -> String {
    String::from_utf8_lossy(&fs_err::read(format!("/proc/{process}/cmdline")).unwrap_or_default()).replace('\0', " ")
}

/// Bytes that a process has written.
fn written(process: u32) -> u64 {
    let counters = fs_err::read_to_string(format!("/proc/{process}/io")).unwrap_or_default();
    counters.lines().find_map(|line| line.strip_prefix("wchar: ")?.parse().ok()).unwrap_or(0)
}

fn parent(process: u32) -> u32 {
    let stat = fs_err::read_to_string(format!("/proc/{process}/stat")).unwrap();
    stat.rsplit(") ").next().unwrap().split(' ').nth(1).unwrap().parse().unwrap()
}

/// The nearest process above one whose command line has a word.
fn above(process: u32, word: &str) -> u32 {
    let mut above = parent(process);
    while !command_line(above).contains(word) {
        assert!(above > 1, "{word} is not above {process}");
        above = parent(above);
    }
    above
}

/// Path, vector and error of each row in the Parquet files of a folder.
fn answers(folder: &Path) -> Vec<(String, Option<Vec<f32>>, Option<String>)> {
    let mut rows = Vec::new();
    let files = fs_err::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    for file in files.filter(|path| path.extension().is_some_and(|ending| ending == "parquet")) {
        let batches = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file).unwrap()).unwrap().build().unwrap();
        for batch in batches.map(Result::unwrap) {
            let text = |name: &str| arrow_cast::cast(&batch[name], &arrow_schema::DataType::Utf8).unwrap();
            let (paths, errors) = (text("path"), text("error"));
            // Ray writes lists of fixed length, Spark others.
            let vectors = &batch["embedding"];
            let vector = |row: usize| -> ArrayRef {
                vectors.as_fixed_size_list_opt().map_or_else(|| vectors.as_list::<i32>().value(row), |lists| lists.value(row))
            };
            for (row, (path, error)) in paths.as_string::<i32>().iter().zip(errors.as_string::<i32>()).enumerate() {
                let vector = vectors.is_valid(row).then(|| vector(row).as_primitive::<Float32Type>().values().to_vec());
                rows.push((path.unwrap().to_owned(), vector, error.map(str::to_owned)));
            }
        }
    }
    rows
}

/// As docs/operations.md has it.
#[test]
fn a_pipe_of_the_shell_embeds_a_folder() {
    let job = Job::new();
    let commands = r#"
        set -e
        "$PYTHON" examples/arrow_stream.py "$FOLDER/images" | "$FOLDER/dino-server" embed --arrow - --model "$MODEL" >"$FOLDER/vectors.arrows"
        mkdir "$FOLDER/out"
        "$PYTHON" -c 'import sys, pyarrow.parquet
table = pyarrow.ipc.open_stream(sys.argv[1]).read_all()
pyarrow.parquet.write_table(table, sys.argv[2])' "$FOLDER/vectors.arrows" "$FOLDER/out/vectors.parquet""#;
    let mut command = Command::new("sh");
    command.args(["-c", commands]).env("PYTHON", engine("python")).env("FOLDER", job.folder.path()).env("MODEL", model());
    let log = fs_err::File::create(job.path("log")).unwrap().into_parts().0;
    let run = command.current_dir(root()).stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
    job.has_every_row(run);
}

#[test]
fn ray_loses_nothing_with_a_program_and_a_worker() {
    let job = Job::new();
    // Sockets have short names.
    let sessions = tempfile::Builder::new().prefix("ray").tempdir_in("/tmp").unwrap();
    let mut command = Command::new(engine("python"));
    command.arg(root().join("tests/cluster/ray_cluster.py")).arg(sessions.path()).env("RAY_USAGE_STATS_ENABLED", "0");
    let mut run = job.start(command, "ray_embed.py");
    job.kill_half_way(&mut run, |program| program);
    job.kill_half_way(&mut run, |program| above(program, "ray::"));
    job.has_every_row(run);
}

#[test]
fn spark_loses_nothing_with_a_worker() {
    let job = Job::new();
    // Spark keeps its workers' files in its own folder.
    let (home, spark) = (job.path("spark"), engine("python").with_file_name("find_spark_home.py"));
    let found = Command::new(engine("python")).arg(spark).output().unwrap();
    let installed = PathBuf::from(String::from_utf8(found.stdout).unwrap().trim());
    fs_err::create_dir(&home).unwrap();
    for entry in fs_err::read_dir(installed).unwrap().map(Result::unwrap).filter(|entry| entry.file_name() != "work") {
        symlink(entry.path(), home.join(entry.file_name())).unwrap();
    }
    let mut command = Command::new(home.join("bin/spark-submit"));
    command.args(["--master", "local-cluster[2,1,1024]", "--conf", "spark.ui.enabled=false"]);
    command.env("SPARK_HOME", &home).env("SPARK_LOCAL_IP", "127.0.0.1").env("PYSPARK_PYTHON", engine("python"));
    let mut run = job.start(command, "spark_embed.py");
    job.kill_half_way(&mut run, |program| above(program, "CoarseGrainedExecutorBackend"));
    job.has_every_row(run);
}
