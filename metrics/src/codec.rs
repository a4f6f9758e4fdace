//! Exact little-endian states of accumulators.

use crate::MetricError;

pub(crate) struct Writer(Vec<u8>);

impl Writer {
    pub(crate) fn new(magic: &[u8; 8], capacity: usize) -> Self {
        let mut out = Vec::with_capacity(capacity);
        out.extend_from_slice(magic);
        Self(out)
    }

    pub(crate) fn u64(&mut self, v: u64) {
        self.0.extend_from_slice(&v.to_le_bytes());
    }

    pub(crate) fn f64s(&mut self, v: &[f64]) {
        v.iter().for_each(|v| self.0.extend_from_slice(&v.to_le_bytes()));
    }

    pub(crate) fn f32s(&mut self, v: &[f32]) {
        v.iter().for_each(|v| self.0.extend_from_slice(&v.to_le_bytes()));
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

pub(crate) struct Reader<'a> {
    what: &'static str,
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(what: &'static str, magic: &[u8; 8], bytes: &'a [u8]) -> Result<Self, MetricError> {
        match bytes.strip_prefix(magic) {
            Some(rest) => Ok(Self { what, rest }),
            None => Err(MetricError::State { what, problem: "not a state of this kind and version" }),
        }
    }

    pub(crate) fn fail(&self, problem: &'static str) -> MetricError {
        MetricError::State { what: self.what, problem }
    }

    fn take(&mut self, len: Option<usize>) -> Result<&'a [u8], MetricError> {
        let (head, rest) =
            len.and_then(|len| self.rest.split_at_checked(len)).ok_or_else(|| self.fail("truncated"))?;
        self.rest = rest;
        Ok(head)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, MetricError> {
        let mut word = [0; 8];
        word.copy_from_slice(self.take(Some(8))?);
        Ok(u64::from_le_bytes(word))
    }

    pub(crate) fn size(&mut self) -> Result<usize, MetricError> {
        let v = self.u64()?;
        usize::try_from(v).map_err(|_| self.fail("a size is too large"))
    }

    /// Finite values only.
    pub(crate) fn f64s(&mut self, n: usize) -> Result<Vec<f64>, MetricError> {
        let bytes = self.take(n.checked_mul(8))?;
        let (words, _) = bytes.as_chunks::<8>();
        let v: Vec<f64> = words.iter().map(|w| f64::from_le_bytes(*w)).collect();
        if v.iter().all(|v| v.is_finite()) { Ok(v) } else { Err(self.fail("a value is not finite")) }
    }

    /// Finite values only.
    pub(crate) fn f32s(&mut self, n: usize) -> Result<Vec<f32>, MetricError> {
        let bytes = self.take(n.checked_mul(4))?;
        let (words, _) = bytes.as_chunks::<4>();
        let v: Vec<f32> = words.iter().map(|w| f32::from_le_bytes(*w)).collect();
        if v.iter().all(|v| v.is_finite()) { Ok(v) } else { Err(self.fail("a value is not finite")) }
    }

    pub(crate) fn end(&self) -> Result<(), MetricError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.fail("bytes left over")) }
    }
}

/// Collects bytes from formats with and without a byte type.
pub(crate) struct Bytes(pub(crate) Vec<u8>);

impl<'de> serde::Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Bytes;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("bytes")
            }

            fn visit_bytes<E>(self, v: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(v.to_vec()))
            }

            fn visit_byte_buf<E>(self, v: Vec<u8>) -> Result<Bytes, E> {
                Ok(Bytes(v))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Bytes, A::Error> {
                let mut out = Vec::new();
                while let Some(byte) = seq.next_element()? {
                    out.push(byte);
                }
                Ok(Bytes(out))
            }
        }
        deserializer.deserialize_byte_buf(Visitor)
    }
}

/// serde through `to_bytes` and `from_bytes`: exact in every format (text formats write an array of bytes, so
/// prefer `to_bytes` itself for large states).
macro_rules! serde_by_bytes {
    ($name:ident) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_bytes(&self.to_bytes())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let bytes = <crate::codec::Bytes as serde::Deserialize>::deserialize(deserializer)?;
                $name::from_bytes(&bytes.0).map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use serde_by_bytes;
