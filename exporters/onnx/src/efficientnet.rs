//! EfficientNet-Lite0: normalised images in, pooled `features` and `logits` out.
//!
//! TensorFlow's `SAME` padding: where the sum is odd, the extra row and column are at the bottom and the right.

use dpar_export_spec::{DType, Dim, EfficientNetSpec, GraphName, MobileBlock};

use crate::axes::GraphSizes;
use crate::builder::GraphBuilder;
use crate::convnet::{FeatureMap, NormedConv};
use crate::{ExportError, Graphs};

/// Epsilon of every batch norm.
const EPS: f64 = 1e-3;
/// Upper end of ReLU6.
const LIMIT: f32 = 6.0;

impl GraphBuilder<'_, '_> {
    /// Convolution (depthwise with as many groups as channels) and batch norm under `at`, padded to ⌈size/stride⌉.
    fn same_conv(
        &mut self,
        x: &FeatureMap,
        [conv, norm]: [&str; 2],
        channels: usize,
        (kernel, stride, groups): (usize, usize, usize),
    ) -> Result<FeatureMap, ExportError> {
        let output = x.size.div_ceil(stride);
        let total = ((output - 1) * stride + kernel).saturating_sub(x.size);
        let (before, after) = (total / 2, total - total / 2);
        let c = NormedConv {
            weight: &format!("{conv}.weight"),
            norm,
            channels,
            kernel: [kernel, kernel],
            stride,
            pads: [before, before, after, after],
            groups,
        };
        self.scoped(conv, |g| g.folded_conv(x, &c, EPS))
    }

    fn relu6(&mut self, x: FeatureMap) -> FeatureMap {
        let (low, high) = (self.const_float(0.0), self.const_float(LIMIT));
        FeatureMap { value: self.op("Clip", &[&x.value, &low, &high], vec![]), ..x }
    }

    fn mobile_block(&mut self, x: &FeatureMap, b: MobileBlock) -> Result<FeatureMap, ExportError> {
        let at = |part: &str| format!("_blocks.{}.{part}", b.index);
        let inner = b.input * b.expand;
        let mut h = x.clone();
        if b.expand > 1 {
            h = self.same_conv(&h, [&at("_expand_conv"), &at("_bn0")], inner, (1, 1, 1))?;
            h = self.relu6(h);
        }
        h = self.same_conv(&h, [&at("_depthwise_conv"), &at("_bn1")], inner, (b.kernel, b.stride, inner))?;
        h = self.relu6(h);
        h = self.same_conv(&h, [&at("_project_conv"), &at("_bn2")], b.output, (1, 1, 1))?;
        if b.stride == 1 && b.input == b.output {
            h.value = self.add(&h.value, &x.value);
        }
        Ok(h)
    }
}

fn network(g: &mut GraphBuilder<'_, '_>, spec: &EfficientNetSpec) -> Result<(), ExportError> {
    let side = spec.input_size;
    let batch = GraphSizes::new(1, 1).batch(g, false);
    let dims = vec![batch.clone(), Dim::Fixed(3), Dim::Fixed(side), Dim::Fixed(side)];
    let value = g.input("image", DType::F32, dims);
    let x = FeatureMap { value, channels: 3, size: side };
    let x = g.same_conv(&x, ["_conv_stem", "_bn0"], EfficientNetSpec::STEM, (3, 2, 1))?;
    let mut x = g.relu6(x);
    for block in EfficientNetSpec::blocks() {
        x = g.mobile_block(&x, block)?;
    }
    let x = g.same_conv(&x, ["_conv_head", "_bn1"], EfficientNetSpec::FEATURES, (1, 1, 1))?;
    let x = g.relu6(x);
    let features = g.global_mean(&x);
    let product = g.project(&features, "_fc.weight", spec.classes, EfficientNetSpec::FEATURES)?;
    let bias = g.tensor("_fc.bias", &[spec.classes])?;
    let logits = g.add(&product, &bias);
    g.output("features", DType::F32, vec![batch.clone(), Dim::Fixed(EfficientNetSpec::FEATURES)], &features);
    g.output("logits", DType::F32, vec![batch, Dim::Fixed(spec.classes)], &logits);
    Ok(())
}

/// The one graph of the component.
pub(crate) fn graphs(spec: &EfficientNetSpec) -> Graphs<'_> {
    vec![(GraphName::EfficientnetLite0, Box::new(move |g| network(g, spec)))]
}
