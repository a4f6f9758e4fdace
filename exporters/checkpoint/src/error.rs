//! One error type: a kind, the place (file, tensor) and what to do next.

use std::fmt;

use camino::{Utf8Path, Utf8PathBuf};
use dpar_export_spec::text::{self, LONGEST_NAME, MOST_NAMES, cut};
use dpar_export_spec::{ComponentKind, Hinted, PatchRuleError};

use crate::{WeightDType, WeightFormat};

/// Why a checkpoint could not be read or resolved: a [`ErrorKind`] with its place and a next step.
///
/// `Display` gives the place and the kind on one or more lines; the next step is data, see [`Hinted`].
#[derive(Debug)]
pub struct CheckpointError(Box<Inner>);

#[derive(Debug)]
struct Inner {
    kind: ErrorKind,
    file: Option<Utf8PathBuf>,
    tensor: Option<String>,
    hint: Option<String>,
}

/// What went wrong, without its place.
#[derive(Debug, thiserror::Error)]
pub enum ErrorKind {
    /// The operating system refused a read.
    #[error("cannot be read: {0}")]
    Io(#[source] std::io::Error),
    /// A file or folder that was named does not exist.
    #[error("{what} does not exist")]
    NotFound {
        /// What was looked for.
        what: String,
    },
    /// A folder without what a checkpoint folder must hold.
    #[error("{0}")]
    Layout(String),
    /// A seeded checkpoint that cannot be made.
    #[error("{0}")]
    Synth(String),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
    /// An option that cannot be fulfilled with this checkpoint.
    #[error("`{option}` cannot be fulfilled: {problem}")]
    Option {
        /// The option as written on the command line.
        option: &'static str,
        /// Why not.
        problem: String,
    },
    /// The file ends before its own tables say it should.
    #[error("the {format} file is truncated: {problem}")]
    Truncated {
        /// Container format.
        format: WeightFormat,
        /// What is cut off.
        problem: String,
    },
    /// The container or its table of contents breaks its format.
    #[error("not a valid {format} file: {problem}")]
    Malformed {
        /// Container format.
        format: WeightFormat,
        /// What is wrong.
        problem: String,
    },
    /// A tar archive of PyTorch before 2017, or a bare pickle.
    #[error("a PyTorch tar archive from before 2017, or a bare pickle; neither is read")]
    LegacyTorch,
    /// A valid file that uses a feature this reader refuses (compression, encryption, shards, big endian).
    #[error("{0}")]
    UnsupportedFile(String),
    /// The file is of another format than its name says.
    #[error("not a {expected} file: it is {found}")]
    OtherFormat {
        /// The format of its name.
        expected: WeightFormat,
        /// What it is.
        found: &'static str,
    },
    /// A dictionary with tensors in it, but not where a state dict lies.
    #[error(
        "no state dict under `model`, `module` or `state_dict`, nor at the top; there are tensors under {}",
        quoted(keys)
    )]
    NoStateDict {
        /// Where there are tensors: keys joined by dots.
        keys: Vec<String>,
    },
    /// The pickle calls a function of Python's own library, or no name at all. Nothing was executed.
    #[error("the pickle asks for `{global}`, which is not tensor data; refused, nothing was executed")]
    HostilePickle {
        /// `module.name` of the callable.
        global: String,
    },
    /// Size, strides or storage of a tensor do not fit the file.
    #[error("{0}")]
    MalformedTensor(String),
    /// A weight that is no tensor of plain elements.
    #[error("is {0}; no weight is read from that")]
    UnreadTensor(String),
    /// `require` of a name that the weight set does not hold.
    #[error("there is no such tensor")]
    NoSuchTensor,
    /// The tensors do not belong to any known component.
    #[error("the tensors belong to no known model (first names: {})", text::names(.names))]
    UnknownModel {
        /// The first few names of the file.
        names: Vec<String>,
    },
    /// The tensors belong to another component than the one that was asked for.
    #[error("holds {found}, not {wanted}")]
    WrongComponent {
        /// What was needed here.
        wanted: &'static str,
        /// What the tensors are.
        found: &'static str,
    },
    /// Tensors that the component needs and tensors it has no use for.
    #[error("{0}")]
    Names(NameMismatch),
    /// A tensor with another shape than the rest of the component implies.
    #[error("has shape {found:?}, expected {expected:?}")]
    Shape {
        /// The shape that the other tensors imply.
        expected: Vec<usize>,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A tensor with another number of dimensions, or an empty one, where a size is read from it.
    #[error("has shape {found:?}, expected {rank} dimensions, none of them 0")]
    Rank {
        /// Expected number of dimensions.
        rank: usize,
        /// The shape in the file.
        found: Vec<usize>,
    },
    /// A weight that is not floating point.
    #[error("holds {0}; weights must be f32, f16, bf16 or f64")]
    NotFloat(WeightDType),
    /// A weight holds NaN or an infinity.
    #[error("element {index} is {value}")]
    NonFinite {
        /// Row-major index of the first such element.
        index: usize,
        /// Its value: NaN, inf or -inf.
        value: f64,
    },
    /// Sizes that no model can have, e.g. a width that the heads do not divide.
    #[error("{0}")]
    Sizes(String),
    /// A missing key of the configuration, a bad value, or text that is not YAML.
    #[error("{}{problem}", key.as_ref().map(|k| format!("`{k}`: ")).unwrap_or_default())]
    Config {
        /// Dotted key, when one is to blame.
        key: Option<String>,
        /// What is wrong with it.
        problem: String,
    },
    /// A configuration value this project does not support.
    #[error("`{key}: {value}` is not supported{}", list(.known))]
    UnsupportedConfig {
        /// Dotted key.
        key: &'static str,
        /// Its value.
        value: String,
        /// The supported values.
        known: &'static [&'static str],
    },
    /// Two sources disagree: configuration and tensors, or two components.
    #[error("{first}, {second}")]
    Disagreement {
        /// First statement with its source.
        first: String,
        /// Second statement with its source.
        second: String,
    },
    /// The patch rule of the configuration cannot be used.
    #[error("{0}")]
    PatchRule(#[source] PatchRuleError),
    /// A component that the system needs was not found.
    #[error("the {component} is needed and was not found{}", wanted.as_ref().map(|w| format!(" ({w})")).unwrap_or_default())]
    MissingComponent {
        /// Which one.
        component: &'static str,
        /// Where it was looked for, if anything named it.
        wanted: Option<String>,
    },
    /// A rename rule that cannot be used.
    #[error("{}{problem}", rule.map(|r| format!("rule {r}: ")).unwrap_or_default())]
    Rule {
        /// 1-based position in the file.
        rule: Option<usize>,
        /// What is wrong.
        problem: String,
    },
    /// Two tensors of one file get the same name: through rename rules, or when wrappers' parts are taken off.
    #[error(
        "`{}` and `{}` would both be named `{target}` by the rename rules, or without the parts that wrappers add",
        sources[0],
        sources[1]
    )]
    RuleCollision {
        /// The name both would get.
        target: String,
        /// The two names in the file.
        sources: [String; 2],
    },
}

