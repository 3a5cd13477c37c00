//! `GET /collections/{c}/duplicates`: copies, scenes, and the pages of both.

use std::fmt::Write;

use image::{DynamicImage, Rgb, RgbImage, imageops};
use serde_json::{Value, json};

use crate::{
    harness::{Server, file},
    pictures::png,
    place::{Place, on_every_store},
    postgres::{database, shared},
};

on_every_store!(
    copies_are_found_and_what_is_alike_is_no_copy,
    similar_items_are_groups_of_their_own_kind,
    pages_are_stable_and_bad_requests_have_a_reason,
    pages_go_on_with_the_answer_that_they_began_with,
    copies_come_back_from_a_snapshot_and_items_without_pixels_are_counted,
);

fn jpeg(picture: &RgbImage, quality: u8) -> Vec<u8> {
    let mut file = Vec::new();
    picture.write_with_encoder(image::codecs::jpeg::JpegEncoder::new_with_quality(&mut file, quality)).unwrap();
    file
}

fn photo(name: &str) -> RgbImage {
    image::load_from_memory(&file(&format!("photos/{name}"))).map(DynamicImage::into_rgb8).unwrap()
}

fn half(picture: &RgbImage) -> RgbImage {
    imageops::thumbnail(picture, picture.width() / 2, picture.height() / 2)
}

fn store(server: &Server, id: &str, kind: &str, picture: &[u8]) {
    server.post(&format!("/collections/c/items?id={id}&labels={}", &id[..1]), kind, picture).ok();
}

/// Two photos with copies, one of them brighter, and flat pictures.
fn fill(server: &Server) {
    let (cup, flower) = (photo("coffee.png"), photo("flower.jpg"));
    store(server, "cup-half", "image/jpeg", &jpeg(&half(&cup), 60));
    store(server, "cup", "image/png", &png(&cup));
    store(server, "cup-again", "image/jpeg", &jpeg(&cup, 60));
    store(server, "bright", "image/jpeg", &jpeg(&imageops::brighten(&cup, 40), 90));
    store(server, "flower", "image/jpeg", &file("photos/flower.jpg"));
    store(server, "flower-again", "image/jpeg", &file("photos/flower.jpg"));
    store(server, "flower-small", "image/png", &png(&half(&half(&flower))));
    for (number, value) in [255, 255, 0, 128].into_iter().enumerate() {
        let side = 60 + 10 * number as u32;
        store(server, &format!("page-{number}"), "image/png", &png(&RgbImage::from_pixel(side, side, Rgb([value; 3]))));
    }
}

fn groups(server: &Server, query: &str) -> Vec<Value> {
    server.get(&format!("/collections/c/duplicates?{query}")).ok().json()["groups"].as_array().unwrap().clone()
}

fn ids(group: &Value) -> Vec<&str> {
    group["items"].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap()).collect()
}

fn sorted_ids(group: &Value) -> Vec<&str> {
    let mut ids = ids(group);
    ids.sort_unstable();
    ids
}

