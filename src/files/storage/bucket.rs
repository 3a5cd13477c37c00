//! A prefix of an object storage.

use std::collections::BTreeSet;
use std::io::{self, ErrorKind, Write};

use bytes::Bytes;

use super::{Lock, Output, Storage};
use crate::files::objects::{Place, Upload};

/// Bytes that are sent at once: 10,000 pieces, the most that S3 takes, make 160 GB.
const PIECE: usize = 16 << 20;

/// A prefix.
pub struct Bucket(Place);

impl Bucket {
    /// The prefix at `place`.
    pub fn new(place: Place) -> Self {
        Self(place)
    }
}

impl Storage for Bucket {
    fn shown(&self, name: &str) -> String {
        self.0.join(name).url().to_owned()
    }

    fn prepare(&self) -> io::Result<()> {
        Ok(())
    }

    fn names(&self, folder: &str) -> io::Result<BTreeSet<String>> {
        let place = if folder.is_empty() { self.0.clone() } else { self.0.join(folder) };
        place.names()
    }

    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        match self.0.join(name).read(u64::MAX) {
            Ok(Ok(bytes)) => Ok(Some(bytes.into())),
            Ok(Err(size)) => Err(io::Error::new(ErrorKind::FileTooLarge, format!("it has {size} bytes"))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn tail(&self, name: &str, len: u64) -> io::Result<Option<(Vec<u8>, u64)>> {
        Ok(self.0.join(name).tail(len)?.map(|(bytes, size)| (bytes.into(), size)))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.0.join(name).write(Bytes::copy_from_slice(bytes))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn Output>> {
        Ok(Box::new(Object { place: self.0.join(name), upload: None, piece: Vec::new() }))
    }

    fn delete(&self, name: &str) -> io::Result<()> {
        self.0.join(name).delete()
    }

    fn remove(&self, folder: &str) -> io::Result<()> {
        self.0.join(folder).list()?.into_iter().try_for_each(|(_, place)| place.delete())
    }

    /// None: object storage has no locks. Two processes at the same file write the same bytes.
    fn lock(&self, _folder: &str) -> io::Result<Option<Lock>> {
        Ok(None)
    }
}

struct Object {
    place: Place,
    /// Begun with the second piece.
    upload: Option<Upload>,
    piece: Vec<u8>,
}

impl Object {
    fn send(&mut self) -> io::Result<()> {
        let upload = match &mut self.upload {
            Some(upload) => upload,
            none => none.insert(self.place.upload()?),
        };
        upload.put(std::mem::take(&mut self.piece).into())
    }
}

impl Write for Object {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.piece.len() >= PIECE {
            self.send()?;
        }
        let now = bytes.len().min(PIECE - self.piece.len());
        self.piece.extend(&bytes[..now]);
        Ok(now)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Output for Object {
    fn finish(mut self: Box<Self>) -> io::Result<()> {
        if self.upload.is_none() {
            return self.place.write(std::mem::take(&mut self.piece).into());
        }
        self.send()?;
        self.upload.take().map_or(Ok(()), Upload::complete)
    }
}
