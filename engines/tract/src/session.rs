//! A prepared graph.

use std::sync::Arc;

use dpar_engine_api::{EngineError, EngineErrorKind, Session, Tensor, TensorSlice, TensorView, panics};
use dpar_export_spec::{DType, GraphSpec};
use tract_onnx::prelude::f16;
use tract_onnx::prelude::tract_itertools::Itertools;
use tract_onnx::prelude::{
    Datum, IntoTValue, TDim, TValue, TVec, Tensor as TractTensor, TractResult, TypedSimplePlan,
    TypedSimpleState,
};
use tract_onnx::tract_core::plan::SimpleState;

use crate::NAME;
use crate::attention::Caches;

/// One symbolic plan and its running state.
pub(crate) struct TractSession {
    spec: GraphSpec,
    state: TypedSimpleState,
    /// Input names in the plan's order.
    inputs: Vec<String>,
    /// Where the plan has each output of the spec, in the order of the spec.
    outputs: Vec<usize>,
    /// What its operators over caches use.
    caches: Option<Caches>,
}

/// A state of a plan, in which its operators find their caches.
fn state(plan: &Arc<TypedSimplePlan>, caches: Option<&Caches>) -> TractResult<TypedSimpleState> {
    let mut state = SimpleState::new(plan)?;
    if let Some(caches) = caches {
        state.turn_state.shared.insert(caches.clone());
    }
    Ok(state)
}

impl TractSession {
    pub(crate) fn new(
        spec: GraphSpec,
        plan: &Arc<TypedSimplePlan>,
        inputs: Vec<String>,
        outputs: Vec<usize>,
        caches: Option<Caches>,
    ) -> TractResult<Self> {
        let state = state(plan, caches.as_ref())?;
        Ok(Self { spec, state, inputs, outputs, caches })
    }

    fn fail(&self, kind: EngineErrorKind, message: String) -> EngineError {
        EngineError::new(kind, NAME, message).in_graph(&self.spec.name)
    }

    fn gather(&self, inputs: &[(&str, TensorView<'_>)]) -> Result<TVec<TValue>, EngineError> {
        let value = |name: &String| {
            let (_, view) = inputs
                .iter()
                .find(|(n, _)| n == name)
                .ok_or_else(|| self.fail(EngineErrorKind::Input, format!("input `{name}` is missing")))?;
            tract_tensor(view)
                .map(IntoTValue::into_tvalue)
                .map_err(|e| self.fail(EngineErrorKind::Input, format!("input `{name}`: {e:#}")))
        };
        self.inputs.iter().map(value).try_collect()
    }
}

impl Session for TractSession {
    fn spec(&self) -> &GraphSpec {
        &self.spec
    }

    fn run_unchecked(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, EngineError> {
        let inputs = self.gather(inputs)?;
        let running = &mut self.state;
        let failure = match panics::guard(|| running.run(inputs)) {
            Ok(Ok(values)) => {
                let missing = |message: String| self.fail(EngineErrorKind::Output, message);
                let take = |(port, &at): (&dpar_export_spec::Port, &usize)| {
                    let value = values.get(at).map(|v| host_tensor(v, port.dtype));
                    match value {
                        Some(Ok(tensor)) => Ok(tensor),
                        Some(Err(e)) => Err(missing(format!("output `{}`: {e:#}", port.name))),
                        None => Err(missing(format!("output `{}` did not come back", port.name))),
                    }
                };
                return self.spec.outputs.iter().zip(&self.outputs).map(take).collect();
            }
            Ok(Err(e)) => format!("{e:#}"),
            Err(panic) => format!("tract gave up: {panic}"),
        };
        // What a failed run left behind must not reach the next one.
        let plan = self.state.plan().clone();
        match state(&plan, self.caches.as_ref()) {
            Ok(fresh) => self.state = fresh,
            Err(e) => return Err(self.fail(EngineErrorKind::Run, format!("{failure}; and then {e:#}"))),
        }
        Err(self.fail(EngineErrorKind::Run, failure))
    }
}

/// The one copy that an input costs.
fn tract_tensor(view: &TensorView<'_>) -> TractResult<TractTensor> {
    match view.data() {
        TensorSlice::F32(data) => TractTensor::from_shape(view.shape(), data),
        TensorSlice::F16(data) => TractTensor::from_shape(view.shape(), data),
        TensorSlice::I64(data) => TractTensor::from_shape(view.shape(), data),
        TensorSlice::BF16(_) => Err(tract_onnx::prelude::TractError::msg("it takes no bfloat16")),
    }
}

/// The one copy that an output costs. Integers that tract computed as dimensions come back as `i64`; no other
/// conversion is made: a wrong dtype is for the caller's check to find.
fn host_tensor(value: &TractTensor, promised: DType) -> TractResult<Tensor> {
    let shape = value.shape().to_vec();
    let dtype = value.datum_type();
    if dtype == f32::datum_type() {
        return Ok(Tensor::f32(shape, value.try_as_plain_ram()?.as_slice::<f32>()?.to_vec()));
    }
    if dtype == f16::datum_type() {
        return Ok(Tensor::f16(shape, value.try_as_plain_ram()?.as_slice::<f16>()?.to_vec()));
    }
    if dtype == i64::datum_type() || (promised == DType::I64 && dtype == TDim::datum_type()) {
        let value = value.cast_to::<i64>()?;
        return Ok(Tensor::i64(shape, value.try_as_plain_ram()?.as_slice::<i64>()?.to_vec()));
    }
    Err(tract_onnx::prelude::TractError::msg(format!("tract made {dtype:?}")))
}
