//! Builds one ONNX graph: named nodes, deduplicated constants, ports with named axes.

use std::borrow::Cow;
use std::collections::BTreeMap;

use dpar_export_spec::{AxisRange, DType, Dialect, Dim, GraphSpec, Port, Precision};

use crate::ExportError;
use crate::packed::QUANTIZED_OPSET;
use crate::proto::{
    AttributeProto, AttributeType, DimensionProto, DimensionValue, FLOAT, GraphProto, INT64, MICROSOFT,
    ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto, elem_type,
};
use crate::store::WeightStore;

/// The opset every engine loads correctly; from 18 on `ReduceMean` takes its axes as an input, which candle
/// ignores without an error.
pub const OPSET: i64 = 17;
/// The opset of bf16 graphs: the first in which `Conv` takes bfloat16. The engines that [`OPSET`] is for have no bfloat16.
const BF16_OPSET: i64 = 22;

/// The opset of the graphs of a precision.
pub fn opset(precision: Precision) -> i64 {
    match precision {
        // Autocast graphs have no `Conv` in a half type.
        Precision::Fp32
        | Precision::Fp16
        | Precision::Fp16Autocast
        | Precision::Bf16Autocast
        | Precision::Bf16AutocastExplicit => OPSET,
        Precision::Bf16 => BF16_OPSET,
    }
}

/// The version of the operators in [`MICROSOFT`].
pub(crate) const MICROSOFT_OPSET: i64 = 1;

/// 2^16 + 1: splits the 24 bits of a float32 into the 8 of a bfloat16 and the rest.
const SPLIT_BF16: f32 = 65537.0;

/// IR version that belongs to an opset.
fn ir_version(opset: i64) -> i64 {
    if opset == OPSET { 8 } else { 10 }
}

/// The name of a value in the graph.
pub(crate) type ValueName = String;

pub(crate) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        i: Some(value),
        r#type: Some(AttributeType::Int as i32),
        ..AttributeProto::default()
    }
}

pub(crate) fn ints(name: &str, values: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        ints: values.to_vec(),
        r#type: Some(AttributeType::Ints as i32),
        ..AttributeProto::default()
    }
}

pub(crate) fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: Some(name.to_owned()),
        s: Some(value.as_bytes().to_vec()),
        r#type: Some(AttributeType::String as i32),
        ..AttributeProto::default()
    }
}

/// A graph under construction.
pub(crate) struct GraphBuilder<'s, 'w> {
    pub(crate) store: &'s mut WeightStore<'w>,
    dialect: Dialect,
    name: String,
    scope: Vec<String>,
    used: BTreeMap<String, usize>,
    nodes: Vec<NodeProto>,
    initializers: BTreeMap<String, TensorProto>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    axes: Vec<AxisRange>,
}

