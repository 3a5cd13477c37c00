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
fn with_collection(flags: &[&str]) -> (Server, TempDir) {
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
    for (path, kind) in [("/", "text/html; charset=utf-8"), ("/page/app.js", "text/javascript; charset=utf-8"), ("/page/flower.jpg", "image/jpeg")] {
        let answer = server.get(path);
        assert_eq!(answer.ok().header("content-type"), kind);
        assert!(answer.header("content-security-policy").starts_with("default-src 'none'; script-src 'self';"));
        let again = server.get_with(path, &[("if-none-match", answer.header("etag"))]);
        assert_eq!((again.status, again.body.len()), (304, 0));
        assert_eq!(server.get_with(path, &[("if-none-match", "\"other\"")]).ok().body, answer.body);
    }
    server.get("/page/../http/mod.rs").problem(404, "unknown_route");
    server.get("/page/none.js").problem(404, "unknown_route");
    assert_eq!(server.get("/healthz").json()["api_keys"], true);
}

#[test]
fn the_first_look_shows_outline_vote_and_neighbours() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], async |page| {
        page.is_settled().await;
        page.until("document.querySelectorAll('#neighbours li').length == 10").await;
        assert_eq!(page.value("document.querySelectorAll('#classes meter').length").await, 4);
        assert!(page.text("vote-note").await.contains("10 pictures"));
        // Nine have a thumbnail, and it is loaded; the tenth shows a letter.
        page.until("[...document.querySelectorAll('#neighbours img')].filter(image => image.naturalWidth > 0).length == 9").await;
        assert_eq!(page.value("document.querySelector('#neighbours .blank').textContent").await, "b");
        assert!(page.text("outline-note").await.contains("of the picture"));

        // The mask is laid over the picture anew with each option.
        page.redraws("canvas", page.set("threshold", "0.9")).await;
        assert_eq!(page.text("kept").await, "0.9");
        page.redraws("canvas", page.set("method", "attention")).await;
        assert_eq!((page.text("meaning").await.as_str(), page.text("kept").await.as_str()), ("Share of attention kept", "0.6"));
        page.redraws("canvas", page.click("#refine")).await;
        page.redraws("canvas", page.set("objects", "5")).await;
        for method in ["ncut", "lost", "pca", "background"] {
            page.redraws("canvas", page.set("method", method)).await;
        }
        // What people hear is what others see.
        page.until("said.textContent == document.getElementById('outline-note').textContent").await;
    });
}

#[test]
fn heads_and_similar_patches_are_shown_by_pointer_and_keyboard() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], async |page| {
        page.is_settled().await;
        page.redraws("canvas", page.click("label:has([value=attention])")).await;
        page.until("document.querySelectorAll('#heads button').length == 5").await;
        page.redraws("canvas", page.click("#heads button:nth-child(3)")).await;
        assert_eq!(page.value("document.querySelector('#heads [aria-pressed=true]').textContent").await, "Head 2");

        page.redraws("canvas", page.click("label:has([value=similarity])")).await;
        page.until("document.getElementById('alike-note').textContent.includes('column')").await;
        page.redraws("canvas", page.run_at("canvas", 0.25, 0.75)).await;
        page.until("/column 6 of 20, row 1\\d of/.test(document.getElementById('alike-note').textContent)").await;
        page.type_into("#canvas", RIGHT).await;
        page.until("document.getElementById('alike-note').textContent.includes('column 7 of 20')").await;
        let row = page.text("alike-note").await;
        page.redraws("canvas", page.type_into("#canvas", DOWN)).await;
        assert_ne!(page.text("alike-note").await, row);
    });
}

