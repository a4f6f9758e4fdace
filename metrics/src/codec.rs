//! Exact little-endian states of accumulators.

use crate::MetricError;

pub(crate) struct ByteWriter(Vec<u8>);

impl ByteWriter {
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