impl<'s, 'w> GraphBuilder<'s, 'w> {
    pub(crate) fn new(name: &str, store: &'s mut WeightStore<'w>, dialect: Dialect) -> Self {
        Self {
            store,
            dialect,
            name: name.to_owned(),
            scope: Vec::new(),
            used: BTreeMap::new(),
            nodes: Vec::new(),
            initializers: BTreeMap::new(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            axes: Vec::new(),
        }
    }

    fn opset(&self) -> i64 {
        match (self.store.blocks(), self.dialect) {
            (Some(_), Dialect::Portable) => QUANTIZED_OPSET,
            _ => opset(self.precision()),
        }
    }

    /// The form that it is written in.
    pub(crate) fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Whether it has operators that only its dialect has.
    pub(crate) fn is_own(&self) -> bool {
        self.nodes.iter().any(|n| n.domain.is_some())
    }

    /// Declares a dynamic axis; a name is declared once.
    pub(crate) fn axis(&mut self, name: &str, min: usize, opt: usize, max: usize) -> Dim {
        if self.axes.iter().all(|a| a.name != name) {
            let opt = opt.clamp(min, max);
            self.axes.push(AxisRange { name: name.to_owned(), min, opt, max });
        }
        Dim::axis(name)
    }

    pub(crate) fn input(&mut self, name: &str, dtype: DType, dims: Vec<Dim>) -> ValueName {
        self.inputs.push(Port::new(name, dtype, dims));
        name.to_owned()
    }

    /// Makes `value` a graph output called `name`.
    pub(crate) fn output(&mut self, name: &str, dtype: DType, dims: Vec<Dim>, value: &ValueName) {
        // Renaming the producer keeps the graph free of Identity nodes. A value has one producer, and no
        // output is given twice.
        for node in &mut self.nodes {
            for v in node.output.iter_mut().chain(node.input.iter_mut()).filter(|v| *v == value) {
                name.clone_into(v);
            }
        }
        self.outputs.push(Port::new(name, dtype, dims));
    }

    /// Runs `f` with node names below `scope`.
    pub(crate) fn scoped<T>(
        &mut self,
        scope: &str,
        f: impl FnOnce(&mut Self) -> Result<T, ExportError>,
    ) -> Result<T, ExportError> {
        self.scope.push(scope.to_owned());
        let result = f(self);
        self.scope.pop();
        result
    }

    fn unique(&mut self, op: &str) -> String {
        let base = self.scope.iter().fold(String::new(), |path, s| path + "/" + s) + "/" + op;
        let count = self.used.entry(base.clone()).or_insert(0);
        *count += 1;
        if *count == 1 { base } else { format!("{base}_{count}") }
    }

    fn node(
        &mut self,
        op: &str,
        inputs: &[&ValueName],
        outputs: usize,
        attribute: Vec<AttributeProto>,
    ) -> Vec<ValueName> {
        let name = self.unique(op);
        let output: Vec<ValueName> = (0..outputs).map(|i| format!("{name}:{i}")).collect();
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|v| (*v).clone()).collect(),
            output: output.clone(),
            name: Some(name),
            op_type: Some(op.to_owned()),
            attribute,
            domain: None,
        });
        output
    }

    /// A node with one output whose operator is not of the standard.
    pub(crate) fn microsoft_op(
        &mut self,
        op: &str,
        inputs: &[&ValueName],
        attributes: Vec<AttributeProto>,
    ) -> ValueName {
        let output = self.op(op, inputs, attributes);
        if let Some(node) = self.nodes.last_mut() {
            node.domain = Some(MICROSOFT.to_owned());
        }
        output
    }

    /// Adds an initializer.
    pub(crate) fn insert(&mut self, name: &str, tensor: TensorProto) {
        self.initializers.insert(name.to_owned(), tensor);
    }

    /// A node with one output.
    pub(crate) fn op(
        &mut self,
        op: &str,
        inputs: &[&ValueName],
        attributes: Vec<AttributeProto>,
    ) -> ValueName {
        self.node(op, inputs, 1, attributes).swap_remove(0)
    }

    /// Splits into `parts` equal parts along `axis`.
    pub(crate) fn split(&mut self, x: &ValueName, parts: usize, axis: i64) -> Vec<ValueName> {
        let mut attributes = vec![int("axis", axis)];
        if self.opset() >= 18 {
            attributes.push(int("num_outputs", parts as i64));
        }
        self.node("Split", &[x], parts, attributes)
    }

    fn constant(&mut self, name: String, tensor: impl FnOnce() -> TensorProto) -> ValueName {
        self.initializers
            .entry(name.clone())
            .or_insert_with(|| TensorProto { name: Some(name.clone()), ..tensor() });
        name
    }

    /// A constant int64 vector (shape `[n]`).
    pub(crate) fn const_ints(&mut self, values: &[i64]) -> ValueName {
        let text: Vec<String> = values.iter().map(ToString::to_string).collect();
        self.constant(format!("const/i64[{}]", text.join(",")), || TensorProto {
            dims: vec![values.len() as i64],
            data_type: Some(INT64),
            raw_data: Some(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            ..TensorProto::default()
        })
    }

    /// A constant scalar (shape `[]`).
    pub(crate) fn const_float(&mut self, value: f32) -> ValueName {
        self.constant(format!("const/f32({value:?})"), || TensorProto {
            data_type: Some(FLOAT),
            raw_data: Some(value.to_le_bytes().to_vec()),
            ..TensorProto::default()
        })
    }

    /// A constant int64 scalar (shape `[]`).
    pub(crate) fn const_int(&mut self, value: i64) -> ValueName {
        self.constant(format!("const/i64({value})"), || TensorProto {
            data_type: Some(INT64),
            raw_data: Some(value.to_le_bytes().to_vec()),
            ..TensorProto::default()
        })
    }

    fn precision(&self) -> Precision {
        self.store.precision()
    }

    /// The type of matrices, products, their results and KV caches.
    pub(crate) fn dtype(&self) -> DType {
        self.precision().dtype()
    }

    /// A weight of what lies between products, written once per component.
    pub(crate) fn weight(
        &mut self,
        name: &str,
        shape: &[usize],
        make: impl FnOnce(&WeightStore<'w>) -> Result<Cow<'w, [f32]>, ExportError>,
    ) -> Result<ValueName, ExportError> {
        self.initializer(name, shape, self.precision().stream(), make)
    }

    /// The matrix of a linear layer, written once per component.
    pub(crate) fn matrix(
        &mut self,
        name: &str,
        shape: &[usize],
        make: impl FnOnce(&WeightStore<'w>) -> Result<Cow<'w, [f32]>, ExportError>,
    ) -> Result<ValueName, ExportError> {
        debug_assert!(crate::precision::is_matrix(name), "{name}");
        let to = self.precision().rounds_to();
        self.initializer(name, shape, self.dtype(), |store| {
            let data = make(store)?;
            Ok(if to == store.precision().dtype() { data } else { crate::store::rounded(&data, to).into() })
        })
    }

    /// A float32 constant whatever the type of the graph.
    pub(crate) fn float_table(
        &mut self,
        name: &str,
        shape: &[usize],
        make: impl FnOnce(&WeightStore<'w>) -> Result<Cow<'w, [f32]>, ExportError>,
    ) -> Result<ValueName, ExportError> {
        debug_assert!(crate::precision::is_float_table(name), "{name}");
        self.initializer(name, shape, DType::F32, make)
    }

    fn initializer(
        &mut self,
        name: &str,
        shape: &[usize],
        dtype: DType,
        make: impl FnOnce(&WeightStore<'w>) -> Result<Cow<'w, [f32]>, ExportError>,
    ) -> Result<ValueName, ExportError> {
        let proto = self.store.initializer(name, shape, dtype, make)?;
        self.insert(name, proto);
        Ok(name.to_owned())
    }

    /// A checkpoint tensor as it is.
    pub(crate) fn tensor(&mut self, name: &str, shape: &[usize]) -> Result<ValueName, ExportError> {
        self.weight(name, shape, |store| store.read(name, shape))
    }

    // Values are of three kinds: what lies between products (the stream), operands and results of products, and float32
    // islands. In fp16 and bf16 graphs the first two have the half type, in autocast graphs the stream is float32.

    /// From the stream to float32: the start of a float32 island. Nothing where the stream is float32.
    pub(crate) fn widen(&mut self, x: &ValueName) -> ValueName {
        self.cast(x, self.precision().stream(), DType::F32)
    }

    /// From float32 to the stream: the end of a float32 island. Nothing where the stream is float32.
    pub(crate) fn narrow(&mut self, x: &ValueName) -> ValueName {
        self.cast(x, DType::F32, self.precision().stream())
    }

    /// From the result of a product to float32.
    pub(crate) fn unround(&mut self, x: &ValueName) -> ValueName {
        self.cast(x, self.dtype(), DType::F32)
    }

    /// From float32 to an operand of a product, rounded to the nearest, ties to even.
    pub(crate) fn round(&mut self, x: &ValueName) -> ValueName {
        let precision = self.precision();
        if precision.rounds_to() == precision.dtype() {
            return self.cast(x, DType::F32, precision.dtype());
        }
        // Veltkamp's splitting: t = x·(2^16 + 1), t − (t − x) is x rounded to the 8 bits of bfloat16. It equals the cast for
        // every mantissa of normal numbers below 1e33; what is smaller keeps more bits, what is larger becomes NaN.
        let split = self.const_float(SPLIT_BF16);
        let t = self.mul(x, &split);
        let low = self.sub(&t, x);
        self.sub(&t, &low)
    }

    /// From the stream to an operand of a product.
    pub(crate) fn operand(&mut self, x: &ValueName) -> ValueName {
        if self.precision().is_autocast() { self.round(x) } else { x.clone() }
    }

    /// h + the result of a product, in the stream.
    pub(crate) fn add_product(&mut self, h: &ValueName, product: &ValueName) -> ValueName {
        let product = if self.precision().is_autocast() { self.unround(product) } else { product.clone() };
        self.add(h, &product)
    }

    /// The product of two operands, rounded when its sums are complete.
    pub(crate) fn product(&mut self, a: &ValueName, b: &ValueName) -> ValueName {
        let product = self.matmul(a, b);
        let precision = self.precision();
        if precision.rounds_to() == precision.dtype() { product } else { self.round(&product) }
    }

    /// Whether float32 computes the scores of attention and what lies between two products of a feed-forward layer.
    pub(crate) fn is_autocast(&self) -> bool {
        self.precision().is_autocast()
    }

    fn cast(&mut self, x: &ValueName, from: DType, to: DType) -> ValueName {
        if from == to {
            return x.clone();
        }
        self.op("Cast", &[x], vec![int("to", i64::from(elem_type(to)))])
    }

    // Short forms of the operators in use.

    pub(crate) fn add(&mut self, a: &ValueName, b: &ValueName) -> ValueName {
        self.op("Add", &[a, b], vec![])
    }

    pub(crate) fn sub(&mut self, a: &ValueName, b: &ValueName) -> ValueName {
        self.op("Sub", &[a, b], vec![])
    }

    pub(crate) fn mul(&mut self, a: &ValueName, b: &ValueName) -> ValueName {
        self.op("Mul", &[a, b], vec![])
    }

    pub(crate) fn matmul(&mut self, a: &ValueName, b: &ValueName) -> ValueName {
        self.op("MatMul", &[a, b], vec![])
    }

    /// Rows of `table` along `axis`; `indices` has rank 1 or 2 (candle knows no other).
    pub(crate) fn gather(&mut self, table: &ValueName, indices: &ValueName, axis: i64) -> ValueName {
        self.op("Gather", &[table, indices], vec![int("axis", axis)])
    }

    /// A 0 in `shape` copies the dimension.
    pub(crate) fn reshape(&mut self, x: &ValueName, shape: &[i64]) -> ValueName {
        let shape = self.const_ints(shape);
        self.op("Reshape", &[x, &shape], vec![])
    }

    pub(crate) fn transpose(&mut self, x: &ValueName, perm: &[i64]) -> ValueName {
        self.op("Transpose", &[x], vec![ints("perm", perm)])
    }

    pub(crate) fn unsqueeze(&mut self, x: &ValueName, axis: i64) -> ValueName {
        let axis = self.const_ints(&[axis]);
        self.op("Unsqueeze", &[x, &axis], vec![])
    }

    pub(crate) fn concat(&mut self, parts: &[&ValueName], axis: i64) -> ValueName {
        self.op("Concat", parts, vec![int("axis", axis)])
    }

    pub(crate) fn softmax(&mut self, x: &ValueName) -> ValueName {
        self.op("Softmax", &[x], vec![int("axis", -1)])
    }

    /// Mean or maximum over one axis (axes as an attribute, see [`OPSET`]).
    pub(crate) fn reduce(&mut self, op: &str, x: &ValueName, axis: i64, keep: bool) -> ValueName {
        if self.opset() >= 18 {
            let axes = self.const_ints(&[axis]);
            return self.op(op, &[x, &axes], vec![int("keepdims", i64::from(keep))]);
        }
        self.op(op, &[x], vec![ints("axes", &[axis]), int("keepdims", i64::from(keep))])
    }

    /// Sum over one non-negative axis (an input since opset 13).
    pub(crate) fn reduce_sum(&mut self, x: &ValueName, axis: i64, keep: bool) -> ValueName {
        let axes = self.const_ints(&[axis]);
        self.op("ReduceSum", &[x, &axes], vec![int("keepdims", i64::from(keep))])
    }

    /// The finished model and its interface.
    pub(crate) fn finish(self) -> (ModelProto, GraphSpec) {
        let info = |port: &Port| ValueInfoProto {
            name: Some(port.name.clone()),
            r#type: Some(TypeProto {
                tensor_type: Some(TensorTypeProto {
                    elem_type: Some(elem_type(port.dtype)),
                    shape: Some(TensorShapeProto {
                        dim: port
                            .dims
                            .iter()
                            .map(|d| DimensionProto {
                                value: Some(match d {
                                    Dim::Fixed(n) => DimensionValue::Value(*n as i64),
                                    Dim::Axis(_) | Dim::Sum(..) => DimensionValue::Param(d.to_string()),
                                }),
                            })
                            .collect(),
                    }),
                }),
            }),
            doc_string: None,
        };
        let opset = self.opset();
        let import = |domain: &str, version| OperatorSetIdProto {
            domain: Some(domain.to_owned()),
            version: Some(version),
        };
        let microsoft = self.is_own().then(|| import(MICROSOFT, MICROSOFT_OPSET));
        let graph = GraphProto {
            node: self.nodes,
            name: Some(self.name.clone()),
            initializer: self.initializers.into_values().collect(),
            doc_string: None,
            input: self.inputs.iter().map(info).collect(),
            output: self.outputs.iter().map(info).collect(),
        };
        let model = ModelProto {
            ir_version: Some(ir_version(opset)),
            producer_name: Some("dpar-export".to_owned()),
            producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            doc_string: None,
            graph: Some(graph),
            opset_import: [import("", opset)].into_iter().chain(microsoft).collect(),
            metadata_props: Vec::new(),
        };
        let spec = GraphSpec {
            name: self.name,
            component: self.store.component().to_owned(),
            inputs: self.inputs,
            outputs: self.outputs,
            axes: self.axes,
        };
        (model, spec)
    }
}
