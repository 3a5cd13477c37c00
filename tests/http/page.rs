//! The page at `/`: its files over HTTP, and what a visitor does, in a browser.

use std::path::PathBuf;

use dino_vision::segment::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    browser::visit,
    harness::{Server, file, root},
    pictures::{noise, png, scene},
};

const KEY: &str = "a-key-of-the-browser-tests";
/// The keys of keyboards, as drivers name them.
const ENTER: &str = "\u{E007}";
const RIGHT: &str = "\u{E014}";
const DOWN: &str = "\u{E015}";

/// A server whose collection `default` holds a few pictures of each of some classes; those of the last one are stored without a picture.
pub(crate) fn with_collection(flags: &[&str]) -> (Server, TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut all = vec!["--data-dir", folder.path().to_str().unwrap(), "--segment-size", "160"];
    all.extend(flags);
    let server = Server::start(&all);
    assert_eq!(server.put("/collections/default", &json!({})).status, 201);
    let classes = ["Motorbikes", "ketch", "minaret"];
    for class in classes {
        let picture = image::load_from_memory(&file(&format!("data/caltech101-val/{class}/{}", first_in(class)))).unwrap().into_rgb8();
        for turn in 0..3 {
            let crop = image::imageops::crop_imm(&picture, turn * 9, turn * 5, 90, 90).to_image();
            let path = format!("/collections/default/items?id={class}/{turn}.jpg&labels={class}");
            server.post(&path, "image/png", &png(&crop)).ok();
        }
    }
    let vector = server.embed(&png(&scene(60, 60, 2)));
    server.post_json("/collections/default/items", &json!({"items": [{"id": "bare", "vector": vector, "labels": ["bare"]}]})).ok();
    (server, folder)
}

fn first_in(class: &str) -> String {
    let folder = root().join("tests/data/caltech101-val").join(class);
    let entry = fs_err::read_dir(folder).unwrap().next().unwrap().unwrap();
    entry.file_name().into_string().unwrap()
}

#[test]
fn files_of_the_page_are_sent_once_and_need_no_key() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    fs_err::write(&keys, format!("page {KEY} full")).unwrap();
    let server = Server::start(&["--api-keys-file", keys.to_str().unwrap()]);
    for (path, kind) in
        [("/", "text/html; charset=utf-8"), ("/page/app.js", "text/javascript; charset=utf-8"), ("/page/rocket.jpg", "image/jpeg")]
    {
        let answer = server.get(path);
        assert_eq!(answer.ok().header("content-type"), kind);
        assert!(answer.header("content-security-policy").starts_with("default-src 'none'; script-src 'self';"));
        let again = server.get_with(path, &[("if-none-match", answer.header("etag"))]);
        assert_eq!((again.status, again.body.len()), (304, 0));
        assert_eq!(server.get_with(path, &[("if-none-match", "\"other\"")]).ok().body, answer.body);
    }
    server.get("/page/..%2fhttp%2fmod.rs").problem(404, "unknown_route");
    server.get("/page/none.js").problem(404, "unknown_route");
    assert_eq!(server.get("/healthz").json()["api_keys"], true);
}

