//! The memory that serving a bundle takes.

use dpar_export_bundle::Bundle;
use dpar_export_onnx::MAX_BATCH;
use dpar_export_spec::{Dim, GraphSpec, Role, SystemSpec};

/// The program, its engine, what a step computes, pictures on their way.
const BESIDE: u64 = 256 << 20;
/// Connections at a time, as the files tell `serve`.
pub(crate) const CONNECTIONS: u64 = 512;
/// Bytes of a request, as the files tell `serve`.
pub(crate) const BODY: u64 = 1 << 20;
/// How often the largest feature map of a picture is counted: the map, the one that it is added to, their sum, and the nine copies
/// that an engine may lay out for a convolution with a 3 × 3 kernel. An estimate, from above: engines tell nothing of it.
const MAPS: u64 = 12;

/// What serving takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryNeed {
    /// Weights of all components.
    pub weights: u64,
    /// Caches of one row, full.
    pub row: u64,
    /// An estimate of what turning the tokens of an image into pixels takes; one image is at it at a time. It grows with the picture's
    /// area and the channels of the tokenizer's decoder.
    pub picture: u64,
    /// Requests that arrive: as many as there are connections, each of the most bytes.
    pub bodies: u64,
    /// All together: the mapped weights and the copy that an engine rearranges, the caches of all rows, a picture, requests, and
    /// 256 MiB; in whole MiB.
    pub all: u64,
    /// While a reload has a second bundle of that size in memory; in whole MiB.
    pub reload: u64,
}

impl MemoryNeed {
    /// The terms of `all`, in words.
    pub(crate) fn terms(&self, rows: usize) -> String {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let Self { weights, row, picture, bodies, all, .. } = *self;
        format!(
            "twice {:.0} MiB of weights, {rows} rows with {:.2} MiB of caches each, about {:.1} MiB to decode a picture, {:.0} MiB of \
             requests, and {:.0} MiB: {:.0} MiB",
            mib(weights).ceil(),
            mib(row),
            mib(picture),
            mib(bodies),
            mib(BESIDE),
            mib(all)
        )
    }
}

/// What serving a bundle in `rows` rows takes on a processor.
pub fn memory(bundle: &Bundle, rows: usize) -> MemoryNeed {
    let manifest = bundle.manifest();
    let size = |path: &String| manifest.files.iter().find(|f| f.path == *path).map_or(0, |f| f.size);
    let weights: u64 = manifest.components.iter().map(|c| size(&c.weights)).sum();
    let row: u64 = manifest.graphs.iter().map(|g| cache(&g.spec)).sum();
    let (picture, bodies) = (picture(bundle.system()), CONNECTIONS * BODY);
    let one =
        weights.saturating_mul(2).saturating_add(row.saturating_mul(rows as u64)).saturating_add(picture);
    let with = |bundles: u64| bundles.saturating_add(bodies + BESIDE).div_ceil(1 << 20) << 20;
    MemoryNeed { weights, row, picture, bodies, all: with(one), reload: with(one.saturating_mul(2)) }
}

/// Bytes at work when the tokenizer's decoder draws one image: [`MAPS`] of its largest feature map, in float32.
fn picture(system: &SystemSpec) -> u64 {
    let Some(vq) = system.vq() else { return 0 };
    let (mut area, mut channels) = ((system.grid() as u64).pow(2), vq.decoder.conv_in as u64);
    // The middle attends: each place to each.
    let mut most = area.saturating_mul(channels.max(area));
    for level in &vq.decoder.levels {
        let own = level.channels as u64;
        let seen = if level.attention { area } else { 0 };
        most = most.max(area.saturating_mul(channels.max(own).max(seen)));
        channels = own;
        if level.resample {
            area = area.saturating_mul(4);
            most = most.max(area.saturating_mul(channels));
        }
    }
    most.saturating_mul(4 * MAPS)
}

/// Bytes of a graph's cache for one image: keys and values `[past, rows, heads, head_dim]`, in a guided graph of two rows.
fn cache(graph: &GraphSpec) -> u64 {
    let pasts = graph.inputs.iter().filter(|port| matches!(port.role(), Role::Cache(..)));
    let bytes = pasts.map(|port| {
        let size = |(at, dim): (usize, &Dim)| match dim {
            Dim::Fixed(n) => *n as u64,
            Dim::Axis(name) => {
                let most = graph.axis(name).map_or(1, |a| a.max);
                // Behind the slots are the rows of the largest batch.
                (if at == 1 { most.div_ceil(MAX_BATCH) } else { most }) as u64
            }
            Dim::Sum(..) => 1,
        };
        port.dims.iter().enumerate().map(size).fold(port.dtype.bytes() as u64, u64::saturating_mul)
    });
    bytes.fold(0, u64::saturating_add)
}
