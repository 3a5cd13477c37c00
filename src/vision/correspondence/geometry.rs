//! Maps of the plane from pairs of points, by least squares (Hartley and Zisserman, Multiple View Geometry, chapters 4 and 11).

use serde::{Deserialize, Serialize};

use crate::lanczos::{largest, start};

/// Rows of a matrix for points `[x, y, 1]`.
pub type Matrix = [[f64; 3]; 3];

/// A point `[x, y]` in each of two pictures.
pub type PointPair = ([f64; 2], [f64; 2]);

/// What two pictures of the same have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Geometry {
    /// A plane, seen from far: shifted, turned, scaled, sheared or mirrored.
    Affine,
    /// A plane in perspective, or a camera that turned.
    Homography,
    /// A rigid scene from two places: a point lies on a line of the other picture.
    Fundamental,
}

impl Geometry {
    /// Fewest pairs of points that say what it is.
    pub(super) fn sample(self) -> usize {
        match self {
            Self::Affine => 3,
            Self::Homography => 4,
            Self::Fundamental => 8,
        }
    }

    /// The matrix that fits the pairs best; `None` where they do not say what it is, as points on a line.
    pub(super) fn of(self, pairs: &[PointPair]) -> Option<Matrix> {
        let (from, to) = (Frame::of(pairs.iter().map(|pair| pair.0))?, Frame::of(pairs.iter().map(|pair| pair.1))?);
        let pairs = || pairs.iter().map(|pair| (from.inside(pair.0), to.inside(pair.1)));
        let matrix = match self {
            Self::Affine => affine(pairs())?,
            Self::Homography => {
                let rows = pairs().flat_map(|([x, y], [u, v])| {
                    [[-x, -y, -1.0, 0.0, 0.0, 0.0, u * x, u * y, u], [0.0, 0.0, 0.0, -x, -y, -1.0, v * x, v * y, v]]
                });
                square(null_vector(rows)?)
            }
            Self::Fundamental => {
                let rows = pairs().map(|([x, y], [u, v])| [u * x, u * y, u, v * x, v * y, v, x, y, 1.0]);
                of_rank_two(square(null_vector(rows)?))?
            }
        };
        let matrix = match self {
            // x' = T'^-1 H T x; and x'^T T'^T F T x = 0.
            Self::Affine | Self::Homography => product(product(to.back(), matrix), from.matrix()),
            Self::Fundamental => product(product(transposed(to.matrix()), matrix), from.matrix()),
        };
        self.scaled(matrix, from.middle)
    }

    /// The matrix at its usual scale: the last number 1, or of a fundamental matrix, and where the upper left corner of the picture is not
    /// on `middle`'s side of the horizon, the sum of squares. `middle` lies before the camera.
    fn scaled(self, matrix: Matrix, middle: [f64; 2]) -> Option<Matrix> {
        let length = matrix.as_flattened().iter().map(|value| value * value).sum::<f64>().sqrt();
        let sign = if self == Self::Fundamental { 1.0 } else { times(&matrix, middle)[2].signum() };
        let last = matrix[2][2];
        let by = if self != Self::Fundamental && last * sign > 1e-9 * length { last } else { sign * length };
        let scaled = matrix.map(|row| row.map(|value| value / by));
        scaled.as_flattened().iter().all(|value| value.is_finite()).then_some(scaled)
    }

    /// How far in pixels a pair is from fitting the matrix: from the point in the second picture to where the matrix puts the first one's;
    /// of a fundamental matrix, Sampson's distance. Infinite for what lies behind the camera.
    pub(super) fn error(self, matrix: &Matrix, (from, to): PointPair) -> f64 {
        let [x, y, w] = times(matrix, from);
        if self == Self::Fundamental {
            let [p, q, _] = times(&transposed(*matrix), to);
            let along = x * to[0] + y * to[1] + w;
            return along.abs() / (x * x + y * y + p * p + q * q).sqrt();
        }
        if w > 1e-9 { (x / w - to[0]).hypot(y / w - to[1]) } else { f64::INFINITY }
    }
}