#[test]
fn the_first_look_shows_outline_vote_and_neighbours() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], |page| {
        page.is_settled();
        // Nine have a thumbnail, and it is loaded; the tenth is named.
        page.until("document.querySelectorAll('#neighbours li').length == 9");
        page.until("[...document.querySelectorAll('#neighbours img')].filter(image => image.naturalWidth > 0).length == 9");
        assert!(page.text("bare-neighbours").contains("without a picture: bare 0."), "{}", page.text("bare-neighbours"));
        assert_eq!(page.value("document.querySelectorAll('#classes meter').length"), 4);
        assert_eq!(page.text("vote-note"), "The vote of the 10 most similar of 10 pictures.");
        // What is said of the demo model is said of no other.
        assert_eq!(page.value("document.getElementById('demo-note').hidden"), true);
        assert!(page.text("outline-note").contains("of the picture"));

        // The mask is laid over the picture anew with each option. The model's own choice has no threshold.
        assert_eq!(
            page.value("[document.getElementById('method').value, document.getElementById('threshold-row').hidden]"),
            json!(["", true])
        );
        assert!(page.text("method-note").starts_with("The method shows where the network looks."));
        page.redraws("canvas", || page.set("method", "background"));
        page.redraws("canvas", || page.set("threshold", "0.9"));
        assert_eq!(page.text("kept"), "0.9");
        page.redraws("canvas", || page.set("method", "attention"));
        assert_eq!((page.text("meaning").as_str(), page.text("kept").as_str()), ("Share of attention kept", "0.6"));
        page.click("#options summary");
        page.redraws("canvas", || page.click("#refine"));
        page.redraws("canvas", || page.set("objects", "5"));
        // Attention is chosen already.
        for method in Method::ALL.into_iter().map(Method::name).filter(|name| *name != "attention") {
            page.redraws("canvas", || page.set("method", method));
        }
        // Screen readers read the same words that the page shows.
        page.until("said.textContent == document.getElementById('outline-note').textContent");

        // While it is looked at, the picture says so.
        page.run(
            "window.shown = []; new MutationObserver(() => busy.hidden || shown.push(busy.textContent)).observe(busy, { attributes: true, childList: true })",
            &json!([]),
        );
        page.redraws("canvas", || page.click("#samples button:nth-child(2)"));
        page.is_settled();
        page.until("shown.includes('Looking…') && busy.hidden");
        // A neighbour can be asked about.
        page.until("document.querySelectorAll('#neighbours button').length == 9");
        page.click("#neighbours button");
        page.until("/^\\d\\.jpg$/.test(document.getElementById('code').textContent.match(/@([^']+)/)[1])");
        page.is_settled();
    });
}

#[test]
fn heads_and_similar_patches_are_shown_by_pointer_and_keyboard() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], |page| {
        page.is_settled();
        page.redraws("canvas", || page.click("label:has([value=attention])"));
        page.until("document.querySelectorAll('#heads button').length == 5");
        page.redraws("canvas", || page.click("#heads button:nth-child(3)"));
        assert_eq!(page.value("document.querySelector('#heads [aria-pressed=true]').textContent"), "Head 2");

        page.redraws("canvas", || page.click("label:has([value=similarity])"));
        page.until("/^Click anywhere .* turns bright. Here it is \\d.* %/.test(document.getElementById('alike-note').textContent)");
        page.redraws("canvas", || page.press_at(0.25, 0.75));
        page.until("said.textContent.startsWith('Frame 25 % from the left, 75 % from the top')");
        // From a patch to the middle of the next: there are twenty in a row.
        page.type_into("#canvas", RIGHT);
        page.until("said.textContent.startsWith('Frame 32 % from the left, 7')");
        let place = page.text("said");
        page.redraws("canvas", || page.type_into("#canvas", DOWN));
        page.until("said.textContent.startsWith('Frame 32 % from the left, 8')");
        assert_ne!(page.text("said"), place);
    });
}

#[test]
fn pictures_are_dropped_pasted_chosen_and_taken_from_the_samples() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &["422"], |page| {
        page.is_settled();
        let name = || page.value("document.getElementById('code').textContent.match(/@([^']+)/)[1]");
        assert_eq!(name(), "motorbike.jpg");
        page.redraws("canvas", || page.click("#samples button:nth-child(4)"));
        assert_eq!(name(), "bonsai.jpg");

        let (red, square) = (png(&scene(120, 80, 5)), png(&scene(90, 90, 7)));
        page.redraws("canvas", || page.hand_over("drop", &red, "dropped.png"));
        assert_eq!(name(), "dropped.png");
        page.until("canvas.style.aspectRatio == '120 / 80'");
        page.redraws("canvas", || page.hand_over("paste", &square, "pasted.png"));
        page.until("canvas.style.aspectRatio == '90 / 90'");

        let chosen: PathBuf = root().join("tests/photos/chelsea.png");
        page.redraws("canvas", || page.type_into("#file", chosen.to_str().unwrap()));
        assert_eq!(name(), "chelsea.png");
        assert_eq!(page.value("document.querySelectorAll('#samples [aria-pressed=true]').length"), 0);

        // A format that browsers do not show is looked at all the same.
        page.hand_over("drop", &file("photos/odd/photo.tiff"), "photo.tiff");
        page.until("document.getElementById('picture-note').textContent.includes('cannot show this format') && !canvas.ariaBusy");
        assert_eq!(page.text("view-error"), "");
        // What phones store is sent as JPEG where the browser reads it, and otherwise named.
        page.redraws("canvas", || page.hand_over("drop", &file("data/colour/flower.avif"), "IMG_1.avif"));
        assert_eq!(name(), "IMG_1.jpg");
        page.until("canvas.style.aspectRatio == '64 / 40' && document.getElementById('view-error').hidden");
        page.hand_over("drop", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "IMG_2.HEIC");
        page.until("document.getElementById('error').textContent.includes('reads HEIC. Export')");
        // What is no picture is said so, and the next one works.
        page.hand_over("drop", b"no picture at all", "notes.txt");
        page.until("document.getElementById('view-error').textContent && !canvas.ariaBusy");
        // Once, in place of all that was said before.
        assert_eq!(page.value("[...document.querySelectorAll('.error')].filter(error => !error.hidden).length"), 1);
        assert_eq!((page.text("outline-note"), page.text("vote-note"), page.text("verdict")), (String::new(), String::new(), "—".into()));
        for gone in ["busy", "frame", "picture-note", "neighbour-card"] {
            assert_eq!(page.value(&format!("document.getElementById('{gone}').hidden")), true, "{gone}");
        }
        page.redraws("canvas", || page.click("#samples button:nth-child(2)"));
        page.until("document.getElementById('view-error').hidden");
        page.run("document.dispatchEvent(new DragEvent('drop', { dataTransfer: new DataTransfer(), cancelable: true }))", &json!([]));
        page.until("document.getElementById('error').textContent.includes('no file')");
    });
}

