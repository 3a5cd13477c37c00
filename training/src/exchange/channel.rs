//! A connection between two processes of a run. Where the run has a secret, what is sent over it is encrypted, and comes from a process that
//! has the secret too.
//!
//! That is the Noise protocol (pattern `NNpsk0`, by the crate `snow`): both ends prove that they know the secret before anything else is
//! read, and messages that were changed, repeated or left out end the run.
//!
//! ```
//! use dino_train::exchange::channel::Secret;
//!
//! assert!(Secret::new("0123456789abcdef").is_ok());
//! assert!(Secret::new("secret").is_err(), "a secret that can be guessed is refused");
//! ```

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::TcpStream;
use std::sync::Arc;

use sha2::{Digest as _, Sha256};
use snow::{Builder, HandshakeState, TransportState};

/// The environment variable of a run's secret.
pub const SECRET: &str = "DINO_EXCHANGE_SECRET";
/// Fewest characters of a secret: a recorded greeting lets others try short ones out.
const SHORTEST: usize = 16;
const PATTERN: &str = "Noise_NNpsk0_25519_ChaChaPoly_BLAKE2s";
/// Both ends speak this version.
const PROLOGUE: &[u8] = b"dino-train exchange 1";
/// Most bytes of a message of the protocol, and what its signature takes of them.
const MESSAGE: usize = 65_535;
const TAG: usize = 16;
/// Bytes of either greeting: a key for this connection alone, and the signature.
const GREETING: usize = 32 + TAG;

/// What the processes of a run know, and no other.
#[derive(Clone)]
pub struct Secret([u8; 32]);

/// The secret itself is not shown.
impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// What `DINO_EXCHANGE_SECRET` says, where it is set.
    ///
    /// # Errors
    /// For fewer than 16 characters.
    pub fn from_environment() -> std::result::Result<Option<Self>, super::Error> {
        let Some(text) = std::env::var_os(SECRET).filter(|text| !text.is_empty()) else { return Ok(None) };
        let unreadable = |_| super::Error::Setting { name: SECRET, value: "not UTF-8".to_owned(), wanted: "text is wanted".to_owned() };
        Self::new(&text.into_string().map_err(unreadable)?).map(Some)
    }

    /// A secret of at least 16 characters.
    ///
    /// # Errors
    /// For fewer.
    pub fn new(text: &str) -> std::result::Result<Self, super::Error> {
        if text.chars().count() < SHORTEST {
            let wanted = format!("at least {SHORTEST} characters are wanted, for example of `openssl rand -hex 16`");
            return Err(super::Error::Setting { name: SECRET, value: "shorter".to_owned(), wanted });
        }
        Ok(Self(Sha256::digest(text.as_bytes()).into()))
    }
}

/// One end of a connection.
pub(super) struct Channel {
    stream: Arc<TcpStream>,
    noise: Option<Noise>,
}

struct Noise {
    state: TransportState,
    /// The last message that was received, and how much of it was read.
    message: Vec<u8>,
    read: usize,
    /// The message that is sent, as it goes over the network.
    sealed: Vec<u8>,
}

impl std::fmt::Debug for Channel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channel").field("stream", &self.stream).field("encrypted", &self.noise.is_some()).finish_non_exhaustive()
    }
}

impl Channel {
    /// The end that called.
    pub(super) fn called(stream: TcpStream, secret: Option<&Secret>) -> Result<Self> {
        let Some(secret) = secret else { return Ok(Self { stream: stream.into(), noise: None }) };
        let mut handshake = handshake(secret, Builder::build_initiator)?;
        greet(&stream, &mut handshake)?;
        let refused = |error: Error| {
            Error::new(error.kind(), format!("the other process refused the call ({error}): do all have the same {SECRET}?"))
        };
        let message = greeting(&stream).map_err(refused)?;
        handshake.read_message(&message, &mut [0; GREETING]).map_err(|_| refused(ErrorKind::InvalidData.into()))?;
        Self::after(stream, handshake)
    }

    /// The end that was called.
    pub(super) fn answered(stream: TcpStream, secret: Option<&Secret>) -> Result<Self> {
        let Some(secret) = secret else { return Ok(Self { stream: stream.into(), noise: None }) };
        let mut handshake = handshake(secret, Builder::build_responder)?;
        let message = greeting(&stream)?;
        let stranger = |_| Error::new(ErrorKind::InvalidData, format!("it has another {SECRET}, or none"));
        handshake.read_message(&message, &mut [0; GREETING]).map_err(stranger)?;
        greet(&stream, &mut handshake)?;
        Self::after(stream, handshake)
    }

    fn after(stream: TcpStream, handshake: HandshakeState) -> Result<Self> {
        let state = handshake.into_transport_mode().map_err(other)?;
        Ok(Self { stream: stream.into(), noise: Some(Noise { state, message: Vec::new(), read: 0, sealed: Vec::new() }) })
    }

    pub(super) fn stream(&self) -> &Arc<TcpStream> {
        &self.stream
    }
}

fn handshake<'a>(
    secret: &'a Secret,
    build: impl Fn(Builder<'a>) -> std::result::Result<HandshakeState, snow::Error>,
) -> Result<HandshakeState> {
    let builder = Builder::new(PATTERN.parse().map_err(other)?).prologue(PROLOGUE).and_then(|builder| builder.psk(0, &secret.0));
    builder.and_then(build).map_err(other)
}

fn other(error: snow::Error) -> Error {
    Error::other(error)
}

