//! Every message of an ONNX file that another tool wrote, looked at where it lies: in subgraphs, functions, sparse
//! tensors and training graphs too. What is not known here is refused, not passed over.

use crate::error::FileFault;

/// Deeper nesting than any network has; protobuf readers stop there too.
const DEPTH: usize = 100;

/// A message type of the ONNX schema, up to IR version 13.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum MessageType {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    Sparse,
    Function,
    Training,
    /// No tensor lies in or below it.
    Leaf,
}

/// What a field with a length holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// Text, bytes or packed numbers.
    Data,
    Message(MessageType),
}

impl MessageType {
    fn name(self) -> &'static str {
        match self {
            Self::Model => "the model",
            Self::Graph => "a graph",
            Self::Node => "a node",
            Self::Attribute => "an attribute",
            Self::Tensor => "a tensor",
            Self::Sparse => "a sparse tensor",
            Self::Function => "a function",
            Self::Training => "the training info",
            Self::Leaf => "a description",
        }
    }

    /// What the field of that number holds where it has a length; nothing where no version of the schema has such a field.
    fn field(self, number: u64) -> Option<Holds> {
        use Holds::{Data, Message};
        let leaf = Message(Self::Leaf);
        Some(match (self, number) {
            (Self::Model, 2 | 3 | 4 | 6) => Data,
            (Self::Model, 7) => Message(Self::Graph),
            (Self::Model, 8 | 14 | 26) => leaf,
            (Self::Model, 20) => Message(Self::Training),
            (Self::Model, 25) => Message(Self::Function),
            (Self::Graph, 1) => Message(Self::Node),
            (Self::Graph, 2 | 10) => Data,
            (Self::Graph, 5) => Message(Self::Tensor),
            (Self::Graph, 11..=14 | 16) => leaf,
            (Self::Graph, 15) => Message(Self::Sparse),
            (Self::Node, 1..=4 | 6..=8) => Data,
            (Self::Node, 5) => Message(Self::Attribute),
            (Self::Node, 9 | 10) => leaf,
            (Self::Attribute, 1 | 4 | 7..=9 | 13 | 21) => Data,
            (Self::Attribute, 5 | 10) => Message(Self::Tensor),
            (Self::Attribute, 6 | 11) => Message(Self::Graph),
            (Self::Attribute, 14 | 15) => leaf,
            (Self::Attribute, 22 | 23) => Message(Self::Sparse),
            (Self::Tensor, 1 | 4..=12) => Data,
            (Self::Tensor, 3 | 13 | 16) => leaf,
            (Self::Sparse, 1 | 2) => Message(Self::Tensor),
            (Self::Sparse, 3) => Data,
            (Self::Function, 1 | 4..=6 | 8 | 10 | 13) => Data,
            (Self::Function, 7) => Message(Self::Node),
            (Self::Function, 9 | 12 | 14) => leaf,
            (Self::Function, 11) => Message(Self::Attribute),
            (Self::Training, 1 | 2) => Message(Self::Graph),
            (Self::Training, 3 | 4) => leaf,
            (Self::Leaf, _) => Data,
            _ => return None,
        })
    }
}

/// Checks that a network is whole in its file: no tensor anywhere refers to another file, no node loads one, and the
/// file holds nothing that this program does not know and an engine may.
///
/// # Errors
/// In words, with the first that is not so.
pub(crate) fn check_whole(model: &[u8]) -> Result<(), FileFault> {
    walk(MessageType::Model, model, 0)
}

fn walk(kind: MessageType, message: &[u8], depth: usize) -> Result<(), FileFault> {
    if depth > DEPTH {
        return Err("its messages are nested too deeply".into());
    }
    let mut rest = message;
    while !rest.is_empty() {
        let cut = || format!("not an ONNX model: {} ends in a field", kind.name());
        let key = varint(&mut rest).ok_or_else(cut)?;
        let (number, wire) = (key >> 3, key & 7);
        match wire {
            0 => {
                let value = varint(&mut rest).ok_or_else(cut)?;
                if (kind, number) == (MessageType::Tensor, 14) && value != 0 {
                    return Err("its weights lie in other files; save it as one file".into());
                }
            }
            1 | 5 => rest = rest.get(if wire == 1 { 8 } else { 4 }..).ok_or_else(cut)?,
            2 => {
                let length = varint(&mut rest).and_then(|n| usize::try_from(n).ok()).ok_or_else(cut)?;
                let (content, after) = rest.split_at_checked(length).ok_or_else(cut)?;
                rest = after;
                match kind.field(number) {
                    Some(Holds::Message(MessageType::Leaf))
                        if (kind, number) == (MessageType::Tensor, 13) =>
                    {
                        return Err("its weights lie in other files; save it as one file".into());
                    }
                    Some(Holds::Message(inner)) => walk(inner, content, depth + 1)?,
                    Some(Holds::Data)
                        if (kind, number) == (MessageType::Node, 4) && content == b"EPContext" =>
                    {
                        return Err("a node `EPContext` loads what was compiled for a device".into());
                    }
                    Some(Holds::Data) => {}
                    None => {
                        return Err(format!(
                            "field {number} of {} is not known here: an engine may read what this program does not",
                            kind.name()
                        ).into());
                    }
                }
            }
            _ => {
                return Err(
                    format!("not an ONNX model: {} has a field of wire type {wire}", kind.name()).into()
                );
            }
        }
    }
    Ok(())
}