#[test]
fn a_label_teaches_the_collection_and_can_be_taken_back() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], |page| {
        page.is_settled();
        page.value("map.scrollIntoView({ block: 'center' })");
        page.until("document.getElementById('map-note').textContent.startsWith('10 pictures;')");
        page.type_into("#label", "hot_dog");
        page.click("#add");
        page.until("document.getElementById('taught').textContent.includes('“hot dog”')");
        page.until("document.getElementById('classes').textContent.includes('hot dog')");
        // Whatever the others vote for: this very picture is known now. It shows on the map.
        assert_eq!(page.text("verdict"), "hot dog");
        assert!(page.text("vote-note").starts_with("The same picture is in the collection under this label."));
        page.until(
            "document.getElementById('map-note').textContent.startsWith('11 pictures;') && document.getElementById('map-busy').hidden",
        );
        assert_eq!(server.get("/collections/default").json()["count"], 11);
        assert!(page.value("voters.selectedOptions[0].textContent").as_str().unwrap().contains("11"));
        page.click("#taught button");
        page.until("document.getElementById('taught').textContent == 'Taken out again.'");
        page.until("!document.getElementById('classes').textContent.includes('hot dog')");
        assert_eq!(server.get("/collections/default").json()["count"], 10);

        // A collection of one's own, from nothing.
        page.set("voters", "new:");
        page.until("document.getElementById('vote-note').textContent.includes('A new collection.')");
        page.run("document.getElementById('new-name').value = 'mine'", &json!([]));
        page.click("#add");
        page.until("document.getElementById('verdict').textContent == 'hot dog'");
        assert_eq!(server.get("/collections/mine").json()["count"], 1);
        page.until("voters.value == 'mine'");
        assert_eq!(page.value("voters.selectedOptions[0].textContent"), "mine (1 picture)");
        page.until("document.getElementById('vote-note').textContent.endsWith('under this label.')");
    });
}

#[test]
fn what_the_collection_does_not_know_is_said_to_be_so() {
    let (server, _folder) = with_collection(&[]);
    // The least similarity is measured without what resembles nothing.
    assert_eq!(server.delete("/collections/default/items/bare").status, 204);
    visit(&server, &[], |page| {
        page.is_settled();
        page.click("#samples button:nth-child(5)");
        page.until("document.getElementById('verdict').textContent == 'Nothing like it here'");
        page.until("document.getElementById('vote-note').textContent.startsWith('The most similar of 9 pictures has a similarity of 0.8')");
        // The nearest are shown, and no class.
        assert_eq!(page.value("document.querySelectorAll('#classes li').length"), 0);
        assert_eq!(page.value("document.getElementById('neighbour-card').hidden"), false);
    });
}