#[test]
fn pictures_are_dropped_pasted_chosen_and_taken_from_the_samples() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &["422"], async |page| {
        page.is_settled().await;
        let name = async || page.value("document.getElementById('code').textContent.match(/@([^']+)/)[1]").await;
        assert_eq!(name().await, "flower.jpg");
        page.redraws("canvas", page.click("#samples button:nth-child(4)")).await;
        assert_eq!(name().await, "rocket.jpg");

        let (red, square) = (png(&scene(120, 80, 5)), png(&scene(90, 90, 7)));
        page.redraws("canvas", page.hand_over("drop", &red, "dropped.png")).await;
        assert_eq!(name().await, "dropped.png");
        page.until("canvas.style.aspectRatio == '120 / 80'").await;
        page.redraws("canvas", page.hand_over("paste", &square, "pasted.png")).await;
        page.until("canvas.style.aspectRatio == '90 / 90'").await;

        let chosen: PathBuf = root().join("tests/photos/chelsea.png");
        page.redraws("canvas", page.type_into("#file", chosen.to_str().unwrap())).await;
        assert_eq!(name().await, "chelsea.png");
        assert_eq!(page.value("document.querySelectorAll('#samples [aria-pressed=true]').length").await, 0);

        // A format that browsers do not show is looked at all the same.
        page.hand_over("drop", &file("photos/odd/photo.tiff"), "photo.tiff").await;
        page.until("!document.getElementById('unseen').hidden && !canvas.ariaBusy").await;
        assert_eq!(page.text("view-error").await, "");
        // What is no picture is said so, and the next one works.
        page.hand_over("drop", b"no picture at all", "notes.txt").await;
        page.until("document.getElementById('view-error').textContent").await;
        page.redraws("canvas", page.click("#samples button:nth-child(2)")).await;
        page.until("document.getElementById('view-error').hidden").await;
        page.run("document.dispatchEvent(new DragEvent('drop', { dataTransfer: new DataTransfer(), cancelable: true }))", vec![]).await;
        page.until("document.getElementById('error').textContent.includes('no file')").await;
    });
}

#[test]
fn a_label_teaches_the_collection_and_can_be_taken_back() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], async |page| {
        page.is_settled().await;
        page.type_into("#label", "dahlia").await;
        page.click("#add").await;
        page.until("document.getElementById('taught').textContent.includes('dahlia')").await;
        page.until("document.getElementById('classes').textContent.includes('dahlia')").await;
        assert_eq!(server.get("/collections/default").json()["count"], 11);
        assert!(page.value("voters.selectedOptions[0].textContent").await.as_str().unwrap().contains("11"));
        page.click("#taught button").await;
        page.until("document.getElementById('taught').textContent == 'Taken out again.'").await;
        page.until("!document.getElementById('classes').textContent.includes('dahlia')").await;
        assert_eq!(server.get("/collections/default").json()["count"], 10);

        // A collection of one's own, from nothing.
        page.set("voters", "new:").await;
        page.until("document.getElementById('vote-note').textContent.includes('no collection here')").await;
        page.run("document.getElementById('new-name').value = 'mine'", vec![]).await;
        page.click("#add").await;
        page.until("document.getElementById('verdict').textContent == 'dahlia'").await;
        assert_eq!(server.get("/collections/mine").json()["count"], 1);
        page.until("voters.value == 'mine'").await;
    });
}

#[test]
fn a_server_without_collections_says_so() {
    let server = Server::start(&["--segment-size", "96"]);
    visit(&server, &["404"], async |page| {
        page.is_settled().await;
        assert!(page.text("vote-note").await.contains("no collection here yet"));
        page.value("map.scrollIntoView()").await;
        page.until("document.getElementById('map-note').textContent == 'A map needs a collection.'").await;
        page.type_into("#label", "x").await;
        page.click("#add").await;
        page.until("document.getElementById('teach-error').textContent.includes('--data-dir')").await;
    });
}

#[test]
fn the_map_shows_pictures_and_opens_them() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], async |page| {
        page.is_settled().await;
        page.redraws("map", async { drop(page.value("map.scrollIntoView({ block: 'center' })").await) }).await;
        page.until("document.querySelectorAll('#legend button').length == 4").await;
        assert!(page.text("map-note").await.starts_with("10 pictures."));
        // From picture to picture with the keyboard; each is shown and named.
        let mut seen = std::collections::BTreeSet::new();
        for key in [RIGHT, RIGHT, DOWN, RIGHT, "\u{E012}", "\u{E012}", "\u{E013}"] {
            page.type_into("#map", key).await;
            page.until("!document.getElementById('map-tip').hidden").await;
            seen.insert(page.value("document.querySelector('#map-tip .soft').textContent").await.as_str().unwrap().to_owned());
        }
        assert!(seen.len() > 1, "{seen:?}");
        // With the pointer.
        let under = "document.querySelector('#map-tip img')?.naturalWidth > 0";
        'found: for row in 1..24 {
            for column in 1..36 {
                page.run_at("map", f64::from(column) / 36.0, f64::from(row) / 24.0).await;
                if page.value("document.getElementById('map-tip').hidden").await == false && page.value(&format!("Boolean(document.querySelector('#map-tip img'))")).await == true {
                    break 'found;
                }
            }
        }
        page.until(under).await;
        page.type_into("#map", ENTER).await;
        page.until("/\\d\\.jpg/.test(document.getElementById('code').textContent)").await;
        page.redraws("map", page.click("#legend button")).await;
    });
}

