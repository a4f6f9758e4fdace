//! What decoding comes to, step by step.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use dpar_export::commands::failure::Failure;
use dpar_export::generate::{Event, Stream as Decoded, Ticket};
use dpar_export::loaded::RunError;
use pyo3::prelude::*;

use crate::arrays::array;
use crate::decoding::{Decoding, OpenBundle};
use crate::errors::{input, work};

/// A token was drawn.
#[pyclass(frozen, get_all, module = "dpar_export._native")]
pub(crate) struct Token {
    /// Which image: its place among those that were asked for, from 0.
    image: usize,
    /// Its place in the image, raster order.
    slot: usize,
    /// The code.
    token: u32,
    /// Entropy of its slot in nats; NaN at slot 0 and where no entropy model runs.
    entropy: f32,
}

/// A patch has ended.
#[pyclass(frozen, get_all, module = "dpar_export._native")]
pub(crate) struct Patch {
    /// Which image.
    image: usize,
    /// First token.
    first: usize,
    /// Last token.
    last: usize,
    /// Entropy of its first token, as of a token.
    entropy: f32,
}

/// An image is complete.
#[pyclass(frozen, get_all, module = "dpar_export._native")]
pub(crate) struct Image {
    /// Which image: its place among those that were asked for, from 0.
    image: usize,
    /// Its index in the run: with the seed, all that its draws depend on.
    index: u64,
    class_label: i64,
    steps: usize,
    tokens: Py<PyAny>,
    patch_lengths: Py<PyAny>,
    entropy: Py<PyAny>,
    margin: Py<PyAny>,
    pixels: Option<Py<PyAny>>,
}

impl Token {
    pub(crate) fn new(image: usize, slot: usize, token: u32, entropy: f32) -> Self {
        Self { image, slot, token, entropy }
    }
}

impl Patch {
    pub(crate) fn new(image: usize, first: usize, last: usize, entropy: f32) -> Self {
        Self { image, first, last, entropy }
    }
}

impl Image {
    /// A complete image; `size`: its height and width in pixels.
    pub(crate) fn new(
        py: Python<'_>,
        image: usize,
        done: Decoded,
        pixels: Option<Vec<u8>>,
        size: usize,
    ) -> PyResult<Self> {
        let steps = done.steps();
        let tokens: Vec<i64> = done.tokens.iter().map(|t| i64::from(*t)).collect();
        let lengths: Vec<i64> = done.patch_lengths.iter().map(|l| *l as i64).collect();
        let t = [tokens.len()];
        Ok(Self {
            image,
            index: done.request.index,
            class_label: done.request.class,
            steps,
            tokens: array(py, tokens, &t)?,
            patch_lengths: array(py, lengths, &[steps])?,
            entropy: array(py, done.entropy, &t)?,
            margin: array(py, done.margin, &t)?,
            pixels: pixels.map(|pixels| array(py, pixels, &[size, size, 3])).transpose()?,
        })
    }
}

#[pymethods]
impl Token {
    fn __repr__(&self) -> String {
        format!("Token(image={}, slot={}, token={})", self.image, self.slot, self.token)
    }
}

#[pymethods]
impl Patch {
    fn __repr__(&self) -> String {
        format!("Patch(image={}, first={}, last={})", self.image, self.first, self.last)
    }
}

#[pymethods]
impl Image {
    fn __repr__(&self) -> String {
        format!("Image(image={}, class_label={}, steps={})", self.image, self.class_label, self.steps)
    }
}

/// What the next event is, with the pixels of an image that is complete.
struct NextEvent {
    event: Event,
    /// That of the token, or of the first token of the patch.
    entropy: f32,
    pixels: Option<Vec<u8>>,
}

/// Events of a run, as it goes.
#[pyclass(frozen, name = "Stream", module = "dpar_export._native")]
pub(crate) struct PyStream {
    open: Arc<OpenBundle>,
    /// No Python runs while it is held: a signal's handler may close the stream.
    state: Mutex<StreamState>,
}

struct StreamState {
    /// `None`: over, by itself or by the user.
    decoding: Option<Decoding>,
    /// What was not handed over yet.
    pending: VecDeque<Event>,
    /// Entropies of the tokens of each image that is not complete.
    entropies: HashMap<usize, Vec<f32>>,
}

