//! The tabs of the page that look at several pictures, in a browser: "Odd one out" and "Same spot".

use serde_json::{Value, json};

use crate::{
    browser::{Page, visit},
    graphs::{Answers, Sketch},
    harness::{Server, file},
    page::with_collection,
    pictures::{noise, png, scene},
};

const RIGHT: &str = "\u{E014}";
const DOWN: &str = "\u{E015}";
const END: &str = "\u{E010}";
const READER: &str = "a-key-that-may-read-alone";
const WRITER: &str = "a-key-that-may-write-too";

/// What the tab "Odd one out" says once an answer is there.
const ANSWERED: &str = "['The odd one', 'Like the good ones'].includes(document.getElementById('odd-verdict').textContent) \
                        && document.getElementById('suspect-busy').hidden";

/// Holds back the next file that the page reads until `release()` is called.
const HOLD_A_FILE: &str = "const read = Blob.prototype.arrayBuffer; \
                           Blob.prototype.arrayBuffer = async function () { \
                             Blob.prototype.arrayBuffer = read; \
                             await new Promise(go => window.release = go); \
                             return read.call(this); \
                           };";

impl Page {
    /// Lets what was held back go on.
    fn release(&self) {
        self.run("window.release();", &json!([]));
    }

    /// Shows a tab.
    fn tab(&self, name: &str) {
        self.click(&format!("#tab-{name}"));
        self.until(&format!("!document.getElementById('{name}').hidden && location.hash == '#{name}'"));
    }

    /// The names of the good pictures.
    fn goods(&self) -> Value {
        self.value("[...document.querySelectorAll('#goods img')].map(image => image.alt)")
    }

    fn shown_errors(&self) -> Value {
        self.value("[...document.querySelectorAll('.error')].filter(error => error.checkVisibility()).map(error => error.innerText)")
    }

    /// Waits for the answer of the tab "Odd one out".
    #[track_caller]
    fn compares(&self) {
        self.until(ANSWERED);
        assert_eq!(self.shown_errors(), json!([]));
    }
}

/// The collections that the page made.
fn temporary(server: &Server) -> Vec<(String, u64)> {
    let list = server.get("/collections").ok().json()["collections"].as_array().unwrap().clone();
    let own = list.iter().filter(|one| one["name"].as_str().unwrap().starts_with("page-odd-one-out-"));
    own.map(|one| (one["name"].as_str().unwrap().to_owned(), one["count"].as_u64().unwrap())).collect()
}

/// Waits until the page has deleted its collections: it does not wait for that itself when it is left.
fn is_gone(server: &Server) {
    let began = std::time::Instant::now();
    while !temporary(server).is_empty() {
        assert!(began.elapsed().as_secs() < 60, "{:?} is left", temporary(server));
        std::thread::sleep(std::time::Duration::from_millis(40));
    }
}

#[test]
fn tabs_are_reached_by_pointer_keyboard_and_address() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], |page| {
        page.is_settled();
        page.tab("odd");
        assert_eq!(
            page.value("[...document.querySelectorAll('[role=tab]')].map(tab => [tab.ariaSelected, tab.tabIndex])"),
            json!([["false", -1], ["true", 0], ["false", -1]])
        );
        // Alt with an arrow is the browser's own.
        let alt = "document.getElementById('tab-odd').dispatchEvent(new KeyboardEvent('keydown', { key: 'ArrowRight', altKey: true, cancelable: true }))";
        assert_eq!(page.value(&format!("[{alt}, location.hash]")), json!([true, "#odd"]));
        page.type_into("#tab-odd", RIGHT);
        page.until("location.hash == '#spot' && document.activeElement.id == 'tab-spot'");
        page.type_into("#tab-spot", RIGHT);
        page.until("location.hash == '#look' && !look.hidden && canvas.width > 100");
        page.type_into("#tab-look", END);
        page.until("location.hash == '#spot' && look.hidden");
        page.run("history.go(-3)", &json!([]));
        page.until("location.hash == '#odd' && !odd.hidden");
        // Nothing was sent before a picture was chosen.
        assert_eq!(temporary(&server), []);
        assert_eq!(page.value("[skip.getAttribute('href'), document.getElementById('odd-verdict').textContent]"), json!(["#odd", ""]));
        // An address leads to its tab, and the first one looks at its sample when it is shown.
        page.go("/#spot");
        page.reload();
        page.until("!spot.hidden && document.getElementById('spot-note').textContent.startsWith('Similarity')");
        assert_eq!(page.text("verdict"), "");
        page.tab("look");
        page.is_settled();
    });
}

