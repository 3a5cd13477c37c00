//! `dino-server healthcheck`: what `curl --fail …/readyz` does, for images that hold no curl.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use anyhow::Context;
use dino_server::http::Listen;

/// Longest wait for each step: connecting, asking, and each part of the answer.
const TIMEOUT: Duration = Duration::from_secs(3);
/// Most of an answer that is read; the reason is in its first lines.
const MOST: u64 = 16 << 10;

/// Ask the server on this machine whether it is ready: exit code 0 if so, 1 if not.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Address that the server listens on, as it was told. A server that listens on every address is asked on loopback.
    #[arg(long, env = "DINO_LISTEN", default_value = "127.0.0.1:8080", value_name = "ADDRESS:PORT")]
    listen: Listen,
    /// What to ask for: /readyz (models answer), or /healthz (the process lives).
    #[arg(long, default_value = "/readyz", value_name = "PATH")]
    path: String,
}

#[expect(clippy::print_stdout, reason = "the result of the command")]
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    // The path goes into a request line as it is.
    anyhow::ensure!(
        args.path.starts_with('/') && args.path.bytes().all(|byte| byte.is_ascii_graphic()),
        "--path has to be one such as /readyz"
    );
    let mut outcome = Err(anyhow::anyhow!("no answer: {} has no address", args.listen));
    for address in args.listen.reachable()? {
        match ask(address, &args.path).with_context(|| format!("no answer from http://{address}")) {
            Ok(answer) => {
                outcome = Ok((address, answer));
                break;
            }
            Err(error) => outcome = Err(error),
        }
    }
    let (address, answer) = outcome?;
    anyhow::ensure!(answer.is_ok, "http://{address}{} answers {}", args.path, answer.text);
    println!("{}", answer.text);
    Ok(())
}

struct Answer {
    is_ok: bool,
    /// Status line and body, in one line.
    text: String,
}

/// One GET in HTTP/1.0: the server closes the connection after its answer, so that its end needs no parsing.
fn ask(address: SocketAddr, path: &str) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.take(MOST).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.lines().next().and_then(|line| line.split_once(' ')).map_or("no HTTP", |(_, status)| status);
    Ok(Answer { is_ok: status.starts_with('2'), text: format!("{status} {body}") })
}

#[cfg(test)]
mod tests {
    use std::{
        io::{BufRead, BufReader},
        net::{Ipv6Addr, TcpListener},
        thread,
    };

    use super::*;

    /// The outcome for a server that sends `answer` to whatever it is asked.
    fn outcome(answer: &'static str) -> anyhow::Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut request = BufReader::new(stream);
            let mut line = String::new();
            while request.read_line(&mut line).unwrap() > 2 {}
            request.get_mut().write_all(answer.as_bytes()).unwrap();
            line
        });
        // It is there in one of the families only.
        let listen =
            if TcpListener::bind((Ipv6Addr::LOCALHOST, port)).is_ok() { format!("[::]:{port}") } else { format!("0.0.0.0:{port}") };
        let outcome = run(&Args { listen: listen.parse().unwrap(), path: "/readyz".into() });
        assert!(server.join().unwrap().starts_with("GET /readyz HTTP/1.0\r\n"));
        outcome
    }

    #[test]
    fn only_a_2xx_is_healthy() {
        outcome("HTTP/1.0 200 OK\r\ncontent-length: 2\r\n\r\n{}").unwrap();
        let error = outcome("HTTP/1.0 503 Service Unavailable\r\n\r\n{\"code\":\"not_ready\"}").unwrap_err().to_string();
        assert!(error.contains("503 Service Unavailable {\"code\":\"not_ready\"}"), "{error}");
        assert!(outcome("").is_err());
        assert!(outcome("SSH-2.0-something\r\n").is_err());
    }

    #[test]
    fn without_a_server_the_check_fails() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let listen = listener.local_addr().unwrap().to_string().parse().unwrap();
        drop(listener);
        assert!(run(&Args { listen, path: "/readyz".into() }).unwrap_err().to_string().contains("no answer"));
    }

    #[test]
    fn a_path_cannot_carry_headers() {
        let listen: Listen = "127.0.0.1:1".parse().unwrap();
        for path in ["", "readyz", "/a b", "/a\r\nx: y"] {
            assert!(run(&Args { listen: listen.clone(), path: path.into() }).unwrap_err().to_string().contains("--path"), "{path:?}");
        }
    }
}