#[test]
fn requests_to_copy_do_what_they_say() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], async |page| {
        page.is_settled().await;
        for (request, answered) in [
            ("segment", "results"),
            ("attention", "results"),
            ("similarity", "maps"),
            ("classify", "results"),
            ("add", "ids"),
            ("embed", "embeddings"),
        ] {
            page.set("code-what", request).await;
            let command = page.text("code").await.replace("'@flower.jpg'", "@src/http/page/samples/flower.jpg");
            let output = std::process::Command::new("sh").args(["-c", &format!("{command} --silent")]).current_dir(root()).output().unwrap();
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{command}: {error} {output:?}"));
            assert!(answer[answered].is_array(), "{command}: {answer}");
        }
        page.click("label:has([value=python])").await;
        page.until("document.getElementById('code').textContent.includes('requests.post(')").await;
        page.click("#copy").await;
        page.until("copy.textContent == 'Copied'").await;
    });
}

#[test]
fn a_key_is_asked_for_where_the_server_wants_one() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    fs_err::write(&keys, format!("page {KEY} full")).unwrap();
    let server = Server::start(&["--api-keys-file", keys.to_str().unwrap(), "--segment-size", "96", "--data-dir", folder.path().to_str().unwrap()]);
    visit(&server, &["401"], async |page| {
        page.until("document.getElementById('key-dialog').open").await;
        page.type_into("#key", "wrong-but-long-enough").await;
        page.click("#use-key").await;
        page.until("document.getElementById('key-dialog').open && document.getElementById('key-why').textContent.includes('does not know')").await;
        page.type_into("#key", KEY).await;
        page.type_into("#key", ENTER).await;
        page.until("document.getElementById('server').textContent").await;
        page.is_settled().await;
        assert!(page.text("code").await.contains("$DINO_KEY"));
        assert!(!page.value("document.documentElement.outerHTML").await.as_str().unwrap().contains(KEY));
        // The tab keeps it.
        page.reload().await;
        page.is_settled().await;
        assert_eq!(page.value("document.getElementById('key-dialog').open").await, false);
    });
}

#[test]
fn every_screen_shows_all_of_it() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], async |page| {
        page.is_settled().await;
        for (width, height, scheme) in [(360, 740, "light"), (820, 1100, "dark"), (1600, 1000, "light")] {
            page.screen(width, height, scheme).await;
            for view in ["outline", "attention", "similarity"] {
                page.click(&format!("label:has([value={view}])")).await;
                page.until(&format!("!document.getElementById('{view}-panel').hidden && !canvas.ariaBusy")).await;
                let wide = page.value("document.documentElement.scrollWidth").await.as_u64().unwrap();
                assert!(wide <= u64::from(width), "{view} at {width} is {wide} wide");
            }
            let back = page.value("getComputedStyle(document.body).backgroundColor").await;
            assert_eq!(back.as_str().unwrap().starts_with("rgb(2"), scheme == "light", "{back}");
        }
        // The button turns what the system says.
        page.click("#theme").await;
        page.until("getComputedStyle(document.body).backgroundColor == 'rgb(18, 19, 24)'").await;
        // Everything that can be used has a name for those who do not see it.
        let nameless = "[...document.querySelectorAll('button, select, input, canvas[tabindex], a')].filter(one => \
                        !(one.labels?.length || one.textContent.trim() || one.ariaLabel || one.querySelector('img[alt]:not([alt=\"\"])'))).map(one => one.outerHTML)";
        assert_eq!(page.value(nameless).await, json!([]));
    });
}

impl Page {
    /// Moves the pointer to a place of a canvas, in shares of its sides, and clicks on the picture's.
    async fn run_at(&self, id: &str, x: f64, y: f64) {
        let kind = if id == "canvas" { "pointerdown" } else { "pointermove" };
        let script = "const [id, x, y, kind] = arguments, canvas = document.getElementById(id), box = canvas.getBoundingClientRect(); \
                      canvas.dispatchEvent(new PointerEvent(kind, { clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true }));";
        self.run(script, vec![json!(id), json!(x), json!(y), json!(kind)]).await;
    }

    /// Drops or pastes a file.
    async fn hand_over(&self, how: &str, content: &[u8], name: &str) {
        let script = "const [how, content, name] = arguments, data = new DataTransfer(); \
                      data.items.add(new File([Uint8Array.from(atob(content), byte => byte.charCodeAt(0))], name)); \
                      const options = { bubbles: true, cancelable: true }; \
                      document.body.dispatchEvent(how == 'drop' ? new DragEvent('drop', { dataTransfer: data, ...options }) \
                                                                : new ClipboardEvent('paste', { clipboardData: data, ...options }));";
        self.run(script, vec![json!(how), json!(STANDARD.encode(content)), json!(name)]).await;
    }
}
