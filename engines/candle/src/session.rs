//! A prepared graph.

use std::sync::Arc;

use candle_core::{DType as CandleType, Device, Tensor as CandleTensor};
use dpar_engine_api::{EngineError, EngineErrorKind, Session, Tensor, TensorSlice, TensorView};
use dpar_export_spec::GraphSpec;
use rayon::ThreadPool;

use crate::NAME;
use crate::plan::{ExecutionPlan, Values};

/// One plan, for every shape.
pub(crate) struct CandleSession {
    spec: GraphSpec,
    plan: ExecutionPlan,
    pool: Arc<ThreadPool>,
}

impl CandleSession {
    pub(crate) fn new(spec: GraphSpec, plan: ExecutionPlan, pool: Arc<ThreadPool>) -> Self {
        Self { spec, plan, pool }
    }
}

impl Session for CandleSession {
    fn spec(&self) -> &GraphSpec {
        &self.spec
    }

    fn run_unchecked(&mut self, inputs: &[(&str, TensorView<'_>)]) -> Result<Vec<Tensor>, EngineError> {
        let fail = |kind, message: String| EngineError::new(kind, NAME, message).in_graph(&self.spec.name);
        let mut values = Values::with_capacity(inputs.len());
        for (name, view) in inputs {
            let tensor = candle_tensor(view)
                .map_err(|e| fail(EngineErrorKind::Input, format!("input `{name}`: {e}")))?;
            values.insert((*name).to_owned(), tensor);
        }
        let plan = &self.plan;
        let values =
            self.pool.install(|| plan.run(values)).map_err(|e| fail(EngineErrorKind::Run, e.to_string()))?;
        let take = |port: &dpar_export_spec::Port| {
            let value = values.get(&port.name).ok_or_else(|| "it did not come back".to_owned());
            value
                .and_then(|v| host_tensor(v).map_err(|e| e.to_string()))
                .map_err(|e| fail(EngineErrorKind::Output, format!("output `{}`: {e}", port.name)))
        };
        self.spec.outputs.iter().map(take).collect()
    }
}

/// The one copy that an input costs.
fn candle_tensor(view: &TensorView<'_>) -> candle_core::Result<CandleTensor> {
    match view.data() {
        TensorSlice::F32(data) => CandleTensor::from_slice(data, view.shape(), &Device::Cpu),
        TensorSlice::F16(data) => CandleTensor::from_slice(data, view.shape(), &Device::Cpu),
        TensorSlice::BF16(data) => CandleTensor::from_slice(data, view.shape(), &Device::Cpu),
        TensorSlice::I64(data) => CandleTensor::from_slice(data, view.shape(), &Device::Cpu),
    }
}

/// The one copy that an output costs. No conversion is made: a wrong dtype is for the caller's check to find.
fn host_tensor(value: &CandleTensor) -> candle_core::Result<Tensor> {
    let shape = value.dims().to_vec();
    match value.dtype() {
        CandleType::F32 => Ok(Tensor::f32(shape, value.flatten_all()?.to_vec1()?)),
        CandleType::F16 => Ok(Tensor::f16(shape, value.flatten_all()?.to_vec1()?)),
        CandleType::BF16 => Ok(Tensor::bf16(shape, value.flatten_all()?.to_vec1()?)),
        CandleType::I64 => Ok(Tensor::i64(shape, value.flatten_all()?.to_vec1()?)),
        other => candle_core::bail!("candle made {other:?}"),
    }
}
