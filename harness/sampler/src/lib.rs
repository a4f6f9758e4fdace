//! The counter-based sampler: a draw depends on (seed, image index, slot) and the logits only, not on the
//! engine, the batch or the order in which images are made. Every formula is that of the sampler section of the
//! decoding spec.

mod distance;
mod gumbel;
mod options;

use std::cmp::Ordering;

use dpar_export_metrics::random::nth;

pub use options::{LEAST_TEMPERATURE, Method, SampleError, SamplerOptions};

/// The key of image `image` (0-based, its index in the whole run): that number of SplitMix64 from the seed.
pub fn image_key(seed: u64, image: u64) -> u64 {
    nth(seed, image)
}

/// The random bits of slot `slot`: that number of SplitMix64 from the key.
fn slot_key(key: u64, slot: u64) -> u64 {
    nth(key, slot)
}

/// The uniform number in [0, 1) of slot `slot`: the upper 53 of its random bits, times 2⁻⁵³.
pub fn uniform(key: u64, slot: u64) -> f64 {
    (slot_key(key, slot) >> 11) as f64 * (1.0 / (1_u64 << 53) as f64)
}

/// The class of an image whose label is random: key mod `num_classes`, and 0 where there are no classes.
pub fn random_class(key: u64, num_classes: u64) -> u64 {
    key.checked_rem(num_classes).unwrap_or(0)
}

/// Classifier-free guidance, `out = u + scale·(c − u)` in f32, element by element.
///
/// # Panics
/// When the three slices differ in length: a bug in the caller.
pub fn guide(cond: &[f32], uncond: &[f32], scale: f32, out: &mut [f32]) {
    assert_eq!(cond.len(), uncond.len(), "conditional and unconditional logits");
    assert_eq!(cond.len(), out.len(), "guided logits");
    for ((o, &c), &u) in out.iter_mut().zip(cond).zip(uncond) {
        *o = u + scale * (c - u);
    }
}

/// A drawn token.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// The token.
    pub token: u32,
    /// How far the draw was from another one. [`Method::Cdf`]: min(u − c_{i−1}, c_i − u) with c the running sum over the
    /// kept tokens, normalised to 1, c_{−1} = 0. [`Method::Gumbel`]: the gap between the two largest of the kept logits over
    /// the temperature plus noise. Greedy: the gap between the two largest logits. ∞ where there is one logit only.
    pub margin: f32,
}

/// Draws tokens; owns its scratch memory, so that one per thread draws without allocating.
#[derive(Debug, Clone)]
pub struct Sampler {
    options: SamplerOptions,
    /// Logits over the temperature; −∞ where a token is not kept.
    scaled: Vec<f32>,
    /// Softmax numerators, then running sums.
    sums: Vec<f64>,
    /// Token order of top-p, or values of top-k.
    order: Vec<u32>,
    values: Vec<f32>,
}

impl Sampler {
    /// A sampler.
    ///
    /// # Errors
    /// When the options do not [validate](SamplerOptions::validate).
    pub fn new(options: SamplerOptions) -> Result<Self, SampleError> {
        options.validate()?;
        Ok(Self { options, scaled: Vec::new(), sums: Vec::new(), order: Vec::new(), values: Vec::new() })
    }

    /// The options.
    pub fn options(&self) -> &SamplerOptions {
        &self.options
    }

    /// Draws the token of slot `slot` of the image with key `key` from (guided) logits `[V]`.
    ///
    /// # Errors
    /// As [`draw`](Self::draw).
    pub fn draw_at(&mut self, logits: &[f32], key: u64, slot: u64) -> Result<Draw, SampleError> {
        if self.options.greedy || self.options.method == Method::Cdf {
            return self.draw(logits, uniform(key, slot));
        }
        let max = self.keep(logits)?;
        if self.options.top_p < 1.0 {
            self.weigh(max);
            self.keep_top_p();
        }
        let (token, gap) = gumbel::draw(&self.scaled, slot_key(key, slot));
        Ok(Draw { token: token as u32, margin: gap as f32 })
    }

