//! Every kind of picture that is offered, and what its metadata says.

use image::{
    DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat, RgbImage,
    codecs::{jpeg::JpegEncoder, png::PngEncoder, webp::WebPEncoder},
    imageops,
};

use crate::{
    harness::{Server, cosine, file, root},
    pictures::{encode, png, scene},
};

/// Each file of `tests/photos/odd` gets its embedding or, where its name says BAD, a 4xx that names the reason.
#[test]
fn odd_files_are_embedded_and_bad_ones_refused() {
    let server = Server::start(&[]);
    let good = png(&scene(40, 40, 2));
    let vector = server.embed(&good);
    let mut seen = 0;
    for entry in fs_err::read_dir(root().join("tests/photos/odd")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let answer = server.post("/embed", "application/octet-stream", &fs_err::read(&path).unwrap());
        if name.starts_with("BAD") {
            assert!((400..500).contains(&answer.status), "{name}: {}", answer.text());
            assert_eq!(answer.json()["index"], 0, "{name}");
        } else {
            let vectors = answer.ok().vectors();
            assert!(vectors[0].iter().all(|value| value.is_finite()), "{name}");
        }
        assert_eq!(server.embed(&good), vector, "after {name}");
        seen += 1;
    }
    assert!(seen >= 17, "only {seen} files");
}

/// The same picture in every format that loses nothing gets the same vector.
#[test]
fn formats_without_loss_agree() {
    let server = Server::start(&[]);
    let picture = scene(120, 90, 9);
    let vector = server.embed(&png(&picture));
    for format in [ImageFormat::Bmp, ImageFormat::Tiff, ImageFormat::WebP] {
        assert_eq!(server.embed(&encode(&picture, format)), vector, "{format:?}");
    }
}

/// C11: a CMYK picture looks the same with and without Adobe's marker, and as Pillow shows it.
#[test]
fn cmyk_is_seen_as_pillow_sees_it() {
    let server = Server::start(&[]);
    let with = file("photos/odd/cmyk.jpg");
    let marker = [0xff, 0xee, 0, 0x0e, b'A', b'd', b'o', b'b', b'e', 0, b'd', 0, 0, 0, 0, 0];
    let at = with.windows(16).position(|window| window == marker).expect("the marker is in the file");
    let without = [&with[..at], &with[at + 16..]].concat();
    let pillow = file("photos/odd_expected/cmyk.jpg.png");
    let seen = server.embed(&with);
    assert!(cosine(&seen, &server.embed(&without)) >= 0.999);
    // Pillow's pixels, brought to the model's size already: enlarging them again blurs a little.
    let expected = server.embed(&pillow);
    assert!(cosine(&seen, &expected) >= 0.99, "{}", cosine(&seen, &expected));
}

/// D08: a picture in Display P3 or Adobe RGB gets the vector that it has in sRGB, whatever format it comes in.
#[test]
fn colour_profiles_are_heeded_in_every_format() {
    let server = Server::start(&[]);
    let vector = server.embed(&file("data/colour/srgb.png"));
    for name in
        ["p3.png", "p3.jpg", "p3.webp", "p3.tif", "adobe.png", "adobe.jpg", "adobe.webp", "adobe.tif", "p3_cicp.png", "p3_gama_chrm.png"]
    {
        let seen = server.embed(&file(&format!("data/colour/{name}")));
        assert!(cosine(&seen, &vector) >= 0.999, "{name}: {}", cosine(&seen, &vector));
    }
}

/// D05: what stands behind a JPEG's end marker changes nothing.
#[test]
fn trailers_of_phones_are_not_looked_at() {
    let server = Server::start(&[]);
    for name in ["photos/flower.jpg", "photos/odd/progressive.jpg"] {
        let plain = file(name);
        let vector = server.embed(&plain);
        let video = b"MotionPhoto_Data\0\0\0\x18ftypmp42\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03";
        let sideways = tagged(&scene(40, 20, 3), 6, ImageFormat::Jpeg);
        for trailer in [video.as_slice(), &sideways, &[0; 1024]] {
            assert_eq!(server.embed(&[&plain, trailer].concat()), vector, "{name}");
        }
        let open = [&plain[..plain.len() - 2], video].concat();
        let answer = server.post("/embed", "image/jpeg", &open);
        answer.problem(422, "corrupt_picture");
        assert!(answer.text().contains("end marker is missing"), "{}", answer.text());
    }
}

