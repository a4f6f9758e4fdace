//! Graph interfaces: ports with named dynamic axes and their ranges.

use serde::{Deserialize, Serialize};

/// Element type of a graph port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float: 5 exponent bits, 10 stored mantissa bits.
    F16,
    /// The upper half of a 32-bit float: 8 exponent bits, 7 stored mantissa bits.
    BF16,
    /// 64-bit signed integer.
    I64,
}

impl DType {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::F32 => 4,
            Self::I64 => 8,
        }
    }

    /// Whether elements are floats of any width.
    pub fn is_float(self) -> bool {
        !matches!(self, Self::I64)
    }
}

impl std::fmt::Display for DType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I64 => "i64",
        })
    }
}

/// One dimension of a port: a fixed size, a named dynamic axis, or the sum of two named axes
/// (the key axis of an attention mask is `past_tokens + tokens`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    /// A size known at export time.
    Fixed(usize),
    /// A named axis, or `"a + b"`; the text is the `dim_param` in the ONNX file.
    Named(String),
}

impl Dim {
    /// A named dynamic axis.
    pub fn axis(name: &str) -> Self {
        Self::Named(name.to_owned())
    }

    /// The sum of two named axes.
    pub fn sum(a: &str, b: &str) -> Self {
        Self::Named(format!("{a} + {b}"))
    }

    /// The axis names this dimension depends on (none, one or two).
    pub fn axes(&self) -> Vec<&str> {
        match self {
            Self::Fixed(_) => Vec::new(),
            Self::Named(n) => n.split(" + ").collect(),
        }
    }
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Named(n) => f.write_str(n),
        }
    }
}

/// A named graph input or output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Tensor name in the graph.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub dims: Vec<Dim>,
}

impl Port {
    /// A port from its parts.
    pub fn new(name: impl Into<String>, dtype: DType, dims: Vec<Dim>) -> Self {
        Self { name: name.into(), dtype, dims }
    }
}

/// The range of one dynamic axis; `opt` is the size to tune for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AxisRange {
    /// Axis name as used in [`Dim::Named`].
    pub name: String,
    /// Smallest size.
    pub min: usize,
    /// Size to optimise for.
    pub opt: usize,
    /// Largest size.
    pub max: usize,
}

/// Everything an engine or a user needs to call one graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GraphSpec {
    /// Graph name, e.g. `global_step`; unique in a bundle.
    pub name: String,
    /// The component it was written from, e.g. `dpar`.
    pub component: String,
    /// Inputs in graph order.
    pub inputs: Vec<Port>,
    /// Outputs in graph order.
    pub outputs: Vec<Port>,
    /// Range of every dynamic axis that occurs in the ports.
    pub axes: Vec<AxisRange>,
}

impl GraphSpec {
    /// The input of that name.
    pub fn input(&self, name: &str) -> Option<&Port> {
        self.inputs.iter().find(|p| p.name == name)
    }

    /// Index of the output of that name.
    pub fn output_index(&self, name: &str) -> Option<usize> {
        self.outputs.iter().position(|p| p.name == name)
    }

    /// The range of an axis.
    pub fn axis(&self, name: &str) -> Option<&AxisRange> {
        self.axes.iter().find(|a| a.name == name)
    }
}
