//! Deriving a graph with the operator from a portable one.

use std::collections::{BTreeMap, BTreeSet};

use dpar_engine_api::{CacheState, EngineError, GraphFile};
use dpar_export_spec::{CachePart, DType, Dim, GraphSpec};
use prost::Message;

use crate::wire::{Field, fields, push};
use crate::{DOMAIN, LAYER, OPERATOR};

/// Field numbers of the ONNX schema.
mod tag {
    pub(super) const MODEL_GRAPH: u32 = 7;
    pub(super) const MODEL_OPSETS: u32 = 8;
    pub(super) const GRAPH_NODE: u32 = 1;
    pub(super) const GRAPH_INPUT: u32 = 11;
    pub(super) const GRAPH_OUTPUT: u32 = 12;
    pub(super) const GRAPH_VALUE: u32 = 13;
}

#[derive(Clone, PartialEq, Message)]
struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    output: Vec<String>,
    #[prost(string, optional, tag = "3")]
    name: Option<String>,
    #[prost(string, optional, tag = "4")]
    op_type: Option<String>,
    #[prost(message, repeated, tag = "5")]
    attribute: Vec<AttributeProto>,
    #[prost(string, optional, tag = "7")]
    domain: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct AttributeProto {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
    #[prost(int64, optional, tag = "3")]
    i: Option<i64>,
    #[prost(int64, repeated, tag = "8")]
    ints: Vec<i64>,
    #[prost(int32, optional, tag = "20")]
    r#type: Option<i32>,
}

/// `AttributeProto.AttributeType.INT`.
const INT: i32 = 2;

#[derive(Clone, PartialEq, Message)]
struct Named {
    #[prost(string, optional, tag = "1")]
    name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Opset {
    #[prost(string, optional, tag = "1")]
    domain: Option<String>,
    #[prost(int64, optional, tag = "2")]
    version: Option<i64>,
}

/// A graph that was derived.
#[derive(Debug, Clone)]
pub struct Edited {
    /// The `.onnx` file: its weights are those of the portable graph, in the same place.
    pub model: Vec<u8>,
    /// Its interface: without caches, mask and rows.
    pub spec: GraphSpec,
}

/// A graph whose caches are of the operator; `None` where the portable graph has no cache, or one that is not attended over
/// by the pattern of the exporter in float32.
///
/// # Errors
/// When the file cannot be read.
pub(crate) fn in_place(engine: &str, graph: GraphFile<'_>) -> Result<Option<Edited>, EngineError> {
    let bytes = fs_err::read(graph.path).map_err(|e| EngineError::refused(engine, graph, e.to_string()))?;
    Ok(edit(&bytes, graph.spec))
}

/// How the nodes of a graph are connected.
struct Net {
    nodes: Vec<NodeProto>,
    /// Where each value is made.
    maker: BTreeMap<String, usize>,
    /// Where it is read.
    readers: BTreeMap<String, Vec<usize>>,
}

impl Net {
    fn new(nodes: Vec<NodeProto>) -> Self {
        let (mut maker, mut readers) = (BTreeMap::new(), BTreeMap::<String, Vec<usize>>::new());
        for (i, node) in nodes.iter().enumerate() {
            maker.extend(node.output.iter().map(|value| (value.clone(), i)));
            for value in &node.input {
                readers.entry(value.clone()).or_default().push(i);
            }
        }
        Self { nodes, maker, readers }
    }

    fn op(&self, at: usize) -> &str {
        self.nodes[at].op_type.as_deref().unwrap_or_default()
    }

    fn is(&self, at: usize, op: &str) -> bool {
        self.op(at) == op && self.nodes[at].domain.as_deref().unwrap_or_default().is_empty()
    }

    fn transposes(&self, at: usize, perm: &[i64]) -> bool {
        let perms = self.nodes[at].attribute.iter().filter(|a| a.name.as_deref() == Some("perm"));
        self.is(at, "Transpose") && perms.map(|a| a.ints.as_slice()).eq([perm])
    }

