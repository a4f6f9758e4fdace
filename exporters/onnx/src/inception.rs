//! FID-Inception: normalised images in, `pool_3`, `spatial` and `logits` out.
//!
//! Not torchvision's Inception-v3: the average pools leave padding out of their mean, the last block pools by maximum,
//! the classifier has 1008 rows and its bias is not used. The resize to 299 pixels is not in the graph: resize kernels
//! round differently from engine to engine. Batch norms are folded into the convolutions but for `Mixed_6d.branch1x1`,
//! whose raw output gives the spatial features.

use std::collections::BTreeMap;

use dpar_export_spec::{ConvLayer, DType, Dim, GraphName, InceptionSpec};

use crate::axes::GraphSizes;
use crate::builder::{GraphBuilder, ValueName};
use crate::convnet::{FeatureMap, NormedConv};
use crate::{ExportError, Graphs};

/// Epsilon of every batch norm.
const EPS: f64 = 1e-3;

/// The layers by name.
struct ConvLayers(BTreeMap<String, ConvLayer>);

type Builder<'g, 's, 'w> = &'g mut GraphBuilder<'s, 'w>;

impl ConvLayers {
    fn layer(&self, name: &str) -> Result<&ConvLayer, ExportError> {
        self.0.get(name).ok_or_else(|| ExportError::Spec {
            component: "inception".to_owned(),
            message: format!("no layer `{name}`"),
        })
    }

