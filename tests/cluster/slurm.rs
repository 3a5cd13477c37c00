//! `--shard auto` in jobs of a real Slurm of one node.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::{PROGRAM, Rows, model, pictures, rows};

/// Longest that Slurm may take to be ready.
const START: Duration = Duration::from_secs(60);

/// Slurm's controller, its node and what they sign messages with.
struct Slurm {
    folder: TempDir,
    daemons: Vec<Child>,
}

impl Slurm {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let (controller, node) = (free_port(), free_port());
        for name in ["state", "spool"] {
            fs_err::create_dir(folder.path().join(name)).unwrap();
        }
        let key: Vec<u8> = (0..128).map(|at: u8| at.wrapping_mul(73) ^ std::process::id() as u8).collect();
        fs_err::write(folder.path().join("munge.key"), key).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o400);
        fs_err::set_permissions(folder.path().join("munge.key"), private).unwrap();
        let settings = format!(
            "ClusterName=test\nSlurmctldHost=localhost(127.0.0.1)\nSlurmctldPort={controller}\nSlurmdPort={node}\nSlurmUser=root\n\
             AuthType=auth/munge\nAuthInfo=socket={at}/munge.socket\nCredType=cred/munge\nProctrackType=proctrack/linuxproc\n\
             TaskPlugin=task/none\nSwitchType=switch/none\nMpiDefault=none\nReturnToService=2\nStateSaveLocation={at}/state\n\
             SlurmdSpoolDir={at}/spool\nSlurmctldPidFile={at}/slurmctld.pid\nSlurmdPidFile={at}/slurmd.pid\n\
             SlurmctldLogFile={at}/slurmctld.log\nSlurmdLogFile={at}/slurmd.log\nSelectType=select/cons_tres\nSelectTypeParameters=CR_Core\n\
             SchedulerParameters=batch_sched_delay=0,sched_interval=1\nSlurmdParameters=config_overrides\n\
             NodeName=localhost NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN\nPartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP\n"
        );
        fs_err::write(folder.path().join("slurm.conf"), settings).unwrap();
        let mut slurm = Self { folder, daemons: Vec::new() };
        let path = |name: &str| slurm.folder.path().join(name).display().to_string();
        let munge = ["socket", "key", "pid", "seed", "log"].map(|name| path(&format!("munge.{name}")));
        let [socket, key, pid, seed, log] = munge;
        let (settings, node_log) = (path("slurm.conf"), path("daemons.log"));
        let daemons: [(&str, Vec<String>); 3] = [
            (
                "munged",
                vec![
                    "--force".into(),
                    "--foreground".into(),
                    format!("--socket={socket}"),
                    format!("--key-file={key}"),
                    format!("--pid-file={pid}"),
                    format!("--seed-file={seed}"),
                    format!("--log-file={log}"),
                ],
            ),
            ("slurmctld", vec!["-D".into(), "-f".into(), settings.clone()]),
            ("slurmd", vec!["-D".into(), "-N".into(), "localhost".into(), "-f".into(), settings]),
        ];
        for (name, arguments) in daemons {
            let log = std::fs::OpenOptions::new().create(true).append(true).open(&node_log).unwrap();
            let mut command = Command::new(format!("/usr/sbin/{name}"));
            command.args(arguments).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
            let daemon = command.spawn().unwrap_or_else(|error| panic!("{name}: {error}: run `make test-cluster`, which installs it"));
            slurm.daemons.push(daemon);
            let began = Instant::now();
            while name == "munged" && !Path::new(&socket).exists() {
                assert!(began.elapsed() < START, "munged does not start");
                thread::sleep(Duration::from_millis(20));
            }
        }
        let began = Instant::now();
        while !String::from_utf8_lossy(&slurm.command("sinfo").args(["-h", "-o", "%T"]).output().unwrap().stdout).contains("idle") {
            let log = || fs_err::read_to_string(slurm.folder.path().join("slurmd.log")).unwrap_or_default();
            assert!(began.elapsed() < START, "Slurm does not start: {}", log());
            thread::sleep(Duration::from_millis(200));
        }
        slurm
    }

    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.env("SLURM_CONF", self.folder.path().join("slurm.conf"));
        command
    }

    /// Runs a job, and says what its parts wrote to their logs.
    fn run(&self, options: &[&str], script: &str) -> String {
        let logs = tempfile::tempdir_in(self.folder.path()).unwrap();
        let job = logs.path().join("job.sh");
        fs_err::write(&job, format!("#!/bin/sh\nset -e\n{script}\n")).unwrap();
        let mut command = self.command("sbatch");
        command.arg("--wait").arg("-o").arg(logs.path().join("log-%a")).args(options).arg(&job);
        let output = command.output().unwrap();
        let logs = fs_err::read_dir(logs.path()).unwrap().map(|entry| entry.unwrap().path()).filter(|path| *path != job);
        let logs: String = logs.map(|path| fs_err::read_to_string(path).unwrap()).collect();
        assert!(output.status.success(), "{}{logs}", String::from_utf8_lossy(&output.stderr));
        logs
    }
}

impl Drop for Slurm {
    fn drop(&mut self) {
        for daemon in self.daemons.iter_mut().rev() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn jobs_and_tasks_of_slurm_take_their_parts() {
    let folder = tempfile::tempdir().unwrap();
    let images = folder.path().join("images");
    pictures(&images, 30);
    let embed = |into: &str| {
        format!(
            "{PROGRAM} embed --images {} --model {} --sessions 1 --shard auto --out {}/",
            images.display(),
            model().display(),
            folder.path().join(into).display()
        )
    };
    let alone = Command::new("sh").arg("-c").arg(embed("alone").replace("--shard auto", "")).output().unwrap();
    assert!(alone.status.success(), "{}", String::from_utf8_lossy(&alone.stderr));
    let wanted: Rows = rows(&folder.path().join("alone"));
    assert_eq!(wanted.len(), 30);
    let is_whole = |into: &str| {
        let folder = folder.path().join(into);
        assert!(folder.join("_SUCCESS").exists(), "{into}");
        assert_eq!(rows(&folder), wanted, "{into}");
    };

    let slurm = Slurm::start();
    slurm.run(&["--array=1-3"], &embed("array"));
    is_whole("array");
    // Two jobs of two tasks each.
    slurm.run(&["--array=0-1", "--ntasks=2"], &format!("srun --ntasks=2 {}", embed("tasks")));
    is_whole("tasks");
    // The script itself is no task, and a single job no part.
    let logs = slurm.run(&["--ntasks=2"], &format!("{} || true", embed("none")));
    assert!(logs.contains("start it with srun"), "{logs}");
    assert!(!folder.path().join("none").exists());
}
