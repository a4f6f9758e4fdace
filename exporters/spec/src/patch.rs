//! The patch rule: which token opens a patch.

use serde::{Deserialize, Serialize};

/// How patch starts are chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PatchMode {
    /// Entropy above the threshold, and every row start.
    EntropyRowBoundary,
    /// Entropy above the threshold.
    Entropy,
    /// Fixed (possibly fractional) patch size.
    Static,
    /// Every token is its own patch; also how a LlamaGen baseline counts.
    Token,
}

impl PatchMode {
    /// Its word in a configuration.
    pub fn word(self) -> &'static str {
        match self {
            Self::EntropyRowBoundary => "entropy_row_boundary",
            Self::Entropy => "entropy",
            Self::Static => "static",
            Self::Token => "token",
        }
    }

    /// Whether this mode reads entropies.
    pub fn uses_entropy(self) -> bool {
        matches!(self, Self::EntropyRowBoundary | Self::Entropy)
    }
}

/// A patch rule that cannot be used.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PatchRuleError {
    /// An entropy mode without a threshold (top-k allocation needs the whole image).
    #[error(
        "an entropy patching mode needs `patcher.threshold` (top-k allocation is not supported: it needs the whole image)"
    )]
    NoThreshold,
    /// A threshold that is not a finite number.
    #[error("`patcher.threshold` must be a finite number, not {0}")]
    BadThreshold(f32),
    /// `static` without a patch size, or one that is not at least 1.
    #[error(
        "static patching needs a `patcher.patch_size` of at least 1, not {}",
        .0.map_or_else(|| "none".to_owned(), |size| size.to_string())
    )]
    BadPatchSize(Option<f64>),
    /// `max_patch_length` 0.
    #[error("`patcher.max_patch_length` must be at least 1")]
    BadMaxLength,
    /// A fractional `patch_size` with a length limit: the research code cannot split such patches.
    #[error(
        "`patcher.patch_size` {0} is fractional: it cannot be combined with `patcher.max_patch_length` (the research code fails there)"
    )]
    FractionalWithLimit(f64),
    /// A number is set that the mode does not read.
    #[error("{key} has no effect: patching mode `{}` does not read it", mode.word())]
    NoEffect {
        /// The number, as a configuration calls it.
        key: &'static str,
        /// The mode.
        mode: PatchMode,
    },
    /// A row length of 0.
    #[error("`patcher.block_size` must be at least 1")]
    BadBlockSize,
    /// A grid of 0 tokens per row.
    #[error("the token grid must be at least 1 wide")]
    BadGrid,
}

/// Other numbers for a rule: what trades steps for quality without touching a weight. `None` leaves a number as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct RuleChange {
    /// Threshold in nats, of a mode that reads entropies.
    pub threshold: Option<f32>,
    /// Longest patch in tokens.
    pub max_patch_length: Option<usize>,
    /// Patch size of `static`.
    pub patch_size: Option<f64>,
}

impl RuleChange {
    /// Whether it leaves every rule as it is.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Decides, token by token and from earlier tokens only, where a patch begins.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PatchRule {
    /// How starts are chosen.
    pub mode: PatchMode,
    /// Entropy threshold in nats, compared strictly (`e > threshold`) as float32.
    pub threshold: Option<f32>,
    /// Longest allowed patch in tokens; `None` = no limit.
    pub max_patch_length: Option<usize>,
    /// Tokens per row, W.
    pub grid: usize,
    /// Patch size of `static`, possibly fractional.
    pub patch_size: Option<f64>,
    /// Compare the rise `e_t - e_{t-1}` with the threshold instead of `e_t`.
    #[serde(default)]
    pub monotonicity: bool,
    /// Row length of [`PatchMode::EntropyRowBoundary`] in tokens where it is not the grid's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<usize>,
}

impl PatchRule {
    /// The rule of a baseline without patches: every token is a patch.
    pub fn per_token(grid: usize) -> Self {
        Self {
            mode: PatchMode::Token,
            threshold: None,
            max_patch_length: None,
            grid,
            patch_size: None,
            monotonicity: false,
            block_size: None,
        }
    }

    /// The numbers that its mode reads.
    pub fn numbers(&self) -> RuleChange {
        RuleChange {
            threshold: self.threshold.filter(|_| self.mode.uses_entropy()),
            max_patch_length: self.max_patch_length.filter(|_| self.mode != PatchMode::Token),
            patch_size: self.patch_size.filter(|_| self.mode == PatchMode::Static),
        }
    }

