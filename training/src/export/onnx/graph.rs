//! A small builder of ONNX graphs. Values are handles, names are made from the scope they are built in, and integer
//! constants are shared.

use std::borrow::Cow;
use std::collections::HashMap;

use onnx_rs::ast::{
    Attribute, AttributeType, DataType, Dimension, Graph as GraphProto, Model, Node as NodeProto, OpType, OperatorSetId, TensorShape,
    TensorShapeDimension, TensorTypeProto, TypeProto, TypeValue, ValueInfo,
};

/// The operator set: the first with `LayerNormalization`, which every current runtime and most older ones know.
const OPSET: i64 = 17;
/// The file format that came with this operator set.
const IR_VERSION: i64 = 8;

/// A value of the graph under construction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Value(usize);

/// The element types that our graphs use.
pub(super) type Type = DataType;

/// An attribute of an operator.
#[derive(Clone, Debug)]
pub(super) enum Attr {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
}

/// An axis of an input or output.
#[derive(Clone, Copy, Debug)]
pub(super) enum Axis {
    /// Of a fixed length.
    Fixed(usize),
    /// Of a length that may differ from call to call.
    Named(&'static str),
}

struct Node {
    op: &'static str,
    name: String,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    attributes: Vec<(&'static str, Attr)>,
}

pub(super) struct Constant<'w> {
    value: Value,
    pub(super) data_type: Type,
    pub(super) shape: Vec<i64>,
    pub(super) payload: Payload<'w>,
}

/// The little-endian bytes of a constant.
pub(super) enum Payload<'w> {
    /// Small ones are kept.
    Kept(Vec<u8>),
    /// Weights are made of the backbone's when they are written, so that there is no second copy of all of them.
    Made { length: usize, make: Box<dyn Fn() -> Vec<u8> + 'w> },
}

impl Payload<'_> {
    pub(super) fn len(&self) -> usize {
        match self {
            Self::Kept(bytes) => bytes.len(),
            Self::Made { length, .. } => *length,
        }
    }

    pub(super) fn bytes(&self) -> Cow<'_, [u8]> {
        match self {
            Self::Kept(bytes) => bytes.into(),
            Self::Made { make, .. } => make().into(),
        }
    }
}

/// A graph under construction, of weights that live for `'w`.
#[derive(Default)]
pub(super) struct Graph<'w> {
    names: Vec<String>,
    nodes: Vec<Node>,
    constants: Vec<Constant<'w>>,
    /// Small constants by type, number of axes and bytes.
    shared: HashMap<(u32, usize, Vec<u8>), Value>,
    taken: HashMap<String, usize>,
    inputs: Vec<(Value, Vec<Axis>)>,
    outputs: Vec<(Value, Vec<Axis>)>,
    scope: String,
}

impl<'w> Graph<'w> {
    /// Names that are made from here on start with `scope`.
    pub(super) fn enter(&mut self, scope: impl Into<String>) {
        self.scope = scope.into();
    }

    /// A float32 input.
    pub(super) fn input(&mut self, name: &str, axes: &[Axis]) -> Value {
        let value = self.named(name.to_owned());
        self.inputs.push((value, axes.to_vec()));
        value
    }

    /// Makes a value a float32 output under the given name.
    pub(super) fn output(&mut self, value: Value, name: &str, axes: &[Axis]) {
        name.clone_into(&mut self.names[value.0]);
        self.outputs.push((value, axes.to_vec()));
    }

    /// A constant of any type from its little-endian bytes.
    pub(super) fn constant(&mut self, name: &str, data_type: Type, shape: &[usize], bytes: Vec<u8>) -> Value {
        self.put(name, data_type, shape, Payload::Kept(bytes))
    }

    /// A constant of the type whose elements have `width` bytes, which are made when it is written.
    pub(super) fn made(
        &mut self,
        name: &str,
        (data_type, width): (Type, usize),
        shape: &[usize],
        make: impl Fn() -> Vec<u8> + 'w,
    ) -> Value {
        let length = width * shape.iter().product::<usize>();
        self.put(name, data_type, shape, Payload::Made { length, make: Box::new(make) })
    }