    /// Draws a token by the running sum from (guided) logits `[V]` with the uniform number `u` of its slot (not used when
    /// greedy).
    ///
    /// Logits/temperature in f32 → top-k → top-p → softmax in f64 over the kept logits → running sum in f64 in
    /// index order → the first token whose running sum exceeds u·(total sum); if none, the last kept token.
    ///
    /// # Errors
    /// When a logit is NaN or +∞, none is above −∞, there are none, or `u` is outside [0, 1).
    pub fn draw(&mut self, logits: &[f32], u: f64) -> Result<Draw, SampleError> {
        if self.options.greedy {
            return greedy(logits);
        }
        if !(0.0..1.0).contains(&u) {
            return Err(SampleError::Uniform(u));
        }
        let total = self.distribution(logits)?.last().copied().unwrap_or_default();
        let bound = u * total;
        // `total` is exactly the last running sum and u < 1, so one always exceeds; the last kept token otherwise.
        let token = self.sums.partition_point(|&c| c <= bound);
        let token = if token < self.sums.len() { token } else { self.last_kept() };
        let below = if token == 0 { 0.0 } else { self.sums[token - 1] / total };
        let margin = (u - below).min(self.sums[token] / total - u);
        Ok(Draw { token: token as u32, margin: margin as f32 })
    }

    /// The cumulative distribution `[V]` that [`draw`](Self::draw) inverts: running sums in f64, in index order, of the
    /// softmax over the kept logits.
    ///
    /// # Errors
    /// When a logit is NaN or +∞, none is above −∞, there are none.
    pub fn distribution(&mut self, logits: &[f32]) -> Result<&[f64], SampleError> {
        let max = self.keep(logits)?;
        self.weigh(max);
        if self.options.top_p < 1.0 {
            self.keep_top_p();
        }
        let weight: f64 = self.sums.iter().sum();
        let mut total = 0.0;
        for value in &mut self.sums {
            total += *value / weight;
            *value = total;
        }
        Ok(&self.sums)
    }

    /// Fills `scaled` with what top-k keeps; returns its maximum.
    fn keep(&mut self, logits: &[f32]) -> Result<f32, SampleError> {
        let max = self.scale(logits)?;
        if self.options.top_k > 0 && self.options.top_k < logits.len() {
            self.keep_top_k();
        }
        Ok(max)
    }

    /// Softmax numerators: a token that is not kept is at −∞ and weighs 0, like one that underflows.
    fn weigh(&mut self, max: f32) {
        self.sums.clear();
        self.sums.extend(self.scaled.iter().map(|&x| (f64::from(x) - f64::from(max)).exp()));
    }

    /// Fills `scaled`; returns its maximum.
    fn scale(&mut self, logits: &[f32]) -> Result<f32, SampleError> {
        check(logits)?;
        let temperature = self.options.divisor();
        self.scaled.clear();
        self.scaled.extend(logits.iter().map(|&x| x / temperature));
        let max = self.scaled.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if max == f32::INFINITY {
            return Err(SampleError::Infinite(self.scaled.iter().position(|&x| x == max).unwrap_or(0)));
        }
        if max == f32::NEG_INFINITY {
            return Err(SampleError::NothingLeft);
        }
        Ok(max)
    }

    /// Drops what is below the k-th largest; ties with it stay.
    fn keep_top_k(&mut self) {
        self.values.clear();
        self.values.extend_from_slice(&self.scaled);
        let (_, &mut kth, _) =
            self.values.select_nth_unstable_by(self.options.top_k - 1, |a, b| b.total_cmp(a));
        for x in &mut self.scaled {
            if *x < kth {
                *x = f32::NEG_INFINITY;
            }
        }
    }

    /// Drops what follows, in descending order of logit (ties by index), the token whose cumulative
    /// probability first exceeds top-p.
    fn keep_top_p(&mut self) {
        let total: f64 = self.sums.iter().sum();
        self.order.clear();
        self.order.extend(
            self.scaled.iter().enumerate().filter(|(_, x)| **x > f32::NEG_INFINITY).map(|(i, _)| i as u32),
        );
        let scaled = &self.scaled;
        self.order.sort_unstable_by(|&a, &b| {
            let (x, y) = (scaled[a as usize], scaled[b as usize]);
            y.partial_cmp(&x).unwrap_or(Ordering::Equal).then(a.cmp(&b))
        });
        let mut cumulative = 0.0;
        let mut past = false;
        for &i in &self.order {
            let i = i as usize;
            if past {
                self.scaled[i] = f32::NEG_INFINITY;
                self.sums[i] = 0.0;
            } else {
                cumulative += self.sums[i] / total;
                past = cumulative > self.options.top_p;
            }
        }
    }

    fn kept(&self) -> usize {
        self.scaled.iter().filter(|x| **x > f32::NEG_INFINITY).count()
    }

