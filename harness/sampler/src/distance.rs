//! How far logits are from drawing a token that they do not draw: what a comparison of two sources judges by. Which tokens
//! are candidates is part of the draw: at the edge of top-k or top-p rounding moves it like any other decision.

use crate::{Method, SampleError, Sampler, SamplerOptions, check, gumbel, slot_key, uniform};

/// A change of all logits that moves no two of them by more than g against each other moves a running sum by g / 4 at most.
const SUM_PER_GAP: f64 = 0.25;

impl SamplerOptions {
    /// How far a source with these logits is from drawing `token` at the slot of an image with that key; 0 where it does, ∞ where
    /// no rounding could make it.
    ///
    /// Greedy, the gap of two logits. With noise, the gap of two logits over the temperature that has to close: that of the sums,
    /// or, where it is less, that which takes the larger one's token out of the candidates, and that which brings `token` in.
    /// By the running sum, the probability between the slot's random number and the token's interval, with the candidates that
    /// as much rounding could leave.
    ///
    /// # Errors
    /// When nothing can be drawn from the logits.
    pub fn distance(&self, logits: &[f32], token: u32, (key, slot): (u64, u64)) -> Result<f64, SampleError> {
        check(logits)?;
        let token = token as usize;
        if token >= logits.len() {
            return Ok(f64::INFINITY);
        }
        if self.greedy {
            let best = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            return Ok(f64::from(best) - f64::from(logits[token]));
        }
        let candidates = Candidates::new(self, logits)?;
        Ok(match self.method {
            Method::Cdf => candidates.to_interval(token, uniform(key, slot)),
            Method::Gumbel => {
                let slot_key = slot_key(key, slot);
                candidates.to_largest(token, |v| {
                    f64::from(candidates.scaled[v]) + gumbel::noise(slot_key, v as u64)
                })
            }
        })
    }

    /// Whether some tokens may be no candidates.
    pub fn filters(&self) -> bool {
        !self.greedy && (self.top_k > 0 || self.top_p < 1.0)
    }
}

/// The tokens in their order, those that are kept first.
struct Candidates {
    /// Logits over the temperature, by token.
    scaled: Vec<f32>,
    /// Tokens in descending order of logit, ties by index.
    order: Vec<usize>,
    /// Place of each token in it.
    rank: Vec<usize>,
    /// How many are kept, and how many of top-k alone.
    kept: usize,
    of_top_k: usize,
    /// The least that top-k keeps; all, where it is off.
    top_k: usize,
    top_p: f64,
    /// By place, the probability of all before it, of what top-k keeps; one more than places.
    before: Vec<f64>,
}

impl Candidates {
    fn new(options: &SamplerOptions, logits: &[f32]) -> Result<Self, SampleError> {
        let mut sampler = Sampler::new(*options)?;
        let max = sampler.keep(logits)?;
        let of_top_k = sampler.kept();
        sampler.weigh(max);
        if options.top_p < 1.0 {
            sampler.keep_top_p();
        }
        let kept = sampler.kept();
        let scaled: Vec<f32> = logits.iter().map(|x| x / options.divisor()).collect();
        let mut order: Vec<usize> = (0..scaled.len()).collect();
        order.sort_unstable_by(|a, b| scaled[*b].total_cmp(&scaled[*a]).then(a.cmp(b)));
        let mut rank = vec![0; order.len()];
        order.iter().enumerate().for_each(|(place, token)| rank[*token] = place);
        let weight = |place: usize| (f64::from(scaled[order[place]]) - f64::from(max)).exp();
        let total: f64 = (0..of_top_k).map(weight).sum();
        let mut before = vec![0.0];
        before.extend((0..order.len()).scan(0.0, |sum, place| {
            *sum += weight(place) / total;
            Some(*sum)
        }));
        let top_k = if options.top_k == 0 { order.len() } else { options.top_k.min(order.len()) };
        Ok(Self { scaled, order, rank, kept, of_top_k, top_k, top_p: options.top_p, before })
    }

    fn at(&self, place: usize) -> f64 {
        f64::from(self.scaled[self.order[place]])
    }

