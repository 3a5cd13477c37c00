//! The targets of the fuzzer with files of the tests, cut, flipped, overwritten, joined: short, and the same in every run.

use dino_fuzz::{answer, checkpoint, picture, request, seeds};
use dino_vision::media::{self, Limits};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// One of `seeds`, changed in a few places.
fn mutated(random: &mut StdRng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = seeds[random.random_range(0..seeds.len())].clone();
    for _ in 0..random.random_range(1..6) {
        if bytes.is_empty() {
            break;
        }
        // Heads decide most.
        let reach = if random.random_bool(0.5) { bytes.len().min(64) } else { bytes.len() };
        let at = random.random_range(0..reach);
        match random.random_range(0..7) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = [0, 1, 0x7f, 0x80, 0xff, b'"', b'{', b'-'][random.random_range(0..8)],
            2 => bytes.truncate(at),
            3 => {
                let end = (at + random.random_range(1..32)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let end = (at + random.random_range(1..32)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
            5 => {
                let number = [0u32, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 65_536][random.random_range(0..6)];
                let number = if random.random_bool(0.5) { number.to_le_bytes() } else { number.to_be_bytes() };
                for (place, byte) in bytes[at..].iter_mut().zip(number) {
                    *place = byte;
                }
            }
            _ => {
                let other = &seeds[random.random_range(0..seeds.len())];
                let from = random.random_range(0..=other.len());
                bytes.truncate(at);
                bytes.extend(&other[from..]);
            }
        }
    }
    bytes
}

fn attack(seeds: &[Vec<u8>], rounds: usize, target: fn(&[u8])) {
    for seed in seeds {
        target(seed);
    }
    let mut random = StdRng::seed_from_u64(12);
    for _ in 0..rounds {
        target(&mutated(&mut random, seeds));
    }
}

#[test]
fn pictures() {
    let seeds = seeds::pictures();
    for (format, begin) in
        [("PNG", &b"\x89PNG"[..]), ("JPEG", b"\xff\xd8"), ("GIF", b"GIF8"), ("BMP", b"BM"), ("TIFF", b"II*"), ("WebP", b"RIFF")]
    {
        let is_read = |seed: &Vec<u8>| seed.starts_with(begin) && media::decode(seed, &Limits::default()).is_ok();
        assert!(seeds.iter().any(is_read), "no good {format}");
    }
    attack(&seeds, 3_000, picture);
}

#[test]
fn checkpoints() {
    attack(&seeds::checkpoints(), 600, checkpoint);
}

#[test]
fn requests() {
    let seeds = seeds::requests();
    for (number, seed) in seeds.iter().enumerate() {
        let (status, body) = answer(seed);
        assert!((200..300).contains(&status), "seed {number}: {status} {}", String::from_utf8_lossy(&body));
    }
    attack(&seeds, 1_500, request);
}
