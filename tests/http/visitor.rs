//! What a visitor does on the page with pointer and files.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use crate::browser::Page;

impl Page {
    /// Presses the pointer on a place of the picture, in shares of its sides.
    pub(crate) fn press_at(&self, x: f64, y: f64) {
        self.press_on("canvas", x, y);
    }

    /// The same on any canvas.
    pub(crate) fn press_on(&self, id: &str, x: f64, y: f64) {
        let script = "const [id, x, y] = arguments, canvas = document.getElementById(id), box = canvas.getBoundingClientRect(); \
                      canvas.dispatchEvent(new PointerEvent('pointerdown', { clientX: box.left + x * box.width, clientY: box.top + y * box.height, bubbles: true }));";
        self.run(script, &json!([id, x, y]));
    }

    /// Moves the pointer over the map until it rests on an item whose picture is shown.
    #[track_caller]
    pub(crate) fn rests_on_a_picture(&self) {
        self.rests_on("document.querySelector('#map-tip img')");
        self.until("document.querySelector('#map-tip img').naturalWidth > 0");
    }

    /// Moves the pointer over the map, from its middle outwards, until it rests on an item of which something holds.
    #[track_caller]
    pub(crate) fn rests_on(&self, what: &str) {
        // A policy forbids the page to evaluate strings, so the condition is a part of the script.
        let script = format!(
            "const box = map.getBoundingClientRect(), middle = [box.left + box.width / 2, box.top + box.height / 2]; \
             for (let away = 0; away < box.width / 2; away += 6) for (let turn = 0; turn < 2 * Math.PI; turn += 6 / (away + 6)) {{ \
               const [clientX, clientY] = [middle[0] + away * Math.cos(turn), middle[1] + away * Math.sin(turn)]; \
               map.dispatchEvent(new PointerEvent('pointermove', {{ clientX, clientY, bubbles: true }})); \
               if (!document.getElementById('map-tip').hidden && {what}) return true; \
             }} return false;"
        );
        assert_eq!(self.run(&script, &json!([])), true, "no item of the map: {what}");
    }

    /// Drops or pastes a file.
    pub(crate) fn hand_over(&self, how: &str, content: &[u8], name: &str) {
        self.hand(how, "body", &[(content, name)]);
    }

    /// Drops files on an element.
    pub(crate) fn hand_over_to(&self, css: &str, files: &[(&[u8], &str)]) {
        self.hand("drop", css, files);
    }

    fn hand(&self, how: &str, css: &str, files: &[(&[u8], &str)]) {
        let script = "const [how, css, files] = arguments, data = new DataTransfer(); \
                      for (const [content, name] of files) data.items.add(new File([Uint8Array.from(atob(content), byte => byte.charCodeAt(0))], name)); \
                      const options = { bubbles: true, cancelable: true }; \
                      document.querySelector(css).dispatchEvent(how == 'drop' ? new DragEvent('drop', { dataTransfer: data, ...options }) \
                                                                              : new ClipboardEvent('paste', { clipboardData: data, ...options }));";
        let files: Vec<_> = files.iter().map(|(content, name)| json!([STANDARD.encode(content), name])).collect();
        self.run(script, &json!([how, css, files]));
    }
}