    fn number(&self, at: usize, name: &str) -> Option<i64> {
        self.nodes[at].attribute.iter().find(|a| a.name.as_deref() == Some(name))?.i
    }

    /// The one node that reads a value.
    fn reader(&self, value: &str) -> Option<usize> {
        match self.readers.get(value)?.as_slice() {
            [one] => Some(*one),
            _ => None,
        }
    }

    fn input(&self, at: usize, i: usize) -> Option<&str> {
        self.nodes[at].input.get(i).map(String::as_str)
    }

    fn output(&self, at: usize) -> Option<&str> {
        self.nodes[at].output.first().map(String::as_str)
    }

    /// From the cache of a layer to what the products read, turned by `perm`: the nodes, the last one at the end, and the
    /// new slots `[batch, new, heads, head_dim]` as they are computed.
    fn joined(&self, past: CachePart, layer: usize, perm: &[i64]) -> Option<(Vec<usize>, String)> {
        let fresh = past.new_slots()?.port(layer);
        let turned = *self.maker.get(&fresh)?;
        if !self.transposes(turned, &[1, 0, 2, 3]) {
            return None;
        }
        let past = past.port(layer);
        let mut nodes = vec![turned];
        let mut old = past.clone();
        let mut next = self.reader(&old)?;
        if self.is(next, "Gather") {
            let picks = self.input(next, 0) == Some(&old) && self.input(next, 1) == Some("rows");
            if !picks || self.number(next, "axis") != Some(1) {
                return None;
            }
            nodes.push(next);
            old = self.output(next)?.to_owned();
            next = self.reader(&old)?;
        }
        let join = self.is(next, "Concat") && self.number(next, "axis") == Some(0);
        if !join || self.nodes[next].input != [old, fresh] {
            return None;
        }
        let last = self.reader(self.output(next)?)?;
        if !self.transposes(last, perm) {
            return None;
        }
        nodes.extend([next, last]);
        Some((nodes, self.input(turned, 0)?.to_owned()))
    }