#[test]
fn the_sample_shows_what_is_odd_and_nothing_of_it_stays() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], |page| {
        page.is_settled();
        page.tab("odd");
        page.redraws("suspect", || page.click("#odd-sample"));
        page.compares();
        assert_eq!(page.goods(), json!(["wood-1.jpg", "wood-2.jpg", "wood-3.jpg"]));
        assert!(page.text("odd-why").contains("With 3 good pictures that line is rough. Most like it: wood-"), "{}", page.text("odd-why"));
        let [(name, count)] = &temporary(&server)[..] else { panic!("{:?}", temporary(&server)) };
        assert!(*count == 3 && page.text("odd-place").contains(name.as_str()), "{}", page.text("odd-place"));
        // Screen readers hear the verdict.
        assert!(page.text("said").starts_with(&page.text("odd-verdict")));

        // The other suspicious sample, in the same collection.
        let before = page.text("odd-why");
        page.redraws("suspect", || page.click("#suspects button:nth-child(2)"));
        page.compares();
        assert_ne!(page.text("odd-why"), before);
        assert_eq!(temporary(&server), [(name.clone(), 3)]);

        // One is taken out, the other two go on; of one alone there is no verdict.
        page.click("#goods li:nth-child(1) button");
        page.until("document.getElementById('odd-why').textContent.includes('With 2 good pictures')");
        assert_eq!(page.value("document.activeElement.ariaLabel"), "Take wood-2.jpg out");
        page.click("#goods li:nth-child(1) button");
        page.until("document.getElementById('odd-verdict').textContent == 'No verdict yet'");
        assert_eq!((page.goods(), temporary(&server)), (json!(["wood-3.jpg"]), vec![(name.clone(), 1)]));

        // It does not vote, and a new beginning deletes it.
        assert_eq!(page.value("[...voters.options].map(one => one.value)"), json!(["default", "new:"]));
        page.click("#odd-again");
        is_gone(&server);
        page.until("document.getElementById('odd-place').textContent == ''");
        assert_eq!(
            (page.goods(), page.text("odd-verdict"), page.text("odd-why")),
            (json!([]), String::new(), "Show good pictures first.".into())
        );
        assert_eq!(page.value("document.getElementById('suspect-frame').hidden"), true);

        // So does leaving the page.
        page.click("#odd-sample");
        page.compares();
        assert_eq!(temporary(&server).len(), 1);
        page.reload();
        is_gone(&server);
    });
}