    /// The gap that has to close for the token at a place to be kept.
    fn to_come_in(&self, place: usize) -> f64 {
        if place < self.kept {
            return 0.0;
        }
        let own = self.at(place);
        if own == f64::NEG_INFINITY {
            return f64::INFINITY;
        }
        let by_k = (self.at(self.top_k - 1) - own).max(0.0);
        if self.top_p >= 1.0 {
            return by_k;
        }
        // With the tokens before the `above`-th one left above it, whose probability may fall too.
        let least = (0..=place.min(self.top_k)).map(|above| {
            let passed = if above == place { 0.0 } else { self.at(above) - own };
            passed.max(odds(self.before[above]) - odds(self.top_p))
        });
        by_k.max(least.fold(f64::INFINITY, f64::min)).max(0.0)
    }

    /// The gap that has to close for the token at a place to be no longer kept.
    fn to_go_out(&self, place: usize) -> f64 {
        if place >= self.kept {
            return 0.0;
        }
        let own = self.at(place);
        let by_k = if self.top_k < self.order.len() { own - self.at(self.top_k) } else { f64::INFINITY };
        if self.top_p >= 1.0 {
            return by_k.max(0.0);
        }
        // With the tokens up to the `last`-th one above it, whose probability may rise too.
        let weight = self.before[place + 1] - self.before[place];
        let least = (place..self.of_top_k).filter_map(|last| {
            let above = self.before[last + 1] - weight;
            (above > 0.0).then(|| (own - self.at(last)).max(odds(self.top_p) - odds(above)))
        });
        by_k.min(least.fold(f64::INFINITY, f64::min)).max(0.0)
    }

    /// What keeps `token` from having the largest sum of all that are kept: each that has a larger one, unless it goes out.
    fn to_largest(&self, token: usize, sum: impl Fn(usize) -> f64) -> f64 {
        let own = sum(token);
        let mut larger: Vec<(f64, usize)> = (0..self.kept)
            .map(|place| (sum(self.order[place]) - own, place))
            .filter(|(gap, _)| *gap > 0.0)
            .collect();
        larger.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        let mut most = self.to_come_in(self.rank[token]);
        for (gap, place) in larger {
            if gap <= most {
                break;
            }
            most = most.max(gap.min(self.to_go_out(place)));
        }
        most
    }

    /// How far `u` is from the interval of `token`, or how far the candidates are from being those with which it is as near:
    /// the doubtful ones grow from the edge, the nearest first.
    fn to_interval(&self, token: usize, u: f64) -> f64 {
        let (mut first, mut end) = (self.kept, self.kept);
        let (mut gap, mut least) = (0.0_f64, 1.0_f64);
        loop {
            if self.rank[token] < end {
                least = least.min(self.outside(token, u, first, end).max(gap * SUM_PER_GAP));
            }
            let out = first.checked_sub(1).map_or(f64::INFINITY, |place| self.to_go_out(place));
            let come = if end < self.order.len() { self.to_come_in(end) } else { f64::INFINITY };
            gap = gap.max(out.min(come));
            if gap * SUM_PER_GAP >= least || gap == f64::INFINITY {
                return least;
            }
            if out <= come { first -= 1 } else { end += 1 }
        }
    }

    /// How far `u` is from every interval that `token` can have, with all before place `first` kept, and of those from there to
    /// `end` as many as top-k keeps, or more.
    fn outside(&self, token: usize, u: f64, first: usize, end: usize) -> f64 {
        let weight = |place: usize| self.before[place + 1] - self.before[place];
        let side = |places: std::ops::Range<usize>| {
            let (mut below, mut above) = (Vec::new(), Vec::new());
            for place in places.filter(|place| self.order[*place] != token) {
                if self.order[place] < token { below.push(weight(place)) } else { above.push(weight(place)) }
            }
            (below, above)
        };
        let sum = |weights: &[f64]| weights.iter().sum::<f64>();
        let (sure_below, sure_above) = side(0..first);
        let (below, above) = side(first..end);
        // top-p has no least number; the token itself is one of them.
        let least = if self.top_p < 1.0 { 0 } else { self.top_k.min(self.kept) };
        let needed = least.saturating_sub(first + usize::from(self.rank[token] >= first));
        // The lightest come last.
        let lightest = |of: &[f64], n: usize| sum(&of[of.len() - n.min(of.len())..]);
        let share = |part: f64, rest: f64| if part > 0.0 { part / (part + rest) } else { 0.0 };
        let own = weight(self.rank[token]);
        let begin = share(
            sum(&sure_below) + lightest(&below, needed.saturating_sub(above.len())),
            own + sum(&sure_above) + sum(&above),
        );
        let close = share(
            sum(&sure_below) + sum(&below) + own,
            sum(&sure_above) + lightest(&above, needed.saturating_sub(below.len())),
        );
        (begin - u).max(u - close).max(0.0)
    }
}