    fn last_kept(&self) -> usize {
        self.scaled.iter().rposition(|&x| x > f32::NEG_INFINITY).unwrap_or(0)
    }
}

/// The largest logit, the lowest index on ties.
fn greedy(logits: &[f32]) -> Result<Draw, SampleError> {
    check(logits)?;
    let (mut token, mut best, mut second) = (0, f32::NEG_INFINITY, f32::NEG_INFINITY);
    for (i, &x) in logits.iter().enumerate() {
        if x > best {
            (token, second, best) = (i, best, x);
        } else if x > second {
            second = x;
        }
    }
    match best {
        f32::INFINITY => Err(SampleError::Infinite(token)),
        f32::NEG_INFINITY => Err(SampleError::NothingLeft),
        _ => Ok(Draw { token: token as u32, margin: best - second }),
    }
}

fn check(logits: &[f32]) -> Result<(), SampleError> {
    if logits.is_empty() {
        return Err(SampleError::Empty);
    }
    match logits.iter().position(|x| x.is_nan()) {
        Some(i) => Err(SampleError::Nan(i)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sampler(temperature: f32, top_k: usize, top_p: f64) -> Sampler {
        let method = Method::Cdf;
        Sampler::new(SamplerOptions { method, temperature, top_k, top_p, greedy: false }).unwrap()
    }

    /// Logits of the given probabilities.
    fn log(p: &[f32]) -> Vec<f32> {
        p.iter().map(|p| p.ln()).collect()
    }

    fn token(s: &mut Sampler, logits: &[f32], u: f64) -> u32 {
        s.draw(logits, u).unwrap().token
    }

    #[test]
    fn keys_and_uniforms_follow_splitmix64() {
        // The first outputs of SplitMix64 seeded with 0 and with 1234567 are published test vectors.
        assert_eq!(image_key(0, 0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(image_key(0, 1), 0x6E78_9E6A_A1B9_65F4);
        assert_eq!(image_key(1_234_567, 0), 6_457_827_717_110_365_317);
        assert_eq!(image_key(1_234_567, 4), 16_408_922_859_458_223_821);
        assert_eq!(uniform(0, 0), (0xE220_A839_7B1D_CDAF_u64 >> 11) as f64 / 9_007_199_254_740_992.0);
        assert_eq!(uniform(1_234_567, 0), 0.350_079_542_021_408_1);
        assert_eq!(
            image_key(u64::MAX, u64::MAX),
            dpar_export_metrics::random::mix(u64::MAX),
            "counters wrap"
        );
    }

    #[test]
    fn labels_of_the_reference_streams_come_from_the_image_keys() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fixtures/emoji32/streams_dpar.safetensors");
        let bytes = fs_err::read(path).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let labels = file.tensor("class_labels").unwrap();
        assert_eq!(labels.shape(), [1024]);
        for (i, label) in labels.data().as_chunks::<8>().0.iter().enumerate() {
            assert_eq!(
                random_class(image_key(0, i as u64), 9) as i64,
                i64::from_le_bytes(*label),
                "image {i}"
            );
        }
        assert_eq!(random_class(7, 0), 0);
    }

    #[test]
    fn a_draw_inverts_the_running_sum_in_index_order() {
        let logits = log(&[0.1, 0.4, 0.3, 0.2]);
        let mut s = sampler(1.0, 0, 1.0);
        for (u, want, margin) in [
            (0.0, 0, 0.0),
            (0.09, 0, 0.01),
            (0.11, 1, 0.01),
            (0.35, 1, 0.15),
            (0.79, 2, 0.01),
            (0.95, 3, 0.05),
        ] {
            let draw = s.draw(&logits, u).unwrap();
            assert_eq!(draw.token, want, "u = {u}");
            assert!((draw.margin - margin).abs() < 1e-6, "u = {u}: {}", draw.margin);
        }
        assert_eq!(token(&mut s, &logits, 1.0 - f64::EPSILON / 2.0), 3);
    }

    #[test]
    fn temperature_divides_in_f32() {
        // p ∝ (0.1, 0.4, 0.5)², total 0.42.
        let logits = log(&[0.1, 0.4, 0.5]);
        let mut s = sampler(0.5, 0, 1.0);
        assert_eq!(token(&mut s, &logits, 0.01 / 0.42 - 1e-5), 0);
        assert_eq!(token(&mut s, &logits, 0.01 / 0.42 + 1e-5), 1);
        assert_eq!(token(&mut s, &logits, 0.17 / 0.42 + 1e-5), 2);
    }

    #[test]
    fn top_k_keeps_ties_with_the_kth() {
        let logits = [1.0, 3.0, 2.0, 2.0, 0.0];
        let mut s = sampler(1.0, 2, 1.0);
        let drawn: Vec<u32> = (0..1000).map(|i| token(&mut s, &logits, f64::from(i) / 1000.0)).collect();
        for t in [1, 2, 3] {
            assert!(drawn.contains(&t), "token {t} is among the top 2 or tied with them");
        }
        assert!(!drawn.contains(&0) && !drawn.contains(&4));
        assert_eq!(token(&mut sampler(1.0, 1, 1.0), &logits, 0.999), 1);
        assert_eq!(token(&mut sampler(1.0, 99, 1.0), &logits, 0.999_999), 4, "k above V is off");
    }

    #[test]
    fn top_p_keeps_the_token_that_crosses() {
        let logits = log(&[0.1, 0.4, 0.3, 0.2]);
        // 0.4 + 0.3 exceeds 0.6: tokens 1 and 2 stay, with 4/7 and 3/7.
        let mut s = sampler(1.0, 0, 0.6);
        assert_eq!(token(&mut s, &logits, 0.0), 1);
        assert_eq!(token(&mut s, &logits, 4.0 / 7.0 + 1e-6), 2);
        assert_eq!(token(&mut s, &logits, 0.999_999), 2);
        let draw = s.draw(&logits, 0.5).unwrap();
        assert!((f64::from(draw.margin) - (4.0 / 7.0 - 0.5)).abs() < 1e-6, "normalised over the kept tokens");
        // Ties are taken by index; probabilities are those over what top-k kept (1/2, 1/2 of 4/7, 3/7).
        assert_eq!(token(&mut sampler(1.0, 0, 0.3), &[0.0, 0.0], 0.999), 0);
        assert_eq!(token(&mut sampler(1.0, 2, 0.55), &logits, 0.999), 1);
    }

    #[test]
    fn greedy_takes_the_lowest_index_on_ties_and_measures_the_gap() {
        let mut s = Sampler::new(SamplerOptions { greedy: true, ..Default::default() }).unwrap();
        assert_eq!(s.draw(&[1.0, 4.0, 4.0], f64::NAN).unwrap(), Draw { token: 1, margin: 0.0 });
        assert_eq!(s.draw(&[1.0, 4.0, 2.5], 0.0).unwrap(), Draw { token: 1, margin: 1.5 });
        assert_eq!(s.draw(&[7.0], 0.0).unwrap(), Draw { token: 0, margin: f32::INFINITY });
    }

    #[test]
    fn bad_logits_and_options_are_errors() {
        const NEG: f32 = f32::NEG_INFINITY;
        for greedy in [false, true] {
            let mut s = Sampler::new(SamplerOptions { greedy, ..Default::default() }).unwrap();
            assert_eq!(s.draw(&[0.0, f32::NAN], 0.5), Err(SampleError::Nan(1)));
            assert_eq!(s.draw(&[NEG, NEG], 0.5), Err(SampleError::NothingLeft));
            assert_eq!(s.draw(&[0.0, f32::INFINITY], 0.5), Err(SampleError::Infinite(1)));
            assert_eq!(s.draw(&[], 0.5), Err(SampleError::Empty));
            assert_eq!(s.draw(&[NEG, 0.0, NEG], 0.0).unwrap().token, 1);
        }
        assert_eq!(sampler(1e-4, 0, 1.0).draw(&[0.0, 3e38], 0.5), Err(SampleError::Infinite(1)));
        assert_eq!(sampler(1.0, 0, 1.0).draw(&[0.0], 1.0), Err(SampleError::Uniform(1.0)));
        for temperature in [-1.0, f32::NAN, f32::INFINITY] {
            assert!(SamplerOptions { temperature, ..Default::default() }.validate().is_err());
        }
        for top_p in [-0.5, f64::NAN, f64::INFINITY] {
            assert!(SamplerOptions { top_p, ..Default::default() }.validate().is_err());
        }
    }

    #[test]
    fn the_ends_of_the_ranges_are_those_of_the_research_code() {
        let logits = log(&[0.2, 0.5, 0.3]);
        // top-p 0 keeps one token, whatever is drawn; 1 and more keep all.
        for u in [0.0, 0.5, 0.999] {
            assert_eq!(token(&mut sampler(1.0, 0, 0.0), &logits, u), 1);
            assert_eq!(
                sampler(1.0, 0, 1.5).draw(&logits, u).unwrap(),
                sampler(1.0, 0, 1.0).draw(&logits, u).unwrap()
            );
        }
        // No temperature is below 1e-5: there 2e-5 of a logit is worth e².
        let near = [0.0, 2e-5];
        for temperature in [0.0, 1e-7, 1e-5] {
            let draw = sampler(temperature, 0, 1.0).draw(&near, 0.12).unwrap();
            let margin = 0.12 - 1.0 / (1.0 + f32::exp(2.0));
            assert!(draw.token == 1 && (draw.margin - margin).abs() < 1e-6, "{temperature}: {draw:?}");
        }
        let gumbel = SamplerOptions { temperature: 0.0, ..SamplerOptions::default() };
        assert_eq!(Sampler::new(gumbel).unwrap().draw_at(&logits, 1, 2).unwrap().token, 1);
    }

    #[test]
    fn guidance_is_u_plus_s_times_the_difference() {
        let mut out = [0.0; 2];
        guide(&[1.0, -2.0], &[0.5, 4.0], 2.0, &mut out);
        assert_eq!(out, [1.5, -8.0]);
    }

    fn logits() -> impl Strategy<Value = Vec<f32>> {
        // Quarter steps make ties common.
        prop::collection::vec((-40_i32..40).prop_map(|x| x as f32 / 4.0), 1..40)
    }

    /// What the spec keeps, by the definition.
    fn kept(logits: &[f32], k: usize, p: f64) -> Vec<usize> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
        if k > 0 && k < order.len() {
            let kth = logits[order[k - 1]];
            order.retain(|&i| logits[i] >= kth);
        }
        if p < 1.0 {
            let weight = |i: usize| f64::from(logits[i]).exp();
            let total: f64 = order.iter().map(|&i| weight(i)).sum();
            let mut sum = 0.0;
            // A crossing within rounding of p may fall on either side: one more is allowed.
            let n = order.iter().take_while(|&&i| {
                sum += weight(i) / total;
                sum <= p + 1e-9
            });
            let n = n.count() + 1;
            order.truncate(n);
        }
        order
    }

    proptest! {
        #[test]
        fn a_draw_is_always_kept(l in logits(), k in 0_usize..12, p in 0.05_f64..1.2, u in 0.0_f64..1.0) {
            let p = p.min(1.0);
            let draw = sampler(1.0, k, p).draw(&l, u).unwrap();
            prop_assert!(kept(&l, k, p).contains(&(draw.token as usize)));
            prop_assert!(draw.margin >= -1e-7 && draw.margin <= 0.5);
        }

        #[test]
        fn tokens_grow_with_u(l in logits(), k in 0_usize..12, a in 0.0_f64..1.0, b in 0.0_f64..1.0) {
            let mut s = sampler(1.0, k, 1.0);
            let first = s.draw(&l, a.min(b)).unwrap().token;
            prop_assert!(first <= s.draw(&l, a.max(b)).unwrap().token);
        }

        #[test]
        fn zero_gives_the_first_token_with_any_probability(l in logits(), gone in 0_usize..39) {
            let gone = gone.min(l.len() - 1);
            let mut l = l;
            l[..gone].fill(f32::NEG_INFINITY);
            prop_assert_eq!(sampler(1.0, 0, 1.0).draw(&l, 0.0).unwrap().token as usize, gone);
        }

        #[test]
        fn a_constant_added_changes_nothing_away_from_near_ties(l in logits(), c in -8_i32..8, u in 0.0_f64..1.0) {
            let moved: Vec<f32> = l.iter().map(|x| x + c as f32).collect();
            let mut s = sampler(1.0, 0, 1.0);
            let (a, b) = (s.draw(&l, u).unwrap(), s.draw(&moved, u).unwrap());
            prop_assert!(a.token == b.token || a.margin < 1e-6);
        }

        #[test]
        fn any_bits_are_drawn_or_refused(bits in prop::collection::vec(any::<u32>(), 0..20), k in 0_usize..4,
                                         p in 0.01_f64..1.0, t in 1e-3_f32..1e3, u in 0.0_f64..1.0) {
            let l: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            if let Ok(draw) = sampler(t, k, p).draw(&l, u) {
                prop_assert!((draw.token as usize) < l.len());
            }
        }
    }
}
