//! Positions of patches for any grid, computed inside the graph.
//!
//! A learned table is resampled along rows, then along columns, each time by a product with a weight matrix. The matrices
//! are built from the grid's size in the graph itself: runtimes' own resizing operators differ in their borders,
//! scale factors and antialiasing, a product is the same everywhere.

use crate::weights::{Interpolation, Tensor};

use super::folded;
use super::graph::{Attr, Graph, Type, Value};

/// The grid of patches.
#[derive(Clone, Copy)]
pub(super) enum Grid {
    /// Of each picture's own size: lengths as int64 of shape `[1]`.
    Free { rows: Value, columns: Value },
    /// The same for all pictures: positions are computed when the graph is written.
    Fixed { rows: usize, columns: usize },
}

/// The table `[side, side, D]` resampled to the grid: `[1, rows · columns, D]`.
pub(super) fn learned<'w>(graph: &mut Graph<'w>, grid: Grid, table: &'w Tensor, interpolation: Interpolation) -> Value {
    let (side, dim) = (table.shape[0], table.shape[2]);
    let (rows, columns) = match grid {
        Grid::Free { rows, columns } => (rows, columns),
        Grid::Fixed { rows, columns } => {
            let resample =
                move || folded::learned(table, interpolation, rows, columns).iter().flat_map(|value| value.to_le_bytes()).collect();
            return graph.made("positions", (Type::Float, 4), &[1, rows * columns, dim], resample);
        }
    };
    let rows = Source::new(graph, rows, side);
    let columns = Source::new(graph, columns, side);
    let native = match interpolation {
        Interpolation::ScaleFactor => {
            let both = [rows, columns].map(|source| graph.op("Equal", &[source.count, source.side], &[]));
            Some(graph.op("And", &both, &[]))
        }
        Interpolation::Size | Interpolation::Antialias => None,
    };
    let [rows, columns] = [rows, columns].map(|source| match interpolation {
        Interpolation::Antialias => source.antialiased(graph),
        Interpolation::Size | Interpolation::ScaleFactor => source.cubic(graph, native),
    });
    let table = graph.floats("position_table", &[side, side * dim], &table.data);
    let tall = graph.matmul(rows, table);
    let tall = graph.reshape(tall, &[-1, side as i64, dim as i64]);
    let full = graph.matmul(columns, tall);
    graph.reshape(full, &[1, -1, dim as i64])
}

/// One axis of a resampling from `side` to `count` positions.
#[derive(Clone, Copy)]
struct Source {
    /// Target positions as float, `[1]`.
    count: Value,
    /// Positions of the table as float, `[]`.
    side: Value,
    /// 0.5, 1.5, … in the target, `[count]`.
    centres: Value,
    length: usize,
}

impl Source {
    fn new(graph: &mut Graph<'_>, count: Value, length: usize) -> Self {
        let centres = centres(graph, count);
        let count = graph.cast(count, Type::Float);
        let side = graph.scalar(length as f32);
        Self { count, side, centres, length }
    }

    /// `PyTorch`'s bicubic resampling without antialiasing, `[count, side]`: four taps with a = -0.75, of which those
    /// outside the table fall on its border. `native` marks the grid on which a scale factor is not used.
    fn cubic(self, graph: &mut Graph<'_>, native: Option<Value>) -> Value {
        let ratio = match native {
            // DINO adds 0.1 to the target size against rounding, and passes the quotient as the scale factor.
            Some(native) => {
                let offset = graph.scalar(0.1);
                let count = graph.add(self.count, offset);
                let ratio = graph.div(self.side, count);
                let one = graph.scalar(1.0);
                graph.op("Where", &[native, one, ratio], &[])
            }
            None => graph.div(self.side, self.count),
        };
        let half = graph.scalar(0.5);
        let source = graph.mul(self.centres, ratio);
        let source = graph.sub(source, half);
        let source = graph.reshape(source, &[-1, 1]);
        let floor = graph.op("Floor", &[source], &[]);
        let offsets = graph.floats("taps", &[1, 4], &[-1.0, 0.0, 1.0, 2.0]);
        let taps = graph.add(floor, offsets);
        let distance = graph.sub(source, taps);
        let weights = cubic_kernel(graph, distance, -0.75);

        let low = graph.scalar(0.0);
        let high = graph.scalar(self.length as f32 - 1.0);
        let taps = graph.op("Clip", &[taps, low, high], &[]);
        let taps = graph.reshape(taps, &[-1, 4, 1]);
        let positions = self.positions(graph, 0.0);
        let hit = graph.op("Equal", &[taps, positions], &[]);
        let hit = graph.cast(hit, Type::Float);
        let weights = graph.reshape(weights, &[-1, 1, 4]);
        let matrix = graph.matmul(weights, hit);
        graph.reshape(matrix, &[-1, self.length as i64])
    }

    /// `PyTorch`'s bicubic resampling with antialiasing, `[count, side]`: a = -0.5, widened when the grid shrinks, weights
    /// inside the table scaled to sum 1.
    fn antialiased(self, graph: &mut Graph<'_>) -> Value {
        let ratio = graph.div(self.side, self.count);
        let one = graph.scalar(1.0);
        let width = graph.op("Max", &[ratio, one], &[]);
        let centre = graph.mul(self.centres, ratio);
        let centre = graph.reshape(centre, &[-1, 1]);
        let positions = self.positions(graph, 0.5);
        let distance = graph.sub(positions, centre);
        let distance = graph.div(distance, width);
        let weights = cubic_kernel(graph, distance, -0.5);
        let axes = graph.integers(&[-1]);
        let sum = graph.op("ReduceSum", &[weights, axes], &[("keepdims", Attr::Int(1))]);
        graph.div(weights, sum)
    }

