//! Small files that declare enormous pictures: refused at once, before memory is spent.
//!
//! A program of its own with one test, because it watches the memory of the whole process.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic, as tests may")]

use std::io::Cursor;
use std::time::{Duration, Instant};

use dino_vision::media::{self, DecodeError, Limits};
use tiff::encoder::TiffEncoder;
use tiff::encoder::colortype::Gray8;
use tiff::tags::Tag;

/// A BMP header and nothing else.
fn bmp(width: u32, height: u32) -> Vec<u8> {
    let mut file = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
    file.extend([width.to_le_bytes(), height.to_le_bytes()].concat());
    file.extend([1, 0, 24, 0]);
    file.resize(54, 0);
    file
}

/// A GIF with one frame of black.
fn gif(screen: u16, frame: u16) -> Vec<u8> {
    let mut file = b"GIF89a".to_vec();
    file.extend([screen.to_le_bytes(), screen.to_le_bytes()].concat());
    file.extend(b"\x80\0\0\0\0\0\xFF\xFF\xFF\x2C\0\0\0\0");
    file.extend([frame.to_le_bytes(), frame.to_le_bytes()].concat());
    file.extend(b"\0\x02\x02\x44\x01\0\x3B");
    file
}

fn chunk(kind: [u8; 4], data: &[u8]) -> Vec<u8> {
    let mut chunk = kind.to_vec();
    chunk.extend((data.len() as u32).to_le_bytes());
    chunk.extend(data);
    chunk.resize(chunk.len().next_multiple_of(2), 0);
    chunk
}

/// A WebP with a canvas and one lossless bitstream, inside an animation or not.
fn webp(canvas: u32, bitstream: u32, animated: bool) -> Vec<u8> {
    let side = |side: u32| (side - 1).to_le_bytes()[..3].to_vec();
    let flags = vec![if animated { 2 } else { 0 }, 0, 0, 0];
    let header = chunk(*b"VP8X", &[flags, side(canvas), side(canvas)].concat());
    let size = (bitstream - 1) | (bitstream - 1) << 14;
    let mut content = chunk(*b"VP8L", &[&[0x2F][..], &size.to_le_bytes(), &[0; 8]].concat());
    if animated {
        let frame = [vec![0; 6], side(canvas), side(canvas), vec![0; 4], content].concat();
        content = [chunk(*b"ANIM", &[0; 6]), chunk(*b"ANMF", &frame)].concat();
    }
    chunk(*b"RIFF", &[b"WEBP".to_vec(), header, content].concat())
}

/// A TIFF whose directory is changed behind the encoder's back.
fn tiff(change: &[(Tag, u32)]) -> Vec<u8> {
    let mut file = Cursor::new(Vec::new());
    let mut encoder = TiffEncoder::new(&mut file).unwrap();
    let mut page = encoder.new_image::<Gray8>(8, 8).unwrap();
    for (tag, value) in change {
        page.encoder().write_tag(*tag, *value).unwrap();
    }
    page.write_data(&[0; 64]).unwrap();
    file.into_inner()
}

/// A JPEG that has a frame header, an empty scan and its end.
fn jpeg(width: u16, height: u16) -> Vec<u8> {
    let mut file = b"\xFF\xD8\xFF\xC0\0\x0B\x08".to_vec();
    file.extend([height.to_be_bytes(), width.to_be_bytes()].concat());
    file.extend(b"\x01\x01\x11\0\xFF\xDA\0\x08\x01\x01\0\0\x3F\0\xFF\xD9");
    file
}

/// A TIFF whose list of strips has 8 million entries, which a decoder would keep in 32 bytes each.
fn tiff_with_many_strips() -> Vec<u8> {
    let mut file = tiff(&[]);
    let entry = file.windows(4).position(|bytes| bytes == [0x11, 1, 4, 0]).unwrap();
    file[entry + 4..entry + 12].copy_from_slice(&[8_000_000_u32.to_le_bytes(), 8_u32.to_le_bytes()].concat());
    file.resize(33_000_000, 1);
    file
}

/// A PNG of one pixel and much text.
fn png_with_text(length: usize) -> Vec<u8> {
    let mut png = Cursor::new(Vec::new());
    image::RgbImage::new(1, 1).write_to(&mut png, image::ImageFormat::Png).unwrap();
    let png = png.into_inner();
    let mut file = Vec::with_capacity(length + 200);
    file.extend_from_slice(&png[..33]);
    file.extend((length as u32).to_be_bytes());
    file.extend(b"tEXtComment\0");
    file.resize(33 + 8 + length, b'x');
    file.extend([0; 4]);
    file.extend_from_slice(&png[33..]);
    file
}

/// Most memory that this process ever held, in MB.
fn peak_memory() -> u64 {
    let status = fs_err::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

#[test]
fn bombs_are_refused_before_memory_is_spent() {
    let png = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/photos/odd/BAD_bomb_30000x30000.png");
    let bombs = [
        ("PNG", fs_err::read(png).unwrap()),
        ("BMP", bmp(30_000, 30_000)),
        ("GIF screen", gif(u16::MAX, 1)),
        ("GIF frame", gif(1, u16::MAX)),
        ("WebP canvas", webp(1 << 24, 1, false)),
        ("WebP bitstream", webp(1, 1 << 14, false)),
        ("WebP animation", webp(1, 1 << 14, true)),
        ("TIFF", tiff(&[(Tag::ImageWidth, 30_000), (Tag::ImageLength, 30_000)])),
        ("TIFF tile", tiff(&[(Tag::TileWidth, 30_000), (Tag::TileLength, 30_000)])),
        ("JPEG", jpeg(u16::MAX, u16::MAX)),
    ];
    // What stands behind a picture is refused for standing there, whatever it declares.
    let second_frame = [&jpeg(8, 8)[..25], &jpeg(u16::MAX, u16::MAX)[2..]].concat();
    let with_text = png_with_text(60 << 20);
    let many_strips = tiff_with_many_strips();
    let before = peak_memory();
    for (name, bomb) in bombs {
        let start = Instant::now();
        let error = media::decode(&bomb, &Limits::default()).unwrap_err();
        println!("{name}: {error}");
        assert!(matches!(error, DecodeError::TooManyPixels { .. } | DecodeError::SideTooLong { .. }), "{name}: {error}");
        assert!(start.elapsed() < Duration::from_secs(1), "{name}");
    }
    assert!(matches!(media::decode(&second_frame, &Limits::default()), Err(DecodeError::Corrupt { .. })));
    assert!(matches!(media::decode(&many_strips, &Limits::default()), Err(DecodeError::Corrupt { .. })));
    assert!(media::decode(&with_text, &Limits::default()).is_ok());
    let rise = peak_memory() - before;
    assert!(rise < 50, "memory rose by {rise} MB");
}
