//! Protobuf as a list of fields: what is not edited keeps its bytes.

use std::ops::Range;

use prost::bytes::Buf;
use prost::encoding::{
    DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
};

/// A field of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Field {
    pub(crate) tag: u32,
    /// With its key.
    pub(crate) whole: Range<usize>,
    /// Without key and length.
    pub(crate) payload: Range<usize>,
}

/// The fields of a message, in their order; `None` where it is none.
pub(crate) fn fields(message: &[u8]) -> Option<Vec<Field>> {
    let mut rest = message;
    let mut fields = Vec::new();
    while rest.has_remaining() {
        let start = message.len() - rest.len();
        let (tag, wire) = decode_key(&mut rest).ok()?;
        let payload = if wire == WireType::LengthDelimited {
            let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
            let from = message.len() - rest.len();
            rest = rest.get(length..)?;
            from..from + length
        } else {
            let from = message.len() - rest.len();
            skip_field(wire, tag, &mut rest, DecodeContext::default()).ok()?;
            from..message.len() - rest.len()
        };
        fields.push(Field { tag, whole: start..message.len() - rest.len(), payload });
    }
    Some(fields)
}

/// Appends a field that holds a message.
pub(crate) fn push(into: &mut Vec<u8>, tag: u32, message: &[u8]) {
    encode_key(tag, WireType::LengthDelimited, into);
    encode_varint(message.len() as u64, into);
    into.extend_from_slice(message);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_put_together_comes_apart() {
        let mut bytes = Vec::new();
        push(&mut bytes, 7, b"graph");
        // Field 1, a number, as every model has for its version.
        bytes.extend([8, 0x96, 1]);
        let found = fields(&bytes).unwrap();
        assert_eq!((found[0].tag, &bytes[found[0].payload.clone()]), (7, &b"graph"[..]));
        assert_eq!((found[1].tag, &bytes[found[1].whole.clone()]), (1, &[8, 0x96, 1][..]));
        assert_eq!(fields(&bytes[..5]), None);
        assert_eq!(fields(&[0x3a, 0xff, 0xff, 0xff, 0x7f]), None);
    }
}
