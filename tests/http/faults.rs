//! Pictures that have brought other servers down.

use std::time::{Duration, Instant};

use crate::{
    harness::{Server, file},
    pictures::{noise, png, scene},
};

/// C01: a bad picture gets its own answer, and the pictures after it theirs, unchanged.
#[test]
fn a_bad_picture_harms_no_other() {
    let server = Server::start(&[]);
    let good: Vec<_> = (0..5).map(|seed| png(&scene(80, 60, seed))).collect();
    let before: Vec<_> = good.iter().map(|picture| server.embed(picture)).collect();
    let jpeg = file("photos/flower.jpg");
    let bad = [png(&noise(1, 1, 3)), jpeg[..jpeg.len() / 2].to_vec(), Vec::new(), png(&noise(1, 499, 4))];
    let expected = [200, 422, 422, 200];
    for (picture, status) in bad.iter().zip(expected) {
        assert_eq!(server.post("/embed", "image/png", picture).status, status);
        for (picture, before) in good.iter().zip(&before) {
            assert_eq!(&server.embed(picture), before);
        }
        assert_eq!(server.get("/readyz").status, 200);
    }
}

#[test]
fn the_first_bad_picture_of_many_is_named() {
    let server = Server::start(&[]);
    let good = png(&scene(80, 60, 1));
    let mixed = [good.clone(), good.clone(), b"no picture".to_vec(), Vec::new(), good];
    let problem = server.post_parts("/embed", &mixed).problem(422, "unknown_format");
    assert_eq!(problem["index"], 2);
    assert!(problem["detail"].as_str().unwrap().contains("picture 2"));
}

/// C09: what a few bytes declare is refused before memory is spent on it, in every format.
#[test]
fn bombs_cost_no_memory() {
    let server = Server::start(&["--sessions", "1"]);
    let good = png(&scene(80, 60, 1));
    let vector = server.embed(&good);
    let before = server.peak_memory();
    for (name, bomb, status) in bombs() {
        let began = Instant::now();
        let answer = server.post("/embed", "application/octet-stream", &bomb);
        assert_eq!(answer.status, status, "{name}: {}", answer.text());
        assert_eq!(answer.json()["index"], 0, "{name}");
        assert!(began.elapsed() < Duration::from_secs(1), "{name}");
    }
    let spent = server.peak_memory() - before;
    assert!(spent < 50 << 20, "{spent} bytes");
    assert_eq!(server.embed(&good), vector);
}

/// Files of a few bytes that declare far more than the 50 million pixels of the default limit.
fn bombs() -> Vec<(&'static str, Vec<u8>, u16)> {
    let hdr = b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 30000 +X 30000\n".to_vec();

    let mut bmp = b"BM".to_vec();
    bmp.extend([0; 8]);
    bmp.extend(54u32.to_le_bytes());
    bmp.extend(40u32.to_le_bytes());
    bmp.extend(30_000u32.to_le_bytes());
    bmp.extend(30_000u32.to_le_bytes());
    bmp.extend([1, 0, 24, 0]);
    bmp.extend([0; 24]);

    let mut gif = b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff".to_vec();
    gif.extend(b"\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0\x3b");

    // Little-endian, one directory: width, height, 8 bits, no compression, RGB.
    let mut tiff = b"II\x2a\0\x08\0\0\0".to_vec();
    let entries: [(u16, u16, u32); 9] = [
        (256, 4, 30_000),
        (257, 4, 30_000),
        (258, 3, 8),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 122),
        (277, 3, 1),
        (278, 4, 30_000),
        (279, 4, 900_000_000),
    ];
    tiff.extend((entries.len() as u16).to_le_bytes());
    for (tag, kind, value) in entries {
        tiff.extend(tag.to_le_bytes());
        tiff.extend(kind.to_le_bytes());
        tiff.extend(1u32.to_le_bytes());
        tiff.extend(value.to_le_bytes());
    }
    tiff.extend([0; 16]);

    // A canvas of 16384 x 16384, with an animation of one small frame missing.
    let mut webp = b"RIFF\x16\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0".to_vec();
    webp.extend([0xff, 0x3f, 0, 0xff, 0x3f, 0]);

    let bomb_png = file("photos/odd/BAD_bomb_30000x30000.png");
    let mut ico = b"\0\0\x01\0\x01\0\0\0\0\0\x01\0\x20\0".to_vec();
    ico.extend((bomb_png.len() as u32).to_le_bytes());
    ico.extend(22u32.to_le_bytes());
    ico.extend(&bomb_png);

    vec![
        ("hdr", hdr, 422),
        ("bmp", bmp, 413),
        ("gif", gif, 413),
        ("tiff", tiff, 413),
        ("webp", webp, 413),
        ("png", bomb_png, 413),
        ("ico", ico, 422),
    ]
}

/// C10: pictures cut anywhere, or with a byte changed, get 200 or 422, and no panic shows.
#[test]
fn damaged_pictures_are_answered_calmly() {
    let server = Server::start(&[]);
    let files = [
        ("baseline", file("photos/flower.jpg")),
        ("progressive", file("photos/odd/progressive.jpg")),
        // `photos/coffee.png` at 300 x 200, 4:2:0, a restart marker every 7 blocks.
        ("restart markers", file("data/restart.jpg")),
    ];
    let mut damaged = Vec::new();
    for (name, whole) in &files {
        assert_eq!(server.post("/embed", "image/jpeg", whole).status, 200, "{name}");
        for part in 0..32 {
            damaged.push((format!("{name} cut at {part}/32"), whole[..whole.len() * part / 32].to_vec(), true));
        }
        for part in 0..16 {
            let mut flipped = whole.clone();
            let position = whole.len() * (2 * part + 1) / 32;
            flipped[position] ^= 0x5a;
            damaged.push((format!("{name} changed at {position}"), flipped, false));
        }
    }
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let (server, damaged) = (&server, &damaged);
            scope.spawn(move || {
                for (name, bytes, cut) in damaged.iter().skip(worker).step_by(8) {
                    let answer = server.post("/embed", "image/jpeg", bytes);
                    // A cut file is refused, wherever it is cut; a changed byte may still be a picture.
                    let allowed: &[u16] = if *cut { &[422] } else { &[200, 422, 413] };
                    assert!(allowed.contains(&answer.status), "{name}: {} {}", answer.status, answer.text());
                }
            });
        }
    });
    assert_eq!(server.get("/readyz").status, 200);
    let log = server.log();
    assert!(!log.contains("panicked"), "{log}");
}