/// Where points lie: subtracted and scaled before they are fitted, which keeps the numbers of one size.
#[derive(Clone, Copy)]
struct Frame {
    middle: [f64; 2],
    scale: f64,
}

impl Frame {
    /// `None` for points that are all the same.
    fn of(points: impl Iterator<Item = [f64; 2]> + Clone) -> Option<Self> {
        let count = points.clone().count() as f64;
        let sum = points.clone().fold([0.0; 2], |sum, point| [sum[0] + point[0], sum[1] + point[1]]);
        let middle = sum.map(|sum| sum / count);
        let spread = points.map(|point| (point[0] - middle[0]).hypot(point[1] - middle[1])).sum::<f64>() / count;
        (spread > 1e-9).then(|| Self { middle, scale: std::f64::consts::SQRT_2 / spread })
    }

    fn inside(self, point: [f64; 2]) -> [f64; 2] {
        [0, 1].map(|axis| (point[axis] - self.middle[axis]) * self.scale)
    }

    fn matrix(self) -> Matrix {
        let Self { middle: [x, y], scale } = self;
        [[scale, 0.0, -scale * x], [0.0, scale, -scale * y], [0.0, 0.0, 1.0]]
    }

    fn back(self) -> Matrix {
        let Self { middle: [x, y], scale } = self;
        [[1.0 / scale, 0.0, x], [0.0, 1.0 / scale, y], [0.0, 0.0, 1.0]]
    }
}

/// By least squares. Both sides have their mean at 0, so that nothing is left of the shift.
fn affine(pairs: impl Iterator<Item = PointPair>) -> Option<Matrix> {
    let (mut xx, mut xy, mut yy, mut of) = (0.0, 0.0, 0.0, [[0.0; 2]; 2]);
    for ([x, y], to) in pairs {
        (xx, xy, yy) = (xx + x * x, xy + x * y, yy + y * y);
        for (row, to) in of.iter_mut().zip(to) {
            *row = [row[0] + to * x, row[1] + to * y];
        }
    }
    let determinant = xx * yy - xy * xy;
    if determinant <= 1e-9 * (xx + yy).powi(2) {
        return None;
    }
    let [first, second] = of.map(|[x, y]| [(x * yy - y * xy) / determinant, (y * xx - x * xy) / determinant, 0.0]);
    Some([first, second, [0.0, 0.0, 1.0]])
}

/// The vector of length 1 that the rows' products with are smallest.
fn null_vector<const N: usize>(rows: impl Iterator<Item = [f64; N]>) -> Option<[f64; N]> {
    let mut gram = [[0.0; N]; N];
    for row in rows {
        for (sums, value) in gram.iter_mut().zip(row) {
            sums.iter_mut().zip(row).for_each(|(sum, other)| *sum += value * other);
        }
    }
    // Its smallest eigenvector is the largest of what it is subtracted from.
    let trace: f64 = (0..N).map(|at| gram[at][at]).sum();
    let found = largest(&[], start(N), |vector, image| {
        for ((image, row), own) in image.iter_mut().zip(&gram).zip(vector) {
            *image = trace * own - row.iter().zip(vector).map(|(a, b)| a * b).sum::<f64>();
        }
    })?;
    found.vector.try_into().ok()
}

fn square(values: [f64; 9]) -> Matrix {
    std::array::from_fn(|row| std::array::from_fn(|column| values[3 * row + column]))
}

/// The nearest matrix that one vector becomes 0 by: that of the smallest image.
fn of_rank_two(matrix: Matrix) -> Option<Matrix> {
    let vector = null_vector(matrix.into_iter())?;
    Some(matrix.map(|row| {
        let along: f64 = row.iter().zip(vector).map(|(a, b)| a * b).sum();
        std::array::from_fn(|at| row[at] - along * vector[at])
    }))
}

fn product(a: Matrix, b: Matrix) -> Matrix {
    a.map(|row| std::array::from_fn(|column| (0..3).map(|at| row[at] * b[at][column]).sum()))
}

fn transposed(matrix: Matrix) -> Matrix {
    std::array::from_fn(|row| std::array::from_fn(|column| matrix[column][row]))
}