fn quoted(keys: &[String]) -> String {
    /// Most keys that are written out.
    const MOST: usize = 8;
    let shown: Vec<String> = keys.iter().take(MOST).map(|k| format!("`{k}`")).collect();
    let more = if keys.len() > MOST { format!(" and {} more", keys.len() - MOST) } else { String::new() };
    shown.join(", ") + &more
}

fn list(values: &[&str]) -> String {
    if values.is_empty() { String::new() } else { format!(" (supported: {})", values.join(", ")) }
}

/// Every tensor that is missing and every one that was not used, with the nearest names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NameMismatch {
    /// The component that was matched.
    pub component: ComponentKind,
    /// Names the component needs and the file lacks, sorted.
    pub missing: Vec<Unmatched>,
    /// Names of the file that the component has no use for, sorted.
    pub unused: Vec<Unmatched>,
}

/// One name without a partner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmatched {
    /// The tensor name.
    pub name: String,
    /// The most similar name on the other side, if any is similar.
    pub nearest: Option<String>,
}

impl NameMismatch {
    /// A line for each of the first names of both sides, with the nearest one on the other side.
    pub fn lines(&self) -> Vec<String> {
        let line = |what: &str, other: &str, x: &Unmatched| {
            let name = cut(&x.name, LONGEST_NAME);
            match &x.nearest {
                Some(n) => format!("{what} `{name}`; {other} `{}` is the nearest", cut(n, LONGEST_NAME)),
                None => format!("{what} `{name}`"),
            }
        };
        let mut lines = Vec::new();
        for (what, other, names) in
            [("missing", "unused", &self.missing), ("unused", "missing", &self.unused)]
        {
            lines.extend(names.iter().take(MOST_NAMES).map(|x| line(what, other, x)));
            if names.len() > MOST_NAMES {
                lines.push(format!("and {} more {what}", names.len() - MOST_NAMES));
            }
        }
        lines
    }
}

