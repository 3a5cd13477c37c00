//! The page at `/`: its files over HTTP, and what a visitor does, in a browser.

use std::path::PathBuf;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    browser::{Page, visit},
    harness::{Server, file, root},
    pictures::{png, scene},
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
    let classes = ["sunflower", "ketch", "minaret"];
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
        [("/", "text/html; charset=utf-8"), ("/page/app.js", "text/javascript; charset=utf-8"), ("/page/flower.jpg", "image/jpeg")]
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
        page.until("document.querySelectorAll('#neighbours li').length == 10");
        assert_eq!(page.value("document.querySelectorAll('#classes meter').length"), 4);
        assert!(page.text("vote-note").contains("10 pictures"));
        // Nine have a thumbnail, and it is loaded; the tenth shows a letter.
        page.until("[...document.querySelectorAll('#neighbours img')].filter(image => image.naturalWidth > 0).length == 9");
        assert_eq!(page.value("document.querySelector('#neighbours .blank').textContent"), "b");
        assert!(page.text("outline-note").contains("of the picture"));

        // The mask is laid over the picture anew with each option.
        page.redraws("canvas", || page.set("threshold", "0.9"));
        assert_eq!(page.text("kept"), "0.9");
        page.redraws("canvas", || page.set("method", "attention"));
        assert_eq!((page.text("meaning").as_str(), page.text("kept").as_str()), ("Share of attention kept", "0.6"));
        page.redraws("canvas", || page.click("#refine"));
        page.redraws("canvas", || page.set("objects", "5"));
        for method in ["ncut", "lost", "pca", "background"] {
            page.redraws("canvas", || page.set("method", method));
        }
        // Screen readers read the same words that the page shows.
        page.until("said.textContent == document.getElementById('outline-note').textContent");
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
        page.until("document.getElementById('alike-note').textContent.includes('column')");
        page.redraws("canvas", || page.run_at("canvas", 0.25, 0.75));
        page.until("/column 6 of 20, row 1\\d of/.test(document.getElementById('alike-note').textContent)");
        page.type_into("#canvas", RIGHT);
        page.until("document.getElementById('alike-note').textContent.includes('column 7 of 20')");
        let row = page.text("alike-note");
        page.redraws("canvas", || page.type_into("#canvas", DOWN));
        assert_ne!(page.text("alike-note"), row);
    });
}

