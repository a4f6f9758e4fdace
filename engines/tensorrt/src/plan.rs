//! The first bytes of a serialised engine, read without TensorRT and without a driver.

use std::fmt;

/// What an engine file says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanHeader {
    /// Size of the whole file.
    pub size: u64,
    /// Version of TensorRT-RTX that built it.
    pub version: String,
}

/// Why a file is not an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlanFault {
    /// It does not begin as one.
    NotAnEngine,
    /// It is shorter or longer than it says.
    Size {
        /// What it says.
        promised: u64,
        /// What it has.
        found: u64,
    },
}

impl fmt::Display for PlanFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAnEngine => f.write_str("it is not a TensorRT engine"),
            Self::Size { promised, found } => {
                write!(f, "the engine is damaged: it has {found} bytes and says that it has {promised}")
            }
        }
    }
}

impl std::error::Error for PlanFault {}

/// Reads the header: the tag `vtrt`, at 16 the size, at 24 the four parts of the version. TensorRT-RTX 1.7 writes it
/// so and makes the same two checks when it deserialises; other bytes are not covered by any check but a hash.
///
/// # Errors
/// When it is not an engine, or not a whole one.
pub fn read_plan_header(bytes: &[u8]) -> Result<PlanHeader, PlanFault> {
    let head = bytes.get(..28).filter(|h| h.starts_with(b"vtrt")).ok_or(PlanFault::NotAnEngine)?;
    let promised = head[16..24].iter().rev().fold(0_u64, |n, b| n << 8 | u64::from(*b));
    let found = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
    if promised != found {
        return Err(PlanFault::Size { promised, found });
    }
    let [major, minor, patch, build] = [head[24], head[25], head[26], head[27]];
    Ok(PlanHeader { size: found, version: format!("{major}.{minor}.{patch}.{build}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_and_version_are_read_and_damage_is_seen() {
        let mut bytes = vec![0; 300];
        assert_eq!(read_plan_header(&bytes), Err(PlanFault::NotAnEngine));
        bytes[..4].copy_from_slice(b"vtrt");
        bytes[16..18].copy_from_slice(&300_u16.to_le_bytes());
        bytes[24..28].copy_from_slice(&[1, 7, 1, 116]);
        let header = read_plan_header(&bytes).unwrap();
        assert_eq!(header, PlanHeader { size: 300, version: "1.7.1.116".into() });
        for len in 0..300 {
            assert!(read_plan_header(&bytes[..len]).is_err());
        }
        bytes.push(0);
        let e = read_plan_header(&bytes).unwrap_err();
        assert_eq!(e.to_string(), "the engine is damaged: it has 301 bytes and says that it has 300");
    }
}
