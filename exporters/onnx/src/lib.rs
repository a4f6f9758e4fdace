//! Writes ONNX graphs from component specs and weights. Nothing is traced: every graph follows from the spec, every
//! varying axis is named, and the same input gives the same bytes.
//!
//! Graphs use opset 17 and primitive operators only, which ONNX Runtime, tract, candle-onnx and TensorRT all
//! load (bf16 graphs: opset 22, see [`opset`]). Each component has one external-data file that its graphs share.
//!
//! In fp16 and bf16 graphs weights, matrix products, convolutions, activations and KV caches have the half type; every
//! other port is float32 or int64. Float32 islands, with a `Cast` at each edge: the normalisation of RMSNorm and
//! GroupNorm, rotary embedding, the attention scale of queries, masking and softmax, the maximum over a patch,
//! the entropy, the product with the codebook that picks codes, and the logits once they are computed.
//!
//! Quantized weights (of components in fp32): the matrices of linear layers are whole numbers in blocks of columns, each with a float32
//! scale; embeddings, norms, convolutions and small matrices stay in float32. Portable graphs have a blocked
//! `DequantizeLinear` before each product (opset 21); the [packed](Dialect::Packed) ones `com.microsoft::MatMulNBits`, over
//! the same bytes.
//!
//! In autocast graphs only the matrices of linear layers, their products and KV caches have the half type: operands are
//! rounded before a product and its result after it, and everything else is float32, the tokenizer included. Where the
//! rounding is explicit, these numbers are held in float32 and no value has a half type.
//!
//! Conventions of all graphs:
//! * masks are additive float inputs: 0 where a slot may look, a large negative number (not −∞) where not;
//! * KV caches are time-major, `[past, batch, heads, head_dim]`, one pair per layer (`past_key_0`,
//!   `past_value_0`, …); only the new slots come back (`new_key_0` `[new, batch, heads, head_dim]`, …), so the
//!   next past is a prefix of a buffer that the caller appends to;
//! * `global_step` takes `rows`: the cache rows that its batch stands for, so that images with different patch
//!   counts share one cache and one call.

mod axes;
mod blocks;
mod builder;
mod convnet;
pub mod derive;
mod dpar;
mod efficientnet;
mod error;
mod external;
mod facts;
mod foreign;
mod gpt;
mod hashed;
mod inception;
mod linear;
mod packed;
mod part;
mod precision;
pub mod proto;
mod quantize;
mod rope;

mod store;
mod tables;
mod vq;
mod walk;

use camino::Utf8Path;
use dpar_export_spec::{
    ComponentSpec, Dialect, Form, GraphName, GraphSpec, Precision, Quantized, SystemSpec,
};
use prost::Message;
use sha2::{Digest, Sha256};

use builder::GraphBuilder;
use facts::{GraphForm, facts};
use part::InSystem;
use store::WeightStore;

pub use axes::MAX_BATCH;
pub use builder::{OPSET, opset};
pub use error::{ExportError, FileFault};
pub use external::{Own, read_own};
pub use foreign::{Foreign, ForeignPort, read_foreign};
pub use precision::{Said, check_precision};
pub use store::{Weights, WeightsError};
pub use tables::check_tables;

/// Fills a graph builder.
type Write<'a> = Box<dyn Fn(&mut GraphBuilder<'_, '_>) -> Result<(), ExportError> + 'a>;
/// The graphs of a component: name and writer.
type Graphs<'a> = Vec<(GraphName, Write<'a>)>;

/// What a component is exported to.
struct Parts<'a> {
    graphs: Graphs<'a>,
    /// The tables that its graphs share and look indices up in, with their rows: one for every index that the loop can ask
    /// for. Feature networks look nothing up.
    tables: Vec<(&'static str, usize)>,
}

impl<'a> From<Graphs<'a>> for Parts<'a> {
    fn from(graphs: Graphs<'a>) -> Self {
        Self { graphs, tables: Vec::new() }
    }
}

/// A file that an export wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenFile {
    /// File name inside the output folder.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// SHA-256, lower-case hex.
    pub sha256: String,
}

/// One written graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenGraph {
    /// Its interface.
    pub spec: GraphSpec,
    /// The portable `.onnx` file.
    pub file: WrittenFile,
    /// The same graph in other dialects, where it has operators of theirs.
    pub dialects: Vec<(Dialect, WrittenFile)>,
}

/// What an export of one component wrote.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrittenComponent {
    /// The graphs, in the order of the table of components.
    pub graphs: Vec<WrittenGraph>,
    /// The external data that they share.
    pub data: WrittenFile,
    /// What quantization made of its matrices.
    pub quantized: Option<Quantized>,
}