#[test]
fn a_server_that_is_away_leaves_nothing_stale_and_can_be_tried_again() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &["ERR_INTERNET_DISCONNECTED"], |page| {
        page.is_settled();
        let away = |is_away: bool| {
            page.tell_browser("Network.enable", &json!({}));
            let conditions = json!({ "offline": is_away, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1 });
            page.tell_browser("Network.emulateNetworkConditions", &conditions);
        };
        let errors = || page.value("[...document.querySelectorAll('.error')].filter(error => !error.hidden).map(error => error.innerText)");
        away(true);
        page.hand_over("drop", &png(&scene(120, 80, 5)), "dropped.png");
        page.until("document.getElementById('view-error').textContent.includes('cannot be reached') && !canvas.ariaBusy");
        assert_eq!(errors().as_array().unwrap().len(), 1, "{}", errors());
        assert_eq!((page.text("verdict"), page.text("outline-note")), ("—".into(), String::new()));
        assert_eq!(page.value("document.getElementById('neighbour-card').hidden"), true);
        away(false);
        page.click("#view-error button");
        page.until("verdict.textContent.length > 1 && document.getElementById('outline-note').textContent && !canvas.ariaBusy");
        assert_eq!(errors(), json!([]));
    });
}

#[test]
fn large_pictures_are_sent_smaller_and_extreme_ones_are_scrolled() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], |page| {
        page.is_settled();
        page.hand_over("drop", &png(&noise(2600, 300, 1)), "large.png");
        page.until("canvas.style.aspectRatio == '2048 / 236' && !canvas.ariaBusy");
        let note = page.text("picture-note");
        assert!(note.starts_with("Sent smaller than it is (2600 × 300 pixels, 2."), "{note}");

        for (width, height) in [(1500, 10), (10, 1500)] {
            page.hand_over("drop", &png(&scene(width, height, 3)), &format!("{width}.png"));
            page.until(&format!("document.getElementById('code').textContent.includes('{width}.png') && !canvas.ariaBusy"));
            let [wide, high] = ["canvas.clientWidth", "canvas.clientHeight"].map(|side| page.value(side).as_u64().unwrap());
            assert!(wide >= 100 && high >= 100, "{wide} x {high}");
            assert_eq!(page.value("[stage.tabIndex, document.documentElement.scrollWidth <= innerWidth]"), json!([0, true]));
        }
    });
}

#[test]
fn on_a_phone_a_photo_can_be_taken_and_the_vote_follows_the_picture() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], |page| {
        page.is_settled();
        page.tell_browser("Emulation.setTouchEmulationEnabled", &json!({ "enabled": true }));
        page.screen(390, 844, "light");
        page.until("drop.innerText.includes('take or choose a photo') && !drop.innerText.includes('paste')");
        page.value("scrollTo(0, 0)");
        let top = page.value("document.getElementById('vote-card').getBoundingClientRect().top").as_f64().unwrap();
        assert!(top < 844.0, "the vote begins at {top}");
    });
}

#[test]
fn a_server_without_collections_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::start(&["--segment-size", "96", "--data-dir", folder.path().to_str().unwrap()]);
    visit(&server, &[], |page| {
        page.is_settled();
        assert!(page.text("vote-note").contains("no collection here yet"));
        page.value("map.scrollIntoView()");
        page.until("document.getElementById('map-note').textContent == 'A map needs a collection.'");
    });
}

/// The page asks for no label that the server would refuse.
#[test]
fn a_server_without_a_place_for_collections_is_not_taught() {
    let server = Server::start(&["--segment-size", "96"]);
    visit(&server, &[], |page| {
        page.is_settled();
        assert!(page.text("vote-note").contains("--data-dir"));
        assert_eq!(page.value("document.getElementById('teach').hidden"), true);
        assert_eq!(page.value("document.getElementById('voters').options.length"), 0);
        page.value("map.scrollIntoView()");
        page.until("document.getElementById('map-note').textContent == 'A map needs a collection.'");
    });
}

