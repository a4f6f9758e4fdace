//! `numpy.random.RandomState`, as far as torch-fidelity's protocol needs it.

use crate::MetricError;

const N: usize = 624;
const M: usize = 397;

/// The Mersenne Twister MT19937 (M. Matsumoto, T. Nishimura, 1998) seeded as
/// `numpy.random.RandomState(seed)`, with numpy's legacy (frozen) shuffle. It exists to select the very
/// images that torch-fidelity selects.
#[derive(Debug, Clone)]
pub struct NumpyRandom {
    state: [u32; N],
    next: usize,
}

impl NumpyRandom {
    /// # Errors
    /// [`MetricError::Parameter`] for a seed above 2³² − 1, which numpy refuses too.
    pub fn new(seed: u64) -> Result<Self, MetricError> {
        let seed = u32::try_from(seed)
            .map_err(|_| MetricError::Parameter { what: "seed of RandomState", rule: "below 2^32" })?;
        let mut state = [0; N];
        let mut word = seed;
        for (i, slot) in state.iter_mut().enumerate() {
            if i > 0 {
                word = 1_812_433_253u32.wrapping_mul(word ^ (word >> 30)).wrapping_add(i as u32);
            }
            *slot = word;
        }
        Ok(Self { state, next: N })
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.next == N {
            for i in 0..N {
                let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % N] & 0x7fff_ffff);
                let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                self.state[i] = self.state[(i + M) % N] ^ (y >> 1) ^ twist;
            }
            self.next = 0;
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Uniform in `0..=max`, by rejection under the smallest mask.
    fn up_to(&mut self, max: u64) -> u64 {
        if max == 0 {
            return 0;
        }
        let mask = u64::MAX >> max.leading_zeros();
        loop {
            let word = match u32::try_from(max) {
                Ok(_) => u64::from(self.next_u32()),
                Err(_) => (u64::from(self.next_u32()) << 32) | u64::from(self.next_u32()),
            };
            if word & mask <= max {
                return word & mask;
            }
        }
    }

    /// `RandomState.permutation(n)`; its first k are `RandomState.choice(n, k, replace=False)`.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.up_to(i as u64) as usize);
        }
        order
    }
}