#[test]
fn pictures_of_a_visitor_are_good_until_there_are_enough() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &["422", "404"], |page| {
        page.is_settled();
        page.tab("odd");
        let good = |seed: u64| png(&noise(60, 60, seed));
        page.hand_over("drop", &good(1), "a.png");
        page.until("document.querySelectorAll('#goods img').length == 1");
        assert_eq!((page.text("odd-why"), temporary(&server)), ("Now show a suspicious picture.".into(), vec![]));
        page.hand_over_to("#good-card", &[(&good(2), "b.png"), (b"no picture", "notes.txt")]);
        page.until("document.querySelectorAll('#goods img').length == 3");
        // Not a good one any more: three are enough. What is no picture is left out, and said once.
        page.redraws("suspect", || page.hand_over("paste", &png(&scene(90, 60, 5)), "odd.png"));
        page.until(ANSWERED);
        assert_eq!(page.goods(), json!(["a.png", "b.png"]));
        let errors = page.shown_errors();
        assert!(errors.as_array().unwrap().len() == 1 && errors[0].as_str().unwrap().starts_with("notes.txt was left out: "), "{errors}");
        assert_eq!(page.text("odd-verdict"), "The odd one");

        // It is fine: from now on it is one of the good ones, and a copy of it is like them.
        page.click("#odd-fine button");
        page.until("document.getElementById('odd-verdict').textContent == 'Like the good ones'");
        assert_eq!((page.goods(), page.shown_errors()), (json!(["a.png", "b.png", "odd.png"]), json!([])));
        assert!(page.text("odd-why").contains("Score 0.00;"), "{}", page.text("odd-why"));

        // What is no picture is said so in place of the verdict, and the next one works.
        page.hand_over_to("#suspect-card", &[(b"no picture at all", "notes.txt")]);
        page.until("document.getElementById('odd-error').textContent && document.getElementById('suspect-busy').hidden");
        assert_eq!((page.text("odd-verdict"), page.shown_errors().as_array().unwrap().len()), (String::new(), 1));
        // The newest of two that follow each other is the one that is shown.
        page.hand_over("drop", &png(&scene(90, 60, 5)), "odd.png");
        page.hand_over("drop", &png(&scene(200, 50, 9)), "newest.png");
        page.until("document.getElementById('suspect').style.aspectRatio == '200 / 50'");
        page.compares();
        assert!(page.value("document.getElementById('suspect').ariaLabel").as_str().unwrap().contains("newest.png"));

        // Another tab, or its owner, deletes the collection: it is made anew.
        let before = temporary(&server);
        assert_eq!(server.delete(&format!("/collections/{}", before[0].0)).status, 204);
        page.redraws("suspect", || page.hand_over("drop", &good(7), "c.png"));
        page.compares();
        assert!(
            temporary(&server).len() == 1 && temporary(&server)[0].0 != before[0].0 && temporary(&server)[0].1 == 3,
            "{:?}",
            temporary(&server)
        );

        page.run("document.dispatchEvent(new DragEvent('drop', { dataTransfer: new DataTransfer(), cancelable: true }))", &json!([]));
        page.until("document.getElementById('odd-error').textContent.includes('no file')");
    });
}

#[test]
fn what_is_read_late_does_not_undo_what_was_done_since() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], |page| {
        page.is_settled();
        page.tab("odd");
        let good = |seed: u64, name: &str| page.hand_over_to("#good-card", &[(&png(&noise(60, 60, seed)), name)]);
        good(1, "a.png");
        page.until("document.querySelectorAll('#goods img').length == 1");
        page.run(HOLD_A_FILE, &json!([]));
        good(2, "late.png");
        page.until("window.release");
        page.click("#odd-again");
        page.until("document.querySelectorAll('#goods img').length == 0");
        page.release();
        good(3, "b.png");
        page.until("document.querySelectorAll('#goods img').length");
        assert_eq!(page.goods(), json!(["b.png"]));

        // A sample that is loaded after another picture was added.
        let script = "const ask = window.fetch; window.release = null; window.fetch = async (url, options) => { \
                        const response = await ask(url, options); \
                        if (url.endsWith('/page/wood-1.jpg')) await new Promise(go => window.release = go); \
                        return response; \
                      };";
        page.run(script, &json!([]));
        page.click("#odd-sample");
        page.until("window.release");
        good(4, "c.png");
        page.until("document.querySelectorAll('#goods img').length == 2");
        page.release();
        page.hand_over_to("#suspect-card", &[(&png(&scene(90, 60, 5)), "odd.png")]);
        page.compares();
        assert_eq!((page.goods(), page.value("suspects.hidden")), (json!(["b.png", "c.png"]), json!(true)));
    });
}

