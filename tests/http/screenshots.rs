//! The pictures of the page in `docs/`.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::{
    browser::{Page, visit},
    harness::{Server, root},
};

/// Draws the pictures in `docs/`, for `make screenshots`. It checks nothing, so `make test` leaves it out: what it shows is held by the tests of `page`.
#[test]
#[ignore = "no check: draws the pictures of docs/ for `make screenshots`"]
fn pictures_of_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::demo(folder.path(), &["--request-timeout", "300"]);
    visit(&server, &[], |page| {
        for (name, width, height, scheme, view) in [
            ("page", 1280, 860, "light", "outline"),
            ("page-dark", 1280, 860, "dark", "similarity"),
            ("page-phone", 390, 844, "light", "outline"),
        ] {
            page.screen(width, height, scheme);
            page.is_settled();
            if page.value("document.querySelector('[name=view]:checked').value") != view {
                page.redraws("canvas", || page.click(&format!("label:has([value={view}])")));
            }
            page.until("busy.hidden");
            page.until("[...document.querySelectorAll('#neighbours img')].every(image => image.complete)");
            page.run("scrollTo(0, 0); document.activeElement.blur()", &json!([]));
            page.picture(name);
        }
        page.screen(1280, 860, "dark");
        page.value("map.scrollIntoView({ block: 'center' })");
        page.until("document.getElementById('map-frame').classList.contains('ready')");
        page.rests_on_a_picture();
        page.picture("page-map");
    });
}

/// The same for the tabs that look at several pictures.
#[test]
#[ignore = "no check: draws the pictures of docs/ for `make screenshots`"]
fn pictures_of_the_tabs() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::demo(folder.path(), &["--request-timeout", "300"]);
    visit(&server, &[], |page| {
        page.is_settled();
        page.screen(1280, 860, "light");
        page.click("#tab-odd");
        page.redraws("suspect", || page.click("#odd-sample"));
        page.until("document.getElementById('odd-verdict').textContent == 'The odd one' && document.getElementById('suspect-busy').hidden");
        page.until("[...document.querySelectorAll('#goods img')].every(image => image.complete)");
        page.run("scrollTo(0, 0); document.activeElement.blur()", &json!([]));
        page.picture("page-odd");
        page.click("#tab-spot");
        page.until("document.getElementById('spot-note').textContent.startsWith('Similarity')");
        page.run("scrollTo(0, 0); document.activeElement.blur()", &json!([]));
        page.picture("page-spot");
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
}
