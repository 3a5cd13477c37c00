//! Asks a server over and over on some connections at once, and prints one JSON line: what `make bench` drives every server with.
//!
//! `load URL --file PICTURE [--json NAME] --connections N --seconds S`

#![expect(clippy::print_stdout, reason = "the measurement is the output")]

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::Parser;

#[derive(Parser)]
struct Args {
    /// Where to
    url: String,
    /// Picture that every request sends
    #[arg(long)]
    file: PathBuf,
    /// Send it as base64 in the member of that name of a JSON object, instead of as it is
    #[arg(long)]
    json: Option<String>,
    /// Requests at once, each on a connection of its own
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// For how long
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let picture = fs_err::read(&args.file)?;
    let (kind, body) = match &args.json {
        Some(name) => ("application/json", serde_json::json!({ name: STANDARD.encode(&picture) }).to_string().into_bytes()),
        None => ("image/jpeg", picture),
    };
    let ask = |agent: &ureq::Agent| -> Result<u16> {
        let mut answer = agent.post(&args.url).header("content-type", kind).send(&body)?;
        answer.body_mut().read_to_vec()?;
        Ok(answer.status().as_u16())
    };
    let agent = || -> ureq::Agent { ureq::Agent::config_builder().http_status_as_error(false).build().into() };
    let status = ask(&agent()).context("the first request")?;
    ensure!(status == 200, "the first request was answered {status}");
    let began = Instant::now();
    let until = began + Duration::from_secs_f64(args.seconds);
    let each = || -> (Vec<f64>, usize) {
        let (agent, mut times, mut failed) = (agent(), Vec::new(), 0);
        loop {
            let asked = Instant::now();
            if asked >= until {
                return (times, failed);
            }
            match ask(&agent) {
                Ok(200) => times.push(asked.elapsed().as_secs_f64() * 1e3),
                _ => failed += 1,
            }
        }
    };
    let (mut times, mut failed) = (Vec::new(), 0);
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..args.connections).map(|_| scope.spawn(each)).collect();
        for thread in running {
            let (more, others) = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            times.extend(more);
            failed += others;
        }
    });
    ensure!(!times.is_empty(), "no request was answered");
    let seconds = began.elapsed().as_secs_f64();
    times.sort_by(f64::total_cmp);
    let quantile = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
    println!(
        "{}",
        serde_json::json!({
            "requests_per_second": times.len() as f64 / seconds,
            "p50_ms": quantile(0.5),
            "p99_ms": quantile(0.99),
            "failed": failed,
        })
    );
    Ok(())
}