#[test]
fn the_map_shows_pictures_and_opens_them() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], |page| {
        page.is_settled();
        page.value("map.scrollIntoView({ block: 'center' })");
        page.until("document.querySelectorAll('#legend button').length == 4");
        assert!(page.text("map-note").starts_with("10 pictures;"));
        // From picture to picture with the keyboard; each is shown and named.
        let mut seen = std::collections::BTreeSet::new();
        for key in [RIGHT, RIGHT, DOWN, RIGHT, "\u{E012}", "\u{E012}", "\u{E013}"] {
            page.type_into("#map", key);
            page.until("!document.getElementById('map-tip').hidden");
            seen.insert(page.value("document.querySelector('#map-tip .soft').textContent").as_str().unwrap().to_owned());
        }
        assert!(seen.len() > 1, "{seen:?}");
        page.rests_on_a_picture();
        page.type_into("#map", ENTER);
        page.until("/\\d\\.jpg/.test(document.getElementById('code').textContent)");
        page.redraws("map", || page.click("#legend button"));
        // One without a picture says so beside it, and nothing goes wrong.
        page.redraws("map", || page.click("#legend button"));
        page.rests_on("document.getElementById('map-tip').textContent.includes('stored without a picture')");
        let before = page.text("code");
        page.type_into("#map", ENTER);
        assert_eq!((page.text("code"), page.text("map-error")), (before, String::new()));
    });
}

#[test]
fn requests_to_copy_do_what_they_say() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], |page| {
        page.is_settled();
        for (request, answered) in [
            ("segment", "results"),
            ("attention", "results"),
            ("similarity", "maps"),
            ("classify", "results"),
            ("add", "ids"),
            ("embed", "embeddings"),
        ] {
            page.set("code-what", request);
            let command = page.text("code").replace("'@motorbike.jpg'", "@src/http/page/samples/motorbike.jpg");
            let output =
                std::process::Command::new("sh").args(["-c", &format!("{command} --silent")]).current_dir(root()).output().unwrap();
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{command}: {error} {output:?}"));
            assert!(answer[answered].is_array(), "{command}: {answer}");
        }
        page.click("label:has([value=python])");
        page.until("document.getElementById('code').textContent.includes('requests.post(')");
        page.click("#copy");
        page.until("copy.textContent == 'Copied'");
    });
}

#[test]
fn a_key_is_asked_for_where_the_server_wants_one() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    fs_err::write(&keys, format!("page {KEY} full")).unwrap();
    let server =
        Server::start(&["--api-keys-file", keys.to_str().unwrap(), "--segment-size", "96", "--data-dir", folder.path().to_str().unwrap()]);
    visit(&server, &["401"], |page| {
        page.until("document.getElementById('key-dialog').open");
        page.type_into("#key", "wrong-but-long-enough");
        page.click("#use-key");
        page.until(
            "document.getElementById('key-dialog').open && document.getElementById('key-why').textContent.includes('does not know')",
        );
        page.type_into("#key", KEY);
        page.type_into("#key", ENTER);
        page.until("document.getElementById('server').textContent");
        page.is_settled();
        assert!(page.text("code").contains("$DINO_KEY"));
        assert!(!page.value("document.documentElement.outerHTML").as_str().unwrap().contains(KEY));
        // The tab keeps it.
        page.reload();
        page.is_settled();
        assert_eq!(page.value("document.getElementById('key-dialog').open"), false);
    });
}

#[test]
fn every_screen_shows_all_of_it() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], |page| {
        page.is_settled();
        for (width, height, scheme) in [(320, 740, "light"), (360, 740, "light"), (820, 1100, "dark"), (1600, 1000, "light")] {
            page.screen(width, height, scheme);
            for view in ["outline", "attention", "similarity"] {
                page.click(&format!("label:has([value={view}])"));
                page.until(&format!("!document.getElementById('{view}-panel').hidden && !canvas.ariaBusy"));
                let wide = page.value("document.documentElement.scrollWidth").as_u64().unwrap();
                assert!(wide <= u64::from(width), "{view} at {width} is {wide} wide");
            }
            let back = page.value("getComputedStyle(document.body).backgroundColor");
            assert_eq!(back.as_str().unwrap().starts_with("rgb(2"), scheme == "light", "{back}");
        }
        // The button turns what the system says.
        page.click("#theme");
        page.until("getComputedStyle(document.body).backgroundColor == 'rgb(18, 19, 24)'");
        // Everything that can be used has a name for screen readers.
        let nameless = "[...document.querySelectorAll('button, select, input, canvas[tabindex], a')].filter(one => \
                        !(one.labels?.length || one.textContent.trim() || one.ariaLabel || one.querySelector('img[alt]:not([alt=\"\"])'))).map(one => one.outerHTML)";
        assert_eq!(page.value(nameless), json!([]));
    });
}
