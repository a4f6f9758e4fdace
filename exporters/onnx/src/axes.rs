//! The dynamic axes and their ranges, in one place.

use dpar_export_spec::Dim;

use crate::blocks::Past;
use crate::builder::{GraphBuilder, ValueName};

/// Largest number of images in one call; guided graphs take twice as many rows.
pub const MAX_BATCH: usize = 256;
/// The batch to tune for.
const OPT_BATCH: usize = 8;

/// What the ranges follow from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GraphSizes {
    /// Tokens per image.
    pub(crate) tokens: usize,
    /// Longest patch.
    pub(crate) longest_patch: usize,
}

/// The axes of one call of a causal transformer.
pub(crate) struct CallAxes {
    pub(crate) batch: Dim,
    pub(crate) time: Dim,
    past: Option<(Dim, Dim)>,
}

impl CallAxes {
    /// `[batch, tokens]`.
    pub(crate) fn slots(&self) -> Vec<Dim> {
        vec![self.batch.clone(), self.time.clone()]
    }

    /// `[batch, tokens, last]`.
    pub(crate) fn slots_by(&self, last: Dim) -> Vec<Dim> {
        vec![self.batch.clone(), self.time.clone(), last]
    }

    /// The additive mask: 0 where a slot may look, a large negative number where not.
    pub(crate) fn mask(&self) -> Vec<Dim> {
        let keys = match &self.past {
            Some((past, _)) => Dim::sum(&past.to_string(), &self.time.to_string()),
            None => self.time.clone(),
        };
        vec![self.batch.clone(), Dim::Fixed(1), self.time.clone(), keys]
    }

    /// The cache of this call; `select` picks its rows.
    pub(crate) fn past<'a>(&self, select: Option<&'a ValueName>) -> Past<'a> {
        match &self.past {
            None => Past::None,
            Some((time, rows)) => Past::Cache {
                time: time.clone(),
                new: self.time.clone(),
                rows: rows.clone(),
                batch: self.batch.clone(),
                select,
            },
        }
    }
}

impl GraphSizes {
    pub(crate) fn new(tokens: usize, longest_patch: usize) -> Self {
        Self { tokens, longest_patch }
    }

    /// The patches to expect in an image: the published models need 142 of 256.
    pub(crate) fn typical_patches(self) -> usize {
        (self.tokens * 142).div_ceil(256)
    }

    /// Rows of a call; `guided` graphs run every image twice.
    pub(crate) fn batch(self, g: &mut GraphBuilder<'_, '_>, guided: bool) -> Dim {
        let rows = if guided { 2 } else { 1 };
        g.axis("batch", 1, OPT_BATCH * rows, MAX_BATCH * rows)
    }

    /// A step over tokens with a cache.
    pub(crate) fn step_call(self, g: &mut GraphBuilder<'_, '_>, guided: bool) -> CallAxes {
        let batch = self.batch(g, guided);
        let time = g.axis("tokens", 1, 1, self.tokens);
        let past = g.axis("past_tokens", 0, self.tokens / 2, self.tokens);
        CallAxes { past: Some((past, batch.clone())), batch, time }
    }

    /// A step over patches with a cache of `cache_rows` rows.
    pub(crate) fn patch_call(self, g: &mut GraphBuilder<'_, '_>) -> CallAxes {
        let batch = self.batch(g, true);
        let time = g.axis("patches", 1, 1, self.tokens);
        let past = g.axis("past_patches", 0, self.typical_patches() / 2, self.tokens);
        let rows = g.axis("cache_rows", 1, 2 * OPT_BATCH, 2 * MAX_BATCH);
        CallAxes { batch, time, past: Some((past, rows)) }
    }

    /// A whole sequence without a cache.
    pub(crate) fn score_call(self, g: &mut GraphBuilder<'_, '_>) -> CallAxes {
        let batch = self.batch(g, false);
        let time = g.axis("tokens", 2.min(self.tokens), self.tokens, self.tokens);
        CallAxes { batch, time, past: None }
    }
}

impl GraphBuilder<'_, '_> {
    /// `x[:, :-1]`.
    pub(crate) fn all_but_last(&mut self, x: &ValueName) -> ValueName {
        let (start, end, axis) = (self.const_ints(&[0]), self.const_ints(&[-1]), self.const_ints(&[1]));
        self.op("Slice", &[x, &start, &end, &axis], vec![])
    }

    /// `x.reshape(-1, width)`.
    pub(crate) fn flat_rows(&mut self, x: &ValueName, width: usize) -> ValueName {
        self.reshape(x, &[-1, width as i64])
    }
}
