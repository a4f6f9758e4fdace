//! Images to the extractor's input: resize and normalisation, in our own code because resize kernels
//! elsewhere round differently.

use crate::{Compute, MetricError};

/// Side of the FID-Inception input, pixels.
pub const INCEPTION_SIZE: usize = 299;

/// How an image is resized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resize {
    /// `ResizeBilinear` of TF 1: align_corners false, no half-pixel shift, no antialias; s = i·f32(in/out), a
    /// + (b − a)·t, x first, then y, all f32. Values 0..255; normalised (x − 128)·0.0078125.
    #[default]
    Tf1Bilinear,
    /// pytorch-fid: half-pixel bilinear without antialias on x/255 in f32, s = max((i + ½)·in/out − ½, 0), as
    /// `torch.nn.functional.interpolate(align_corners=False)`. Values 0..1; normalised 2x − 1.
    HalfPixelBilinear,
    /// clean-fid: Pillow's bicubic (a = −½) of each channel as a float image, antialiased only when
    /// shrinking, x first; sums in f64, each pass stored in f32; clipped to 0..255; normalised (x − 128)/128.
    PilBicubic,
}

impl Resize {
    /// Its name in reports and fingerprints.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tf1Bilinear => "tf1-bilinear",
            Self::HalfPixelBilinear => "half-pixel-bilinear",
            Self::PilBicubic => "pil-bicubic",
        }
    }

    /// The normalisation that follows the resize, to about −1..1.
    pub fn normalise(self, v: f32) -> f32 {
        match self {
            Self::Tf1Bilinear => (v - 128.0) * 0.007_812_5,
            Self::HalfPixelBilinear => 2.0 * v - 1.0,
            Self::PilBicubic => (v - 128.0) / 128.0,
        }
    }
}

/// Source positions and weights of one output position.
#[derive(Debug, Clone, Copy)]
struct Taps {
    low: usize,
    high: usize,
    t: f32,
}

#[derive(Debug, Clone)]
enum Axis {
    Pairs(Vec<Taps>),
    /// First source position and weights.
    Windows(Vec<(usize, Vec<f64>)>),
}

impl Axis {
    fn new(kind: Resize, input: usize, output: usize) -> Self {
        let scale = input as f32 / output as f32;
        let pair = |s: f32| {
            let low = (s.floor() as usize).min(input - 1);
            Taps { low, high: (low + 1).min(input - 1), t: s - low as f32 }
        };
        match kind {
            Resize::Tf1Bilinear => Self::Pairs((0..output).map(|i| pair(i as f32 * scale)).collect()),
            Resize::HalfPixelBilinear => {
                Self::Pairs((0..output).map(|i| pair((scale * (i as f32 + 0.5) - 0.5).max(0.0))).collect())
            }
            Resize::PilBicubic => Self::Windows(windows(input, output)),
        }
    }
}