impl fmt::Display for NameMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (m, u) = (self.missing.len(), self.unused.len());
        write!(f, "the tensors do not match component {}: {m} missing, {u} unused", self.component.name())
    }
}

impl CheckpointError {
    pub(crate) fn new(kind: ErrorKind) -> Self {
        Self(Box::new(Inner { kind, file: None, tensor: None, hint: None }))
    }

    pub(crate) fn in_file(kind: ErrorKind, file: &Utf8Path) -> Self {
        Self::new(kind).at(file)
    }

    pub(crate) fn io(file: &Utf8Path, e: std::io::Error) -> Self {
        Self::in_file(ErrorKind::Io(e), file)
    }

    pub(crate) fn at(mut self, file: &Utf8Path) -> Self {
        self.0.file.get_or_insert_with(|| file.to_owned());
        self
    }

    pub(crate) fn tensor_named(mut self, tensor: &str) -> Self {
        self.0.tensor.get_or_insert_with(|| tensor.to_owned());
        self
    }

    pub(crate) fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// What went wrong.
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// The file or folder it went wrong in, as it was given or resolved.
    pub fn file(&self) -> Option<&Utf8Path> {
        self.0.file.as_deref()
    }

    /// The tensor it is about, by the name in the file.
    pub fn tensor(&self) -> Option<&str> {
        self.0.tensor.as_deref()
    }
}

impl Hinted for CheckpointError {
    /// What the message counts, a line each; empty for most kinds.
    fn details(&self) -> Vec<String> {
        match self.kind() {
            ErrorKind::Names(names) => names.lines(),
            _ => Vec::new(),
        }
    }

    /// One sentence.
    fn hint(&self) -> Option<String> {
        if let Some(h) = &self.0.hint {
            return Some(h.clone());
        }
        let fixed = match &self.0.kind {
            ErrorKind::LegacyTorch => {
                "load it once with a current PyTorch and save it again: \
                 torch.save(torch.load(FILE, map_location='cpu'), NEW)"
            }
            ErrorKind::HostilePickle { .. } => {
                "if you trust the file, save its tensors alone: torch.save({'model': state_dict}, NEW), or as safetensors"
            }
            ErrorKind::NoStateDict { .. } => "take one of them with `--weights KEY`",
            ErrorKind::UnreadTensor(_) => {
                "save the weights as plain float tensors: dense, on the CPU, dequantised"
            }
            ErrorKind::Truncated { .. } => {
                "copy or download the file again and compare its size and checksum"
            }
            ErrorKind::Names(_) | ErrorKind::UnknownModel { .. } => {
                "give rename rules with `--map FILE` if only the names differ"
            }
            ErrorKind::NonFinite { .. } => {
                "the training run has diverged or the file is damaged; take another epoch"
            }
            ErrorKind::RuleCollision { .. } => "make the patterns of the rename rules narrower",
            _ => return None,
        };
        Some(fixed.to_owned())
    }
}

impl fmt::Display for CheckpointError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.0.file {
            write!(f, "{file}: ")?;
        }
        if let Some(tensor) = &self.0.tensor {
            write!(f, "tensor `{tensor}`: ")?;
        }
        self.0.kind.fmt(f)
    }
}

impl std::error::Error for CheckpointError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        std::error::Error::source(&self.0.kind)
    }
}

impl From<ErrorKind> for CheckpointError {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind)
    }
}
