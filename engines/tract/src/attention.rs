//! The operator over caches in place, as tract runs it.

use std::sync::Arc;

use dpar_engine_kv::{Cache, LAYER, OPERATOR};
use rayon::prelude::*;
use tract_linalg::multithread::{Executor, current_tract_executor};
use tract_onnx::Onnx;
use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

/// The caches of a session, which its operators find in what a state shares with them.
#[derive(Debug, Clone)]
pub(crate) struct Caches(pub(crate) Arc<Cache>);

/// Teaches the reader of ONNX files the operator.
pub(crate) fn register(onnx: &mut Onnx) {
    onnx.op_register.insert(OPERATOR, read);
}

fn read(_: &ParsingContext<'_>, node: &NodeProto) -> TractResult<(Box<dyn InferenceOp>, Vec<String>)> {
    let layer = usize::try_from(node.get_attr::<i64>(LAYER)?)?;
    Ok((expand(CachedAttention { layer }), Vec::new()))
}

#[derive(Debug, Clone, Hash, PartialEq, Eq)]
struct CachedAttention {
    layer: usize,
}

impl Expansion for CachedAttention {
    fn name(&self) -> StaticName {
        OPERATOR.into()
    }

    fn rules<'r, 'p: 'r, 's: 'r>(
        &'s self,
        s: &mut Solver<'r>,
        inputs: &'p [TensorProxy],
        outputs: &'p [TensorProxy],
    ) -> InferenceResult {
        check_input_arity(inputs, 3)?;
        check_output_arity(outputs, 1)?;
        for other in [&inputs[1], &inputs[2], &outputs[0]] {
            s.equals(&inputs[0].datum_type, &other.datum_type)?;
            s.equals(&inputs[0].shape, &other.shape)?;
        }
        Ok(())
    }

    fn wire(&self, prefix: &str, model: &mut TypedModel, inputs: &[OutletId]) -> TractResult<TVec<OutletId>> {
        model.wire_node(prefix, self.clone(), inputs)
    }
}

impl Op for CachedAttention {
    fn name(&self) -> StaticName {
        OPERATOR.into()
    }

    op_as_typed_op!();
}

impl TypedOp for CachedAttention {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(inputs[0].datum_type.fact(inputs[0].shape.clone())))
    }

    as_op!();
}

impl EvalOp for CachedAttention {
    not_out_of_plan!();

    fn eval(&self, ctx: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let Caches(cache) =
            ctx.shared.and_then(|shared| shared.get::<Caches>()).context("the session has no caches")?;
        let (q, k, v) = args_3!(inputs);
        let mut out = Tensor::zero::<f32>(q.shape())?;
        let (q, k, v) = (q.try_as_plain_ram()?, k.try_as_plain_ram()?, v.try_as_plain_ram()?);
        let fresh = [q.as_slice::<f32>()?, k.as_slice::<f32>()?, v.as_slice::<f32>()?];
        let mut made = out.try_as_plain_ram_mut()?;
        cache.attend(self.layer, fresh, made.as_slice_mut::<f32>()?, &parallel).map_err(TractError::msg)?;
        Ok(tvec!(out.into_tvalue()))
    }
}

/// On the threads of the session.
fn parallel(n: usize, f: &(dyn Fn(usize) + Sync)) {
    match current_tract_executor() {
        Executor::MultiThread(pool) => pool.install(|| (0..n).into_par_iter().for_each(f)),
        Executor::SingleThread | Executor::RayonGlobal => (0..n).for_each(f),
    }
}