/// Keys' cubic convolution kernel with a = −½ (R. G. Keys, 1981), as Pillow evaluates it.
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Weights of each output position: the kernel about the centre (i + ½)·in/out, stretched when shrinking, cut
/// off at the border and normalised to 1.
fn windows(input: usize, output: usize) -> Vec<(usize, Vec<f64>)> {
    let scale = input as f64 / output as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    let inverse = 1.0 / stretch;
    let window = |i: usize| {
        let centre = (i as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let last = ((centre + support + 0.5) as usize).min(input);
        let mut weights: Vec<f64> = (0..last.saturating_sub(first))
            .map(|x| cubic(((x + first) as f64 - centre + 0.5) * inverse))
            .collect();
        let sum: f64 = weights.iter().sum();
        if sum != 0.0 {
            weights.iter_mut().for_each(|w| *w /= sum);
        }
        (first, weights)
    };
    (0..output).map(window).collect()
}

/// Resizes RGB images of one size; tables are computed once.
#[derive(Debug, Clone)]
pub struct Resizer {
    kind: Resize,
    input: (usize, usize),
    output: (usize, usize),
    x: Axis,
    y: Axis,
}

const CHANNELS: usize = 3;

impl Resizer {
    /// From `input` to `output`, each (height, width) in pixels; any image size is allowed.
    ///
    /// # Errors
    /// [`MetricError::Parameter`] for a side of 0 or above 2²⁰.
    pub fn new(kind: Resize, input: (usize, usize), output: (usize, usize)) -> Result<Self, MetricError> {
        let good = |v: usize| (1..=1 << 20).contains(&v);
        if ![input.0, input.1, output.0, output.1].into_iter().all(good) {
            return Err(MetricError::Parameter { what: "image side", rule: "1 to 1048576 pixels" });
        }
        let (x, y) = (Axis::new(kind, input.1, output.1), Axis::new(kind, input.0, output.0));
        Ok(Self { kind, input, output, x, y })
    }

    /// To the 299 × 299 input of FID-Inception.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn inception(kind: Resize, input: (usize, usize)) -> Result<Self, MetricError> {
        Self::new(kind, input, (INCEPTION_SIZE, INCEPTION_SIZE))
    }

    /// The kind of resize.
    pub fn kind(&self) -> Resize {
        self.kind
    }

    /// Bytes of an input image.
    pub fn input_len(&self) -> usize {
        self.input.0 * self.input.1 * CHANNELS
    }

    /// Values of an output image.
    pub fn output_len(&self) -> usize {
        self.output.0 * self.output.1 * CHANNELS
    }

    /// One image u8 [H, W, 3] resized to f32 [h, w, 3], in the units of its [`Resize`], not normalised.
    ///
    /// # Errors
    /// [`MetricError::Shape`] unless `image` has H·W·3 bytes.
    pub fn resize(&self, image: &[u8]) -> Result<Vec<f32>, MetricError> {
        if image.len() != self.input_len() {
            return Err(MetricError::Shape { what: "image", len: image.len(), width: self.input_len() });
        }
        let mut out = vec![0.0; self.output_len()];
        self.resize_into(image, &mut out);
        Ok(out)
    }

    /// Images u8 [N, H, W, 3] resized and normalised to f32 [N, 3, h, w], in parallel over images. Memory:
    /// one image of f32 and its rows for each thread.
    ///
    /// # Errors
    /// [`MetricError::Shape`] unless `images` are whole images and `out` holds as many.
    pub fn run(&self, images: &[u8], out: &mut [f32], compute: &Compute) -> Result<(), MetricError> {
        let (from, to) = (self.input_len(), self.output_len());
        if !images.len().is_multiple_of(from) {
            return Err(MetricError::Shape { what: "images", len: images.len(), width: from });
        }
        if out.len() != images.len() / from * to {
            return Err(MetricError::Shape { what: "resized images", len: out.len(), width: to });
        }
        compute.chunks_mut(out, to, |i, out| {
            let mut pixels = vec![0.0; to];
            self.resize_into(&images[i * from..(i + 1) * from], &mut pixels);
            for (c, plane) in out.chunks_exact_mut(to / CHANNELS).enumerate() {
                for (v, pixel) in plane.iter_mut().zip(pixels.as_chunks::<CHANNELS>().0) {
                    *v = self.kind.normalise(pixel[c]);
                }
            }
        });
        Ok(())
    }

    fn resize_into(&self, image: &[u8], out: &mut [f32]) {
        let source = self.input.1 * CHANNELS;
        let width = self.output.1 * CHANNELS;
        let unit = |v: u8| match self.kind {
            Resize::HalfPixelBilinear => f32::from(v) / 255.0,
            _ => f32::from(v),
        };
        // x pass: every source row once.
        let mut rows = vec![0.0f32; self.input.0 * width];
        let mut line = vec![0.0f32; source];
        for (bytes, row) in image.chunks_exact(source).zip(rows.chunks_exact_mut(width)) {
            line.iter_mut().zip(bytes).for_each(|(l, &b)| *l = unit(b));
            self.across(&line, row);
        }
        // y pass.
        match &self.y {
            Axis::Pairs(pairs) => {
                for (pair, out) in pairs.iter().zip(out.chunks_exact_mut(width)) {
                    let top = &rows[pair.low * width..(pair.low + 1) * width];
                    let bottom = &rows[pair.high * width..(pair.high + 1) * width];
                    for ((o, a), b) in out.iter_mut().zip(top).zip(bottom) {
                        *o = mix(self.kind, *a, *b, pair.t);
                    }
                }
            }
            Axis::Windows(windows) => {
                let mut sums = vec![0.0f64; width];
                for ((first, weights), out) in windows.iter().zip(out.chunks_exact_mut(width)) {
                    sums.fill(0.0);
                    for (row, weight) in rows[first * width..].chunks_exact(width).zip(weights) {
                        sums.iter_mut().zip(row).for_each(|(s, v)| *s += f64::from(*v) * weight);
                    }
                    out.iter_mut().zip(&sums).for_each(|(o, s)| *o = (*s as f32).clamp(0.0, 255.0));
                }
            }
        }
    }

    fn across(&self, line: &[f32], row: &mut [f32]) {
        let pixels = line.as_chunks::<CHANNELS>().0;
        let row = row.as_chunks_mut::<CHANNELS>().0;
        match &self.x {
            Axis::Pairs(pairs) => {
                for (pair, out) in pairs.iter().zip(row) {
                    let (a, b) = (pixels[pair.low], pixels[pair.high]);
                    for c in 0..CHANNELS {
                        out[c] = mix(self.kind, a[c], b[c], pair.t);
                    }
                }
            }
            Axis::Windows(windows) => {
                for ((first, weights), out) in windows.iter().zip(row) {
                    let mut sums = [0.0f64; CHANNELS];
                    for (pixel, weight) in pixels[*first..].iter().zip(weights) {
                        for c in 0..CHANNELS {
                            sums[c] += f64::from(pixel[c]) * weight;
                        }
                    }
                    *out = sums.map(|s| s as f32);
                }
            }
        }
    }
}

/// Each tool's own way of rounding the same interpolation.
#[inline(always)]
fn mix(kind: Resize, a: f32, b: f32, t: f32) -> f32 {
    match kind {
        Resize::HalfPixelBilinear => (1.0 - t) * a + t * b,
        _ => a + (b - a) * t,
    }
}