    /// Which of these numbers, of those that the mode reads, are others than its own, in words.
    pub fn unlike(&self, said: &RuleChange) -> Option<String> {
        let own = self.numbers();
        let word = |n: Option<String>| n.unwrap_or_else(|| "none".to_owned());
        let pair = |key: &str, reads: bool, said: Option<String>, own: Option<String>| {
            (reads && said.is_some() && said != own)
                .then(|| format!("{key} is {}, here {}", word(said), word(own)))
        };
        let text = |n: Option<f64>| n.map(|n| n.to_string());
        let float = |n: Option<f32>| n.map(|n| n.to_string());
        let whole = |n: Option<usize>| n.map(|n| n.to_string());
        let unlike = [
            pair("threshold", self.mode.uses_entropy(), float(said.threshold), float(own.threshold)),
            pair(
                "max_patch_length",
                self.mode != PatchMode::Token,
                whole(said.max_patch_length),
                whole(own.max_patch_length),
            ),
            pair("patch_size", self.mode == PatchMode::Static, text(said.patch_size), text(own.patch_size)),
        ];
        let unlike: Vec<String> = unlike.into_iter().flatten().collect();
        (!unlike.is_empty()).then(|| unlike.join(", "))
    }

    /// The same rule with other numbers.
    ///
    /// # Errors
    /// When the mode does not read one of them, or the rule cannot be evaluated with it.
    pub fn changed(&self, change: &RuleChange) -> Result<Self, PatchRuleError> {
        let RuleChange { threshold, max_patch_length, patch_size } = *change;
        let mode = self.mode;
        let read = |key, given: bool, reads: bool| match given && !reads {
            true => Err(PatchRuleError::NoEffect { key, mode }),
            false => Ok(()),
        };
        read("threshold", threshold.is_some(), mode.uses_entropy())?;
        read("max_patch_length", max_patch_length.is_some(), mode != PatchMode::Token)?;
        read("patch_size", patch_size.is_some(), mode == PatchMode::Static)?;
        let rule = Self {
            threshold: threshold.or(self.threshold),
            max_patch_length: max_patch_length.or(self.max_patch_length),
            patch_size: patch_size.or(self.patch_size),
            ..self.clone()
        };
        rule.validate()?;
        Ok(rule)
    }

    /// Row length of the row rule in tokens.
    pub fn row(&self) -> usize {
        self.block_size.unwrap_or(self.grid)
    }

    /// The patch size of `static` where it is no whole number: then patch k is `[k·p, (k + 1)·p − 1]` as fractions.
    pub fn fractional_size(&self) -> Option<f64> {
        self.patch_size.filter(|p| self.mode == PatchMode::Static && p.fract() != 0.0)
    }

    /// The first token of an image of `tokens` tokens at which a static rule depends on how a product is rounded: a
    /// multiple of the patch size meets a whole number there, and the size (1.2, say) is no binary fraction.
    pub fn doubtful_token(&self, tokens: usize) -> Option<usize> {
        /// Sizes with at most this many binary places have exact multiples in float32.
        const PLACES: f64 = 1024.0;
        let size = self.fractional_size().filter(|p| (p * PLACES).fract() != 0.0)?;
        (1..=tokens).map(|k| k as f64 * size).take_while(|t| *t < tokens as f64 - 0.5).find_map(|t| {
            let nearest = t.round();
            ((t - nearest).abs() <= 1e-9 * t).then_some(nearest as usize)
        })
    }

    /// Checks that the rule can be evaluated.
    ///
    /// # Errors
    /// When a number the mode needs is missing or out of range.
    pub fn validate(&self) -> Result<(), PatchRuleError> {
        if self.grid == 0 {
            return Err(PatchRuleError::BadGrid);
        }
        if self.max_patch_length == Some(0) {
            return Err(PatchRuleError::BadMaxLength);
        }
        match self.mode {
            PatchMode::EntropyRowBoundary if self.block_size == Some(0) => Err(PatchRuleError::BadBlockSize),
            PatchMode::EntropyRowBoundary | PatchMode::Entropy => match self.threshold {
                None => Err(PatchRuleError::NoThreshold),
                Some(t) if !t.is_finite() => Err(PatchRuleError::BadThreshold(t)),
                Some(_) => Ok(()),
            },
            PatchMode::Static => match self.patch_size {
                Some(s) if s.is_finite() && s >= 1.0 => match (self.fractional_size(), self.max_patch_length)
                {
                    (Some(size), Some(_)) => Err(PatchRuleError::FractionalWithLimit(size)),
                    _ => Ok(()),
                },
                other => Err(PatchRuleError::BadPatchSize(other)),
            },
            PatchMode::Token => Ok(()),
        }
    }

