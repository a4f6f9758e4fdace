//! Seeded tensors, made when they are written.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};

use camino::Utf8Path;
use safetensors::{Dtype, View};

use super::spread::Spread;
use crate::weights::Expected;
use crate::{CheckpointError, ErrorKind};

/// Standard deviation of the weights, as they are initialised in training.
const DEVIATION: f32 = 0.02;
/// Of the embeddings of an entropy model with spread entropies: its last state is mostly the last token's own.
const SPREAD_EMBEDDING: f32 = 4.0;
/// Of the noise in its output weights.
const SPREAD_NOISE: f32 = 0.002;
/// What a uniform variable on [-1/2, 1/2] is multiplied with to have variance 1: √12.
const UNIFORM: f32 = 3.464_101_6;

/// The tensors of one file.
pub(super) struct Tensors {
    tensors: Vec<(String, Seeded)>,
}

/// One tensor.
struct Seeded {
    shape: Vec<usize>,
    seed: u64,
    kind: Fill,
}

/// What a tensor holds.
#[derive(Debug, Clone, Copy)]
enum Fill {
    /// The same number.
    Constant(f32),
    /// Uniform, with mean 0 and this standard deviation.
    Uniform(f32),
    /// Output weights `gain`·z_v·u and a little noise, z_v uniform over tokens, u a direction of signs.
    Output(f64),
}

impl Fill {
    fn of(tensor: &Expected) -> Self {
        match tensor.shape[..] {
            [_] if tensor.name.ends_with(".bias") => Self::Constant(0.0),
            [_] => Self::Constant(1.0),
            // Convolutions keep the scale of what they are given.
            [_, input, high, wide] => Self::Uniform(1.0 / ((input * high * wide) as f32).sqrt()),
            _ => Self::Uniform(DEVIATION),
        }
    }
}

impl Tensors {
    pub(super) fn new(table: Vec<Expected>, seed: u64) -> Self {
        let tensors = (1..).zip(table).map(|(i, tensor)| {
            let kind = Fill::of(&tensor);
            (tensor.name, Seeded { shape: tensor.shape, seed: seed.rotate_left(32).wrapping_add(i), kind })
        });
        Self { tensors: tensors.collect() }
    }

    /// Makes an entropy model whose entropies spread.
    pub(super) fn with_spread(mut self, spread: Spread) -> Self {
        for (name, tensor) in &mut self.tensors {
            match name.as_str() {
                "tok_embeddings.weight" => tensor.kind = Fill::Uniform(SPREAD_EMBEDDING),
                "output.weight" => tensor.kind = Fill::Output(spread.gain),
                _ => {}
            }
        }
        self
    }

    pub(super) fn parameters(&self) -> u64 {
        self.tensors.iter().map(|(_, t)| t.elements() as u64).sum()
    }

    /// Writes them; `progress` is asked before each whether to go on.
    pub(super) fn write(
        self,
        to: &Utf8Path,
        progress: &mut dyn FnMut() -> bool,
    ) -> Result<(), CheckpointError> {
        let io = |e| CheckpointError::io(to, e);
        // What writes it makes a temporary file of it, which is private: it gets the mode of any new file.
        let mode = fs_err::File::create(to).and_then(|f| f.metadata()).map_err(io)?.permissions();
        let (progress, stopped) = (RefCell::new(progress), Cell::new(false));
        let asked = |tensor| Asked { tensor, progress: &progress, stopped: &stopped };
        let views = self.tensors.iter().map(|(name, tensor)| (name, asked(tensor)));
        safetensors::serialize_to_file(views, None, to.as_std_path()).map_err(|e| match e {
            safetensors::SafeTensorError::IoError(e) => io(e),
            other => CheckpointError::in_file(ErrorKind::Synth(other.to_string()), to),
        })?;
        fs_err::set_permissions(to, mode).map_err(io)?;
        match stopped.get() {
            true => Err(ErrorKind::Interrupted.into()),
            false => Ok(()),
        }
    }
}

impl Seeded {
    fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    fn values(&self) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut uniform = || (random.f32() - 0.5) * UNIFORM;
        match self.kind {
            Fill::Constant(value) => vec![value; self.elements()],
            Fill::Uniform(deviation) => (0..self.elements()).map(|_| uniform() * deviation).collect(),
            Fill::Output(gain) => {
                let width = self.shape.last().copied().unwrap_or(1);
                let scale = gain as f32 / (width as f32).sqrt();
                let direction: Vec<f32> = (0..width).map(|_| scale.copysign(uniform())).collect();
                let mut values = Vec::with_capacity(self.elements());
                for _ in 0..self.elements() / width {
                    let z = uniform();
                    values.extend(direction.iter().map(|u| z * u + uniform() * SPREAD_NOISE));
                }
                values
            }
        }
    }
}

/// A tensor that is made when it is written, unless someone asked to stop: then it is empty, and the file worth nothing.
struct Asked<'a, 'p> {
    tensor: &'a Seeded,
    progress: &'a RefCell<&'p mut dyn FnMut() -> bool>,
    stopped: &'a Cell<bool>,
}

impl View for Asked<'_, '_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.tensor.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        if self.stopped.get() || !(self.progress.borrow_mut())() {
            self.stopped.set(true);
            return Cow::Borrowed(&[]);
        }
        self.tensor.values().into_iter().flat_map(f32::to_le_bytes).collect::<Vec<u8>>().into()
    }

    fn data_len(&self) -> usize {
        self.tensor.elements() * size_of::<f32>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seeded(shape: &[usize], seed: u64, kind: Fill) -> Vec<f32> {
        Seeded { shape: shape.to_vec(), seed, kind }.values()
    }

    fn deviation(values: &[f32]) -> f64 {
        let n = values.len() as f64;
        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
        (values.iter().map(|v| (f64::from(*v) - mean).powi(2)).sum::<f64>() / n).sqrt()
    }

    #[test]
    fn weights_are_seeded_and_have_the_scale_of_training() {
        let values = seeded(&[100, 100], 7, Fill::Uniform(DEVIATION));
        assert!((deviation(&values) - 0.02).abs() < 1e-3);
        assert_eq!(values, seeded(&[100, 100], 7, Fill::Uniform(DEVIATION)));
        assert_ne!(values[0], seeded(&[100, 100], 8, Fill::Uniform(DEVIATION))[0]);
        assert_eq!(seeded(&[3], 1, Fill::Constant(1.0)), [1.0; 3]);
    }

    #[test]
    fn output_weights_have_one_direction_and_their_gain() {
        let (rows, width) = (4096, 64);
        let values = seeded(&[rows, width], 3, Fill::Output(5.0));
        // Along its own first row, normalised, the table has the gain as its deviation over tokens.
        let first = &values[..width];
        let norm = first.iter().map(|v| v * v).sum::<f32>().sqrt();
        let along: Vec<f32> = values
            .chunks(width)
            .map(|row| row.iter().zip(first).map(|(a, b)| a * b).sum::<f32>() / norm)
            .collect();
        assert!((deviation(&along) - 5.0).abs() < 0.15, "{}", deviation(&along));
    }
}
