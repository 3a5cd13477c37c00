//! `dino-train train --processes N`: starts N processes of this program on this machine, and ends all if one fails.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Most processes of a machine.
pub(super) const MOST: u64 = 1024;
/// Pause between two looks at the processes.
const PAUSE: Duration = Duration::from_millis(50);
/// How long the others may take to end by themselves when one has failed.
const GRACE: Duration = Duration::from_secs(10);

/// The processes; those that still run are killed when it is dropped.
struct Processes(Vec<Child>);

impl Drop for Processes {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // It has ended already, or ends now.
            let _ = child.kill().and_then(|()| child.wait());
        }
    }
}

/// Runs this program with its own arguments `world` times, as ranks of one run, each with its share of the cores. Rank 0 has the
/// terminal; lines of the others are marked. `stop` is passed on as SIGTERM, once.
///
/// # Errors
/// When a process cannot be started, or one fails.
pub(super) fn run(world: usize, stop: &Arc<AtomicBool>) -> Result<()> {
    let program = std::env::current_exe().context("the program's own file")?;
    let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|l| l.local_addr()).context("a free port on loopback")?.port();
    let mut processes = Processes(Vec::with_capacity(world));
    let mut readers = Vec::new();
    for rank in 0..world {
        let mut command = Command::new(&program);
        command.args(std::env::args_os().skip(1));
        let (number, world, port) = (rank.to_string(), world.to_string(), port.to_string());
        command.envs([("RANK", number.as_str()), ("LOCAL_RANK", &number)]);
        command.envs([("WORLD_SIZE", world.as_str()), ("LOCAL_WORLD_SIZE", &world), ("MASTER_PORT", &port), ("MASTER_ADDR", "127.0.0.1")]);
        command.env_remove("TORCHELASTIC_USE_AGENT_STORE");
        // Ctrl-C comes to this process alone, which passes it on once.
        command.process_group(0).stdin(Stdio::null());
        if rank > 0 {
            command.stderr(Stdio::piped()).env("NO_COLOR", "1");
        }
        die_with_parent(&mut command);
        let mut child = command.spawn().with_context(|| format!("rank {rank} cannot be started"))?;
        if let Some(stderr) = child.stderr.take() {
            readers.push(thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    tracing::info!("rank {rank}: {line}");
                }
            }));
        }
        processes.0.push(child);
    }
    let result = wait(&mut processes.0, stop);
    drop(processes);
    for reader in readers {
        // It only copies lines.
        let _ = reader.join();
    }
    result
}

/// A launcher that is killed takes its processes with it: they are asked to save a checkpoint and end. The signal comes once for each thread
/// that ends, so it must be one that may come again.
#[cfg_attr(target_os = "linux", expect(unsafe_code, reason = "the standard library has no name for this between fork and exec"))]
fn die_with_parent(command: &mut Command) {
    #[cfg(target_os = "linux")]
    // SAFETY: prctl with PR_SET_PDEATHSIG only sets a number in the new process, and may be called between fork and exec.
    unsafe {
        command.pre_exec(|| {
            if libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGUSR1) == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
        });
    }
    #[cfg(not(target_os = "linux"))]
    let _ = command;
}

/// Waits for all. When one fails, the others get a while to notice by themselves.
fn wait(children: &mut [Child], stop: &AtomicBool) -> Result<()> {
    let mut ended: Vec<Option<ExitStatus>> = vec![None; children.len()];
    let mut failed: Option<(usize, Instant)> = None;
    let mut told = false;
    while ended.iter().any(Option::is_none) {
        if !told && stop.load(Ordering::Relaxed) {
            told = true;
            children.iter().for_each(terminate);
        }
        for (rank, (child, status)) in children.iter_mut().zip(&mut ended).enumerate() {
            if status.is_none() {
                *status = child.try_wait().with_context(|| format!("rank {rank}"))?;
                if status.is_some_and(|status| !status.success()) {
                    failed.get_or_insert((rank, Instant::now()));
                }
            }
        }
        if failed.is_some_and(|(_, when)| when.elapsed() > GRACE) {
            break;
        }
        thread::sleep(PAUSE);
    }
    let Some((first, _)) = failed else { return Ok(()) };
    // Several may have ended between two checks. One that was killed is the cause, and printed no error itself.
    let killed = ended.iter().enumerate().find_map(|(rank, status)| Some((rank, status.as_ref()?.signal()?)));
    match killed {
        Some((rank, signal)) => {
            bail!("rank {rank} was ended by signal {signal}, and the others with it: --resume goes on from the last checkpoint")
        }
        None => bail!("rank {first} failed, and the others ended with it: the messages above say why"),
    }
}

#[expect(unsafe_code, reason = "the standard library can only kill a child, not ask it to end")]
fn terminate(child: &Child) {
    // SAFETY: it sends a signal to a child that has not been waited for, so its number is still its own; the result does not matter.
    unsafe {
        libc::kill(child.id().cast_signed(), libc::SIGTERM);
    }
}