    fn put(&mut self, name: &str, data_type: Type, shape: &[usize], payload: Payload<'w>) -> Value {
        let value = self.named(self.path(name));
        let shape = shape.iter().map(|side| *side as i64).collect();
        self.constants.push(Constant { value, data_type, shape, payload });
        value
    }

    /// A float32 constant.
    pub(super) fn floats(&mut self, name: &str, shape: &[usize], data: &[f32]) -> Value {
        let bytes = data.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, Type::Float, shape, bytes)
    }

    /// A float32 constant without axes.
    pub(super) fn scalar(&mut self, number: f32) -> Value {
        self.shared(Type::Float, &[], number.to_le_bytes().to_vec())
    }

    /// A float16 constant without axes.
    pub(super) fn half(&mut self, number: f32) -> Value {
        self.shared(Type::Float16, &[], half::f16::from_f32(number).to_le_bytes().to_vec())
    }

    /// An unsigned byte without axes.
    pub(super) fn byte(&mut self, number: u8) -> Value {
        self.shared(Type::Uint8, &[], vec![number])
    }

    /// An int64 constant without axes: an index.
    pub(super) fn index(&mut self, number: i64) -> Value {
        self.shared(Type::Int64, &[], number.to_le_bytes().to_vec())
    }

    /// A one-axis int64 constant: a shape, axes, or bounds.
    pub(super) fn integers(&mut self, numbers: &[i64]) -> Value {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.shared(Type::Int64, &[numbers.len()], bytes)
    }

    /// A small constant that is written once however often it is used.
    fn shared(&mut self, data_type: Type, shape: &[usize], bytes: Vec<u8>) -> Value {
        let key = (data_type as u32, shape.len(), bytes);
        if let Some(value) = self.shared.get(&key) {
            return *value;
        }
        let scope = std::mem::take(&mut self.scope);
        let value = self.constant("constant", data_type, shape, key.2.clone());
        self.scope = scope;
        self.shared.insert(key, value);
        value
    }

    /// An operator with one output.
    pub(super) fn op(&mut self, op: &'static str, inputs: &[Value], attributes: &[(&'static str, Attr)]) -> Value {
        self.op_many(op, inputs, attributes, 1)[0]
    }

    /// An operator with several outputs.
    pub(super) fn op_many(
        &mut self,
        op: &'static str,
        inputs: &[Value],
        attributes: &[(&'static str, Attr)],
        outputs: usize,
    ) -> Vec<Value> {
        let name = format!("{}{op}_{}", self.scope_prefix('/'), self.nodes.len());
        let outputs = (0..outputs).map(|index| self.named(format!("{name}:{index}"))).collect::<Vec<_>>();
        let node = Node { op, name, inputs: inputs.to_vec(), outputs: outputs.clone(), attributes: attributes.to_vec() };
        self.nodes.push(node);
        outputs
    }

    pub(super) fn add(&mut self, a: Value, b: Value) -> Value {
        self.op("Add", &[a, b], &[])
    }

    pub(super) fn sub(&mut self, a: Value, b: Value) -> Value {
        self.op("Sub", &[a, b], &[])
    }

    pub(super) fn mul(&mut self, a: Value, b: Value) -> Value {
        self.op("Mul", &[a, b], &[])
    }

    pub(super) fn div(&mut self, a: Value, b: Value) -> Value {
        self.op("Div", &[a, b], &[])
    }

    pub(super) fn matmul(&mut self, a: Value, b: Value) -> Value {
        self.op("MatMul", &[a, b], &[])
    }

    pub(super) fn cast(&mut self, value: Value, to: Type) -> Value {
        self.op("Cast", &[value], &[("to", Attr::Int(to as i64))])
    }

    /// Reshapes; 0 keeps an axis and -1 takes what is left.
    pub(super) fn reshape(&mut self, value: Value, shape: &[i64]) -> Value {
        let shape = self.integers(shape);
        self.op("Reshape", &[value, shape], &[])
    }

    pub(super) fn transpose(&mut self, value: Value, axes: &[i64]) -> Value {
        self.op("Transpose", &[value], &[("perm", Attr::Ints(axes.to_vec()))])
    }

    pub(super) fn concat(&mut self, values: &[Value], axis: i64) -> Value {
        self.op("Concat", values, &[("axis", Attr::Int(axis))])
    }

    /// Cuts an axis into parts of the given lengths.
    pub(super) fn split(&mut self, value: Value, axis: i64, lengths: &[i64]) -> Vec<Value> {
        let parts = self.integers(lengths);
        self.op_many("Split", &[value, parts], &[("axis", Attr::Int(axis))], lengths.len())
    }

    /// Elements from `start` up to `end` along an axis.
    pub(super) fn slice(&mut self, value: Value, axis: i64, start: i64, end: i64) -> Value {
        let bounds = [start, end, axis].map(|number| self.integers(&[number]));
        self.op("Slice", &[value, bounds[0], bounds[1], bounds[2]], &[])
    }

    /// Every so many elements along an axis, from the first on.
    pub(super) fn every(&mut self, value: Value, axis: i64, step: i64) -> Value {
        let bounds = [0, i64::MAX, axis, step].map(|number| self.integers(&[number]));
        self.op("Slice", &[value, bounds[0], bounds[1], bounds[2], bounds[3]], &[])
    }

    /// A name under the scope that is entered.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.scope_prefix('.'))
    }

    /// A new value under this name, or under the name with a number if it is taken.
    fn named(&mut self, name: String) -> Value {
        let uses = self.taken.entry(name.clone()).and_modify(|uses| *uses += 1).or_default();
        let name = if *uses == 0 { name } else { format!("{name}_{uses}") };
        self.names.push(name);
        Value(self.names.len() - 1)
    }

    fn scope_prefix(&self, separator: char) -> String {
        if self.scope.is_empty() { String::new() } else { format!("{}{separator}", self.scope) }
    }

    /// The constants with their names.
    pub(super) fn constants(&self) -> impl Iterator<Item = (&str, &Constant<'w>)> {
        self.constants.iter().map(|constant| (self.names[constant.value.0].as_str(), constant))
    }

    /// The graph without its constants as an ONNX file.
    pub(super) fn encode(&self) -> Vec<u8> {
        let text = |value: &Value| self.names[value.0].as_str();
        let info =
            |(value, axes): &(Value, Vec<Axis>)| ValueInfo { name: text(value), r#type: Some(tensor_type(axes)), ..ValueInfo::default() };
        let node = |node| node_proto(node, text);
        let graph = GraphProto {
            name: "dino",
            node: self.nodes.iter().map(node).collect(),
            input: self.inputs.iter().map(info).collect(),
            output: self.outputs.iter().map(info).collect(),
            ..GraphProto::default()
        };
        onnx_rs::encode(&Model {
            ir_version: IR_VERSION,
            opset_import: vec![OperatorSetId { domain: "", version: OPSET }],
            producer_name: env!("CARGO_PKG_NAME"),
            producer_version: env!("CARGO_PKG_VERSION"),
            graph: Some(graph),
            ..Model::default()
        })
    }
}

fn node_proto<'a>(node: &'a Node, text: impl Fn(&Value) -> &'a str) -> NodeProto<'a> {
    NodeProto {
        input: node.inputs.iter().map(&text).collect(),
        output: node.outputs.iter().map(&text).collect(),
        name: &node.name,
        op_type: OpType::Custom(node.op),
        attribute: node.attributes.iter().map(|(name, attribute)| attribute_proto(name, attribute)).collect(),
        ..NodeProto::default()
    }
}

fn attribute_proto<'a>(name: &'a str, attribute: &Attr) -> Attribute<'a> {
    let base = Attribute { name, ..Attribute::default() };
    match attribute {
        Attr::Int(i) => Attribute { r#type: AttributeType::Int, i: *i, ..base },
        Attr::Ints(ints) => Attribute { r#type: AttributeType::Ints, ints: ints.clone(), ..base },
        Attr::Float(f) => Attribute { r#type: AttributeType::Float, f: *f, ..base },
    }
}

fn tensor_type(axes: &[Axis]) -> TypeProto<'static> {
    let dim = axes.iter().map(|axis| TensorShapeDimension {
        value: match axis {
            Axis::Fixed(length) => Dimension::Value(*length as i64),
            Axis::Named(name) => Dimension::Param(name),
        },
        denotation: "",
    });
    let tensor = TensorTypeProto { elem_type: Type::Float, shape: Some(TensorShape { dim: dim.collect() }) };
    TypeProto { value: Some(TypeValue::Tensor(tensor)), denotation: "" }
}
