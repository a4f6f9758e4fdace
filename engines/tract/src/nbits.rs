//! Products with packed 8-bit weights (`com.microsoft::MatMulNBits`). tract-onnx has the operator for fewer bits, where it
//! keeps blocks of 32 packed; of 8 bits it gets the float matrix, made once when the graph is loaded.

use std::collections::BTreeSet;

use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::{ModelProto, NodeProto};
use tract_onnx::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_hir::internal::*;

/// The operator.
const NAME: &str = "MatMulNBits";
/// The code of weight 0.
const ZERO: i16 = 128;

/// Adds the operator for 8 bits where the graph's products have them all.
///
/// # Errors
/// When a graph mixes 8 bits and others.
pub(crate) fn register(onnx: &mut Onnx, model: &ModelProto) -> TractResult<()> {
    let nodes = model.graph.iter().flat_map(|g| &g.node);
    let bits: BTreeSet<i64> = nodes.filter(|n| n.op_type == NAME).map(bits).collect::<TractResult<_>>()?;
    if bits.contains(&8) {
        ensure!(bits.len() == 1, "the weights of its products have {bits:?} bits");
        onnx.op_register.insert(NAME, product);
    }
    Ok(())
}

/// Bits of the packed weights of a product.
fn bits(node: &NodeProto) -> TractResult<i64> {
    Ok(node.get_attr_opt("bits")?.unwrap_or(4))
}

fn product(_: &ParsingContext<'_>, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let bits = bits(node)?;
    let known = bits == 8 && node.input.len() == 3;
    ensure!(
        known,
        "{NAME} is known with 8 bits and no zero points, not with {bits} and {} inputs",
        node.input.len()
    );
    let (rows, columns) = (node.get_attr("N")?, node.get_attr("K")?);
    Ok((expand(Product { rows, columns, block: node.get_attr("block_size")? }), vec![]))
}

/// x · Wᵀ with W `[rows, columns]` in blocks.
#[derive(Debug, Clone)]
struct Product {
    rows: usize,
    columns: usize,
    block: usize,
}

impl Expansion for Product {
    fn name(&self) -> StaticName {
        NAME.into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 3)?;
        check_output_arity(outputs, 1)?;
        s.equals(&outputs[0].datum_type, &inputs[0].datum_type)?;
        s.given(&inputs[0].rank, move |s, rank| {
            s.equals(&outputs[0].rank, rank)?;
            let last = rank as usize - 1;
            for axis in 0..last {
                s.equals(&outputs[0].shape[axis], &inputs[0].shape[axis])?;
            }
            s.equals(&outputs[0].shape[last], self.rows.to_dim())
        })
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        let constant = |model: &TypedModel, i: usize| {
            model
                .outlet_fact(inputs[i])?
                .konst
                .clone()
                .with_context(|| format!("input {i} of {NAME} is no constant"))
        };
        let (codes, scales) = (constant(model, 1)?, constant(model, 2)?);
        let (codes, scales) = (codes.try_as_plain_ram()?, scales.try_as_plain_ram()?);
        let (codes, scales) = (codes.as_slice::<u8>()?, scales.as_slice::<f32>()?);
        let fits = self.block > 0
            && codes.len() == self.rows * self.columns
            && scales.len() * self.block == codes.len()
            && self.columns.is_multiple_of(self.block);
        ensure!(
            fits,
            "{} codes and {} scales are no {} × {} weights",
            codes.len(),
            scales.len(),
            self.rows,
            self.columns
        );
        let of = |(block, scale): (&[u8], &f32)| {
            let scale = *scale;
            block.iter().map(move |code| scale * f32::from(i16::from(*code) - ZERO)).collect::<Vec<_>>()
        };
        let weights: Vec<f32> = codes.chunks(self.block).zip(scales).flat_map(of).collect();
        let weights = Tensor::from_shape(&[self.rows, self.columns], &weights)?;
        let weights = model.add_const(format!("{prefix}.weight"), weights)?;
        let rank = model.outlet_fact(inputs[0])?.rank();
        let rows: String = "abcdefgh".chars().take(rank.saturating_sub(1)).collect();
        let axes = AxesMapping::from_strs(&[format!("{rows}k"), "nk".to_owned()], &[format!("{rows}n")])?;
        model.wire_node(prefix, EinSum::new(axes, f32::datum_type()), &[inputs[0], weights])
    }
}