    /// The longest patch this rule can make in an image of `tokens` tokens; every axis range follows from it.
    pub fn longest_patch(&self, tokens: usize) -> usize {
        let by_mode = match self.mode {
            PatchMode::Token => 1,
            PatchMode::Static => self.patch_size.unwrap_or(1.0).ceil() as usize,
            PatchMode::EntropyRowBoundary => self.row(),
            PatchMode::Entropy => tokens,
        };
        by_mode.min(self.max_patch_length.unwrap_or(usize::MAX)).clamp(1, tokens.max(1))
    }

    /// Whether token `t` opens a patch.
    ///
    /// `open` is the number of tokens the open patch already holds; `entropy` is e_t and `previous` e_{t-1}
    /// (nats; ignored by modes that read no entropy). The decision never changes later.
    pub fn opens(&self, t: usize, open: usize, entropy: f32, previous: f32) -> bool {
        if t == 0 || self.max_patch_length.is_some_and(|m| open >= m) {
            return true;
        }
        match self.mode {
            PatchMode::Token => true,
            PatchMode::Static => {
                let size = self.patch_size.unwrap_or(1.0);
                (t as f64 / size).floor() != ((t - 1) as f64 / size).floor()
            }
            PatchMode::EntropyRowBoundary if t.is_multiple_of(self.row()) => true,
            PatchMode::EntropyRowBoundary | PatchMode::Entropy => {
                t == 1 || (self.monotonicity && t == 2) || self.margin(t, entropy, previous) > 0.0
            }
        }
    }

    /// How far the entropy condition of token `t` is from flipping: e_t − threshold (or e_t − e_{t−1} −
    /// threshold with `monotonicity`), in nats. Positive opens a patch. Infinite where no entropy is read.
    pub fn margin(&self, t: usize, entropy: f32, previous: f32) -> f32 {
        match self.threshold {
            Some(threshold) if self.mode.uses_entropy() && t > 0 => {
                let value = if self.monotonicity { entropy - previous } else { entropy };
                // Compared, not subtracted, where it decides: a difference of float32 keeps the sign exactly
                // (gradual underflow), so `> 0` here is the strict comparison of the rule.
                value - threshold
            }
            _ => f32::INFINITY,
        }
    }

