//! Feature networks: the tensors of FID-Inception and of EfficientNet-Lite0.

use dpar_export_spec::{EfficientNetSpec, InceptionSpec};

use super::{Expected, ExpectedTensors};

impl ExpectedTensors {
    /// A batch norm's four tensors.
    fn batch_norm(&mut self, name: &str, channels: usize) {
        for part in ["weight", "bias", "running_mean", "running_var"] {
            self.add(format!("{name}.{part}"), &[channels]);
        }
    }
}

/// FID-Inception: 472 tensors.
pub(crate) fn inception() -> Vec<Expected> {
    let mut t = ExpectedTensors::default();
    for l in InceptionSpec::layers() {
        t.add(format!("{}.conv.weight", l.name), &[l.output, l.input, l.kernel[0], l.kernel[1]]);
        t.batch_norm(&format!("{}.bn", l.name), l.output);
    }
    t.add("fc.weight", &[InceptionSpec::CLASSES, InceptionSpec::FEATURES]);
    t.add("fc.bias", &[InceptionSpec::CLASSES]);
    t.0
}

/// EfficientNet-Lite0 with the names of the package `efficientnet-lite-pytorch`; `classes` rows of `_fc.weight`.
pub(crate) fn efficientnet_lite0(classes: usize) -> Vec<Expected> {
    let mut t = ExpectedTensors::default();
    t.add("_conv_stem.weight", &[EfficientNetSpec::STEM, 3, 3, 3]);
    t.batch_norm("_bn0", EfficientNetSpec::STEM);
    let mut last = EfficientNetSpec::STEM;
    for b in EfficientNetSpec::blocks() {
        let at = format!("_blocks.{}", b.index);
        let inner = b.input * b.expand;
        if b.expand > 1 {
            t.add(format!("{at}._expand_conv.weight"), &[inner, b.input, 1, 1]);
            t.batch_norm(&format!("{at}._bn0"), inner);
        }
        t.add(format!("{at}._depthwise_conv.weight"), &[inner, 1, b.kernel, b.kernel]);
        t.batch_norm(&format!("{at}._bn1"), inner);
        t.add(format!("{at}._project_conv.weight"), &[b.output, inner, 1, 1]);
        t.batch_norm(&format!("{at}._bn2"), b.output);
        last = b.output;
    }
    t.add("_conv_head.weight", &[EfficientNetSpec::FEATURES, last, 1, 1]);
    t.batch_norm("_bn1", EfficientNetSpec::FEATURES);
    t.add("_fc.weight", &[classes, EfficientNetSpec::FEATURES]);
    t.add("_fc.bias", &[classes]);
    t.0
}