/// What phones store beside JPEG is named, and what to do about it.
#[test]
fn heic_and_avif_are_named() {
    let server = Server::start(&[]);
    for (brand, name) in [("heic", "HEIC"), ("avif", "AVIF")] {
        let bytes = [b"\0\0\0\x18ftyp".as_slice(), brand.as_bytes(), b"\0\0\0\0mif1miaf", &[0; 200]].concat();
        let answer = server.post("/embed", "application/octet-stream", &bytes);
        answer.problem(422, "unknown_format");
        assert!(answer.text().contains(&format!("{name} is not read here; send JPEG")), "{}", answer.text());
    }
}

/// An orientation's EXIF block: one directory with one entry.
fn exif(orientation: u8) -> Vec<u8> {
    let mut block = b"II\x2a\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0".to_vec();
    block.extend([orientation, 0, 0, 0]);
    block.extend([0; 4]);
    block
}

/// The stored pixels that a viewer turns back into `upright` when it heeds the orientation.
fn stored(upright: &RgbImage, orientation: u8) -> RgbImage {
    match orientation {
        1 => upright.clone(),
        2 => imageops::flip_horizontal(upright),
        3 => imageops::rotate180(upright),
        4 => imageops::flip_vertical(upright),
        5 => imageops::flip_horizontal(&imageops::rotate90(upright)),
        6 => imageops::rotate270(upright),
        7 => imageops::flip_horizontal(&imageops::rotate270(upright)),
        8 => imageops::rotate90(upright),
        _ => unreachable!(),
    }
}

fn tagged(upright: &RgbImage, orientation: u8, format: ImageFormat) -> Vec<u8> {
    fn write(mut encoder: impl ImageEncoder, picture: &RgbImage, orientation: u8) {
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        encoder.write_image(picture, picture.width(), picture.height(), ExtendedColorType::Rgb8).unwrap();
    }
    let picture = stored(upright, orientation);
    let mut bytes = Vec::new();
    match format {
        ImageFormat::Jpeg => write(JpegEncoder::new_with_quality(&mut bytes, 97), &picture, orientation),
        ImageFormat::Png => write(PngEncoder::new(&mut bytes), &picture, orientation),
        _ => write(WebPEncoder::new_lossless(&mut bytes), &picture, orientation),
    }
    bytes
}

/// C13: all eight orientations, in every format that carries them, are seen upright.
#[test]
fn orientation_is_heeded_in_every_format() {
    let server = Server::start(&["--segment-size", "96"]);
    let whole = image::load_from_memory(&file("photos/coffee.png")).unwrap().into_rgb8();
    let upright = imageops::crop_imm(&whole, 0, 40, 512, 256).to_image();
    let vector = server.embed(&png(&upright));
    let sideways = DynamicImage::from(upright.clone()).rotate90().into_rgb8();
    assert!(cosine(&vector, &server.embed(&png(&sideways))) < 0.9999, "turning it would not be noticed");
    for format in [ImageFormat::Jpeg, ImageFormat::Png, ImageFormat::WebP] {
        for orientation in 1..=8 {
            let seen = server.embed(&tagged(&upright, orientation, format));
            if format == ImageFormat::Jpeg {
                assert!(cosine(&seen, &vector) >= 0.9995, "{format:?} {orientation}: {}", cosine(&seen, &vector));
            } else {
                assert_eq!(seen, vector, "{format:?} {orientation}");
            }
        }
    }
    let segment = |bytes: &[u8]| server.post("/segment?format=rle", "application/octet-stream", bytes).ok().json();
    let expected = segment(&png(&upright));
    assert_eq!((&expected["results"][0]["width"], &expected["results"][0]["height"]), (&512.into(), &256.into()));
    for orientation in [5, 7] {
        assert_eq!(segment(&tagged(&upright, orientation, ImageFormat::Png)), expected);
    }
}