#[test]
fn a_comparison_that_failed_is_shown_after_another_try() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], |page| {
        page.is_settled();
        page.tab("odd");
        // A format that the browser does not read, and a server that is busy once.
        let script = "const ask = window.fetch; let isBusy = true; window.createImageBitmap = () => Promise.reject(new Error('unknown')); \
                      window.fetch = async (url, options) => { \
                        if (!isBusy || !url.includes('/anomaly')) return ask(url, options); \
                        isBusy = false; \
                        return new Response('{\"detail\": \"Too many requests.\"}', { status: 503 }); \
                      };";
        page.run(script, &json!([]));
        page.hand_over_to("#good-card", &[(&png(&noise(60, 60, 1)), "a.png"), (&png(&noise(60, 60, 2)), "b.png")]);
        page.until("document.querySelectorAll('#goods img').length == 2");
        page.hand_over_to("#suspect-card", &[(&png(&scene(90, 60, 5)), "odd.png")]);
        page.until("document.querySelector('#odd-error button')");
        page.click("#odd-error button");
        page.compares();
        assert_eq!(page.value("suspect.checkVisibility() && suspect.style.aspectRatio"), "90 / 60");
    });
}

#[test]
fn pictures_that_could_not_be_deleted_are_still_named_and_deleted_later() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], |page| {
        page.is_settled();
        page.tab("odd");
        page.click("#odd-sample");
        page.compares();
        let name = temporary(&server)[0].0.clone();
        let script = "const ask = window.fetch; let isAway = true; window.fetch = async (url, options) => { \
                        if (!isAway || options?.method != 'DELETE') return ask(url, options); \
                        isAway = false; \
                        throw new TypeError('Failed to fetch'); \
                      };";
        page.run(script, &json!([]));
        page.click("#odd-again");
        page.until("document.querySelector('#odd-error button')");
        page.until("document.getElementById('odd-place').textContent.startsWith('Kept on the server as the collection page-odd-one-out-')");
        assert_eq!(temporary(&server), [(name, 3)]);
        page.click("#odd-error button");
        page.until("document.getElementById('odd-place').textContent == ''");
        assert_eq!((temporary(&server), page.shown_errors()), (vec![], json!([])));

        // One that is made while the page is left.
        let script = "const ask = window.fetch; window.fetch = async (url, options) => { \
                        const response = await ask(url, options); \
                        return options?.method == 'PUT' ? new Promise(() => {}) : response; \
                      };";
        page.run(script, &json!([]));
        page.click("#odd-sample");
        let began = std::time::Instant::now();
        while temporary(&server).is_empty() {
            assert!(began.elapsed().as_secs() < 60, "no collection is made");
            std::thread::sleep(std::time::Duration::from_millis(40));
        }
        page.reload();
        is_gone(&server);
    });
}

#[test]
fn what_pages_left_behind_is_deleted_by_the_next_one() {
    let (server, _folder) = with_collection(&[]);
    for name in ["page-odd-one-out-lost", "page-odd-one-out-new", "own"] {
        server.put(&format!("/collections/{name}"), &json!({ "kind": "patches" }));
    }
    visit(&server, &[], |page| {
        page.is_settled();
        // One of them is said to be two hours old.
        let script = "const ask = window.fetch; window.fetch = async (url, options) => { \
                        const response = await ask(url, options); \
                        if (!url.endsWith('/collections')) return response; \
                        const list = await response.json(); \
                        for (const one of list.collections) if (one.name.endsWith('-lost')) one.created -= 7200; \
                        return new Response(JSON.stringify(list)); \
                      };";
        page.run(script, &json!([]));
        page.tab("odd");
        page.click("#odd-sample");
        page.compares();
        page.click("#odd-again");
        page.until("document.getElementById('odd-place').textContent == ''");
        let began = std::time::Instant::now();
        while temporary(&server) != [("page-odd-one-out-new".to_owned(), 0)] {
            assert!(began.elapsed().as_secs() < 60, "{:?} is left", temporary(&server));
            std::thread::sleep(std::time::Duration::from_millis(40));
        }
        assert_eq!(server.get("/collections/own").status, 200);
    });
}

