//! Compute capabilities that a TensorRT engine can be built for: plain numbers, which a build without TensorRT checks too.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What TensorRT-RTX 1.7 can build for (`ComputeCapability` in `NvInfer.h`), with 7.5 left out: the graphs hold
/// float matrix products, and it has none of those for Turing ("FP32 GEMM is not supported").
const KNOWN: [(u8, u8); 5] = [(8, 0), (8, 6), (8, 9), (12, 0), (12, 1)];

/// A CUDA compute capability, e.g. 8.9.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Capability {
    major: u8,
    minor: u8,
}

/// Why there can be no engine for a compute capability.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CapabilityError {
    /// Not two numbers with a point.
    #[error("`{0}` is not a compute capability such as 8.9")]
    Malformed(String),
    /// Turing has no float matrix product in TensorRT-RTX.
    #[error(
        "no engine can be built for compute capability 7.5 (Turing): TensorRT-RTX has no float matrix product for it"
    )]
    Turing,
    /// A device that TensorRT-RTX does not build for.
    #[error("TensorRT-RTX does not build for compute capability {0}; it does for {list}", list = known_list())]
    Unknown(Capability),
}

impl CapabilityError {
    /// The next step.
    pub fn hint(&self) -> String {
        match self {
            Self::Malformed(_) => format!("give one or more of {}", known_list()),
            Self::Turing => "leave 7.5 out; older devices can run the ONNX graphs with another engine".into(),
            Self::Unknown(c) if (c.major, c.minor) == (9, 0) || (c.major, c.minor) == (10, 0) => {
                "data-centre devices take full TensorRT: build an engine there from the ONNX graphs".into()
            }
            Self::Unknown(_) => {
                "leave the list empty for an engine that runs on all of Ampere and later".into()
            }
        }
    }
}

fn known_list() -> String {
    let names: Vec<String> = Capability::known().iter().map(ToString::to_string).collect();
    names.join(", ")
}

impl Capability {
    /// A capability that an engine can be built for.
    ///
    /// # Errors
    /// When there can be none.
    pub fn new(major: u8, minor: u8) -> Result<Self, CapabilityError> {
        match (major, minor) {
            pair if KNOWN.contains(&pair) => Ok(Self { major, minor }),
            (7, 5) => Err(CapabilityError::Turing),
            _ => Err(CapabilityError::Unknown(Self { major, minor })),
        }
    }

    /// All that an engine can be built for.
    pub fn known() -> Vec<Self> {
        KNOWN.iter().map(|&(major, minor)| Self { major, minor }).collect()
    }

    /// Major and minor number.
    pub fn numbers(self) -> (u8, u8) {
        (self.major, self.minor)
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl FromStr for Capability {
    type Err = CapabilityError;

    fn from_str(text: &str) -> Result<Self, CapabilityError> {
        let malformed = || CapabilityError::Malformed(text.to_owned());
        let (major, minor) = text.trim().split_once('.').ok_or_else(malformed)?;
        let number = |t: &str| t.parse().map_err(|_| malformed());
        Self::new(number(major)?, number(minor)?)
    }
}

impl From<Capability> for String {
    fn from(value: Capability) -> Self {
        value.to_string()
    }
}

impl TryFrom<String> for Capability {
    type Error = CapabilityError;

    fn try_from(text: String) -> Result<Self, CapabilityError> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_ones_are_read_and_written() {
        for c in Capability::known() {
            assert_eq!(c.to_string().parse::<Capability>().unwrap(), c);
            let json = serde_json::to_string(&c).unwrap();
            assert_eq!(serde_json::from_str::<Capability>(&json).unwrap(), c);
        }
    }

    #[test]
    fn others_are_refused_with_the_reason() {
        let refused = |text: &str| text.parse::<Capability>().unwrap_err();
        assert_eq!(refused("7.5"), CapabilityError::Turing);
        assert!(refused("7.5").to_string().contains("Turing"));
        assert!(refused("9.0").to_string().contains("9.0; it does for 8.0, 8.6, 8.9, 12.0, 12.1"));
        assert!(refused("9.0").hint().contains("full TensorRT"));
        for text in ["", "89", "8.", "8.9.1", "a.b", "256.0", "-8.9"] {
            assert!(matches!(refused(text), CapabilityError::Malformed(_)), "{text}");
        }
    }
}
