//! Tensors as bytes: element types, conversion to float32, the scan for NaN and infinities.

use std::borrow::Cow;

use crate::{CheckpointError, ErrorKind};

/// Element type of a tensor in a weight file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum WeightDType {
    /// 32-bit IEEE float.
    F32,
    /// 16-bit IEEE float.
    F16,
    /// Brain float, the upper half of an f32.
    BF16,
    /// 64-bit IEEE float.
    F64,
    /// 64-bit signed integer.
    I64,
    /// 32-bit signed integer.
    I32,
    /// 16-bit signed integer.
    I16,
    /// 8-bit signed integer.
    I8,
    /// 8-bit unsigned integer.
    U8,
    /// 16-bit unsigned integer.
    U16,
    /// 32-bit unsigned integer.
    U32,
    /// 64-bit unsigned integer.
    U64,
    /// One byte, 0 or 1.
    Bool,
    /// Anything else that a file may declare (8-bit floats, complex numbers); its bytes are not interpreted.
    Other,
}

impl WeightDType {
    /// Bytes of one element; `None` for [`WeightDType::Other`].
    pub fn size(self) -> Option<usize> {
        Some(match self {
            Self::F64 | Self::I64 | Self::U64 => 8,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::I8 | Self::U8 | Self::Bool => 1,
            Self::Other => return None,
        })
    }

    /// Whether this is one of the float types that weights may have.
    pub fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F16 | Self::BF16 | Self::F64)
    }
}

impl std::fmt::Display for WeightDType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F64 => "f64",
            Self::I64 => "i64",
            Self::I32 => "i32",
            Self::I16 => "i16",
            Self::I8 => "i8",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::Bool => "bool",
            Self::Other => "an unsupported element type",
        })
    }
}

/// A tensor of a weight file: row-major, little endian, borrowed from the file's mapping unless its elements
/// were strided there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorRef<'a> {
    /// Element type.
    pub dtype: WeightDType,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Row-major little-endian elements, `elements() * dtype.size()` bytes.
    pub bytes: Cow<'a, [u8]>,
}

impl<'a> TensorRef<'a> {
    /// The elements as float32, like [`TensorRef::to_f32`], borrowed from the file's mapping where possible.
    ///
    /// # Errors
    /// [`ErrorKind::NotFloat`] for a type that is no float.
    pub fn into_f32(self) -> Result<Cow<'a, [f32]>, CheckpointError> {
        if let (WeightDType::F32, Cow::Borrowed(bytes)) = (self.dtype, &self.bytes)
            && let Some(floats) = aligned_f32(bytes)
        {
            return Ok(Cow::Borrowed(floats));
        }
        Ok(Cow::Owned(self.to_f32()?.into_owned()))
    }
}

impl TensorRef<'_> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The elements as float32: borrowed when they are aligned f32 on a little-endian machine, otherwise a copy.
    ///
    /// f16, bf16 and f64 are converted (f64 rounds to nearest).
    ///
    /// # Errors
    /// [`ErrorKind::NotFloat`] for every other element type.
    pub fn to_f32(&self) -> Result<Cow<'_, [f32]>, CheckpointError> {
        let b: &[u8] = &self.bytes;
        Ok(Cow::Owned(match self.dtype {
            WeightDType::F32 => {
                if let Some(borrowed) = aligned_f32(b) {
                    return Ok(Cow::Borrowed(borrowed));
                }
                words::<4>(b).map(f32::from_le_bytes).collect()
            }
            WeightDType::F16 => words::<2>(b).map(|w| half::f16::from_le_bytes(w).to_f32()).collect(),
            WeightDType::BF16 => words::<2>(b).map(|w| half::bf16::from_le_bytes(w).to_f32()).collect(),
            WeightDType::F64 => words::<8>(b).map(|w| f64::from_le_bytes(w) as f32).collect(),
            other => return Err(ErrorKind::NotFloat(other).into()),
        }))
    }

    /// The first element that is NaN or infinite, with its row-major index; `None` for a tensor of finite numbers
    /// and for integer types.
    pub fn first_non_finite(&self) -> Option<(usize, f64)> {
        let b: &[u8] = &self.bytes;
        match self.dtype {
            WeightDType::F32 => find(b, |w: [u8; 4]| u32::from_le_bytes(w) & 0x7f80_0000 == 0x7f80_0000)
                .map(|(i, w)| (i, f64::from(f32::from_le_bytes(w)))),
            WeightDType::F16 => find(b, |w: [u8; 2]| u16::from_le_bytes(w) & 0x7c00 == 0x7c00)
                .map(|(i, w)| (i, half::f16::from_le_bytes(w).to_f64())),
            WeightDType::BF16 => find(b, |w: [u8; 2]| u16::from_le_bytes(w) & 0x7f80 == 0x7f80)
                .map(|(i, w)| (i, half::bf16::from_le_bytes(w).to_f64())),
            // A finite f64 that float32 cannot hold becomes infinite on conversion, so it counts too.
            WeightDType::F64 => find(b, |w: [u8; 8]| !(f64::from_le_bytes(w) as f32).is_finite())
                .map(|(i, w)| (i, f64::from_le_bytes(w))),
            _ => None,
        }
    }
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