/// The one table of components: what each is exported to. Feature networks are of no system.
fn parts<'a>(spec: &'a ComponentSpec, system: Option<&'a SystemSpec>) -> Result<Parts<'a>, ExportError> {
    let refuse = |message: &str| ExportError::Spec {
        component: spec.kind().name().to_owned(),
        message: message.to_owned(),
    };
    let system = system.ok_or_else(|| refuse("its graphs follow from its system, and none is given"));
    Ok(match spec {
        ComponentSpec::Dpar(s) => dpar::parts(InSystem::new(s, system?)),
        ComponentSpec::Entropy(s) => gpt::entropy_parts(InSystem::new(s, system?)),
        ComponentSpec::Llamagen(s) => gpt::llamagen_parts(InSystem::new(s, system?)),
        ComponentSpec::Vq(s) => vq::parts(InSystem::new(s, system?)),
        ComponentSpec::Inception(s) => inception::graphs(s).into(),
        ComponentSpec::EfficientnetLite0(s) => efficientnet::graphs(s).into(),
        ComponentSpec::Features(_) => return Err(refuse("no ONNX graphs are known for this component")),
    })
}

/// Names of the graphs that a component is exported to; `system` as for [`export_component`].
///
/// # Errors
/// When the component has none.
pub fn graph_names(spec: &ComponentSpec, system: Option<&SystemSpec>) -> Result<Vec<GraphName>, ExportError> {
    Ok(parts(spec, system)?.graphs.into_iter().map(|(name, _)| name).collect())
}

/// Writes all graphs of one component into `folder`, with one external-data file `<component>.onnx_data`: `<graph>.onnx`, and
/// `<graph>.<dialect>.onnx` where it has operators of another dialect.
///
/// `system` is that of the component; feature networks have none. `progress` is called with each graph's name before it is written, and returns false to stop.
///
/// # Errors
/// When a tensor is missing, does not fit the spec or holds a value beyond the precision; when quantization is asked for
/// beside another precision than fp32, or finds nothing to quantize; when writing fails. Files may be left half-written:
/// write into a temporary folder.
pub fn export_component(
    spec: &ComponentSpec,
    system: Option<&SystemSpec>,
    form: &Form,
    weights: &dyn Weights,
    folder: &Utf8Path,
    progress: &mut dyn FnMut(&str) -> bool,
) -> Result<WrittenComponent, ExportError> {
    let parts = parts(spec, system)?.graphs;
    let kind = spec.kind();
    let component = kind.name();
    let precision = form.precision.of(kind).of_component(component);
    let blocks = form.quantize.of(kind);
    if blocks.is_some() && precision != Precision::Fp32 {
        return Err(ExportError::QuantizedPrecision { component: component.to_owned(), precision });
    }
    let store = WeightStore::create(component, weights, folder)?.with_precision(precision);
    let mut store = store.with_blocks(blocks, |blocks| packed::nothing_yet(blocks, form.accuracy));
    let mut graphs = Vec::with_capacity(parts.len());
    for (name, write) in parts {
        if !progress(name.as_str()) {
            return Err(ExportError::Interrupted);
        }
        let (mut model, spec) = build(name, &write, &mut store, Dialect::Portable)?.finish();
        let written = |dialect| facts(&spec, system, &GraphForm { precision, blocks, dialect });
        model.metadata_props = written(Dialect::Portable);
        let file = write_file(folder, format!("{name}.onnx"), &model)?;
        let mut dialects = Vec::new();
        for dialect in Dialect::ALL.into_iter().filter(|d| blocks.is_some() && *d != Dialect::Portable) {
            let builder = build(name, &write, &mut store, dialect)?;
            if builder.is_own() {
                let (mut model, _) = builder.finish();
                model.metadata_props = written(dialect);
                dialects.push((dialect, write_file(folder, format!("{name}.{dialect}.onnx"), &model)?));
            }
        }
        graphs.push(WrittenGraph { spec, file, dialects });
    }
    let data = store.finish()?;
    if let Some(quantized) = data.quantized.as_ref().filter(|q| q.matrices.is_empty()) {
        let message = format!("it has no matrix to quantize: {} are small", quantized.kept.len());
        return Err(ExportError::Spec { component: component.to_owned(), message });
    }
    let quantized = data.quantized;
    let data = WrittenFile { name: data.file_name, size: data.size, sha256: data.sha256 };
    Ok(WrittenComponent { graphs, data, quantized })
}

fn build<'s, 'w>(
    name: GraphName,
    write: &Write<'_>,
    store: &'s mut WeightStore<'w>,
    dialect: Dialect,
) -> Result<GraphBuilder<'s, 'w>, ExportError> {
    let mut builder = GraphBuilder::new(name.as_str(), store, dialect);
    write(&mut builder)?;
    Ok(builder)
}

fn write_file(
    folder: &Utf8Path,
    name: String,
    model: &proto::ModelProto,
) -> Result<WrittenFile, ExportError> {
    let bytes = model.encode_to_vec();
    let path = folder.join(&name);
    fs_err::write(&path, &bytes).map_err(|source| ExportError::Write { path, source })?;
    let sha256 = hex::encode(Sha256::digest(&bytes));
    Ok(WrittenFile { name, size: bytes.len() as u64, sha256 })
}