fn copies_are_found_and_what_is_alike_is_no_copy(place: &Place) {
    let server = place.server(&[]);
    fill(&server);
    let answer = server.get("/collections/c/duplicates?same_pixels=true").ok().json();
    assert_eq!((&answer["collection"], &answer["count"], &answer["without_fingerprint"]), (&json!("c"), &json!(11), &json!(0)));
    assert_eq!((&answer["total"], &answer["next"]), (&json!(2), &Value::Null));
    let groups_of = answer["groups"].as_array().unwrap();
    // White pages are no copies of each other, nor of black ones.
    assert_eq!(
        groups_of.iter().map(sorted_ids).collect::<Vec<_>>(),
        [vec!["cup", "cup-again", "cup-half"], vec!["flower", "flower-again", "flower-small"],]
    );
    for group in groups_of {
        assert_eq!(group["kind"], "copy");
        let items = group["items"].as_array().unwrap();
        assert!(items.iter().all(|item| item["same_pixels"] == true), "{group:#}");
        assert!(items[0].get("copy_of").is_none() && items[1..].iter().all(|item| item["copy_of"] == items[0]["id"]), "{group:#}");
        assert!(items[1..].iter().all(|item| item["similarity"].as_f64() >= group["lowest_similarity"].as_f64()));
    }
    // The first has the most pixels, though another came before it.
    let cup = &groups_of[0]["items"];
    assert_eq!((&cup[0]["id"], &cup[0]["width"], &cup[0]["height"]), (&json!("cup"), &json!(600), &json!(400)));

    // With vectors the brighter one joins, and is told apart.
    let cup = json!({"or": [{"field": "label", "eq": "c"}, {"field": "label", "eq": "b"}]});
    let alike = groups(&server, &format!("min_similarity=0.5&filter={}", encoded(&cup)));
    assert_eq!((alike.len(), &alike[0]["kind"]), (1, &json!("similar")), "{alike:#?}");
    assert_eq!(sorted_ids(&alike[0]), ["bright", "cup", "cup-again", "cup-half"]);
    let items = alike[0]["items"].as_array().unwrap();
    let of = |id: &str| items.iter().find(|item| item["id"] == id).unwrap();
    // It is as large as the others, and the first by its id.
    assert_eq!(
        (&items[0]["id"], &of("cup-half")["same_pixels"], &of("cup-half")["copy_of"]),
        (&json!("bright"), &json!(false), &json!("cup"))
    );
    assert!(of("bright").get("copy_of").is_none());

    // A copy that is deleted is in no group, and its group goes with the last other one.
    assert_eq!(server.delete("/collections/c/items/cup-half").status, 204);
    assert_eq!(sorted_ids(&groups(&server, "same_pixels=true")[0]), ["cup", "cup-again"]);
    assert_eq!(server.delete("/collections/c/items/cup").status, 204);
    assert_eq!(groups(&server, "same_pixels=true").iter().map(|group| ids(group).len()).collect::<Vec<_>>(), [3]);
    // One that is replaced by something else, too.
    store(&server, "flower-small", "image/png", &png(&photo("chelsea.png")));
    assert_eq!(sorted_ids(&groups(&server, "same_pixels=true")[0]), ["flower", "flower-again"]);
}

fn encoded(filter: &Value) -> String {
    let mut text = String::new();
    for byte in filter.to_string().bytes() {
        write!(text, "%{byte:02X}").unwrap();
    }
    text
}

/// Items whose vectors lie at angles in a plane, in degrees.
fn at_angles(server: &Server, angles: &[(&str, f32)]) {
    let dim = server.get("/collections/c").json()["dim"].as_u64().unwrap() as usize;
    let item = |&(id, degrees): &(&str, f32)| {
        let mut vector = vec![0.0; dim];
        (vector[0], vector[1]) = (degrees.to_radians().cos(), degrees.to_radians().sin());
        json!({"id": id, "vector": vector, "labels": [&id[..1]]})
    };
    server.post_json("/collections/c/items", &json!({"items": angles.iter().map(item).collect::<Vec<_>>()})).ok();
}

fn similar_items_are_groups_of_their_own_kind(place: &Place) {
    let server = place.server(&[]);
    assert_eq!(
        server.get("/collections/c/duplicates").ok().json(),
        json!({
            "collection": "c", "count": 0, "without_fingerprint": 0, "total": 0, "groups": [], "next": null,
        })
    );
    // Neighbours of the chain are 10 degrees apart, its ends 30.
    at_angles(&server, &[("a1", 0.0), ("a2", 10.0), ("a3", 20.0), ("a4", 30.0), ("b1", 90.0), ("b2", 92.0), ("c", 180.0)]);
    let answer = server.get("/collections/c/duplicates?min_similarity=0.98").ok().json();
    assert_eq!((&answer["count"], &answer["without_fingerprint"]), (&json!(7), &json!(7)));
    let found = answer["groups"].as_array().unwrap();
    assert_eq!(found.iter().map(ids).collect::<Vec<_>>(), [vec!["a1", "a2", "a3", "a4"], vec!["b1", "b2"]]);
    for (group, degrees) in found.iter().zip([30.0_f64, 2.0]) {
        assert_eq!(group["kind"], "similar");
        let lowest = group["lowest_similarity"].as_f64().unwrap();
        assert!((lowest - degrees.to_radians().cos()).abs() < 0.002, "{lowest}");
        assert!(group["items"].as_array().unwrap()[1..].iter().all(|item| item["same_pixels"] == false && item.get("width").is_none()));
    }
    // More is asked for than the chain has, and of pixels nothing is known.
    assert_eq!(groups(&server, "min_similarity=0.99").iter().map(ids).collect::<Vec<_>>(), [vec!["b1", "b2"]]);
    assert_eq!(groups(&server, "same_pixels=true"), [] as [Value; 0]);
    let filter = encoded(&json!({"not": {"field": "id", "eq": "a2"}}));
    let without = groups(&server, &format!("min_similarity=0.98&filter={filter}"));
    assert_eq!(without.iter().map(ids).collect::<Vec<_>>(), [vec!["a3", "a4"], vec!["b1", "b2"]]);
}

