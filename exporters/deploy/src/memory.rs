//! The memory that serving a bundle takes.

use dpar_export_bundle::Manifest;
use dpar_export_onnx::MAX_BATCH;
use dpar_export_spec::{Dim, GraphSpec, Role};

/// The program, its engine, what a step computes, pictures on their way.
const BESIDE: u64 = 256 << 20;

/// What serving takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryNeed {
    /// Weights of all components.
    pub weights: u64,
    /// Caches of one row, full.
    pub row: u64,
    /// All together: the mapped weights and the copy that an engine rearranges, the caches of all rows, and 256 MiB; in whole MiB.
    pub all: u64,
}

/// What serving a bundle in `rows` rows takes on a processor.
pub fn memory(manifest: &Manifest, rows: usize) -> MemoryNeed {
    let size = |path: &String| manifest.files.iter().find(|f| f.path == *path).map_or(0, |f| f.size);
    let weights: u64 = manifest.components.iter().map(|c| size(&c.weights)).sum();
    let row: u64 = manifest.graphs.iter().map(|g| cache(&g.spec)).sum();
    let all = weights
        .saturating_mul(2)
        .saturating_add(row.saturating_mul(rows as u64))
        .saturating_add(BESIDE)
        .next_multiple_of(1 << 20);
    MemoryNeed { weights, row, all }
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
