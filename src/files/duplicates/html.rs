//! The report as a page: each group with its pictures side by side.

use std::borrow::Cow;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dino_vision::duplicates::Kind;

use super::{File, Group, Report};

const STYLE: &str = include_str!("style.css");
/// Most groups with pictures: a browser has to hold them all.
const MOST_GROUPS: usize = 500;
/// Most pictures of a group.
const MOST_PICTURES: usize = 12;

pub(super) fn page(report: &Report, thumbnail: impl Fn(&str) -> Option<Vec<u8>>) -> String {
    let folder = escape(&report.images);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <meta name=\"color-scheme\" content=\"light dark\"><title>{folder}: near-copies</title><style>{STYLE}</style></head>\
         <body><main><h1>Near-copies in {folder}</h1>\n<p>{}</p>\n",
        summary(report)
    );
    for group in report.groups.iter().take(MOST_GROUPS) {
        section(&mut page, group, &thumbnail);
    }
    if report.groups.len() > MOST_GROUPS {
        let more = report.groups.len() - MOST_GROUPS;
        let _ = writeln!(page, "<section><p>and {more} more groups, which the JSON report lists</p></section>");
    }
    page.push_str("</main></body></html>\n");
    page
}

fn summary(report: &Report) -> String {
    let [(copies, copied), (similar, alike)] = [Kind::Copy, Kind::Similar].map(|kind| report.count(kind));
    let mut text = format!("{} pictures. Same pixels: {copies} groups of {copied} files.", report.pictures);
    if let Some(least) = report.min_similarity {
        let _ = write!(
            text,
            " Same scene (similarity from {least}): {similar} groups of {alike} files, of which those that are no copies may all be worth keeping."
        );
    }
    if report.flat > 0 {
        let _ = write!(text, " {} pictures are so plain that copies of the same bytes alone are known.", report.flat);
    }
    if !report.skipped.is_empty() {
        let _ = write!(text, " {} files could not be read.", report.skipped.len());
    }
    text
}

fn section(page: &mut String, group: &Group, thumbnail: impl Fn(&str) -> Option<Vec<u8>>) {
    let kind = match group.kind {
        Kind::Copy => "Same pixels",
        Kind::Similar => "Same scene",
    };
    let lowest = group.lowest_similarity.map_or_else(String::new, |lowest| format!(", lowest similarity {lowest:.3}"));
    let _ = writeln!(page, "<section><h2>{kind}: {} files{lowest}</h2><div class=\"items\">", group.items.len());
    for file in group.items.iter().take(MOST_PICTURES) {
        figure(page, file, thumbnail(&file.path));
    }
    if group.items.len() > MOST_PICTURES {
        let _ = writeln!(page, "<p>and {} more</p>", group.items.len() - MOST_PICTURES);
    }
    page.push_str("</div></section>\n");
}

fn figure(page: &mut String, file: &File, thumbnail: Option<Vec<u8>>) {
    let picture =
        thumbnail.map_or_else(String::new, |jpeg| format!("<img alt=\"\" src=\"data:image/jpeg;base64,{}\">", STANDARD.encode(jpeg)));
    let mut notes = format!("{} × {} pixels, {} bytes", file.width, file.height, file.bytes);
    if let Some(similarity) = file.similarity {
        let _ = write!(notes, "; similarity {similarity:.3}");
    }
    if let Some(largest) = &file.copy_of {
        let _ = write!(notes, "; same pixels as {}", escape(largest));
    }
    let _ = writeln!(page, "<figure>{picture}<figcaption>{}<small>{notes}</small></figcaption></figure>", escape(&file.path));
}

fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"']) {
        return Cow::Borrowed(text);
    }
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").into()
}