/// ln(p / (1 − p)): a gap of two logits, the one's token with all of the probability p and the other's with the rest.
fn odds(p: f64) -> f64 {
    if p >= 1.0 { f64::INFINITY } else { (p / (1.0 - p)).ln() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cdf() -> SamplerOptions {
        SamplerOptions { method: Method::Cdf, ..SamplerOptions::default() }
    }

    /// A slot whose random number is near `u`, and the number.
    fn slot_near(u: f64) -> ((u64, u64), f64) {
        let near = |a: &u64, b: &u64| (uniform(5, *a) - u).abs().total_cmp(&(uniform(5, *b) - u).abs());
        let slot = (0..200_000).min_by(near).unwrap();
        ((5, slot), uniform(5, slot))
    }

    /// A slot with noise that makes up for what logits of these tokens lack: `winner` has the largest sum by far.
    fn slot_for(winner: u64, n: u64) -> (u64, u64) {
        let noise = |slot: u64, v: u64| gumbel::noise(slot_key(5, slot), v);
        let slot =
            (0..100_000).find(|s| (0..n).all(|v| v == winner || noise(*s, winner) > noise(*s, v) + 4.0));
        (5, slot.unwrap())
    }

    #[test]
    fn without_an_edge_it_is_the_gap_of_two_sums_or_the_way_to_an_interval() {
        // Thirds: u lies just below the boundary of 0 and 1.
        let even = [0.0; 3];
        let (place, u) = slot_near(1.0 / 3.0 - 1e-5);
        let away =
            |options: &SamplerOptions, logits: &[f32], token| options.distance(logits, token, place).unwrap();
        assert_eq!(away(&cdf(), &even, 0), 0.0);
        assert!((away(&cdf(), &even, 1) - (1.0 / 3.0 - u)).abs() < 1e-12);
        assert!((away(&cdf(), &even, 2) - (2.0 / 3.0 - u)).abs() < 1e-12);
        // Twice the temperature is half the gap of two logits, with the same noise.
        let noise = SamplerOptions::default();
        let warm = SamplerOptions { temperature: 2.0, ..noise };
        let place = slot_for(1, 3);
        let away =
            |options: &SamplerOptions, logit: f32| options.distance(&[logit, 0.0, 0.0], 0, place).unwrap();
        assert!((away(&warm, -6.0) - away(&warm, -2.0) - 2.0).abs() < 1e-12);
        assert_eq!(away(&warm, 0.0), away(&noise, 0.0));
        assert_eq!(noise.distance(&[0.0, 1.0, 0.0], 1, place).unwrap(), 0.0);
        let greedy = SamplerOptions { greedy: true, ..noise };
        assert_eq!(greedy.distance(&[1.0, 4.0, 2.5], 2, place).unwrap(), 1.5);
        assert!(noise.distance(&[0.0, f32::NAN], 0, place).is_err());
        for options in [noise, cdf()] {
            let away = |token| options.distance(&[0.0, f32::NEG_INFINITY], token, place).unwrap();
            assert!(away(1) > 0.5 && away(7) == f64::INFINITY, "{options:?}");
        }
    }

    #[test]
    fn a_draw_at_the_edge_of_top_k_is_as_near_as_the_edge() {
        let (place, keeps) = (slot_for(2, 4), SamplerOptions { top_k: 2, ..SamplerOptions::default() });
        let away = |logits: &[f32], token| keeps.distance(logits, token, place).unwrap();
        // The noise takes token 2 as soon as it is a candidate, and it nearly is.
        let nearly = [5.0, 2.0, 2.0 - 1e-3, -9.0];
        assert!(keeps.filters());
        assert_eq!(away(&nearly, 2), f64::from(2.0_f32 - (2.0 - 1e-3)));
        // The other way round: it is drawn, and another is when it goes out.
        let just = [5.0, 2.0 - 1e-3, 2.0, -9.0];
        assert_eq!(away(&just, 2), 0.0);
        assert!(away(&just, 0) < 1.1e-3);
        // Far from the edge nothing explains it; nor a token that would not win as a candidate.
        assert_eq!(away(&[5.0, 2.0, 1.0, -9.0], 2), 1.0);
        assert!(away(&[5.0, 2.0, 1.0, -9.0], 3) > 10.0);
        let loses = [19.0, 2.0, 2.0, 2.0 - 1e-3];
        assert!(away(&loses, 3) > 3.0);
    }

    #[test]
    fn a_draw_at_the_edge_of_top_p_is_as_near_as_the_mass() {
        let place = slot_for(2, 4);
        let keeps = |top_p| SamplerOptions { top_p, ..SamplerOptions::default() };
        let p: [f32; 4] = [0.6, 0.2, 0.15, 0.05];
        let logits = p.map(f32::ln);
        // 0.8 is the mass before token 2: with a bit less it is out, with a bit more in.
        let (less, more) = (keeps(0.799), keeps(0.801));
        let away = |options: &SamplerOptions, token| options.distance(&logits, token, place).unwrap();
        let gap = |p: f64| (odds(p) - odds(0.8)).abs();
        assert!((away(&less, 2) - gap(0.799)).abs() < 1e-5, "{}", away(&less, 2));
        assert_eq!(away(&more, 2), 0.0);
        let other = if away(&less, 0) == 0.0 { 0 } else { 1 };
        assert!((away(&more, other) - gap(0.801)).abs() < 1e-5, "{}", away(&more, other));
        // Far from it: 0.15 is missing, or two logits would have to change places.
        let far = away(&keeps(0.65), 2);
        assert!((far - f64::from(logits[1] - logits[2])).abs() < 1e-5, "{far}");
        // Equal logits change places whatever their mass.
        let tied = [0.6_f32, 0.2, 0.2 - 1e-5, 1e-5].map(f32::ln);
        let away = keeps(0.7).distance(&tied, 2, place).unwrap();
        assert!(away < 1e-4, "{away}");
        // One token is kept at 0: another only where they tie.
        assert!(
            (keeps(0.0).distance(&logits, 2, place).unwrap() - f64::from(logits[0] - logits[2])).abs() < 1e-6
        );
    }

    #[test]
    fn candidates_move_every_interval_of_a_running_sum() {
        let keeps = SamplerOptions { top_k: 2, ..cdf() };
        // Of 0.6 and 0.3, or of 0.6 and nearly that: what is kept decides where u lies.
        let p = [0.3_f32 - 1e-5, 0.6, 0.3, 1e-3];
        let logits = p.map(f32::ln);
        let (place, u) = slot_near(0.2);
        assert!((u - 0.2).abs() < 1e-4);
        let away = |logits: &[f32], token| keeps.distance(logits, token, place).unwrap();
        // Kept are 1 and 2: u is in 1. Were it 0 and 1, it would be in 0.
        assert_eq!(away(&logits, 1), 0.0);
        assert!(away(&logits, 0) < 1e-5 && away(&logits, 0) > 0.0, "{}", away(&logits, 0));
        // Far from the edge the same token is as far away as the edge, or its interval.
        let far = [0.1_f32, 0.6, 0.3, 1e-3].map(f32::ln);
        assert!((away(&far, 0) - 3.0_f64.ln() * SUM_PER_GAP).abs() < 1e-4, "{}", away(&far, 0));
        assert!(away(&far, 2) > 0.2, "{}", away(&far, 2));
        // One of the two that tie at the edge is kept, so that the last token never begins before 2 / 3.
        let tied = [0.3_f32, 0.3 - 1e-6, 0.6, 0.001].map(f32::ln);
        let (place, u) = slot_near(0.1);
        let away = keeps.distance(&tied, 2, place).unwrap();
        assert!((away - (1.0 / 3.0 - u)).abs() < 1e-4, "{away}");
        // The mass at p: with 0.8 of it token 2 is just out, and all of 1 is kept.
        let logits = [0.6_f32, 0.2, 0.15, 0.05].map(f32::ln);
        let (place, _) = slot_near(0.99);
        let away = |top_p| SamplerOptions { top_p, ..cdf() }.distance(&logits, 2, place).unwrap();
        assert!(
            away(0.7999) < 2e-4 && away(0.8001) == 0.0 && away(0.7) > 1e-2,
            "{} {}",
            away(0.7999),
            away(0.7)
        );
    }
}