#[test]
fn a_key_that_may_only_read_is_told_what_it_cannot_do() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys");
    fs_err::write(&keys, format!("reader {READER} read-only\nwriter {WRITER} full")).unwrap();
    let server =
        Server::start(&["--api-keys-file", keys.to_str().unwrap(), "--segment-size", "96", "--data-dir", folder.path().to_str().unwrap()]);
    let list =
        |key: &str| server.get_with("/collections", &[("authorization", &format!("Bearer {key}"))]).ok().json()["collections"].clone();
    visit(&server, &["403"], |page| {
        let enter = |key: &str| {
            page.until("document.getElementById('key-dialog').open");
            page.type_into("#key", key);
            page.click("#use-key");
        };
        enter(READER);
        page.until("document.getElementById('server').textContent");
        page.is_settled();
        page.tab("odd");
        page.click("#odd-sample");
        page.until("document.getElementById('odd-error').textContent.startsWith('This key may only read.')");
        page.until("document.getElementById('suspect-busy').hidden");
        assert_eq!((page.text("odd-verdict"), page.shown_errors().as_array().unwrap().len(), list(READER)), (String::new(), 1, json!([])));
        // Two pictures are compared without writing.
        page.tab("spot");
        page.until("document.getElementById('spot-note').textContent.startsWith('Similarity')");

        page.tab("odd");
        page.click("#key-button");
        enter(WRITER);
        page.until("document.getElementById('odd-error').hidden && document.getElementById('server').textContent");
        page.click("#odd-sample");
        page.compares();
        assert_eq!(list(WRITER).as_array().unwrap().len(), 1);
        page.click("#odd-again");
        page.until("document.getElementById('odd-place').textContent == ''");
        assert_eq!(list(WRITER), json!([]));
    });
}

#[test]
fn servers_that_cannot_compare_say_so() {
    let server = Server::start(&["--segment-size", "96"]);
    visit(&server, &[], |page| {
        page.is_settled();
        page.tab("odd");
        page.until("odd.innerText.includes('keeps no collections')");
        assert_eq!(page.value("[...odd.querySelectorAll('input, #odd-sample')].map(one => one.disabled)"), json!([true, true, true]));
        page.hand_over("drop", &png(&scene(50, 50, 1)), "a.png");
        assert_eq!((page.goods(), page.shown_errors()), (json!([]), json!([])));
    });

    // A model that gives one vector of a picture.
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model.onnx");
    Sketch { answers: Answers::Vector, ..Sketch::default() }.write(&model);
    let server = Server::with_models(
        &[model.to_str().unwrap()],
        &["--segment-size", "96", "--data-dir", folder.path().join("data").to_str().unwrap()],
    );
    visit(&server, &["422"], |page| {
        page.until("!canvas.ariaBusy && document.getElementById('view-error').textContent");
        for (tab, act) in [("odd", "#odd-sample"), ("spot", "#pairs button")] {
            page.tab(tab);
            page.click(act);
            page.until(&format!("document.getElementById('{tab}-error').textContent.startsWith('This model gives no patches')"));
            page.until("[...document.querySelectorAll('.badge')].every(badge => badge.hidden)");
            assert_eq!(page.shown_errors().as_array().unwrap().len(), 1);
        }
        assert_eq!(temporary(&server), []);
    });
}

#[test]
fn the_same_spot_is_found_by_pointer_and_keyboard_in_pictures_of_a_visitor() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &["422"], |page| {
        page.is_settled();
        page.tab("spot");
        page.until("document.getElementById('spot-note').textContent.startsWith('Similarity')");
        assert_eq!(page.value("document.querySelector('#pairs [aria-pressed=true] img').alt.length > 0"), true);

        // A picture beside itself: each spot is where it was.
        let photo = file("photos/coffee.png");
        page.hand_over_to("#spot", &[(&photo, "left.png"), (&photo, "right.png")]);
        page.until("document.getElementById('spot-note').textContent.startsWith('Similarity 1.00')");
        assert_eq!((page.text("spot-from-name"), page.text("spot-to-name")), ("left.png".into(), "right.png".into()));
        assert_eq!(page.value("document.querySelectorAll('#pairs [aria-pressed=true]').length"), 0);
        page.redraws("spot-to", || page.press_on("spot-from", 0.25, 0.75));
        page.until("said.textContent.startsWith('Spot 28 % from the left, 73 % from the top; the same in the other picture 28 %')");
        page.redraws("spot-to", || page.type_into("#spot-from", RIGHT));
        page.until("said.textContent.startsWith('Spot 33 % from the left, 73 %')");
        page.redraws("spot-to", || page.type_into("#spot-from", DOWN));
        page.until("said.textContent.startsWith('Spot 33 % from the left, 8')");

        // One picture goes to the side that it is dropped on.
        page.redraws("spot-to", || page.hand_over_to("#spot-to-card", &[(&png(&scene(90, 90, 4)), "other.png")]));
        page.until("document.getElementById('spot-to-name').textContent == 'other.png'");
        page.until("/^Similarity 0|^Similarity -/.test(document.getElementById('spot-note').textContent)");
        assert_eq!(page.text("spot-from-name"), "left.png");
        // What is no picture is said so once, and the next one works.
        page.hand_over_to("#spot-from-card", &[(b"no picture", "notes.txt")]);
        page.until("document.getElementById('spot-error').textContent && document.getElementById('spot-busy').hidden");
        assert_eq!((page.text("spot-note"), page.shown_errors().as_array().unwrap().len()), (String::new(), 1));
        page.hand_over_to("#spot-from-card", &[(&photo, "left.png")]);
        page.until("document.getElementById('spot-note').textContent.startsWith('Similarity')");
        assert_eq!(page.shown_errors(), json!([]));
    });
}