    /// Patch lengths of one image of `tokens` tokens. `entropy[t]` is e_t (column 0 is not read).
    pub fn lengths(&self, tokens: usize, entropy: &[f32]) -> Vec<usize> {
        let at = |t: usize| entropy.get(t).copied().unwrap_or(f32::NAN);
        let mut lengths: Vec<usize> = Vec::new();
        for t in 0..tokens {
            let open = lengths.last().copied().unwrap_or(0);
            match lengths.last_mut() {
                Some(last) if !self.opens(t, open, at(t), at(t.wrapping_sub(1))) => *last += 1,
                _ => lengths.push(1),
            }
        }
        lengths
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(mode: PatchMode) -> PatchRule {
        PatchRule { mode, threshold: Some(1.0), max_patch_length: Some(3), ..PatchRule::per_token(4) }
    }

    #[test]
    fn row_starts_long_patches_and_high_entropy_open() {
        let r = rule(PatchMode::EntropyRowBoundary);
        let mut e = [0.0_f32; 12];
        e[6] = 1.0; // equal to the threshold: not strictly above
        e[10] = 1.000_001;
        assert_eq!(r.lengths(12, &e), [1, 3, 3, 1, 2, 2]);
    }

    #[test]
    fn entropy_mode_has_no_row_rule() {
        let r = PatchRule { max_patch_length: None, ..rule(PatchMode::Entropy) };
        assert_eq!(r.lengths(8, &[0.0; 8]), [1, 7]);
    }

    #[test]
    fn monotonicity_opens_token_two_and_compares_rises() {
        let r = PatchRule { monotonicity: true, max_patch_length: None, ..rule(PatchMode::Entropy) };
        let e = [f32::NAN, 9.0, 9.0, 9.5, 11.0, 11.5];
        assert_eq!(r.lengths(6, &e), [1, 1, 2, 2]);
    }

    #[test]
    fn static_size_may_be_fractional_and_token_is_one_each() {
        let r = PatchRule {
            mode: PatchMode::Static,
            patch_size: Some(2.5),
            max_patch_length: None,
            ..PatchRule::per_token(4)
        };
        assert_eq!(r.lengths(10, &[]), [3, 2, 3, 2]);
        assert_eq!(PatchRule::per_token(4).lengths(3, &[]), [1, 1, 1]);
    }

    #[test]
    fn the_row_rule_counts_in_block_size() {
        let r =
            PatchRule { max_patch_length: None, block_size: Some(3), ..rule(PatchMode::EntropyRowBoundary) };
        assert_eq!(r.lengths(8, &[0.0; 8]), [1, 2, 3, 2]);
        assert_eq!((r.longest_patch(16), r.validate()), (3, Ok(())));
        let zero = |mode| PatchRule { block_size: Some(0), ..rule(mode) }.validate();
        assert_eq!(zero(PatchMode::EntropyRowBoundary), Err(PatchRuleError::BadBlockSize));
        // No other mode reads it.
        assert_eq!(zero(PatchMode::Entropy), Ok(()));
    }

    #[test]
    fn a_fractional_size_has_no_limit_and_may_have_a_doubtful_token() {
        let sized = |size, max_patch_length| PatchRule {
            mode: PatchMode::Static,
            patch_size: Some(size),
            max_patch_length,
            ..PatchRule::per_token(16)
        };
        assert_eq!(sized(2.5, Some(2)).validate(), Err(PatchRuleError::FractionalWithLimit(2.5)));
        assert_eq!(sized(2.0, Some(2)).validate(), Ok(()));
        // Published (1.8191), binary fractions and whole numbers are safe; 5 · 1.2 = 6, 5 · 2.2 = 11, 10 · 1.7 = 17.
        for safe in [1.8191, 2.5, 1.25, 3.0, 1.0, 2.125] {
            assert_eq!(sized(safe, None).doubtful_token(256), None, "{safe}");
        }
        for (size, token) in [(1.2, 6), (2.2, 11), (1.7, 17), (4.4, 22)] {
            assert_eq!(sized(size, None).doubtful_token(256), Some(token), "{size}");
            assert_eq!(sized(size, None).doubtful_token(token), None, "{size}");
        }
        assert_eq!(sized(1.2, None).fractional_size(), Some(1.2));
        let entropy = PatchRule { patch_size: Some(1.2), ..rule(PatchMode::Entropy) };
        assert_eq!((entropy.fractional_size(), entropy.doubtful_token(16)), (None, None));
    }

    #[test]
    fn other_numbers_are_taken_where_the_mode_reads_them() {
        let r = rule(PatchMode::EntropyRowBoundary);
        let change = RuleChange { threshold: Some(2.5), max_patch_length: Some(4), ..RuleChange::default() };
        let other = r.changed(&change).unwrap();
        assert_eq!((other.threshold, other.max_patch_length, other.grid), (Some(2.5), Some(4), 4));
        assert_eq!(r.changed(&RuleChange::default()), Ok(r.clone()));
        let refused = |r: &PatchRule, change| r.changed(&change).unwrap_err();
        let sized = RuleChange { patch_size: Some(2.0), ..RuleChange::default() };
        let mode = PatchMode::EntropyRowBoundary;
        assert_eq!(refused(&r, sized), PatchRuleError::NoEffect { key: "patch_size", mode });
        let nan = RuleChange { threshold: Some(f32::NAN), ..RuleChange::default() };
        assert!(matches!(refused(&r, nan), PatchRuleError::BadThreshold(_)));
        let none = RuleChange { max_patch_length: Some(0), ..RuleChange::default() };
        assert_eq!(refused(&r, none), PatchRuleError::BadMaxLength);
        assert_eq!(r.unlike(&r.numbers()), None);
        assert_eq!(r.unlike(&sized), None, "the mode does not read it");
        assert_eq!(r.unlike(&change).unwrap(), "threshold is 2.5, here 1, max_patch_length is 4, here 3");
        let mode = PatchMode::Token;
        for (key, change) in [("threshold", nan), ("max_patch_length", none), ("patch_size", sized)] {
            assert_eq!(refused(&PatchRule::per_token(4), change), PatchRuleError::NoEffect { key, mode });
        }
        // A threshold that the configuration lacks may come from elsewhere.
        let bare = PatchRule { threshold: None, ..rule(PatchMode::Entropy) };
        assert_eq!(bare.changed(&change).unwrap().threshold, Some(2.5));
        let half = PatchRule { mode: PatchMode::Static, patch_size: Some(2.5), max_patch_length: None, ..r };
        let limited = RuleChange { max_patch_length: Some(2), ..RuleChange::default() };
        assert_eq!(refused(&half, limited), PatchRuleError::FractionalWithLimit(2.5));
    }

    #[test]
    fn an_entropy_rule_without_a_threshold_is_refused() {
        let r = PatchRule { threshold: None, ..rule(PatchMode::Entropy) };
        assert_eq!(r.validate(), Err(PatchRuleError::NoThreshold));
    }
}