/// Seven pairs of similar items, `0-0` and `0-1` and so on, 25 degrees apart.
fn seven_pairs(server: &Server) -> Vec<String> {
    let names: Vec<String> = (0..7).flat_map(|group| (0..2).map(move |item| format!("{group}-{item}"))).collect();
    let angle = |(at, id): (usize, &'_ String)| (id.clone(), 25.0 * (at / 2) as f32 + (at % 2) as f32);
    let angles: Vec<(String, f32)> = names.iter().enumerate().map(angle).collect();
    at_angles(server, &angles.iter().map(|(id, degrees)| (id.as_str(), *degrees)).collect::<Vec<_>>());
    names
}

fn pages_go_on_with_the_answer_that_they_began_with(place: &Place) {
    let server = place.server(&[]);
    seven_pairs(&server);
    let ask = |more: &str| server.get(&format!("/collections/c/duplicates?limit=3{more}"));
    let next = |page: &Value| format!("&cursor={}", page["next"].as_str().unwrap());
    let groups_of = |page: &Value| -> Vec<usize> { page["groups"].as_array().unwrap().iter().map(|group| ids(group).len()).collect() };
    let one = ask("").ok().json();
    at_angles(&server, &[("4-2", 100.5)]);
    // Another reader begins after the write.
    let other = ask("").ok().json();
    assert_eq!((&one["count"], &other["count"], &other["total"]), (&json!(14), &json!(15), &json!(7)));
    for (first, count, sizes) in [(&one, 14, [2, 2, 2]), (&other, 15, [2, 3, 2]), (&one, 14, [2, 2, 2])] {
        let second = ask(&next(first)).ok().json();
        assert_eq!((&second["count"], groups_of(&second)), (&json!(count), sizes.to_vec()), "{second:#}");
        let third = ask(&next(&second)).ok().json();
        assert_eq!((&third["count"], groups_of(&third), &third["next"]), (&json!(count), vec![2], &Value::Null));
    }
    // A cursor of no answer that is kept, or of one with other options.
    for more in ["&cursor=0123456789abcdef.2-0".to_owned(), format!("{}&same_pixels=true", next(&other))] {
        let problem = ask(&more).problem(400, "bad_parameter");
        assert!(problem["detail"].as_str().unwrap().contains("start again with the first page"), "{problem}");
    }
    let problem = ask("&cursor=2-0").problem(400, "bad_parameter");
    assert!(problem["detail"].as_str().unwrap().contains("none that a page has given"), "{problem}");
}

fn pages_are_stable_and_bad_requests_have_a_reason(place: &Place) {
    let server = place.server(&[]);
    let names = seven_pairs(&server);
    let page = |cursor: &str| server.get(&format!("/collections/c/duplicates?limit=3{cursor}")).ok().json();
    let (mut seen, mut cursor, mut sizes) = (Vec::new(), String::new(), Vec::new());
    loop {
        let answer = page(&cursor);
        assert_eq!(answer["total"], 7);
        let found = answer["groups"].as_array().unwrap();
        sizes.push(found.len());
        seen.extend(found.iter().flat_map(ids).map(str::to_owned));
        let Some(next) = answer["next"].as_str() else { break };
        // What is deleted meanwhile changes no page that follows.
        if sizes.len() == 1 {
            assert_eq!(server.delete("/collections/c/items/6-1").status, 204);
        }
        cursor = format!("&cursor={next}");
    }
    assert_eq!((sizes, seen), (vec![3, 3, 1], names));
    assert_eq!(page("")["total"], 6);

    for (query, word) in [
        ("min_similarity=0.4", "between 0.5 and 1"),
        ("min_similarity=NaN", "between 0.5 and 1"),
        ("limit=0", "between 1 and 1000"),
        ("limit=1001", "between 1 and 1000"),
        ("filter=%7B%7D", "filter"),
        ("threshold=1", "threshold"),
    ] {
        let problem = server.get(&format!("/collections/c/duplicates?{query}")).problem(400, "bad_parameter");
        assert!(problem["detail"].as_str().unwrap().contains(word), "{query}: {problem}");
    }
    server.get(&format!("/collections/c/duplicates?cursor={}", "x".repeat(600))).problem(400, "bad_parameter");
    server.get("/collections/none/duplicates").problem(404, "unknown_collection");
}

fn copies_come_back_from_a_snapshot_and_items_without_pixels_are_counted(place: &Place) {
    let server = place.server(&[]);
    fill(&server);
    at_angles(&server, &[("v1", 0.0), ("v2", 0.0)]);
    let before = groups(&server, "same_pixels=true");
    let snapshot = server.post("/collections/c/snapshot", "application/json", b"").ok().body.clone();
    assert_eq!(server.delete("/collections/c").status, 204);
    let restored = server.post("/collections/c/restore", "application/octet-stream", &snapshot);
    assert_eq!(restored.status, 201, "{}", restored.text());
    let after = server.get("/collections/c/duplicates?same_pixels=true").ok().json();
    assert_eq!((&after["groups"], &after["without_fingerprint"], &after["count"]), (&json!(before), &json!(2), &json!(13)));
    drop(server);
    let server = place.server(&[]);
    assert_eq!(groups(&server, "same_pixels=true"), before);
}

/// A database of the version before, in which there is nothing to know copies by but the files' hashes.
#[test]
fn a_database_of_an_earlier_version_is_brought_up_and_its_items_are_compared() {
    let url = database();
    let name = url.split(['/', '?']).find(|part| part.starts_with("test")).unwrap().to_owned();
    let place = Place::new(Some(url));
    let server = place.server(&[]);
    fill(&server);
    drop(server);
    let tables = shared().sql(&name, "SELECT number FROM dino_collections");
    let table = format!("dino_items_{}", tables.trim());
    shared().sql(
        &name,
        &format!(
            "ALTER TABLE {table} DROP COLUMN fingerprint; ALTER TABLE dino_collections DROP COLUMN parts, DROP COLUMN is_made; \
         DROP TABLE dino_arrangement, dino_leftovers; DELETE FROM dino_schema WHERE version >= 3"
        ),
    );
    for statement in ["", "ALTER TABLE {} DROP COLUMN fingerprint"] {
        // The second time as a table that an earlier version has made meanwhile.
        shared().sql(&name, &statement.replace("{}", &table));
        check_old(&place.server(&[]));
    }
    let server = place.server(&[]);
    // What is stored again has its pixels; what cannot be read counts as none.
    fill(&server);
    assert_eq!(groups(&server, "same_pixels=true").len(), 2);
    shared().sql(&name, &format!("UPDATE {table} SET fingerprint = '\\x0102' WHERE id LIKE 'cup%'"));
    let forged = server.get("/collections/c/duplicates?same_pixels=true").ok().json();
    assert_eq!((&forged["without_fingerprint"], &forged["total"]), (&json!(3), &json!(1)));
}

fn check_old(server: &Server) {
    let old = server.get("/collections/c/duplicates?same_pixels=true").ok().json();
    assert_eq!((&old["without_fingerprint"], &old["total"]), (&json!(11), &json!(1)), "{old:#}");
    assert_eq!(ids(&old["groups"][0]), ["flower", "flower-again"]);
    assert!(!groups(server, "min_similarity=0.5").is_empty());
}
