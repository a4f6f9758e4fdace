//! The operator over caches in place, as ONNX Runtime runs it.

use std::sync::Arc;

use dpar_engine_kv::{Cache, DOMAIN, LAYER, OPERATOR};
use ort::Error;
use ort::operator::{
    BoxedKernel, ComputeContext, KernelContext, Operator, OperatorDomain, OperatorInput, OperatorOutput,
    ShapeInferenceContext,
};
use ort::value::TensorElementType;

/// The operator's domain for one session, whose caches these are.
pub(crate) fn domain(cache: Arc<Cache>) -> ort::Result<OperatorDomain> {
    OperatorDomain::new(DOMAIN)?.add(CachedAttention { cache })
}

struct CachedAttention {
    cache: Arc<Cache>,
}

impl Operator for CachedAttention {
    type Kernel<'attr> = BoxedKernel<'attr>;

    fn name(&self) -> &str {
        OPERATOR
    }

    fn inputs(&self) -> impl IntoIterator<Item = OperatorInput> {
        [const { OperatorInput::required(TensorElementType::Float32) }; 3]
    }

    fn outputs(&self) -> impl IntoIterator<Item = OperatorOutput> {
        [OperatorOutput::required(TensorElementType::Float32)]
    }

    fn infer_shape(&self, ctx: &mut ShapeInferenceContext) -> ort::Result<()> {
        let inputs = ctx.inputs();
        let q = inputs.first().ok_or_else(|| Error::new("no input"))?;
        ctx.set_output(0, q)
    }

    fn create_kernel<'attr>(&self, ctx: &KernelContext<'attr>) -> ort::Result<Self::Kernel<'attr>> {
        let layer = ctx.get::<i64>(LAYER).and_then(|layer| usize::try_from(layer).ok());
        let layer = layer.ok_or_else(|| Error::new("no layer"))?;
        let cache = Arc::clone(&self.cache);
        Ok(Box::new(move |ctx: &ComputeContext| {
            let input = |i| ctx.input(i)?.ok_or_else(|| Error::new("an input is missing"));
            let (q, k, v) = (input(0)?, input(1)?, input(2)?);
            let (shape, q) = q.try_extract_tensor::<f32>()?;
            let (_, k) = k.try_extract_tensor::<f32>()?;
            let (_, v) = v.try_extract_tensor::<f32>()?;
            let out = ctx.output(0, shape.to_vec())?;
            let mut out = out.ok_or_else(|| Error::new("there is no room for the output"))?;
            let (_, out) = out.try_extract_tensor_mut::<f32>()?;
            let parallel = |n: usize, f: &(dyn Fn(usize) + Sync)| run(ctx, n, f);
            cache.attend(layer, [q, k, v], out, &parallel).map_err(Error::new)
        }))
    }
}

/// On the threads of the session; should they not take it, on this one: what is done twice gives the same.
fn run(ctx: &ComputeContext, n: usize, f: &(dyn Fn(usize) + Sync)) {
    // 0 batches: as many as there are threads.
    if ctx.par_for(n, 0, f).is_err() {
        (0..n).for_each(f);
    }
}
