//! Graphs as other people's exporters write them, small enough to compute by hand.
//!
//! A patch token is a linear map of its 16 x 16 pixels, CLS (and every register, times a number) is the mean of the patches.

use std::path::Path;

use half::f16;
use image::RgbImage;
use ndarray::{Array2, Array3, s};
use onnx_rs::ast::{
    Attribute, AttributeType, DataLocation, DataType, Dimension, Graph, Model, Node, OpType, OperatorSetId, StringStringEntry, TensorProto,
    TensorShape, TensorShapeDimension, TensorTypeProto, TypeProto, TypeValue, ValueInfo,
};

pub(crate) const PATCH: usize = 16;
pub(crate) const DIM: usize = 8;

/// What the graph answers.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Answers {
    /// `last_hidden_state` and, as `transformers` does, a `pooler_output` made of it.
    Tokens,
    /// One vector, under the name that `torch.onnx.export` gives.
    Vector,
    /// A feature map and its mean, as convolutional networks do.
    Map,
}

/// A graph to write.
#[derive(Clone)]
pub(crate) struct Sketch {
    pub(crate) input: &'static str,
    pub(crate) half: bool,
    pub(crate) batch: Option<usize>,
    /// Height and width, where they are declared fixed.
    pub(crate) size: Option<[usize; 2]>,
    pub(crate) registers: usize,
    /// Grid whose positions are baked in, whatever sizes are declared.
    pub(crate) positions: Option<[usize; 2]>,
    pub(crate) answers: Answers,
    /// Whether the weights are in a file beside it.
    pub(crate) external: bool,
}

impl Default for Sketch {
    fn default() -> Self {
        Self {
            input: "pixel_values",
            half: false,
            batch: None,
            size: None,
            registers: 0,
            positions: None,
            answers: Answers::Tokens,
            external: false,
        }
    }
}

/// `[DIM, 3 * PATCH * PATCH]`
fn weights() -> Array2<f32> {
    Array2::from_shape_fn((DIM, 3 * PATCH * PATCH), |(row, column)| ((row * 7919 + column * 104_729) % 1009) as f32 / 10_000.0 - 0.05)
}

/// CLS of a picture that was brought to `pixels` `[3, H, W]`.
pub(crate) fn cls(pixels: &Array3<f32>) -> Vec<f32> {
    let (_, height, width) = pixels.dim();
    let (rows, columns) = (height / PATCH, width / PATCH);
    let weights = weights();
    let mut sum = ndarray::Array1::<f32>::zeros(DIM);
    for row in 0..rows {
        for column in 0..columns {
            let (y, x) = (row * PATCH, column * PATCH);
            let patch = pixels.slice(s![.., y..y + PATCH, x..x + PATCH]);
            sum += &weights.dot(&patch.iter().copied().collect::<ndarray::Array1<f32>>());
        }
    }
    (sum / (rows * columns) as f32).to_vec()
}

/// CLS of a picture under a transform.
pub(crate) fn cls_of(picture: &RgbImage, transform: &dino_vision::transform::Transform) -> Vec<f32> {
    cls(&transform.apply(picture))
}

impl Sketch {
    /// Writes the file, and the one with its weights.
    pub(crate) fn write(&self, path: &Path) {
        fs_err::create_dir_all(path.parent().unwrap()).unwrap();
        let kind = if self.half { DataType::Float16 } else { DataType::Float };
        let bytes = |numbers: &mut dyn Iterator<Item = f32>| -> Vec<u8> {
            if self.half {
                numbers.flat_map(|number| f16::from_f32(number).to_le_bytes()).collect()
            } else {
                numbers.flat_map(f32::to_le_bytes).collect()
            }
        };
        let weights = bytes(&mut weights().into_iter());
        let factors = bytes(&mut (0..self.registers * DIM).map(|number| number as f32));
        let [rows, columns] = self.positions.unwrap_or_default();
        let count = 1 + self.registers + rows * columns;
        // Nothing but CLS's own position may change its value.
        let table = bytes(&mut (0..count * DIM).map(|number| if number < DIM { 0.0 } else { number as f32 / 100.0 }));
        let integers = |numbers: &[i64]| numbers.iter().flat_map(|number| number.to_le_bytes()).collect::<Vec<u8>>();
        let (flat, one, vector) = (integers(&[0, DIM as i64, -1]), integers(&[0, 1, DIM as i64]), integers(&[0, DIM as i64]));

        let mut conv = TensorProto::from_raw("conv.weight", vec![DIM as i64, 3, PATCH as i64, PATCH as i64], kind, &weights);
        let beside = format!("{}_data", path.file_name().unwrap().to_str().unwrap());
        if self.external {
            fs_err::write(path.with_file_name(&beside), &weights).unwrap();
            let length = weights.len().to_string();
            let entries = [("location", beside.as_str()), ("offset", "0"), ("length", length.as_str())];
            conv = TensorProto::from_raw("conv.weight", vec![DIM as i64, 3, PATCH as i64, PATCH as i64], kind, &[])
                .with_data_location(DataLocation::External)
                .with_external_data(entries.map(|(key, value)| StringStringEntry { key, value }).to_vec());
            self.save(path, kind, &conv, &[], &[&flat, &one, &vector]);
            return;
        }
        let extra = [
            TensorProto::from_raw("registers", vec![1, self.registers as i64, DIM as i64], kind, &factors),
            TensorProto::from_raw("positions", vec![1, count as i64, DIM as i64], kind, &table),
        ];
        self.save(path, kind, &conv, &extra, &[&flat, &one, &vector]);
    }

