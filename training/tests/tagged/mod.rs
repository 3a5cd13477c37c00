//! Pictures whose pixels are stored turned, with the tag that turns them back.
#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::path::Path;

use image::ImageEncoder as _;
use image::codecs::png::PngEncoder;
use image::metadata::Orientation;

/// Writes all PNG files of a folder anew, their pixels turned so that the EXIF `orientation` turns them back.
pub(crate) fn turn(folder: &Path, orientation: u8) {
    let mut exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    exif.extend([orientation, 0, 0, 0, 0, 0, 0, 0]);
    for entry in fs_err::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let mut picture = image::open(&path).unwrap();
        picture.apply_orientation(match Orientation::from_exif(orientation).unwrap() {
            Orientation::Rotate90 => Orientation::Rotate270,
            Orientation::Rotate270 => Orientation::Rotate90,
            own_inverse => own_inverse,
        });
        let mut file = Vec::new();
        let mut encoder = PngEncoder::new(&mut file);
        encoder.set_exif_metadata(exif.clone()).unwrap();
        picture.write_with_encoder(encoder).unwrap();
        fs_err::write(&path, file).unwrap();
    }
}
