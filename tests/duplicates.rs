//! Near-copies: what is a copy, how items are connected, and what that costs.

#![expect(clippy::unwrap_used, reason = "helpers of tests, as the tests themselves")]

use std::path::Path;

use dino_vision::{
    cancel,
    duplicates::{Candidate, Candidates, Fingerprint, Group, Kind, Options},
};
use image::{Rgb, RgbImage, codecs::jpeg::JpegEncoder, imageops};
use rand::{RngExt, SeedableRng, rngs::StdRng};

/// Bits of a hash.
const BITS: usize = 256;

fn decode(file: &[u8]) -> RgbImage {
    image::load_from_memory(file).unwrap().into_rgb8()
}

fn photo(name: &str) -> RgbImage {
    decode(&fs_err::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/photos").join(name)).unwrap())
}

fn jpeg(picture: &RgbImage, quality: u8) -> RgbImage {
    let mut file = Vec::new();
    picture.write_with_encoder(JpegEncoder::new_with_quality(&mut file, quality)).unwrap();
    decode(&file)
}

fn half(picture: &RgbImage) -> RgbImage {
    imageops::thumbnail(picture, picture.width() / 2, picture.height() / 2)
}

/// The bits of a hash, out of its stored form.
fn hash(fingerprint: &Fingerprint) -> Vec<u8> {
    fingerprint.to_bytes()[1..=BITS / 8].to_vec()
}

fn distance(a: &[u8], b: &[u8]) -> u32 {
    a.iter().zip(b).map(|(a, b)| (a ^ b).count_ones()).sum()
}

fn find(items: &Candidates, min_similarity: Option<f32>) -> Vec<Group> {
    items.compare(Options { min_similarity }, &|_| {}).unwrap().groups
}

fn ids(items: &Candidates, group: &Group) -> Vec<String> {
    group.members.iter().map(|member| items.id(member.item).to_owned()).collect()
}

#[test]
fn copies_are_known_and_other_pictures_are_not() {
    let photos: Vec<RgbImage> = ["astronaut.png", "chelsea.png", "china.jpg", "coffee.png", "flower.jpg", "rocket.jpg"].map(photo).into();
    let all: Vec<Fingerprint> = photos.iter().map(Fingerprint::of).collect();
    for (at, picture) in photos.iter().enumerate() {
        for copy in [jpeg(picture, 60), half(picture), jpeg(&half(picture), 60), half(&half(picture))] {
            let copy = Fingerprint::of(&copy);
            assert!(all[at].is_copy(&copy), "{at}: {} bits", distance(&hash(&all[at]), &hash(&copy)));
        }
        assert!(all.iter().enumerate().all(|(other, one)| other == at || !one.is_copy(&all[at])));
        let turned = Fingerprint::of(&imageops::flip_horizontal(picture));
        assert!(!turned.is_copy(&all[at]), "{at}");
    }
    // The same shapes in other colours.
    let mut other = photos[3].clone();
    other.pixels_mut().for_each(|pixel| pixel.0.swap(0, 2));
    assert!(!Fingerprint::of(&other).is_copy(&all[3]));
}

#[test]
fn the_hash_is_about_that_of_pdq() {
    // By pdqhash 0.2.7, the binding of Meta's own code, its bits from the last to the first.
    let pdq = [0xc79b_a7e2_3c82_99e0, 0x21a6_79f6_1eb6_e1f8, 0xb9a3_3866_c026_726c, 0x8c62_9e77_9a66_3698_u64];
    let pdq: Vec<u8> = pdq.iter().flat_map(|word| word.to_le_bytes()).collect();
    let distance = distance(&pdq, &hash(&Fingerprint::of(&photo("coffee.png"))));
    assert!(distance <= 16, "{distance}");
}

#[test]
fn flat_pictures_are_copies_of_the_same_bytes_alone() {
    let flat = |value: u8| Fingerprint::of(&RgbImage::from_pixel(300, 200, Rgb([value; 3])));
    let mut page = RgbImage::from_pixel(300, 200, Rgb([255; 3]));
    page.put_pixel(150, 100, Rgb([0; 3]));
    let all = [flat(255), flat(255), flat(0), Fingerprint::of(&page), Fingerprint::of(&RgbImage::new(1, 1))];
    assert!(all.iter().all(Fingerprint::is_flat));
    let mut items = Candidates::new(None);
    for (id, fingerprint) in ["a", "b", "c", "d", "e"].into_iter().zip(&all) {
        items.push(Candidate { id, fingerprint: Some(fingerprint), ..Candidate::default() });
    }
    assert_eq!(find(&items, None), []);
    for id in ["f", "g"] {
        items.push(Candidate { id, source: Some("hash"), fingerprint: Some(&all[0]), ..Candidate::default() });
    }
    let groups = find(&items, None);
    assert_eq!((groups.len(), groups[0].kind, ids(&items, &groups[0])), (1, Kind::Copy, vec!["f".to_owned(), "g".to_owned()]));
}

#[test]
fn stored_forms_are_read_back_and_others_are_not_read() {
    let fingerprint = Fingerprint::of(&photo("coffee.png"));
    let bytes = fingerprint.to_bytes();
    assert_eq!((Fingerprint::from_bytes(&bytes), bytes.len()), (Some(fingerprint), 89));
    for length in 0..bytes.len() {
        assert_eq!(Fingerprint::from_bytes(&bytes[..length]), None);
    }
    assert_eq!(Fingerprint::from_bytes(&[&bytes[..], &[0]].concat()), None);
    assert_eq!(Fingerprint::from_bytes(&[&[2], &bytes[1..]].concat()), None);
}

/// A fingerprint with a random hash, half of whose bits are set.
fn random_fingerprint(rng: &mut StdRng) -> Vec<u8> {
    let mut bytes = Fingerprint::of(&photo("coffee.png")).to_bytes();
    bytes[1..33].iter_mut().for_each(|byte| *byte = rng.random());
    bytes
}

#[test]
fn no_pair_of_near_hashes_is_missed() {
    let (mut rng, most) = (StdRng::seed_from_u64(1), Fingerprint::MOST_BITS as usize);
    let mut items = Candidates::new(None);
    for number in 0..300 {
        let mut bytes = random_fingerprint(&mut rng);
        // As many bits as copies differ in at most, and one more.
        for (copy, flips) in ["", "-near", "-far"].into_iter().zip([0, most, most + 1]) {
            let original = bytes.clone();
            for bit in rand::seq::index::sample(&mut rng, BITS, flips) {
                bytes[1 + bit / 8] ^= 1 << (bit % 8);
            }
            let fingerprint = Fingerprint::from_bytes(&bytes).unwrap();
            items.push(Candidate { id: &format!("{number}{copy}"), fingerprint: Some(&fingerprint), ..Candidate::default() });
            bytes = original;
        }
    }
    let groups = find(&items, None);
    assert_eq!(groups.len(), 300);
    assert!(groups.iter().all(|group| group.members.len() == 2 && ids(&items, group)[1].ends_with("-near")));
}

#[test]
fn groups_say_what_connects_them() {
    let picture = photo("coffee.png");
    let prints = [Fingerprint::of(&picture), Fingerprint::of(&half(&picture)), Fingerprint::of(&photo("flower.jpg"))];
    let mut items = Candidates::new(Some(2));
    let mut push = |id: &str, fingerprint: Option<&Fingerprint>, degrees: f32| {
        let vector = [degrees.to_radians().cos(), degrees.to_radians().sin()];
        items.push(Candidate { id, fingerprint, vector: &vector, ..Candidate::default() });
    };
    // The small copy comes first, and the large one is the first of its group.
    push("z-small", Some(&prints[1]), 0.5);
    push("z-large", Some(&prints[0]), 0.0);
    // A chain: neighbours are 10 degrees apart.
    for (number, degrees) in [(1, 90.0), (2, 100.0), (3, 110.0)] {
        push(&format!("chain{number}"), None, degrees);
    }
    push("alone", Some(&prints[2]), 200.0);
    // Two of one scene, one of which has a copy.
    push("scene-a", Some(&prints[2]), 300.0);
    push("scene-b", None, 305.0);
    let groups = find(&items, Some(0.98));
    let ids_of: Vec<Vec<String>> = groups.iter().map(|group| ids(&items, group)).collect();
    assert_eq!(ids_of, [vec!["alone", "scene-a", "scene-b"], vec!["chain1", "chain2", "chain3"], vec!["z-large", "z-small"]]);
    assert_eq!(groups.iter().map(|group| group.kind).collect::<Vec<_>>(), [Kind::Similar, Kind::Similar, Kind::Copy]);
    // Copies stay together whatever their vectors say.
    let [first, copy, similar] = &groups[0].members[..] else { panic!("{groups:?}") };
    assert_eq!((first.same_pixels, copy.same_pixels, copy.copy_of, similar.same_pixels), (true, true, Some(first.item), false));
    // The ends of a chain are less alike than was asked for.
    let lowest = groups[1].lowest_similarity.unwrap();
    assert!((lowest - 20_f32.to_radians().cos()).abs() < 0.002, "{lowest}");
    assert_eq!(groups[2].members[1].copy_of, Some(1));
    // Without the second stage there are copies alone.
    let groups = find(&items, None);
    assert_eq!(groups.iter().map(|group| ids(&items, group)).collect::<Vec<_>>(), [vec!["alone", "scene-a"], vec!["z-large", "z-small"]]);
}

/// 20,000 items in 40 clusters: 5 million pairs are similar, and memory holds a small part of them.
#[test]
fn pairs_are_counted_and_not_kept() {
    const DIM: usize = 16;
    let mut rng = StdRng::seed_from_u64(2);
    let centres: Vec<Vec<f32>> = (0..40).map(|_| (0..DIM).map(|_| rng.random::<f32>() - 0.5).collect()).collect();
    let mut items = Candidates::new(Some(DIM));
    for number in 0..20_000_usize {
        let vector: Vec<f32> = centres[number % 40].iter().map(|x| x + 0.001 * (rng.random::<f32>() - 0.5)).collect();
        items.push(Candidate { id: &format!("{number:05}"), vector: &vector, ..Candidate::default() });
    }
    let found = items.compare(Options { min_similarity: Some(0.99) }, &|_| {}).unwrap();
    assert_eq!((found.groups.len(), found.groups.iter().map(|group| group.members.len()).max()), (40, Some(500)));
    assert_eq!(found.pairs.found, 40 * 500 * 499 / 2);
    assert!(found.pairs.held <= 4 * items.len(), "{:?}", found.pairs);
}

#[test]
fn comparing_ends_with_its_request_and_says_how_far_it_is() {
    let mut items = Candidates::new(Some(2));
    for number in 0..3000_u16 {
        items.push(Candidate { id: &number.to_string(), vector: &[1.0, f32::from(number)], ..Candidate::default() });
    }
    let options = Options { min_similarity: Some(0.9) };
    let token = tokio_util::sync::CancellationToken::new();
    let seen = parking_lot::Mutex::new(Vec::new());
    items.compare(options, &|share| seen.lock().push(share)).unwrap();
    let seen = seen.into_inner();
    assert!(seen.is_sorted() && seen.len() == 4 && (seen[3] - 1.0).abs() < 1e-9, "{seen:?}");
    let cancelled = cancel::scope(token.clone(), || items.compare(options, &|_| token.cancel()));
    assert!(cancelled.is_err());
}
