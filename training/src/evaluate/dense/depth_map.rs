//! Depths as PNG files of 16 bits, as NYU and KITTI have them.
//!
//! ```
//! use dino_train::evaluate::dense::depth_map::read;
//! use image::{ImageBuffer, Luma};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("depth.png");
//! ImageBuffer::<Luma<u16>, _>::from_raw(2, 1, vec![1500_u16, 0]).unwrap().save(&path)?;
//! // Millimetres become metres; the second pixel is not known.
//! assert_eq!(read(&path, (2, 1), 1000.0)?, [1.5, 0.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::io::Cursor;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use dino_vision::bulk;
use dino_vision::media::{self, Limits};
use image::codecs::png::PngDecoder;
use image::{DynamicImage, ImageDecoder as _};

/// The depths of a picture of `size` (width, height), row by row: numbers of 16 bits divided by `scale`. 0 is not known.
///
/// # Errors
/// Names the file where it is no grey PNG of 16 bits and of this size.
pub fn read(path: &Path, size: (u32, u32), scale: f32) -> Result<Vec<f32>> {
    let read = || -> Result<Vec<f32>> {
        let bytes = bulk::read(path)?;
        let found = media::dimensions(&bytes, &Limits::default())?;
        ensure!(found == size, "the depths are of {} x {} pixels, their picture of {} x {}", found.0, found.1, size.0, size.1);
        let decoder = PngDecoder::new(Cursor::new(&bytes[..])).context("depths are PNG files")?;
        ensure!(decoder.total_bytes() <= 8 * Limits::MAX_PIXELS, "it is too large");
        let mut map = DynamicImage::from_decoder(decoder)?;
        // As its picture is seen.
        map.apply_orientation(media::orientation(&bytes)?);
        let DynamicImage::ImageLuma16(grey) = map else {
            bail!("depths are grey PNG files of 16 bits, whose numbers --depth-scale divides: this one is of another kind");
        };
        Ok(grey.into_raw().into_iter().map(|number| f32::from(number) / scale).collect())
    };
    read().with_context(|| path.display().to_string())
}
