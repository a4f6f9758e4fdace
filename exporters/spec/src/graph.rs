//! Graph interfaces: ports with named dynamic axes and their ranges.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::dtype::DType;
use crate::role::Role;

/// Largest size of a dimension or an axis that an interface may claim; far above any model, low enough that no sum of
/// two overflows.
const MAX_SIZE: usize = 1 << 30;

/// Whether a text is a name of a graph, port, axis or file: ASCII letters, digits, `_`, `.` and `-`, and no `.` or `-`
/// at its beginning. Such a name means itself in a path, in a command line and in a report.
pub fn is_name(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "_.-".contains(c);
    !text.is_empty() && !text.starts_with(['.', '-']) && text.chars().all(allowed)
}

/// One dimension of a port: a fixed size, a named dynamic axis, or the sum of two named axes
/// (the key axis of an attention mask is `past_tokens + tokens`).
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "Written", into = "Written")]
pub enum Dim {
    /// A size known at export time.
    Fixed(usize),
    /// A named dynamic axis.
    Axis(String),
    /// The sum of two named axes.
    Sum(String, String),
}

/// A dimension in the manifest: a number, or the text that is its `dim_param` in the ONNX file.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Size(usize),
    Text(String),
}

const PLUS: &str = " + ";

impl From<Written> for Dim {
    fn from(written: Written) -> Self {
        match written {
            Written::Size(n) => Self::Fixed(n),
            Written::Text(text) => match text.split_once(PLUS) {
                Some((a, b)) => Self::sum(a, b),
                None => Self::Axis(text),
            },
        }
    }
}

impl From<Dim> for Written {
    fn from(dim: Dim) -> Self {
        match dim {
            Dim::Fixed(n) => Self::Size(n),
            Dim::Axis(_) | Dim::Sum(..) => Self::Text(dim.to_string()),
        }
    }
}

impl Dim {
    /// A named dynamic axis.
    pub fn axis(name: &str) -> Self {
        Self::Axis(name.to_owned())
    }

    /// The sum of two named axes.
    pub fn sum(a: &str, b: &str) -> Self {
        Self::Sum(a.to_owned(), b.to_owned())
    }

    /// The axis names this dimension depends on (none, one or two).
    pub fn axes(&self) -> Vec<&str> {
        match self {
            Self::Fixed(_) => Vec::new(),
            Self::Axis(name) => vec![name],
            Self::Sum(a, b) => vec![a, b],
        }
    }
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fixed(n) => write!(f, "{n}"),
            Self::Axis(name) => f.write_str(name),
            Self::Sum(a, b) => write!(f, "{a}{PLUS}{b}"),
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

    /// What it carries.
    pub fn role(&self) -> Role {
        Role::of(&self.name, self.dtype)
    }
}

/// The range of one dynamic axis; `opt` is the size to tune for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AxisRange {
    /// Axis name as used in [`Dim`].
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

/// Why an interface is none that is written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceFault {
    /// A name that means something else in a path, a shell or a report.
    #[error("`{name}` is no name of {what} (letters, digits, `_`, `.` and `-`)")]
    Name {
        /// Of what.
        what: &'static str,
        /// The name.
        name: String,
    },
    /// An axis with two ranges.
    #[error("axis `{0}` has two ranges")]
    TwoRanges(String),
    /// A range that is none.
    #[error("axis `{}` is {} to {}, {} to tune for", .0.name, .0.min, .0.max, .0.opt)]
    Range(AxisRange),
    /// Two ports of one name.
    #[error("port `{0}` is there twice")]
    PortTwice(String),
    /// An axis without a range.
    #[error("axis `{axis}` of port `{port}` has no range")]
    NoRange {
        /// The axis.
        axis: String,
        /// The port that has it.
        port: String,
    },
    /// A dimension that no tensor has.
    #[error("port `{port}` has a dimension of {dim}")]
    Dimension {
        /// The port that has it.
        port: String,
        /// The dimension.
        dim: Dim,
    },
}

