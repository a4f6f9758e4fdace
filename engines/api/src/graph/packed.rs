//! Products with packed weights (`com.microsoft::MatMulNBits`): an engine that packs them once more reads as many bytes as the
//! attributes of a node say, so these are held against the tensors first.

use std::collections::BTreeMap;

use super::elements;
use super::proto::{GraphProto, NodeProto, TensorProto};
use crate::GraphFault;

/// Most rows or columns of a matrix.
const MOST: i64 = 1 << 31;

/// Holds the packed products of a graph against its tensors.
pub(super) fn check(graph: &GraphProto) -> Result<(), GraphFault> {
    let mut packed = graph.node.iter().filter(|n| n.op_type.as_deref() == Some("MatMulNBits")).peekable();
    if packed.peek().is_none() {
        return Ok(());
    }
    let tensors: BTreeMap<&str, &TensorProto> =
        graph.initializer.iter().filter_map(|t| Some((t.name.as_deref()?, t))).collect();
    packed.try_for_each(|node| {
        let name = node.name.as_deref().unwrap_or_default();
        fits(node, &tensors).map_err(|e| format!("node `{name}` (MatMulNBits): {e}").into())
    })
}

fn fits(node: &NodeProto, tensors: &BTreeMap<&str, &TensorProto>) -> Result<(), GraphFault> {
    let number = |key: &str, usual: Option<i64>| -> Result<u64, GraphFault> {
        let given = node.attribute.iter().find(|a| a.name.as_deref() == Some(key)).and_then(|a| a.i);
        let found = given.or(usual).ok_or_else(|| format!("it has no {key}"))?;
        u64::try_from(found)
            .ok()
            .filter(|_| (1..=MOST).contains(&found))
            .ok_or_else(|| format!("its {key} is {found}").into())
    };
    let (rows, columns) = (number("N", None)?, number("K", None)?);
    let (bits, block) = (number("bits", Some(4))?, number("block_size", None)?);
    if bits > 8 || block < 16 || !block.is_power_of_two() {
        return Err(format!("there are no weights of {bits} bits in blocks of {block}").into());
    }
    let blocks = columns.div_ceil(block);
    // Codes, scales and, where there are some, the codes of zero: a byte holds whole codes of a block, and of a row.
    let zeros = [rows * (blocks * bits).div_ceil(8), rows * blocks];
    let sizes = [
        (1, "codes", vec![rows * blocks * (block * bits).div_ceil(8)]),
        (2, "scales", vec![rows * blocks]),
        (3, "zero points", zeros.to_vec()),
    ];
    for (input, what, wanted) in sizes {
        let name = node.input.get(input).map_or("", String::as_str);
        // What another node makes is held against the attributes when the product runs.
        let Some(tensor) = tensors.get(name) else { continue };
        let found = elements(&tensor.dims)?;
        if !wanted.contains(&found) {
            let size = format!("{rows} x {columns} weights of {bits} bits in blocks of {block}");
            return Err(format!("{found} {what} are no {size}").into());
        }
    }
    Ok(())
}