    fn save(&self, path: &Path, kind: DataType, conv: &TensorProto<'_>, extra: &[TensorProto<'_>], shapes: &[&Vec<u8>; 3]) {
        let side = [PATCH as i64; 2];
        let mut nodes = vec![
            node(OpType::Conv, &[self.input, "conv.weight"], "map", &[ints("kernel_shape", &side), ints("strides", &side)]),
            node(OpType::GlobalAveragePool, &["map"], "mean", &[]),
        ];
        let outputs: &[&str] = match self.answers {
            Answers::Map => {
                nodes.push(node(OpType::Identity, &["map"], "last_hidden_state", &[]));
                nodes.push(node(OpType::Identity, &["mean"], "pooler_output", &[]));
                &["last_hidden_state", "pooler_output"]
            }
            Answers::Vector => {
                nodes.push(node(OpType::Reshape, &["mean", "vector"], "1234", &[]));
                &["1234"]
            }
            Answers::Tokens => {
                nodes.push(node(OpType::Reshape, &["map", "flat"], "columns", &[]));
                nodes.push(node(OpType::Transpose, &["columns"], "patches", &[ints("perm", &[0, 2, 1])]));
                nodes.push(node(OpType::Reshape, &["mean", "one"], "cls", &[]));
                let mut tokens = vec!["cls"];
                if self.registers > 0 {
                    nodes.push(node(OpType::Mul, &["cls", "registers"], "extra", &[]));
                    tokens.push("extra");
                }
                tokens.push("patches");
                let bare = if self.positions.is_some() { "bare" } else { "last_hidden_state" };
                nodes.push(node(OpType::Concat, &tokens, bare, &[int("axis", 1)]));
                if self.positions.is_some() {
                    nodes.push(node(OpType::Add, &[bare, "positions"], "last_hidden_state", &[]));
                }
                nodes.push(node(OpType::Reshape, &["mean", "vector"], "row", &[]));
                nodes.push(node(OpType::Tanh, &["row"], "pooler_output", &[]));
                &["last_hidden_state", "pooler_output"]
            }
        };
        let integers = |name, shape: &'static [i64], bytes| TensorProto::from_raw(name, shape.to_vec(), DataType::Int64, bytes);
        let mut initializer = vec![conv.clone()];
        initializer.extend(extra.iter().cloned());
        initializer.extend([integers("flat", &[3], shapes[0]), integers("one", &[3], shapes[1]), integers("vector", &[2], shapes[2])]);
        let fixed =
            |length: Option<usize>, name: &'static str| length.map_or(Dimension::Param(name), |length| Dimension::Value(length as i64));
        let [height, width] = [0, 1].map(|axis| self.size.map(|size| size[axis]));
        let input = [fixed(self.batch, "batch_size"), Dimension::Param("num_channels"), fixed(height, "height"), fixed(width, "width")];
        let graph = Graph {
            name: "main_graph",
            node: nodes,
            initializer,
            input: vec![info(self.input, kind, Some(&input))],
            output: outputs.iter().map(|name| info(name, kind, None)).collect(),
            ..Graph::default()
        };
        let model = Model {
            ir_version: 8,
            opset_import: vec![OperatorSetId { domain: "", version: 17 }],
            producer_name: "pytorch",
            producer_version: "2.0",
            graph: Some(graph),
            ..Model::default()
        };
        fs_err::write(path, onnx_rs::encode(&model)).unwrap();
    }
}

fn node<'a>(op_type: OpType<'a>, inputs: &[&'a str], output: &'a str, attributes: &[Attribute<'a>]) -> Node<'a> {
    Node { op_type, input: inputs.to_vec(), output: vec![output], attribute: attributes.to_vec(), ..Node::default() }
}

fn ints(name: &'static str, ints: &[i64]) -> Attribute<'static> {
    Attribute { name, r#type: AttributeType::Ints, ints: ints.to_vec(), ..Attribute::default() }
}

fn int(name: &'static str, i: i64) -> Attribute<'static> {
    Attribute { name, r#type: AttributeType::Int, i, ..Attribute::default() }
}

fn info<'a>(name: &'a str, elem_type: DataType, axes: Option<&[Dimension<'a>]>) -> ValueInfo<'a> {
    let dim = |value: &Dimension<'a>| TensorShapeDimension { value: value.clone(), denotation: "" };
    let shape = axes.map(|axes| TensorShape { dim: axes.iter().map(dim).collect() });
    let tensor = TypeValue::Tensor(TensorTypeProto { elem_type, shape });
    ValueInfo { name, r#type: Some(TypeProto { value: Some(tensor), denotation: "" }), ..ValueInfo::default() }
}