impl GraphSpec {
    /// Checks what holds of every interface that is written: names, sizes, and that each axis of a port has one range.
    /// Names of ports are the file's own where another tool wrote it (`foreign`): anything but nothing.
    ///
    /// # Errors
    /// What does not hold.
    pub fn validate(&self, foreign: bool) -> Result<(), InterfaceFault> {
        let name = |what, text: &str| match is_name(text) {
            true => Ok(()),
            false => Err(InterfaceFault::Name { what, name: text.to_owned() }),
        };
        name("a graph", &self.name)?;
        let mut ranges = BTreeSet::new();
        for axis in &self.axes {
            name("an axis", &axis.name)?;
            if !ranges.insert(axis.name.as_str()) {
                return Err(InterfaceFault::TwoRanges(axis.name.clone()));
            }
            if !(axis.min <= axis.opt && axis.opt <= axis.max && axis.max <= MAX_SIZE) {
                return Err(InterfaceFault::Range(axis.clone()));
            }
        }
        let mut ports = BTreeSet::new();
        for port in self.inputs.iter().chain(&self.outputs) {
            if !foreign || port.name.is_empty() {
                name("a port", &port.name)?;
            }
            if !ports.insert(port.name.as_str()) {
                return Err(InterfaceFault::PortTwice(port.name.clone()));
            }
            for dim in &port.dims {
                if let Some(axis) = dim.axes().into_iter().find(|a| !ranges.contains(a)) {
                    return Err(InterfaceFault::NoRange { axis: axis.to_owned(), port: port.name.clone() });
                }
                if matches!(dim, Dim::Fixed(n) if !(1..=MAX_SIZE).contains(n)) {
                    return Err(InterfaceFault::Dimension { port: port.name.clone(), dim: dim.clone() });
                }
            }
        }
        Ok(())
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_means_itself_in_a_path_a_shell_and_a_report() {
        for good in ["global_step", "past_key_0", "vq.decode-2", "A", "_"] {
            assert!(is_name(good), "{good}");
        }
        for bad in [
            "",
            "-x",
            ".x",
            "..",
            "a b",
            "a/b",
            "a\nb",
            "x$(cmd)",
            "a'b",
            "a;b",
            "\u{e9}",
            "a\u{202e}b",
            "a\0",
        ] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }

    fn spec() -> GraphSpec {
        let dims = || vec![Dim::axis("batch"), Dim::sum("past", "new"), Dim::Fixed(4)];
        let axis = |name: &str| AxisRange { name: name.into(), min: 0, opt: 2, max: 8 };
        GraphSpec {
            name: "g".into(),
            component: "c".into(),
            inputs: vec![Port::new("x", DType::F32, dims())],
            outputs: vec![Port::new("y", DType::F32, dims())],
            axes: ["batch", "past", "new"].map(axis).into(),
        }
    }

    #[test]
    fn interfaces_that_nobody_writes_are_refused() {
        spec().validate(false).unwrap();
        let refused = |change: &dyn Fn(&mut GraphSpec), message: &str| {
            let mut changed = spec();
            change(&mut changed);
            let e = changed.validate(false).unwrap_err();
            assert!(e.to_string().contains(message), "{message}: {e}");
        };
        refused(&|s| s.name = "x$(cmd)".into(), "no name of a graph");
        refused(&|s| s.inputs[0].name = "a:1".into(), "no name of a port");
        refused(&|s| s.axes[0].name = "a b".into(), "no name of an axis");
        refused(&|s| s.outputs[0].name = "x".into(), "there twice");
        refused(&|s| s.axes.push(s.axes[0].clone()), "two ranges");
        refused(&|s| s.axes[0].opt = 9, "0 to 8, 9 to tune for");
        refused(&|s| s.axes[0].max = usize::MAX, "axis `batch`");
        refused(&|s| drop(s.axes.pop()), "axis `new` of port `x` has no range");
        refused(&|s| s.inputs[0].dims[2] = Dim::Fixed(1 << 40), "dimension of 1099511627776");
        refused(&|s| s.inputs[0].dims[2] = Dim::Fixed(0), "dimension of 0");
        let mut foreign = spec();
        foreign.inputs[0].name = "serving_default/x:0".into();
        foreign.validate(true).unwrap();
        foreign.inputs[0].name = String::new();
        assert!(foreign.validate(true).is_err());
    }

    #[test]
    fn a_dimension_is_a_number_or_a_text_in_json() {
        let dims = [Dim::Fixed(4), Dim::axis("batch"), Dim::sum("past_tokens", "tokens")];
        let json = r#"[4,"batch","past_tokens + tokens"]"#;
        assert_eq!(serde_json::to_string(&dims).unwrap(), json);
        assert_eq!(serde_json::from_str::<[Dim; 3]>(json).unwrap(), dims);
        assert_eq!(dims[2].axes(), ["past_tokens", "tokens"]);
    }
}