    fn with_conv<T>(
        &self,
        name: &str,
        f: impl FnOnce(&NormedConv<'_>) -> Result<T, ExportError>,
    ) -> Result<T, ExportError> {
        let l = self.layer(name)?;
        f(&NormedConv {
            weight: &format!("{name}.conv.weight"),
            norm: &format!("{name}.bn"),
            channels: l.output,
            kernel: l.kernel,
            stride: l.stride,
            pads: [l.pad[0], l.pad[1], l.pad[0], l.pad[1]],
            groups: 1,
        })
    }

    /// Convolution, batch norm, ReLU.
    fn unit(&self, g: Builder<'_, '_, '_>, x: &FeatureMap, name: &str) -> Result<FeatureMap, ExportError> {
        let y = g.scoped(name, |g| self.with_conv(name, |c| g.folded_conv(x, c, EPS)))?;
        Ok(g.relu(y))
    }

    /// Several units of a block, one after the other.
    fn chain(
        &self,
        g: Builder<'_, '_, '_>,
        x: &FeatureMap,
        block: &str,
        branches: &[&str],
    ) -> Result<FeatureMap, ExportError> {
        branches.iter().try_fold(x.clone(), |x, b| self.unit(g, &x, &format!("{block}.{b}")))
    }

    /// A 1×1 unit behind a 3×3 pool.
    fn pooled(
        &self,
        g: Builder<'_, '_, '_>,
        x: &FeatureMap,
        block: &str,
        op: &str,
    ) -> Result<FeatureMap, ExportError> {
        let pooled = g.pool(op, x, 1, 1);
        self.unit(g, &pooled, &format!("{block}.branch_pool"))
    }

    fn block_a(
        &self,
        g: Builder<'_, '_, '_>,
        x: &FeatureMap,
        block: &str,
    ) -> Result<FeatureMap, ExportError> {
        let parts = [
            self.chain(g, x, block, &["branch1x1"])?,
            self.chain(g, x, block, &["branch5x5_1", "branch5x5_2"])?,
            self.chain(g, x, block, &["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"])?,
            self.pooled(g, x, block, "AveragePool")?,
        ];
        Ok(joined(g, &parts))
    }

    /// A block C, and the raw output of its 1×1 convolution if that is the layer of the spatial features.
    fn block_c(
        &self,
        g: Builder<'_, '_, '_>,
        x: &FeatureMap,
        block: &str,
    ) -> Result<(FeatureMap, Option<FeatureMap>), ExportError> {
        let name = format!("{block}.branch1x1");
        let (first, raw) = if name == InceptionSpec::SPATIAL_LAYER {
            let (raw, normed) =
                g.scoped(&name, |g| self.with_conv(&name, |c| g.raw_and_normed(x, c, EPS)))?;
            (g.relu(normed), Some(raw))
        } else {
            (self.unit(g, x, &name)?, None)
        };
        let double =
            ["branch7x7dbl_1", "branch7x7dbl_2", "branch7x7dbl_3", "branch7x7dbl_4", "branch7x7dbl_5"];
        let parts = [
            first,
            self.chain(g, x, block, &["branch7x7_1", "branch7x7_2", "branch7x7_3"])?,
            self.chain(g, x, block, &double)?,
            self.pooled(g, x, block, "AveragePool")?,
        ];
        Ok((joined(g, &parts), raw))
    }

    fn block_e(
        &self,
        g: Builder<'_, '_, '_>,
        x: &FeatureMap,
        block: &str,
        pool: &str,
    ) -> Result<FeatureMap, ExportError> {
        let single = self.chain(g, x, block, &["branch1x1"])?;
        let middle = self.chain(g, x, block, &["branch3x3_1"])?;
        let double = self.chain(g, x, block, &["branch3x3dbl_1", "branch3x3dbl_2"])?;
        let parts = [
            single,
            self.chain(g, &middle, block, &["branch3x3_2a"])?,
            self.chain(g, &middle, block, &["branch3x3_2b"])?,
            self.chain(g, &double, block, &["branch3x3dbl_3a"])?,
            self.chain(g, &double, block, &["branch3x3dbl_3b"])?,
            self.pooled(g, x, block, pool)?,
        ];
        Ok(joined(g, &parts))
    }
}

/// Maps of one size side by side.
fn joined(g: Builder<'_, '_, '_>, parts: &[FeatureMap]) -> FeatureMap {
    let values: Vec<&ValueName> = parts.iter().map(|p| &p.value).collect();
    let value = g.concat(&values, 1);
    FeatureMap { value, channels: parts.iter().map(|p| p.channels).sum(), size: parts[0].size }
}

/// The first channels of the raw map, flattened in the order y, x, channel: `[batch, 2023]`.
fn spatial(g: Builder<'_, '_, '_>, raw: &FeatureMap) -> ValueName {
    let keep = InceptionSpec::SPATIAL_CHANNELS as i64;
    let (start, end, axis) = (g.const_ints(&[0]), g.const_ints(&[keep]), g.const_ints(&[1]));
    let first = g.op("Slice", &[&raw.value, &start, &end, &axis], vec![]);
    let last = g.transpose(&first, &[0, 2, 3, 1]);
    g.reshape(&last, &[0, (raw.size * raw.size) as i64 * keep])
}

fn network(g: Builder<'_, '_, '_>, spec: &InceptionSpec) -> Result<(), ExportError> {
    let net = ConvLayers(InceptionSpec::layers().into_iter().map(|l| (l.name.clone(), l)).collect());
    let side = InceptionSpec::INPUT;
    let batch = GraphSizes::new(1, 1).batch(g, false);
    let dims = vec![batch.clone(), Dim::Fixed(3), Dim::Fixed(side), Dim::Fixed(side)];
    let value = g.input("image", DType::F32, dims);
    let x = FeatureMap { value, channels: 3, size: side };

    let x = net.unit(g, &x, "Conv2d_1a_3x3")?;
    let x = net.unit(g, &x, "Conv2d_2a_3x3")?;
    let x = net.unit(g, &x, "Conv2d_2b_3x3")?;
    let x = g.pool("MaxPool", &x, 2, 0);
    let x = net.unit(g, &x, "Conv2d_3b_1x1")?;
    let x = net.unit(g, &x, "Conv2d_4a_3x3")?;
    let mut x = g.pool("MaxPool", &x, 2, 0);
    for block in ["Mixed_5b", "Mixed_5c", "Mixed_5d"] {
        x = net.block_a(g, &x, block)?;
    }
    let parts = [
        net.chain(g, &x, "Mixed_6a", &["branch3x3"])?,
        net.chain(g, &x, "Mixed_6a", &["branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"])?,
        g.pool("MaxPool", &x, 2, 0),
    ];
    let mut x = joined(g, &parts);
    let mut raw = None;
    for block in ["Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"] {
        let (next, found) = net.block_c(g, &x, block)?;
        x = next;
        raw = raw.or(found);
    }
    let long = ["branch7x7x3_1", "branch7x7x3_2", "branch7x7x3_3", "branch7x7x3_4"];
    let parts = [
        net.chain(g, &x, "Mixed_7a", &["branch3x3_1", "branch3x3_2"])?,
        net.chain(g, &x, "Mixed_7a", &long)?,
        g.pool("MaxPool", &x, 2, 0),
    ];
    let x = joined(g, &parts);
    let x = net.block_e(g, &x, "Mixed_7b", "AveragePool")?;
    let x = net.block_e(g, &x, "Mixed_7c", "MaxPool")?;

    let pool = g.global_mean(&x);
    let logits = g.project(&pool, "fc.weight", spec.classes, InceptionSpec::FEATURES)?;
    let width = |n: usize| vec![batch.clone(), Dim::Fixed(n)];
    g.output("pool_3", DType::F32, width(InceptionSpec::FEATURES), &pool);
    if let Some(raw) = raw {
        let side = InceptionSpec::SPATIAL_SIDE;
        let flat = spatial(g, &raw);
        g.output("spatial", DType::F32, width(side * side * InceptionSpec::SPATIAL_CHANNELS), &flat);
    }
    g.output("logits", DType::F32, width(spec.classes), &logits);
    Ok(())
}

/// The one graph of the component.
pub(crate) fn graphs(spec: &InceptionSpec) -> Graphs<'_> {
    vec![(GraphName::Inception, Box::new(move |g| network(g, spec)))]
}