impl PyStream {
    pub(crate) fn new(open: Arc<OpenBundle>, decoding: Decoding) -> Self {
        let (pending, entropies) = (VecDeque::new(), HashMap::new());
        Self { open, state: Mutex::new(StreamState { decoding: Some(decoding), pending, entropies }) }
    }

    fn next(&self) -> Result<Option<NextEvent>, Failure> {
        let Ok(mut state) = self.state.try_lock() else {
            return Err(input("another thread takes the next event of this stream", None));
        };
        // After an error what was under way is undefined: it is dropped, and the stream is over.
        let Some(mut decoding) = state.decoding.take() else { return Ok(None) };
        let mut pending = std::mem::take(&mut state.pending);
        while pending.is_empty() {
            if decoding.is_idle() {
                decoding.end(&self.open);
                self.open.runtime.bundle().unchanged()?;
                return Ok(None);
            }
            pending.extend(decoding.step()?);
        }
        let Some(event) = pending.pop_front() else { return Ok(None) };
        let pixels = self.pixels(&event, &mut decoding)?;
        let entropy = match &event {
            Event::Token { ticket, entropy, .. } => {
                state.entropies.entry(ticket.0).or_default().push(*entropy);
                *entropy
            }
            Event::PatchClosed { ticket, first, .. } => {
                state.entropies.get(&ticket.0).and_then(|of| of.get(*first)).copied().unwrap_or(f32::NAN)
            }
            Event::Done { ticket, .. } | Event::Failed { ticket, .. } => {
                state.entropies.remove(&ticket.0);
                f32::NAN
            }
        };
        state.decoding = Some(decoding);
        state.pending = pending;
        Ok(Some(NextEvent { event, entropy, pixels }))
    }

    /// The pixels of an image that is complete, where they are asked for: one image, between two questions of Python for signals.
    fn pixels(&self, event: &Event, decoding: &mut Decoding) -> Result<Option<Vec<u8>>, Failure> {
        let Event::Done { stream, .. } = event else { return Ok(None) };
        let ids = Decoded::ids(std::slice::from_ref(stream));
        let pixels = match &mut decoding.vq {
            Some(vq) => Some(self.open.pixels(vq, &ids, &|| true)?),
            None => None,
        };
        self.open.runtime.bundle().unchanged()?;
        Ok(pixels)
    }
}

#[pymethods]
impl PyStream {
    fn __iter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let Some(NextEvent { event, entropy, pixels }) = work(py, |_| self.next())? else { return Ok(None) };
        let object = match event {
            Event::Token { ticket: Ticket(image), slot, token, .. } => {
                Py::new(py, Token::new(image, slot, token, entropy))?.into_any()
            }
            Event::PatchClosed { ticket: Ticket(image), first, last } => {
                Py::new(py, Patch::new(image, first, last, entropy))?.into_any()
            }
            Event::Done { ticket: Ticket(image), stream } => {
                let size = self.open.runtime.bundle().system().image_size;
                Py::new(py, Image::new(py, image, stream, pixels, size)?)?.into_any()
            }
            // The others go on: who asks again gets their events.
            Event::Failed { error, .. } => return work(py, |_| Err(RunError::from(error).into())),
        };
        Ok(Some(object))
    }

    /// Ends it: caches are freed, what was prepared is kept for the next call. No event comes after it.
    fn close(&self, py: Python<'_>) {
        py.detach(|| {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.pending.clear();
            if let Some(decoding) = state.decoding.take() {
                decoding.end(&self.open);
            }
        });
    }

    /// Gives up one image; the others go on. Whether it was still to be done.
    fn cancel(&self, py: Python<'_>, image: usize) -> bool {
        py.detach(|| {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.decoding.as_mut().is_some_and(|decoding| decoding.cancel(image))
        })
    }

    /// Whether no event will come any more.
    #[getter]
    fn closed(&self, py: Python<'_>) -> bool {
        py.detach(|| {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.decoding.is_none() && state.pending.is_empty()
        })
    }

    fn __enter__(this: Bound<'_, Self>) -> Bound<'_, Self> {
        this
    }

    fn __exit__(&self, py: Python<'_>, _kind: Py<PyAny>, _value: Py<PyAny>, _traceback: Py<PyAny>) {
        self.close(py);
    }
}
