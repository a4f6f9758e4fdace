//! The synthetic activations of `fixtures/metrics/synthetic_activations.py`, bit for bit: integers only.

use std::thread;

const G: u64 = 0x9E37_79B9_7F4A_7C15;

fn sm64(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Word `i` of a stream.
pub(crate) fn word(seed: u64, stream: u64, i: usize) -> u64 {
    let key = sm64(seed.wrapping_add(G.wrapping_mul(stream + 1)));
    sm64(key.wrapping_add(G.wrapping_mul(i as u64 + 1)))
}

fn tri(w: u64, bits: u32) -> i64 {
    let m = (1u64 << bits) - 1;
    (w & m) as i64 - ((w >> bits) & m) as i64
}

/// `softmax_w(seed)`: [2048, 1008].
pub(crate) fn softmax_w(seed: u64) -> Vec<f32> {
    (0..2048 * 1008).map(|i| tri(word(seed, 8, i), 10) as f32 / 2048.0).collect()
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Spec {
    pub(crate) n: usize,
    pub(crate) d: usize,
    pub(crate) model_seed: u64,
    pub(crate) seed: u64,
    pub(crate) k: usize,
    pub(crate) r: usize,
    pub(crate) noise_bits: u32,
    pub(crate) far: Option<(u32, u64)>,
    pub(crate) lbits: u32,
    pub(crate) sh: u32,
    pub(crate) relu: bool,
}

impl Spec {
    pub(crate) fn new(n: usize, seed: u64) -> Self {
        Self {
            n,
            d: 2048,
            model_seed: 1,
            seed,
            k: 10,
            r: 256,
            noise_bits: 9,
            far: None,
            lbits: 8,
            sh: 5,
            relu: true,
        }
    }

    /// [n, d].
    pub(crate) fn activations(self) -> Vec<f32> {
        let (d, m, s) = (self.d, self.model_seed, self.seed);
        let base: Vec<i64> = (0..d)
            .map(|j| {
                tri(word(m, 2, j), 10) + 900 + self.far.map_or(0, |(bits, seed)| tri(word(seed, 6, j), bits))
            })
            .collect();
        let mean: Vec<i64> = (0..self.k * d).map(|i| tri(word(m, 0, i), 10)).collect();
        // Sums stay below r·63·4080 < 2^31: exact in i32.
        let loadings: Vec<i32> = (0..self.r * d)
            .map(|i| (tri(word(m, 1, i), self.lbits) * (128 / (8 + (i / d) as i64)).max(1)) as i32)
            .collect();
        let mut out = vec![0.0f32; self.n * d];
        let size = self.n.div_ceil(8).max(1);
        thread::scope(|scope| {
            for (c, chunk) in out.chunks_mut(size * d).enumerate() {
                let (base, mean, loadings) = (&base, &mean, &loadings);
                scope.spawn(move || {
                    let mut sums = vec![0i32; d];
                    for (i, row) in chunk.chunks_mut(d).enumerate() {
                        let i = c * size + i;
                        sums.fill(0);
                        for q in 0..self.r {
                            let z = tri(word(s, 4, i * self.r + q), 6) as i32;
                            let line = &loadings[q * d..(q + 1) * d];
                            sums.iter_mut().zip(line).for_each(|(a, l)| *a += z * l);
                        }
                        let cluster = (word(s, 3, i) % self.k as u64) as usize;
                        for (j, v) in row.iter_mut().enumerate() {
                            let mut a = (i64::from(sums[j]) >> self.sh) + base[j] + mean[cluster * d + j];
                            if self.noise_bits > 0 {
                                a += tri(word(s, 5, i * d + j), self.noise_bits);
                            }
                            if self.relu {
                                a = a.max(0);
                            }
                            *v = a as f32 / 8192.0;
                        }
                    }
                });
            }
        });
        out
    }
}

/// The set `name` of `expected.json`.
pub(crate) fn named(name: &str) -> Spec {
    match name {
        "A" => Spec::new(2000, 11),
        "T" => Spec::new(500, 15),
        "B1" => Spec::new(6000, 16),
        "B2" => Spec { far: Some((7, 98)), ..Spec::new(5000, 17) },
        "IS" => Spec { k: 100, ..Spec::new(12000, 20) },
        "P1" => Spec::new(3000, 21),
        "P2" => Spec { far: Some((8, 96)), ..Spec::new(5000, 22) },
        "LR" => {
            Spec { model_seed: 3, r: 64, lbits: 3, sh: 0, relu: false, noise_bits: 0, ..Spec::new(2000, 14) }
        }
        _ => panic!("no set {name}"),
    }
}
