//! What the statistics of docs/metrics.md claim, at the size that they claim it for.

use anyhow::Result;
use camino::Utf8Path;

use crate::{cargo, command};

/// What Precision and Recall of 50,000 images may hold, features included.
const MOST: &str = "2000000000";

/// Simulated comparisons with planned looks.
pub(crate) fn sequential(root: &Utf8Path) -> Result<()> {
    command(root, &cargo(), &["run", "--release", "-p", "dpar-export-metrics", "--example", "sequential"])
}

/// Precision and Recall of `images` against as many.
pub(crate) fn manifolds(root: &Utf8Path, images: u32) -> Result<()> {
    let images = images.to_string();
    let bench = ["bench", "-p", "dpar-export-metrics", "--bench", "speed", "--"];
    let given = ["--rows", &images, "--most-bytes", MOST, "precision-recall"];
    command(root, &cargo(), &[&bench[..], &given].concat())
}