    /// `offset`, `1 + offset`, … for each position of the table, `[side]`.
    fn positions(self, graph: &mut Graph<'_>, offset: f32) -> Value {
        let data: Vec<f32> = (0..self.length).map(|index| index as f32 + offset).collect();
        graph.floats("positions", &[self.length], &data)
    }
}

/// Keys' cubic convolution kernel (1981) with parameter `a` of each distance.
fn cubic_kernel(graph: &mut Graph<'_>, distance: Value, a: f32) -> Value {
    let x = graph.op("Abs", &[distance], &[]);
    // |x| ≤ 1: ((a + 2)·x - (a + 3))·x² + 1
    let near = polynomial(graph, x, &[a + 2.0, -(a + 3.0), 0.0, 1.0]);
    // 1 < |x| < 2: ((a·x - 5a)·x + 8a)·x - 4a
    let far = polynomial(graph, x, &[a, -5.0 * a, 8.0 * a, -4.0 * a]);
    let [zero, one, two] = [0.0, 1.0, 2.0].map(|number| graph.scalar(number));
    let is_far = graph.op("Less", &[x, two], &[]);
    let outer = graph.op("Where", &[is_far, far, zero], &[]);
    let is_near = graph.op("LessOrEqual", &[x, one], &[]);
    graph.op("Where", &[is_near, near, outer], &[])
}

/// Horner's scheme, highest power first.
fn polynomial(graph: &mut Graph<'_>, x: Value, coefficients: &[f32]) -> Value {
    let mut value = graph.scalar(coefficients[0]);
    for coefficient in &coefficients[1..] {
        value = graph.mul(value, x);
        if *coefficient != 0.0 {
            let coefficient = graph.scalar(*coefficient);
            value = graph.add(value, coefficient);
        }
    }
    value
}

/// 0.5, 1.5, … `[count]`.
fn centres(graph: &mut Graph<'_>, count: Value) -> Value {
    let axes = graph.integers(&[0]);
    let limit = graph.op("Squeeze", &[count, axes], &[]);
    let [start, step] = [0, 1].map(|number| graph.index(number));
    let range = graph.op("Range", &[start, limit, step], &[]);
    let range = graph.cast(range, Type::Float);
    let half = graph.scalar(0.5);
    graph.add(range, half)
}

/// Cosines and signed sines for rotary positions (DINOv3), `[1 + registers + patches, head_dim]`. CLS and registers are
/// not rotated. The first half of the sines is negated, so that a rotation is `x · cos + swap(x) · sin`, where `swap`
/// exchanges the halves of a head's channels.
pub(super) fn rotary(graph: &mut Graph<'_>, grid: Grid, periods: &[f32], prefix: usize) -> [Value; 2] {
    let quarter = periods.len();
    let (rows, columns) = match grid {
        Grid::Free { rows, columns } => (rows, columns),
        Grid::Fixed { rows, columns } => {
            let shape = [prefix + rows * columns, 4 * quarter];
            let turns = folded::rotary(periods, prefix, rows, columns);
            return ["rotary_cosines", "rotary_sines"]
                .into_iter()
                .zip(turns)
                .map(|(name, values)| graph.floats(name, &shape, &values))
                .collect::<Vec<_>>()
                .try_into()
                .expect("two");
        }
    };
    let speeds: Vec<f32> = periods.iter().map(|period| 2.0 * std::f32::consts::PI / period).collect();
    let speeds = graph.floats("rotary_speeds", &[1, quarter], &speeds);
    let length = graph.integers(&[quarter as i64]);
    let shape = graph.concat(&[rows, columns, length], 0);
    let angles = [(rows, [-1, 1, quarter as i64]), (columns, [1, -1, quarter as i64])].map(|(count, axes)| {
        let centres = centres(graph, count);
        let count = graph.cast(count, Type::Float);
        let centres = graph.div(centres, count);
        // From 0..1 to -1..1.
        let (two, one) = (graph.scalar(2.0), graph.scalar(1.0));
        let coordinates = graph.mul(centres, two);
        let coordinates = graph.sub(coordinates, one);
        let coordinates = graph.reshape(coordinates, &[-1, 1]);
        let angles = graph.mul(coordinates, speeds);
        let angles = graph.reshape(angles, &axes);
        graph.op("Expand", &[angles, shape], &[])
    });
    let angles = graph.concat(&angles, 2);
    let angles = graph.reshape(angles, &[-1, 2 * quarter as i64]);
    let cos = graph.op("Cos", &[angles], &[]);
    let sin = graph.op("Sin", &[angles], &[]);
    let minus_sin = graph.op("Neg", &[sin], &[]);
    [([cos, cos], 1.0), ([minus_sin, sin], 0.0)].map(|(halves, still)| {
        let patches = graph.concat(&halves, 1);
        let head_dim = 4 * quarter;
        let prefix = graph.floats("rotary_prefix", &[prefix, head_dim], &vec![still; prefix * head_dim]);
        graph.concat(&[prefix, patches], 0)
    })
}
