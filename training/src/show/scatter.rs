//! A map of points coloured by class, with a legend, as SVG or as pixels.
//!
//! ```
//! use dino_train::show::scatter::Scatter;
//!
//! let places = ndarray::array![[0.0, 0.0], [1.0, 0.5]];
//! let (names, titles) = (["cat".to_owned(), "dog".to_owned()], ["1.jpg".to_owned(), "2.jpg".to_owned()]);
//! let map = Scatter { places: places.view(), classes: &[0, 1], names: &names, titles: &titles };
//! assert!(map.svg().contains("2.jpg"));
//! ```

use std::fmt::Write as _;

use image::{Rgb, RgbImage};
use ndarray::ArrayView2;

use crate::show::draw;

/// Points and their classes.
#[derive(Clone, Copy, Debug)]
pub struct Scatter<'a> {
    /// `[n, 2]`.
    pub places: ArrayView2<'a, f32>,
    /// Class of each point.
    pub classes: &'a [u32],
    /// Names of the classes.
    pub names: &'a [String],
    /// What each point is; shown when the mouse rests on it.
    pub titles: &'a [String],
}

/// Side of the square that the points lie in.
const SIDE: u32 = 900;
const MARGIN: u32 = 16;
/// Height of a line of the legend.
const LINE: u32 = 14;
/// Longest name that the legend shows in full.
const NAME: usize = 22;
/// With at most this many classes, names are also written at the middle of their points: colours alone are hard to tell apart.
const LABELLED: usize = 30;
const PAPER: Rgb<u8> = Rgb([255; 3]);
const INK: Rgb<u8> = Rgb([40; 3]);