#[test]
fn both_sides_are_chosen_at_the_same_time_and_an_unreadable_file_changes_nothing() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], |page| {
        page.is_settled();
        page.tab("spot");
        page.until("document.getElementById('spot-note').textContent.startsWith('Similarity')");
        let photo = file("photos/coffee.png");
        page.run(HOLD_A_FILE, &json!([]));
        page.hand_over_to("#spot-from-card", &[(&photo, "left.png")]);
        page.until("window.release");
        page.hand_over_to("#spot-to-card", &[(&photo, "right.png")]);
        page.until("document.getElementById('spot-to-name').textContent == 'right.png'");
        // It is not compared with the picture that is about to go.
        assert_eq!((page.text("spot-note"), page.text("spot-busy")), (String::new(), "Reading the picture…".into()));
        page.release();
        page.until("document.getElementById('spot-note').textContent.startsWith('Similarity 1.00')");
        assert_eq!((page.text("spot-from-name"), page.text("spot-to-name")), ("left.png".into(), "right.png".into()));

        // Neither the server nor this browser reads it: what was there before goes on.
        page.hand_over_to("#spot-from-card", &[(b"\0\0\0\x18ftypheic\0\0\0\0", "phone.heic")]);
        page.until("document.getElementById('spot-error').textContent.includes('HEIC') && document.getElementById('spot-busy').hidden");
        assert_eq!((page.text("spot-from-name"), &page.text("spot-note")[..15]), ("left.png".into(), "Similarity 1.00"));
        page.redraws("spot-to", || page.press_on("spot-from", 0.25, 0.75));
        page.until("said.textContent.startsWith('Spot 28 % from the left, 73 % from the top; the same in the other picture 28 %')");
    });
}

#[test]
fn every_screen_shows_all_of_the_tabs() {
    let (server, _folder) = with_collection(&[]);
    visit(&server, &[], |page| {
        page.is_settled();
        page.tab("odd");
        page.click("#odd-sample");
        page.compares();
        page.tab("spot");
        page.until("document.getElementById('spot-note').textContent.startsWith('Similarity')");
        for (width, height, scheme) in [(320, 740, "light"), (390, 844, "dark"), (820, 1100, "light"), (1600, 1000, "dark")] {
            page.screen(width, height, scheme);
            for tab in ["odd", "spot"] {
                page.tab(tab);
                let wide = page.value("document.documentElement.scrollWidth").as_u64().unwrap();
                assert!(wide <= u64::from(width), "{tab} at {width} is {wide} wide");
                // Pictures are seen, and fingers find what they press.
                let small = format!(
                    "[...document.querySelectorAll('#{tab} canvas, #{tab} button, #{tab} .drop')].filter(one => one.checkVisibility() && \
                     (one.clientWidth < 24 || one.clientHeight < 24)).map(one => one.outerHTML)"
                );
                assert_eq!(page.value(&small), json!([]), "{tab} at {width}");
            }
        }
    });
}