    /// The attention of a layer: its nodes, the last one at the end, and the operator in their place.
    fn attention(&self, layer: usize) -> Option<(Vec<usize>, NodeProto)> {
        let (mut nodes, k) = self.joined(CachePart::PastKey, layer, &[1, 2, 3, 0])?;
        let scores = self.reader(self.output(*nodes.last()?)?)?;
        let (values, v) = self.joined(CachePart::PastValue, layer, &[1, 2, 0, 3])?;
        let weighted = self.reader(self.output(*values.last()?)?)?;
        let turned_q = *self.maker.get(self.input(scores, 0)?)?;
        let masked = self.reader(self.output(scores)?)?;
        let weights = self.reader(self.output(masked)?)?;
        let last_axis = matches!(self.number(weights, "axis"), None | Some(-1 | 3));
        let back = self.reader(self.output(weighted)?)?;
        let fits = self.is(scores, "MatMul")
            && self.transposes(turned_q, &[0, 2, 1, 3])
            && self.is(masked, "Add")
            && self.input(masked, 0) == self.output(scores)
            && self.input(masked, 1) == Some("mask")
            && self.is(weights, "Softmax")
            && last_axis
            && self.is(weighted, "MatMul")
            && self.input(weighted, 0) == self.output(weights)
            && self.transposes(back, &[0, 2, 1, 3]);
        if !fits {
            return None;
        }
        let attribute = AttributeProto {
            name: Some(LAYER.to_owned()),
            i: Some(i64::try_from(layer).ok()?),
            r#type: Some(INT),
            ..AttributeProto::default()
        };
        let operator = NodeProto {
            input: vec![self.input(turned_q, 0)?.to_owned(), k, v],
            output: vec![self.output(back)?.to_owned()],
            name: self.nodes[scores].name.clone(),
            op_type: Some(OPERATOR.to_owned()),
            attribute: vec![attribute],
            domain: Some(DOMAIN.to_owned()),
        };
        nodes.extend(values);
        nodes.extend([turned_q, scores, masked, weights, weighted, back]);
        Some((nodes, operator))
    }
}

fn edit(bytes: &[u8], spec: &GraphSpec) -> Option<Edited> {
    let state = CacheState::new(spec).ok()?;
    let ports = state.ports();
    if ports.is_empty() || ports.iter().any(|p| p.past.dtype != DType::F32) {
        return None;
    }
    let model = fields(bytes)?;
    let graph = &bytes[model.iter().find(|f| f.tag == tag::MODEL_GRAPH)?.payload.clone()];
    let parts = fields(graph)?;
    let nodes = parts.iter().filter(|f| f.tag == tag::GRAPH_NODE);
    let nodes = nodes.map(|f| NodeProto::decode(&graph[f.payload.clone()]).ok()).collect::<Option<_>>()?;
    let net = Net::new(nodes);
    // Keys and values of each layer.
    let mut removed = BTreeSet::new();
    let mut operators = BTreeMap::new();
    for layer in 0..ports.len() / 2 {
        let (nodes, operator) = net.attention(layer)?;
        operators.insert(*nodes.last()?, operator);
        removed.extend(nodes);
    }
    let gone = |name: &str| state.gives(name) || ports.iter().any(|p| spec.outputs[p.fresh].name == name);
    // Nothing that stays may read what goes.
    let kept = operators.values().flat_map(|n| &n.output).collect::<BTreeSet<_>>();
    let lost = |value: &String| {
        gone(value) || net.maker.get(value).is_some_and(|at| removed.contains(at) && !kept.contains(value))
    };
    let staying = net.nodes.iter().enumerate().filter(|(i, _)| !removed.contains(i)).map(|(_, n)| n);
    let mut read = staying.chain(operators.values()).flat_map(|n| &n.input);
    if read.any(lost) || spec.outputs.iter().any(|p| !gone(&p.name) && lost(&p.name)) {
        return None;
    }
    let mut edited = Vec::with_capacity(graph.len());
    let mut node = 0;
    for field in &parts {
        match field.tag {
            tag::GRAPH_NODE => {
                if let Some(operator) = operators.get(&node) {
                    push(&mut edited, tag::GRAPH_NODE, &operator.encode_to_vec());
                } else if !removed.contains(&node) {
                    edited.extend_from_slice(&graph[field.whole.clone()]);
                }
                node += 1;
            }
            tag::GRAPH_INPUT | tag::GRAPH_OUTPUT | tag::GRAPH_VALUE
                if named(graph, field).is_some_and(|n| gone(&n)) => {}
            _ => edited.extend_from_slice(&graph[field.whole.clone()]),
        }
    }
    let opset = Opset { domain: Some(DOMAIN.to_owned()), version: Some(1) };
    let mut whole = Vec::with_capacity(bytes.len());
    for field in &model {
        match field.tag {
            tag::MODEL_GRAPH => push(&mut whole, tag::MODEL_GRAPH, &edited),
            _ => whole.extend_from_slice(&bytes[field.whole.clone()]),
        }
    }
    push(&mut whole, tag::MODEL_OPSETS, &opset.encode_to_vec());
    let mut spec = spec.clone();
    spec.inputs.retain(|p| !gone(&p.name));
    spec.outputs.retain(|p| !gone(&p.name));
    let used: BTreeSet<String> = spec
        .inputs
        .iter()
        .chain(&spec.outputs)
        .flat_map(|p| p.dims.iter().flat_map(Dim::axes))
        .map(str::to_owned)
        .collect();
    spec.axes.retain(|a| used.contains(&a.name));
    Some(Edited { model: whole, spec })
}

fn named(graph: &[u8], field: &Field) -> Option<String> {
    Named::decode(&graph[field.payload.clone()]).ok()?.name
}