impl Scatter<'_> {
    /// Where each point lies, and the size of the whole picture.
    fn layout(&self) -> (Vec<(f32, f32)>, (u32, u32)) {
        let mut bounds = [(f32::INFINITY, f32::NEG_INFINITY); 2];
        for place in self.places.rows() {
            for (bound, &value) in bounds.iter_mut().zip(place) {
                *bound = (bound.0.min(value), bound.1.max(value));
            }
        }
        let span = bounds.iter().map(|(low, high)| high - low).fold(f32::MIN_POSITIVE, f32::max);
        let room = (SIDE - 2 * MARGIN) as f32;
        let at = |axis: usize, value: f32| {
            let middle = f32::midpoint(bounds[axis].0, bounds[axis].1);
            SIDE as f32 / 2.0 + (value - middle) / span * room
        };
        let points = self.places.rows().into_iter().map(|place| (at(0, place[0]), SIDE as f32 - at(1, place[1]))).collect();
        let columns = (self.names.len() as u32).div_ceil(lines());
        (points, (SIDE + MARGIN + columns * column_width(), SIDE))
    }

    fn radius(&self) -> f32 {
        (120.0 / (self.classes.len() as f32).sqrt()).clamp(1.5, 4.0)
    }

    /// Name, colour and place of each line of the legend.
    fn legend(&self) -> impl Iterator<Item = (String, Rgb<u8>, (u32, u32))> {
        let count = self.names.len();
        self.names.iter().enumerate().map(move |(index, name)| {
            let (column, line) = (index as u32 / lines(), index as u32 % lines());
            let mut short: String = name.chars().take(NAME).collect();
            if short.len() < name.len() {
                short.pop();
                short.push('…');
            }
            (short, draw::category(index, count), (SIDE + MARGIN + column * column_width(), MARGIN + line * LINE))
        })
    }

    /// Names at the middle of their points, where there are few.
    fn labels(&self, points: &[(f32, f32)]) -> Vec<(&str, (f32, f32))> {
        if self.names.len() > LABELLED {
            return Vec::new();
        }
        let median = |mut values: Vec<f32>| {
            values.sort_by(f32::total_cmp);
            values.get(values.len() / 2).copied()
        };
        let own = |class: usize| points.iter().zip(self.classes).filter(move |(_, own)| **own as usize == class).map(|(point, _)| *point);
        let label = |(class, name): (usize, &'_ String)| {
            let (x, y) = (median(own(class).map(|p| p.0).collect())?, median(own(class).map(|p| p.1).collect())?);
            Some((class, name.len(), (x, y)))
        };
        self.names.iter().enumerate().filter_map(label).map(|(class, _, at)| (self.names[class].as_str(), at)).collect()
    }

    /// The picture as SVG, without anything from outside.
    pub fn svg(&self) -> String {
        let (points, (width, height)) = self.layout();
        let count = self.names.len();
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" height=\"{height}\" \
             font-family=\"sans-serif\" font-size=\"11\"><rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
        );
        for (index, (x, y)) in points.iter().enumerate() {
            let colour = draw::hex(draw::category(self.classes[index] as usize, count));
            let title = escape(self.titles.get(index).map_or("", String::as_str));
            let _ = writeln!(
                svg,
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{:.1}\" fill=\"{colour}\" fill-opacity=\"0.8\"><title>{title}</title></circle>",
                self.radius()
            );
        }
        for (name, (x, y)) in self.labels(&points) {
            let _ = writeln!(
                svg,
                "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"middle\" fill=\"#222\" stroke=\"#fff\" stroke-width=\"3\" \
                 paint-order=\"stroke\" font-weight=\"bold\">{}</text>",
                escape(name)
            );
        }
        for (name, colour, (x, y)) in self.legend() {
            let (colour, name, middle) = (draw::hex(colour), escape(&name), y + LINE / 2);
            let _ = writeln!(
                svg,
                "<circle cx=\"{}\" cy=\"{middle}\" r=\"4\" fill=\"{colour}\"/><text x=\"{}\" y=\"{}\" fill=\"#222\">{name}</text>",
                x + 5,
                x + 14,
                middle + 4
            );
        }
        svg.push_str("</svg>\n");
        svg
    }

    /// The picture as pixels.
    pub fn pixels(&self) -> RgbImage {
        let (points, (width, height)) = self.layout();
        let mut picture = RgbImage::from_pixel(width, height, PAPER);
        for (point, class) in points.iter().zip(self.classes) {
            draw::disc(&mut picture, *point, self.radius(), draw::category(*class as usize, self.names.len()));
        }
        for (name, (x, y)) in self.labels(&points) {
            let half = name.chars().count() as f32 * draw::LETTER as f32 / 2.0;
            let at = ((x - half).max(0.0) as u32, (y - draw::LETTER as f32 / 2.0).max(0.0) as u32);
            for (dx, dy) in [(0, 1), (2, 1), (1, 0), (1, 2)] {
                draw::text(&mut picture, (at.0 + dx, at.1 + dy), name, PAPER);
            }
            draw::text(&mut picture, (at.0 + 1, at.1 + 1), name, INK);
        }
        for (name, colour, (x, y)) in self.legend() {
            draw::disc(&mut picture, (x as f32 + 5.0, (y + LINE / 2) as f32), 4.0, colour);
            draw::text(&mut picture, (x + 14, y + 3), &name.replace('…', "~"), INK);
        }
        picture
    }
}

fn lines() -> u32 {
    (SIDE - 2 * MARGIN) / LINE
}

fn column_width() -> u32 {
    14 + NAME as u32 * draw::LETTER + MARGIN
}

/// Text with the characters escaped that XML reserves.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use ndarray::array;

    use super::*;

    #[test]
    fn points_have_the_colour_of_their_class_and_names_are_escaped() {
        let names = ["a<b".to_owned(), "second".to_owned()];
        let titles = ["x/1.jpg".to_owned(), "y/2.jpg".to_owned()];
        let places = array![[-1.0_f32, -3.0], [1.0, 3.0]];
        let scatter = Scatter { places: places.view(), classes: &[0, 1], names: &names, titles: &titles };
        let svg = scatter.svg();
        assert!(svg.contains("a&lt;b") && svg.contains("<title>y/2.jpg</title>") && !svg.contains("a<b"));
        let picture = scatter.pixels();
        // The taller span fills the square; the second point is up and right, beside its name.
        let x = SIDE / 2 + (SIDE - 2 * MARGIN) / 6 - 2;
        assert_eq!(*picture.get_pixel(x, MARGIN - 3), draw::category(1, 2));
        assert_eq!(picture.dimensions(), (SIDE + MARGIN + column_width(), SIDE));
    }
}