#[test]
fn pictures_are_dropped_pasted_chosen_and_taken_from_the_samples() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &["422"], |page| {
        page.is_settled();
        let name = || page.value("document.getElementById('code').textContent.match(/@([^']+)/)[1]");
        assert_eq!(name(), "flower.jpg");
        page.redraws("canvas", || page.click("#samples button:nth-child(4)"));
        assert_eq!(name(), "rocket.jpg");

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
        page.until("!document.getElementById('unseen').hidden && !canvas.ariaBusy");
        assert_eq!(page.text("view-error"), "");
        // What phones store is sent as JPEG where the browser reads it, and otherwise named.
        page.redraws("canvas", || page.hand_over("drop", &file("data/colour/flower.avif"), "IMG_1.avif"));
        assert_eq!(name(), "IMG_1.jpg");
        page.until("canvas.style.aspectRatio == '64 / 40' && document.getElementById('view-error').hidden");
        page.hand_over("drop", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "IMG_2.HEIC");
        page.until("document.getElementById('error').textContent.includes('reads HEIC. Export')");
        // What is no picture is said so, and the next one works.
        page.hand_over("drop", b"no picture at all", "notes.txt");
        page.until("document.getElementById('view-error').textContent");
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
        page.type_into("#label", "dahlia");
        page.click("#add");
        page.until("document.getElementById('taught').textContent.includes('dahlia')");
        page.until("document.getElementById('classes').textContent.includes('dahlia')");
        assert_eq!(server.get("/collections/default").json()["count"], 11);
        assert!(page.value("voters.selectedOptions[0].textContent").as_str().unwrap().contains("11"));
        page.click("#taught button");
        page.until("document.getElementById('taught').textContent == 'Taken out again.'");
        page.until("!document.getElementById('classes').textContent.includes('dahlia')");
        assert_eq!(server.get("/collections/default").json()["count"], 10);

        // A collection of one's own, from nothing.
        page.set("voters", "new:");
        page.until("document.getElementById('vote-note').textContent.includes('A new collection.')");
        page.run("document.getElementById('new-name').value = 'mine'", &json!([]));
        page.click("#add");
        page.until("document.getElementById('verdict').textContent == 'dahlia'");
        assert_eq!(server.get("/collections/mine").json()["count"], 1);
        page.until("voters.value == 'mine'");
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
        page.redraws("map", || page.value("map.scrollIntoView({ block: 'center' })"));
        page.until("document.querySelectorAll('#legend button').length == 4");
        assert!(page.text("map-note").starts_with("10 pictures."));
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
            let command = page.text("code").replace("'@flower.jpg'", "@src/http/page/samples/flower.jpg");
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
        for (width, height, scheme) in [(360, 740, "light"), (820, 1100, "dark"), (1600, 1000, "light")] {
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

/// Draws the pictures in `docs/`, for `make screenshots`. It checks nothing, so `make test` leaves it out: what it shows is held by the tests above.
#[test]
#[ignore = "no check: draws the pictures of docs/ for `make screenshots`"]
fn screenshots() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().to_str().unwrap();
    let mut restore = crate::harness::program();
    restore.args(["restore", "--data-dir", data, "--from"]).arg(root().join("models/demo/gallery.dino"));
    assert!(restore.status().unwrap().success());
    let demo = format!("demo={}", root().join("models/demo").display());
    let server = Server::with_models(&[&demo], &["--data-dir", data]);
    visit(&server, &[], |page| {
        for (name, width, height, scheme, view) in [
            ("page", 1280, 860, "light", "outline"),
            ("page-dark", 1280, 860, "dark", "similarity"),
            ("page-phone", 390, 844, "light", "attention"),
        ] {
            page.screen(width, height, scheme);
            page.is_settled();
            if page.value("document.querySelector('[name=view]:checked').value") != view {
                page.redraws("canvas", || page.click(&format!("label:has([value={view}])")));
            }
            page.until("[...document.querySelectorAll('#neighbours img')].every(image => image.complete)");
            page.run("scrollTo(0, 0); document.activeElement.blur()", &json!([]));
            page.picture(name);
        }
        page.screen(1280, 860, "dark");
        page.redraws("map", || page.value("map.scrollIntoView({ block: 'center' })"));
        page.until("document.getElementById('map-frame').classList.contains('ready')");
        page.rests_on_a_picture();
        page.picture("page-map");
    });
}

impl Page {
    /// Draws what the screen shows into `docs`.
    fn picture(&self, name: &str) {
        // What has just changed is on the screen two frames later.
        self.must("/execute/async", &json!({ "script": "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))", "args": [] }));
        let options = json!({ "format": "webp", "quality": 80 });
        let picture = self.tell_browser("Page.captureScreenshot", &options)["data"].as_str().unwrap().to_owned();
        fs_err::write(root().join(format!("docs/{name}.webp")), STANDARD.decode(picture).unwrap()).unwrap();
    }

    /// Moves the pointer to a place of a canvas, in shares of its sides, and clicks on the picture's.
    fn run_at(&self, id: &str, x: f64, y: f64) {
        let kind = if id == "canvas" { "pointerdown" } else { "pointermove" };
        let script = "const [id, x, y, kind] = arguments, canvas = document.getElementById(id), box = canvas.getBoundingClientRect(); \
                      canvas.dispatchEvent(new PointerEvent(kind, { clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true }));";
        self.run(script, &json!([id, x, y, kind]));
    }

    /// Moves the pointer over the map, from its middle outwards, until it rests on an item whose picture is shown.
    #[track_caller]
    fn rests_on_a_picture(&self) {
        for ring in 0..24 {
            for step in 0..24 {
                let (angle, away) = (f64::from(step) / 24.0 * std::f64::consts::TAU, f64::from(ring) / 48.0);
                self.run_at("map", 0.5 + away * angle.cos(), 0.5 + away * angle.sin());
                if self.value("!document.getElementById('map-tip').hidden && Boolean(document.querySelector('#map-tip img'))") == true {
                    return self.until("document.querySelector('#map-tip img').naturalWidth > 0");
                }
            }
        }
        panic!("no item of the map has a picture");
    }

    /// Drops or pastes a file.
    fn hand_over(&self, how: &str, content: &[u8], name: &str) {
        let script = "const [how, content, name] = arguments, data = new DataTransfer(); \
                      data.items.add(new File([Uint8Array.from(atob(content), byte => byte.charCodeAt(0))], name)); \
                      const options = { bubbles: true, cancelable: true }; \
                      document.body.dispatchEvent(how == 'drop' ? new DragEvent('drop', { dataTransfer: data, ...options }) \
                                                                : new ClipboardEvent('paste', { clipboardData: data, ...options }));";
        self.run(script, &json!([how, STANDARD.encode(content), name]));
    }
}