fn times(matrix: &Matrix, [x, y]: [f64; 2]) -> [f64; 3] {
    matrix.map(|row| row[0] * x + row[1] * y + row[2])
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Geometry, Matrix, PointPair, times};

    /// Points spread over a picture of 640 x 480 pixels.
    pub(crate) fn points(count: usize) -> impl Iterator<Item = [f64; 2]> {
        (0..count).map(|at| {
            let share = |step: f64| (at as f64 * step).fract();
            [640.0 * share(0.618_034), 480.0 * share(0.414_214 * 1.7)]
        })
    }

    pub(crate) fn mapped(matrix: &Matrix, point: [f64; 2]) -> [f64; 2] {
        let [x, y, w] = times(matrix, point);
        [x / w, y / w]
    }

    fn pairs(matrix: &Matrix, count: usize) -> Vec<PointPair> {
        points(count).map(|point| (point, mapped(matrix, point))).collect()
    }

    pub(crate) const PERSPECTIVE: Matrix = [[0.9, -0.2, 40.0], [0.15, 1.1, -20.0], [2e-4, -1e-4, 1.0]];
    const SHEARED: Matrix = [[-1.2, 0.3, 700.0], [0.1, 0.8, 15.0], [0.0, 0.0, 1.0]];

    /// Points of a scene that has depth, seen by two cameras.
    pub(crate) fn scene(count: usize) -> Vec<PointPair> {
        let (sin, cos) = 0.1_f64.sin_cos();
        points(count)
            .enumerate()
            .map(|(at, [x, y])| {
                let depth = 3.0 + 4.0 * (at as f64 * 0.7).sin().abs();
                let [x, y] = [(x - 320.0) / 500.0 * depth, (y - 240.0) / 500.0 * depth];
                let project = |x: f64, y: f64, z: f64| [500.0 * x / z + 320.0, 500.0 * y / z + 240.0];
                (project(x, y, depth), project(cos * x + sin * depth + 0.6, y + 0.1, cos * depth - sin * x))
            })
            .collect()
    }

    #[test]
    fn maps_are_found_from_the_fewest_points_and_from_many() {
        for (kind, matrix) in [(Geometry::Affine, SHEARED), (Geometry::Homography, PERSPECTIVE), (Geometry::Homography, SHEARED)] {
            for count in [kind.sample(), 50] {
                let found = kind.of(&pairs(&matrix, count)).unwrap();
                for (found, expected) in found.as_flattened().iter().zip(matrix.as_flattened()) {
                    assert!((found - expected).abs() < 1e-5 * expected.abs().max(1e-2), "{kind:?} {count}: {found} {expected}");
                }
            }
        }
    }

    #[test]
    fn points_of_a_rigid_scene_lie_on_their_lines() {
        for count in [8, 60] {
            let scene = scene(60);
            let found = Geometry::Fundamental.of(&scene[..count]).unwrap();
            assert!(scene.iter().all(|pair| Geometry::Fundamental.error(&found, *pair) < 0.05), "{count}");
            let [a, b, c] = found;
            let determinant = a[0] * (b[1] * c[2] - b[2] * c[1]) - a[1] * (b[0] * c[2] - b[2] * c[0]) + a[2] * (b[0] * c[1] - b[1] * c[0]);
            assert!(determinant.abs() < 1e-12);
            // Off its line, a point is as far as it was moved, up to the share that the other picture takes.
            let moved = (scene[3].0, [scene[3].1[0], scene[3].1[1] + 30.0]);
            assert!(Geometry::Fundamental.error(&found, moved) > 10.0);
        }
    }

    #[test]
    fn points_that_say_nothing_have_no_map() {
        let same = vec![([3.0, 4.0], [5.0, 6.0]); 9];
        let line: Vec<PointPair> = (0..9).map(|at| ([f64::from(at), 2.0 * f64::from(at)], [f64::from(at), 7.0])).collect();
        for kind in [Geometry::Affine, Geometry::Homography, Geometry::Fundamental] {
            assert!(kind.of(&same).is_none());
        }
        assert!(Geometry::Affine.of(&line).is_none());
    }
}