/// A number of up to 64 bits.
fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field with a length.
    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let key = (u64::from(number) << 3) | 2;
        let mut bytes = Vec::new();
        for mut n in [key, content.len() as u64] {
            while n > 0x7f {
                bytes.push((n as u8 & 0x7f) | 0x80);
                n >>= 7;
            }
            bytes.push(n as u8);
        }
        [bytes, content.to_vec()].concat()
    }

    /// A message inside others, the outermost first.
    fn within(path: &[u8], content: &[u8]) -> Vec<u8> {
        path.iter().rev().fold(content.to_vec(), |inner, number| field(*number, &inner))
    }

    /// Where a tensor can lie: the fields that lead to it.
    const PLACES: [(&str, &[u8]); 17] = [
        ("initializer", &[7, 5]),
        ("sparse initializer", &[7, 15, 1]),
        ("indices of a sparse initializer", &[7, 15, 2]),
        ("attribute of a Constant", &[7, 1, 5, 5]),
        ("attribute with a list of tensors", &[7, 1, 5, 10]),
        ("sparse attribute", &[7, 1, 5, 22, 1]),
        ("attribute with a list of sparse tensors", &[7, 1, 5, 23, 1]),
        ("body of an If or a Loop", &[7, 1, 5, 6, 5]),
        ("body in a list of graphs", &[7, 1, 5, 11, 5]),
        ("Constant in a body in a body", &[7, 1, 5, 6, 1, 5, 6, 1, 5, 5]),
        ("function", &[25, 7, 5, 5]),
        ("default attribute of a function", &[25, 11, 5]),
        ("body in a function", &[25, 7, 5, 6, 5]),
        ("training initialization", &[20, 1, 5]),
        ("training algorithm", &[20, 2, 5]),
        ("Constant of a training graph", &[20, 2, 1, 5, 5]),
        ("sparse initializer of a body", &[7, 1, 5, 6, 15, 1]),
    ];

    #[test]
    fn external_weights_are_found_wherever_a_tensor_can_lie() {
        let external = [field(13, b"\x0a\x01x"), vec![14 << 3, 1]];
        for (place, path) in PLACES {
            check_whole(&within(path, b"")).unwrap_or_else(|e| panic!("{place}: {e}"));
            // In the file, and said so.
            check_whole(&within(path, &[14 << 3, 0])).unwrap();
            for tensor in &external {
                let e = check_whole(&within(path, tensor)).unwrap_err();
                assert!(e.to_string().contains("in other files"), "{place}: {e}");
            }
        }
    }

    #[test]
    fn what_is_not_known_is_refused() {
        let path = |path: &[u8], content: &[u8]| check_whole(&within(path, content)).unwrap_err();
        let unknown: [(&[u8], &str); 8] = [
            (&[99], "the model"),
            (&[7, 99], "a graph"),
            (&[7, 1, 99], "a node"),
            (&[7, 1, 5, 99], "an attribute"),
            (&[7, 5, 99], "a tensor"),
            (&[7, 15, 99], "a sparse tensor"),
            (&[25, 99], "a function"),
            (&[20, 99], "the training info"),
        ];
        for (place, kind) in unknown {
            let e = path(place, b"x");
            assert!(e.to_string().contains("field 99") && e.to_string().contains(kind), "{kind}: {e}");
        }
        assert!(path(&[7, 1, 4], b"EPContext").to_string().contains("EPContext"));
        assert!(path(&[7], &[3]).to_string().contains("wire type 3"));
        assert!(path(&[], &[0x3a, 0x7f]).to_string().contains("ends in a field"));
        assert!(path(&[7], &[0xff; 11]).to_string().contains("ends in a field"));
        let deep = [[7].as_slice(), &[1, 5, 6].repeat(40)].concat();
        assert!(path(&deep, b"").to_string().contains("nested"));
    }
}