/// The slice as f32 where the machine's own layout is the file's.
fn aligned_f32(bytes: &[u8]) -> Option<&[f32]> {
    if cfg!(target_endian = "big") {
        return None;
    }
    bytemuck::try_cast_slice(bytes).ok()
}

/// First word for which `bad` holds. Blocks are reduced without an early exit, so the loop vectorises.
fn find<const N: usize>(bytes: &[u8], bad: impl Fn([u8; N]) -> bool) -> Option<(usize, [u8; N])> {
    const BLOCK: usize = 4096;
    let words = bytes.as_chunks::<N>().0;
    let block = words.chunks(BLOCK).position(|c| c.iter().fold(false, |any, w| any | bad(*w)))?;
    let start = block * BLOCK;
    words.get(start..)?.iter().position(|w| bad(*w)).map(|i| (start + i, words[start + i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(dtype: WeightDType, bytes: Vec<u8>) -> TensorRef<'static> {
        let n = bytes.len() / dtype.size().unwrap();
        TensorRef { dtype, shape: vec![n], bytes: Cow::Owned(bytes) }
    }

    fn all(values: &[f32]) -> [TensorRef<'static>; 4] {
        [
            tensor(WeightDType::F32, values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            tensor(
                WeightDType::F16,
                values.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect(),
            ),
            tensor(
                WeightDType::BF16,
                values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect(),
            ),
            tensor(WeightDType::F64, values.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect()),
        ]
    }

    #[test]
    fn floats_convert_and_integers_are_refused() {
        for t in all(&[0.0, -1.5, 0.25]) {
            assert_eq!(t.to_f32().unwrap().as_ref(), [0.0, -1.5, 0.25], "{}", t.dtype);
        }
        let ints = tensor(WeightDType::I64, vec![0; 16]);
        assert!(matches!(ints.to_f32().unwrap_err().kind(), ErrorKind::NotFloat(WeightDType::I64)));
    }

    #[test]
    fn aligned_f32_is_borrowed_and_unaligned_is_copied() {
        let backing = [1.0_f32, 2.0, 3.0].map(f32::to_le_bytes).concat();
        let mut padded = [0_u8; 16];
        let shift = padded.as_ptr().align_offset(4);
        padded[shift..shift + 12].copy_from_slice(&backing);
        let aligned = TensorRef {
            dtype: WeightDType::F32,
            shape: vec![3],
            bytes: Cow::Borrowed(&padded[shift..shift + 12]),
        };
        assert!(matches!(aligned.to_f32().unwrap(), Cow::Borrowed(_)));
        let mut odd = [0_u8; 17];
        let shift = odd.as_ptr().align_offset(4) + 1;
        odd[shift..shift + 12].copy_from_slice(&backing);
        let unaligned = TensorRef {
            dtype: WeightDType::F32,
            shape: vec![3],
            bytes: Cow::Borrowed(&odd[shift..shift + 12]),
        };
        assert_eq!(unaligned.to_f32().unwrap().as_ref(), [1.0, 2.0, 3.0]);
    }

    #[test]
    fn the_first_non_finite_element_is_found_in_every_float_type() {
        let mut values = vec![1.0_f32; 9000];
        values[8999] = f32::INFINITY;
        values[8195] = f32::NAN;
        for t in all(&values) {
            let (i, v) = t.first_non_finite().unwrap();
            assert_eq!(i, 8195, "{}", t.dtype);
            assert!(v.is_nan());
        }
        for t in all(&[65504.0, -1.0e-30, 0.0]) {
            assert_eq!(t.first_non_finite(), None, "{}", t.dtype);
        }
        let big = tensor(WeightDType::F64, 1.0e300_f64.to_le_bytes().to_vec());
        assert_eq!(big.first_non_finite(), Some((0, 1.0e300)));
    }
}
