//! What the feature networks have in common: convolutions with folded batch norms, pools, the head.

use std::borrow::Cow;

use crate::ExportError;
use crate::builder::{GraphBuilder, ValueName, int, ints};

/// A feature map `[batch, channels, size, size]`.
#[derive(Clone)]
pub(crate) struct FeatureMap {
    pub(crate) value: ValueName,
    pub(crate) channels: usize,
    pub(crate) size: usize,
}

/// A convolution without bias and the batch norm behind it.
pub(crate) struct NormedConv<'a> {
    /// `{weight}` is the convolution's tensor.
    pub(crate) weight: &'a str,
    /// `{norm}.weight`, `.bias`, `.running_mean` and `.running_var`.
    pub(crate) norm: &'a str,
    pub(crate) channels: usize,
    pub(crate) kernel: [usize; 2],
    pub(crate) stride: usize,
    /// Top, left, bottom, right.
    pub(crate) pads: [usize; 4],
    pub(crate) groups: usize,
}

impl NormedConv<'_> {
    /// Side of the output for an input of `size`.
    fn output_size(&self, size: usize) -> usize {
        (size + self.pads[0] + self.pads[2] - self.kernel[0]) / self.stride + 1
    }
}

/// Scale γ/√(σ² + ε) and shift β − μ·scale of a batch norm, in float64 so that folding rounds once.
fn affine(
    store: &crate::store::WeightStore<'_>,
    norm: &str,
    channels: usize,
    eps: f64,
) -> Result<(Vec<f64>, Vec<f64>), ExportError> {
    let read = |part: &str| store.read(&format!("{norm}.{part}"), &[channels]);
    let (gain, bias, mean, variance) =
        (read("weight")?, read("bias")?, read("running_mean")?, read("running_var")?);
    let scale: Vec<f64> =
        gain.iter().zip(variance.iter()).map(|(g, v)| f64::from(*g) / (f64::from(*v) + eps).sqrt()).collect();
    let shift = bias
        .iter()
        .zip(mean.iter())
        .zip(&scale)
        .map(|((b, m), s)| f64::from(*b) - f64::from(*m) * s)
        .collect();
    Ok((scale, shift))
}

fn narrow(values: &[f64]) -> Vec<f32> {
    values.iter().map(|v| *v as f32).collect()
}

impl GraphBuilder<'_, '_> {
    fn convolve(&mut self, x: &FeatureMap, c: &NormedConv<'_>, inputs: &[&ValueName]) -> FeatureMap {
        let list = |values: &[usize]| values.iter().map(|v| *v as i64).collect::<Vec<_>>();
        let attributes = vec![
            ints("kernel_shape", &list(&c.kernel)),
            ints("pads", &list(&c.pads)),
            ints("strides", &[c.stride as i64; 2]),
            int("group", c.groups as i64),
        ];
        let value = self.op("Conv", inputs, attributes);
        FeatureMap { value, channels: c.channels, size: c.output_size(x.size) }
    }

    fn conv_shape(x: &FeatureMap, c: &NormedConv<'_>) -> [usize; 4] {
        [c.channels, x.channels / c.groups, c.kernel[0], c.kernel[1]]
    }

    /// Convolution and batch norm in one node.
    pub(crate) fn folded_conv(
        &mut self,
        x: &FeatureMap,
        c: &NormedConv<'_>,
        eps: f64,
    ) -> Result<FeatureMap, ExportError> {
        let shape = Self::conv_shape(x, c);
        let weight = self.weight(&format!("{}.folded", c.weight), &shape, |s| {
            let (scale, _) = affine(s, c.norm, c.channels, eps)?;
            let mut weight = s.read(c.weight, &shape)?.into_owned();
            for (filter, scale) in weight.chunks_exact_mut(shape[1] * shape[2] * shape[3]).zip(scale) {
                for v in filter {
                    *v = (f64::from(*v) * scale) as f32;
                }
            }
            Ok(Cow::Owned(weight))
        })?;
        let bias = self.weight(&format!("{}.folded", c.norm), &[c.channels], |s| {
            Ok(Cow::Owned(narrow(&affine(s, c.norm, c.channels, eps)?.1)))
        })?;
        Ok(self.convolve(x, c, &[&x.value, &weight, &bias]))
    }

    /// Convolution alone, and its output behind the batch norm.
    pub(crate) fn raw_and_normed(
        &mut self,
        x: &FeatureMap,
        c: &NormedConv<'_>,
        eps: f64,
    ) -> Result<(FeatureMap, FeatureMap), ExportError> {
        let weight = self.tensor(c.weight, &Self::conv_shape(x, c))?;
        let raw = self.convolve(x, c, &[&x.value, &weight]);
        let per_channel = [1, c.channels, 1, 1];
        let scale = self.weight(&format!("{}.scale", c.norm), &per_channel, |s| {
            Ok(Cow::Owned(narrow(&affine(s, c.norm, c.channels, eps)?.0)))
        })?;
        let shift = self.weight(&format!("{}.shift", c.norm), &per_channel, |s| {
            Ok(Cow::Owned(narrow(&affine(s, c.norm, c.channels, eps)?.1)))
        })?;
        let scaled = self.mul(&raw.value, &scale);
        let normed = FeatureMap { value: self.add(&scaled, &shift), ..raw.clone() };
        Ok((raw, normed))
    }

    pub(crate) fn relu(&mut self, x: FeatureMap) -> FeatureMap {
        FeatureMap { value: self.op("Relu", &[&x.value], vec![]), ..x }
    }

    /// A 3×3 pool: `AveragePool` (padding never counts) or `MaxPool`.
    pub(crate) fn pool(&mut self, op: &str, x: &FeatureMap, stride: usize, pad: usize) -> FeatureMap {
        let (p, s) = (pad as i64, stride as i64);
        let mut attributes =
            vec![ints("kernel_shape", &[3, 3]), ints("pads", &[p; 4]), ints("strides", &[s, s])];
        if op == "AveragePool" {
            attributes.push(int("count_include_pad", 0));
        }
        let value = self.op(op, &[&x.value], attributes);
        FeatureMap { value, channels: x.channels, size: (x.size + 2 * pad - 3) / stride + 1 }
    }

    /// Mean over all positions, `[batch, channels]`.
    pub(crate) fn global_mean(&mut self, x: &FeatureMap) -> ValueName {
        self.op("ReduceMean", &[&x.value], vec![ints("axes", &[2, 3]), int("keepdims", 0)])
    }

    /// `x · Wᵀ` for a checkpoint tensor W `[classes, width]`, stored transposed.
    pub(crate) fn project(
        &mut self,
        x: &ValueName,
        tensor: &str,
        classes: usize,
        width: usize,
    ) -> Result<ValueName, ExportError> {
        let weight = self.weight(&format!("{tensor}.T"), &[width, classes], |s| {
            let rows = s.read(tensor, &[classes, width])?;
            let mut columns = vec![0.0; rows.len()];
            for (i, row) in rows.chunks_exact(width).enumerate() {
                for (j, v) in row.iter().enumerate() {
                    columns[j * classes + i] = *v;
                }
            }
            Ok(Cow::Owned(columns))
        })?;
        Ok(self.matmul(x, &weight))
    }
}
