//! Event files for `TensorBoard`, beside `log.jsonl`.
//!
//! Each start of the program opens a file of its own, whose first events tell `TensorBoard` to forget what earlier files said of later
//! steps: a resumed run has one curve. A file is a row of records (length, its checksum, an `Event` message of protobuf, its checksum).
//!
//! ```
//! use dino_train::{log::Log, show::events::Events};
//!
//! let run = tempfile::tempdir()?;
//! let line = &Log::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../models/demo").as_ref()).lines()?[0];
//! Events::create(run.path(), 0)?.append(line)?;
//! let file = std::fs::read_dir(run.path())?.next().unwrap()?;
//! assert!(file.file_name().to_string_lossy().contains("tfevents"));
//! assert!(std::fs::read(file.path())?.windows(10).any(|bytes| bytes == b"train/loss"));
//! # Ok::<(), anyhow::Error>(())
//! ```

use std::io::Write as _;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use serde_json::Value;

use crate::log::Line;
use dino_vision::protobuf::{key, message, varint_field};

/// An open event file.
#[derive(Debug)]
pub struct Events {
    file: fs_err::File,
}

impl Events {
    /// Opens a new file in a run's folder for the steps from `step` on.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn create(run: &Path, step: usize) -> Result<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // TensorBoard reads files in the order of their names, and knows them by the word `tfevents`.
        let path = run.join(format!("events.out.tfevents.{:013}.dino-train", now.as_millis()));
        let mut events = Self { file: fs_err::OpenOptions::new().create(true).append(true).open(path)? };
        events.write(&message(3, b"brain.Event:2"), 0)?;
        // `SessionLog` with the status START.
        events.write(&message(7, &varint_field(1, 1)), step)?;
        Ok(events)
    }

    /// Adds the numbers of an epoch, each as a scalar: `train/loss`, `knn/top1` and so on.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn append(&mut self, line: &Line) -> Result<()> {
        let mut summary = Vec::new();
        let Value::Object(fields) = serde_json::to_value(line)? else { return Ok(()) };
        for (name, value) in &fields {
            match value {
                Value::Object(inner) => inner.iter().for_each(|(part, value)| scalar(&mut summary, &format!("{name}/{part}"), value)),
                value if name != "step" => scalar(&mut summary, &format!("train/{name}"), value),
                _ => {}
            }
        }
        self.write(&message(5, &summary), line.step)
    }

    /// One record: an event that holds `content`, some encoded fields, at a step.
    fn write(&mut self, content: &[u8], step: usize) -> Result<()> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let mut event = key(1, 1);
        event.extend(now.to_le_bytes());
        event.extend(varint_field(2, step as u64));
        event.extend(content);
        let length = (event.len() as u64).to_le_bytes();
        let record = [&length[..], &checksum(&length), &event, &checksum(&event)].concat();
        // In one piece: a program that reads at the same time sees whole records.
        self.file.write_all(&record)?;
        Ok(())
    }
}

/// Adds a `Summary.Value` with a tag and a simple value, if it is a number.
fn scalar(summary: &mut Vec<u8>, tag: &str, value: &Value) {
    let Some(number) = value.as_f64() else { return };
    let mut content = message(1, tag.as_bytes());
    content.extend(key(2, 5));
    content.extend((number as f32).to_le_bytes());
    summary.extend(message(1, &content));
}

/// CRC-32C, masked as record files do it, so that a checksum of data that holds checksums stays sound.
fn checksum(bytes: &[u8]) -> [u8; 4] {
    const MASK: u32 = 0xa282_ead8;
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(MASK).to_le_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-32C bit by bit, from its polynomial.
    fn slow_crc(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0_u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 })
        })
    }

    fn masked(bytes: &[u8]) -> u32 {
        let crc = slow_crc(bytes);
        crc.rotate_right(15).wrapping_add(0xa282_ead8)
    }

    #[test]
    fn records_have_their_lengths_and_checksums() {
        // The check value of the polynomial.
        assert_eq!(slow_crc(b"123456789"), 0xe306_9283);
        let run = tempfile::tempdir().unwrap();
        let mut events = Events::create(run.path(), 7).unwrap();
        let line: Line = serde_json::from_value(serde_json::json!({
            "epoch": 1, "step": 300, "loss": 2.5, "ln_k": 4.0, "teacher_entropy": 2.0, "kl": 0.5, "lr": 0.1, "weight_decay": 0.0,
            "momentum": 0.9, "teacher_temp": 0.04, "images_per_second": 10.0, "seconds": 1.0, "broken_pictures": 0,
            "knn": {"k": 20, "top1": 50.0, "top5": 80.0, "mean_class": 40.0},
        }))
        .unwrap();
        events.append(&line).unwrap();
        let path = fs_err::read_dir(run.path()).unwrap().next().unwrap().unwrap().path();
        let bytes = fs_err::read(path).unwrap();
        let (mut rest, mut records) = (&bytes[..], Vec::new());
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(masked(&rest[..8]).to_le_bytes(), rest[8..12]);
            assert_eq!(masked(&rest[12..12 + length]).to_le_bytes(), rest[12 + length..16 + length]);
            records.push(&rest[12..12 + length]);
            rest = &rest[16 + length..];
        }
        let [version, start, scalars] = records[..] else { panic!("{} records", records.len()) };
        assert_eq!(&version[9..], b"\x10\0\x1a\x0dbrain.Event:2");
        assert_eq!(&start[9..], b"\x10\x07\x3a\x02\x08\x01");
        assert_eq!(&scalars[9..12], b"\x10\xac\x02", "step 300");
        let holds = |part: &[u8]| scalars.windows(part.len()).any(|window| window == part);
        assert!(holds(&[b"\x0a\x11\x0a\x0atrain/loss\x15", &2.5_f32.to_le_bytes()[..]].concat()));
        assert!(holds(&[b"\x0a\x08knn/top1\x15", &50.0_f32.to_le_bytes()[..]].concat()) && !holds(b"train/step"));
    }
}