fn greet(stream: &TcpStream, handshake: &mut HandshakeState) -> Result<()> {
    let mut message = [0; GREETING];
    let length = handshake.write_message(&[], &mut message).map_err(other)?;
    send(stream, &message[..length])
}

/// The other end's greeting. A stranger may announce any length: others are not waited for.
fn greeting(mut stream: &TcpStream) -> Result<[u8; GREETING]> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    if usize::from(u16::from_be_bytes(length)) != GREETING {
        return Err(Error::new(ErrorKind::InvalidData, format!("it has another {SECRET}, or none")));
    }
    let mut message = [0; GREETING];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// A message with its length before it.
fn send(mut stream: &TcpStream, message: &[u8]) -> Result<()> {
    let length = u16::try_from(message.len()).map_err(Error::other)?;
    stream.write_all(&length.to_be_bytes())?;
    stream.write_all(message)
}

fn receive(mut stream: &TcpStream, into: &mut Vec<u8>) -> Result<()> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    into.resize(u16::from_be_bytes(length).into(), 0);
    stream.read_exact(into)
}

impl Read for Channel {
    fn read(&mut self, into: &mut [u8]) -> Result<usize> {
        let mut stream = &*self.stream;
        let Some(Noise { state, message, read, sealed }) = &mut self.noise else { return stream.read(into) };
        while *read == message.len() {
            receive(stream, sealed)?;
            message.resize(sealed.len(), 0);
            let opened = state.read_message(sealed, message);
            // Nothing of a message that was refused is read later.
            message.truncate(opened.as_ref().map_or(0, |length| *length));
            *read = 0;
            opened.map_err(|_| Error::new(ErrorKind::PermissionDenied, "a message was changed on its way"))?;
        }
        let length = into.len().min(message.len() - *read);
        into[..length].copy_from_slice(&message[*read..][..length]);
        *read += length;
        Ok(length)
    }
}

impl Write for Channel {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        let mut stream = &*self.stream;
        let Some(Noise { state, sealed, .. }) = &mut self.noise else { return stream.write(bytes) };
        let part = &bytes[..bytes.len().min(MESSAGE - TAG)];
        sealed.resize(part.len() + TAG, 0);
        let length = state.write_message(part, sealed).map_err(other)?;
        send(stream, &sealed[..length])?;
        Ok(part.len())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpListener};
    use std::thread;
    use std::time::Duration;

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let called = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let answered = listener.accept().unwrap().0;
        for stream in [&called, &answered] {
            stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        }
        (called, answered)
    }

    fn secret(text: &str) -> Secret {
        Secret::new(text).unwrap()
    }

    /// What both ends say of a meeting with these secrets.
    fn meet(first: Option<&str>, second: Option<&str>) -> (Result<Channel>, Result<Channel>) {
        let (called, answered) = pair();
        thread::scope(|scope| {
            let other = scope.spawn(|| Channel::answered(answered, second.map(secret).as_ref()));
            let first = Channel::called(called, first.map(secret).as_ref());
            (first, other.join().unwrap())
        })
    }

    #[test]
    fn what_is_sent_arrives_and_is_not_to_be_read_on_the_way() {
        let ask = "0123456789abcdef";
        for secret in [None, Some(ask)] {
            let (first, second) = meet(secret, secret);
            let (mut first, mut second) = (first.unwrap(), second.unwrap());
            let bytes: Vec<u8> = (0..300_000_u32).map(|i| ((i * 7919) >> 3) as u8).collect();
            let got = thread::scope(|scope| {
                scope.spawn(|| first.write_all(&bytes).unwrap());
                let mut got = vec![0; bytes.len()];
                second.read_exact(&mut got).unwrap();
                got
            });
            assert!(got == bytes);
        }
        let (first, second) = meet(Some(ask), Some(ask));
        let (mut first, second) = (first.unwrap(), second.unwrap());
        first.write_all(b"the weights of a run").unwrap();
        let mut seen = vec![0; 22 + TAG];
        (&*second.stream).read_exact(&mut seen).unwrap();
        assert!(!seen.windows(7).any(|window| window == b"weights"), "{seen:?}");
    }

    #[test]
    fn another_secret_is_refused_at_both_ends() {
        let (first, second) = meet(Some("0123456789abcdef"), Some("0123456789abcdeF"));
        let (first, second) = (first.unwrap_err().to_string(), second.unwrap_err().to_string());
        assert!(first.contains("do all have the same DINO_EXCHANGE_SECRET?"), "{first}");
        assert!(second.contains("another DINO_EXCHANGE_SECRET, or none"), "{second}");
    }

    #[test]
    fn a_message_that_was_changed_or_repeated_is_refused() {
        let ask = Some("0123456789abcdef");
        for change in [true, false] {
            let (first, second) = meet(ask, ask);
            let (mut first, mut second) = (first.unwrap(), second.unwrap());
            first.write_all(b"one").unwrap();
            let sealed = first.noise.as_mut().unwrap().sealed.clone();
            second.read_exact(&mut [0; 3]).unwrap();
            let mut again = sealed;
            if change {
                first.noise.as_mut().unwrap().state.write_message(b"two", &mut again).unwrap();
                again[1] ^= 1;
            }
            send(&first.stream, &again).unwrap();
            assert_eq!(second.read(&mut [0; 3]).unwrap_err().kind(), ErrorKind::PermissionDenied);
        }
    }

    #[test]
    fn short_secrets_are_refused_and_none_is_shown() {
        let said = Secret::new("short").unwrap_err().to_string();
        assert!(said.contains("at least 16 characters") && !said.contains("short\""), "{said}");
        assert_eq!(format!("{:?}", secret("0123456789abcdef")), "Secret");
    }
}
