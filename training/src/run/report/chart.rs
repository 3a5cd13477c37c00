//! Curves over the epochs as SVG. Colours come from the report's style, so that light and dark both read well.

use std::fmt::Write as _;

/// One curve.
#[derive(Clone, Debug)]
pub(super) struct Curve {
    /// Its name.
    pub(super) name: &'static str,
    /// (epoch, value); values that are not finite are left out.
    pub(super) points: Vec<(f64, f64)>,
}

/// At most three curves on one pair of axes.
#[derive(Clone, Debug)]
pub(super) struct Chart {
    /// What the axes show.
    pub(super) title: &'static str,
    /// How to read it.
    pub(super) note: &'static str,
    /// The curves.
    pub(super) curves: Vec<Curve>,
}

const WIDTH: f64 = 460.0;
const HEIGHT: f64 = 240.0;
const LEFT: f64 = 56.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 24.0;
const BOTTOM: f64 = 24.0;

impl Chart {
    /// The chart as a figure.
    pub(super) fn svg(&self) -> String {
        let finite = || self.curves.iter().flat_map(|curve| &curve.points).filter(|point| point.1.is_finite());
        let range = |of: fn(&(f64, f64)) -> f64| {
            finite().map(of).fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)))
        };
        let ((first, last), (low, high)) = (range(|point| point.0), range(|point| point.1));
        let mut svg = format!(
            "<figure><figcaption>{}<small>{}</small></figcaption><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\">",
            self.title, self.note, self.title
        );
        if low <= high {
            let ticks = ticks(low, high);
            let (bottom, top) = (ticks[0].min(low), ticks[ticks.len() - 1].max(high));
            let x = |epoch: f64| LEFT + (epoch - first) / (last - first).max(1.0) * (WIDTH - LEFT - RIGHT);
            let y = |value: f64| HEIGHT - BOTTOM - (value - bottom) / (top - bottom).max(f64::MIN_POSITIVE) * (HEIGHT - TOP - BOTTOM);
            for &tick in &ticks {
                let at = y(tick);
                let _ = write!(
                    svg,
                    "<line class=\"grid\" x1=\"{LEFT}\" x2=\"{}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                     <text class=\"axis\" x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                    WIDTH - RIGHT,
                    LEFT - 6.0,
                    at + 4.0,
                    number(tick)
                );
            }
            let foot = HEIGHT - 6.0;
            let _ = write!(
                svg,
                "<text class=\"axis\" x=\"{LEFT}\" y=\"{foot}\">epoch {first}</text>\
                 <text class=\"axis\" x=\"{}\" y=\"{foot}\" text-anchor=\"end\">{last}</text>",
                WIDTH - RIGHT
            );
            let mut at = LEFT;
            for (kind, curve) in self.curves.iter().enumerate() {
                let points: Vec<_> = curve.points.iter().filter(|point| point.1.is_finite()).collect();
                let path: Vec<String> = points.iter().map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1))).collect();
                let _ = match points[..] {
                    [point] => write!(svg, "<circle class=\"t{kind}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\"/>", x(point.0), y(point.1)),
                    _ => write!(svg, "<polyline class=\"curve k{kind}\" points=\"{}\"/>", path.join(" ")),
                };
                let _ = write!(
                    svg,
                    "<line class=\"curve k{kind}\" x1=\"{at}\" x2=\"{}\" y1=\"10\" y2=\"10\"/>\
                     <text class=\"name t{kind}\" x=\"{}\" y=\"14\">{}</text>",
                    at + 22.0,
                    at + 27.0,
                    curve.name
                );
                at += 48.0 + 7.0 * curve.name.len() as f64;
            }
        }
        svg + "</svg></figure>\n"
    }
}

/// Three to seven round numbers that span the values.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let span = if high > low { high - low } else { low.abs().max(1e-12) };
    let unit = 10_f64.powf((span / 4.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * unit).into_iter().find(|step| span / step <= 5.0).unwrap_or(10.0 * unit);
    let (from, to) = ((low / step).floor() as i64, ((high / step).ceil() as i64).max((low / step).floor() as i64 + 1));
    (from..=to).map(|tick| tick as f64 * step).collect()
}

/// A number without a tail of rounding.
fn number(value: f64) -> String {
    if value != 0.0 && value.abs() < 1e-3 {
        return format!("{value:.2e}");
    }
    let text = format!("{value:.4}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_span_the_values() {
        for (low, high) in [(0.0, 1.0), (2.3, 2.31), (1e-6, 4e-4), (0.996, 1.0), (37.0, 37.0), (0.0, 0.0), (-3.0, 5000.0)] {
            let ticks = ticks(low, high);
            assert!((2..=8).contains(&ticks.len()), "{low} {high}: {ticks:?}");
            assert!(ticks[0] <= low + 1e-12 && ticks[ticks.len() - 1] >= high - 1e-12 * high.abs(), "{low} {high}: {ticks:?}");
        }
        assert_eq!([number(0.5), number(1e-5), number(40.0), number(0.0)], ["0.5", "1.00e-5", "40", "0"]);
    }

    #[test]
    fn values_that_are_not_finite_are_left_out() {
        let chart = |points: Vec<(f64, f64)>| Chart { title: "t", note: "n", curves: vec![Curve { name: "c", points }] }.svg();
        assert!(!chart(vec![(1.0, f64::NAN), (2.0, 1.0)]).contains("NaN"));
        assert!(!chart(vec![]).contains("polyline"));
    }
}
