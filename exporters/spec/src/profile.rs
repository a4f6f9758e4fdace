//! Optimization profiles: for every named axis of a graph the sizes that an engine takes and the one it is tuned for.
//!
//! A profile is a box: every axis moves in its own range, whatever the others do. A dimension that is the sum of two
//! axes (the keys of an attention mask, `past_tokens + tokens`) is therefore the sum at each of the three points. At
//! the largest point it is `max(past) + max(new)`, more than a sequence ever has: a graph of T tokens with
//! `past_tokens` up to T and `tokens` up to T gets masks up to 2 T. It must stay so. TensorRT evaluates the graph at
//! all three points; a mask cut to T makes the largest point contradict itself, for which TensorRT gives a warning
//! and an engine whose largest shapes were never looked at. A decoding profile ([`Profile::decode`]) has one new
//! slot, and then the box is tight: T + 1.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::text::names;
use crate::{AxisRange, Dim, GraphSpec, Port};

/// The most dimensions a tensor can have in TensorRT (`Dims::MAX_DIMS`).
const MAX_RANK: usize = 8;

/// The three points of a profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Point {
    /// Smallest sizes.
    Min,
    /// Sizes that the engine is tuned for.
    Opt,
    /// Largest sizes.
    Max,
}

impl Point {
    /// All three, in order.
    pub const ALL: [Self; 3] = [Self::Min, Self::Opt, Self::Max];

    fn of(self, range: &AxisRange) -> usize {
        match self {
            Self::Min => range.min,
            Self::Opt => range.opt,
            Self::Max => range.max,
        }
    }

    fn set(self, range: &mut AxisRange, size: usize) {
        match self {
            Self::Min => range.min = size,
            Self::Opt => range.opt = size,
            Self::Max => range.max = size,
        }
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Min => "min",
            Self::Opt => "opt",
            Self::Max => "max",
        })
    }
}

/// Why a profile does not fit a graph.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("graph `{graph}`: profile `{profile}`: {message}")]
pub struct ProfileError {
    /// Graph name.
    pub graph: String,
    /// Profile name.
    pub profile: String,
    /// What contradicts what, with the sizes.
    pub message: String,
}

/// A change of a derived profile, as the user asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Override {
    /// One axis at one point.
    Axis {
        /// Axis name.
        axis: String,
        /// Which point.
        point: Point,
        /// Its size.
        size: usize,
    },
    /// All dimensions of one input at one point, e.g. `tokens:8x1`; named axes take these sizes.
    Port {
        /// Input name.
        port: String,
        /// Which point.
        point: Point,
        /// All its sizes, outermost first.
        sizes: Vec<usize>,
    },
}

/// One optimization profile of one graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    /// Name, unique in an engine.
    pub name: String,
    /// Range of every axis of the graph, by axis name.
    pub axes: BTreeMap<String, AxisRange>,
}

impl Profile {
    /// The ranges of the graph itself: everything the graph can be called with.
    pub fn from_spec(name: impl Into<String>, spec: &GraphSpec) -> Self {
        let axes = spec.axes.iter().map(|a| (a.name.clone(), a.clone())).collect();
        Self { name: name.into(), axes }
    }

    /// Decoding: one new slot a step, all past lengths; `None` for a graph without a cache. New slots are the second
    /// axis of a sum (`past_tokens + tokens`).
    pub fn decode(name: impl Into<String>, spec: &GraphSpec) -> Option<Self> {
        let sums = spec.inputs.iter().flat_map(|p| &p.dims).map(Dim::axes).filter(|a| a.len() == 2);
        let new: BTreeSet<String> = sums.map(|a| a[1].to_owned()).collect();
        let mut profile = Self::from_spec(name, spec);
        for axis in &new {
            let range = profile.axes.get_mut(axis).filter(|r| r.min <= 1)?;
            *range = AxisRange { name: axis.clone(), min: 1, opt: 1, max: 1 };
        }
        (!new.is_empty()).then_some(profile)
    }

    /// Applies the user's changes. A point that is not named follows one that is: a smaller maximum pulls the opt
    /// (and the minimum) down with it, a larger minimum pushes them up.
    ///
    /// # Errors
    /// When an axis or input is unknown, sizes contradict the port or each other, or the result does not
    /// [`check`](Self::check).
    pub fn with(mut self, spec: &GraphSpec, overrides: &[Override]) -> Result<Self, ProfileError> {
        let mut asked: BTreeMap<(Point, String), usize> = BTreeMap::new();
        for change in overrides {
            match change {
                Override::Axis { axis, point, size } => self.ask(spec, &mut asked, *point, axis, *size)?,
                Override::Port { port, point, sizes } => {
                    let port = self.input(spec, port)?;
                    self.fits(spec, port, sizes)?;
                    for (dim, size) in port.dims.iter().zip(sizes) {
                        if let [axis] = dim.axes()[..] {
                            self.ask(spec, &mut asked, *point, axis, *size)?;
                        }
                    }
                }
            }
        }
        self.apply(&asked);
        for change in overrides {
            if let Override::Port { port, point, sizes } = change {
                self.agrees(spec, self.input(spec, port)?, *point, sizes)?;
            }
        }
        self.check(spec)?;
        Ok(self)
    }

    /// Checks everything that can be checked before a build: every axis has a range within the graph's,
    /// `min <= opt <= max`, and every input has sizes TensorRT can take at all three points, sums included.
    ///
    /// # Errors
    /// The first contradiction.
    pub fn check(&self, spec: &GraphSpec) -> Result<(), ProfileError> {
        for (name, range) in &self.axes {
            let Some(allowed) = spec.axis(name).filter(|_| range.name == *name) else {
                return Err(self.unknown_axis(spec, name));
            };
            let AxisRange { min, opt, max, .. } = *range;
            if !(min <= opt && opt <= max) {
                let message = format!("axis `{name}` needs min <= opt <= max, it has {min}, {opt}, {max}");
                return Err(self.error(spec, message));
            }
            if min < allowed.min || max > allowed.max {
                let (low, high) = (allowed.min, allowed.max);
                let message = format!("axis `{name}` is {min} to {max}, the graph takes {low} to {high}");
                return Err(self.error(spec, message));
            }
        }
        for port in &spec.inputs {
            if port.dims.len() > MAX_RANK {
                let message = format!("input `{}` has more than {MAX_RANK} dimensions", port.name);
                return Err(self.error(spec, message));
            }
            for point in Point::ALL {
                self.shape(spec, port, point)?;
            }
        }
        Ok(())
    }

    /// The shape of an input at one point; a dimension that is a sum of axes is their sum.
    ///
    /// # Errors
    /// When an axis has no range or the shape has more elements than any memory.
    pub fn shape(&self, spec: &GraphSpec, port: &Port, point: Point) -> Result<Vec<usize>, ProfileError> {
        let mut shape = Vec::with_capacity(port.dims.len());
        for dim in &port.dims {
            let size = match dim {
                Dim::Fixed(n) => *n,
                Dim::Axis(_) | Dim::Sum(..) => {
                    let mut sum = 0_usize;
                    for axis in dim.axes() {
                        let range = self.axes.get(axis).ok_or_else(|| {
                            let message = format!("no range for axis `{axis}` of input `{}`", port.name);
                            self.error(spec, message)
                        })?;
                        sum = sum.saturating_add(point.of(range));
                    }
                    sum
                }
            };
            shape.push(size);
        }
        let bytes = shape.iter().try_fold(size_of::<i64>(), |n, d| n.checked_mul(*d));
        if bytes.is_none_or(|n| isize::try_from(n).is_err()) {
            let message = format!("input `{}` is {shape:?} at {point}, more than fits any memory", port.name);
            return Err(self.error(spec, message));
        }
        Ok(shape)
    }

    /// Whether the profile takes a call with these axis sizes.
    pub fn takes(&self, sizes: &BTreeMap<String, usize>) -> bool {
        sizes.iter().all(|(axis, n)| self.axes.get(axis).is_none_or(|r| (r.min..=r.max).contains(n)))
    }

    fn error(&self, spec: &GraphSpec, message: String) -> ProfileError {
        ProfileError { graph: spec.name.clone(), profile: self.name.clone(), message }
    }

    fn unknown_axis(&self, spec: &GraphSpec, axis: &str) -> ProfileError {
        let known: Vec<&str> = spec.axes.iter().map(|a| a.name.as_str()).collect();
        self.error(spec, format!("no axis `{axis}`; the graph has {}", names(known)))
    }

    fn input<'s>(&self, spec: &'s GraphSpec, name: &str) -> Result<&'s Port, ProfileError> {
        spec.input(name).ok_or_else(|| {
            let known: Vec<&str> = spec.inputs.iter().map(|p| p.name.as_str()).collect();
            self.error(spec, format!("no input `{name}`; the graph has {}", names(known)))
        })
    }

    /// Notes a size the user asked for, once per axis and point.
    fn ask(
        &self,
        spec: &GraphSpec,
        asked: &mut BTreeMap<(Point, String), usize>,
        point: Point,
        axis: &str,
        size: usize,
    ) -> Result<(), ProfileError> {
        if spec.axis(axis).is_none() {
            return Err(self.unknown_axis(spec, axis));
        }
        let before = *asked.entry((point, axis.to_owned())).or_insert(size);
        if before != size {
            let message = format!("axis `{axis}` is asked to be {before} and {size} at {point}");
            return Err(self.error(spec, message));
        }
        Ok(())
    }

    /// Rank and fixed sizes of a port against the sizes the user gave.
    fn fits(&self, spec: &GraphSpec, port: &Port, sizes: &[usize]) -> Result<(), ProfileError> {
        let fixed_fit = |(d, n): (&Dim, &usize)| !matches!(d, Dim::Fixed(f) if f != n);
        if port.dims.len() == sizes.len() && port.dims.iter().zip(sizes).all(fixed_fit) {
            return Ok(());
        }
        let want: Vec<String> = port.dims.iter().map(ToString::to_string).collect();
        let message = format!("input `{}` is [{}], it cannot be {sizes:?}", port.name, want.join(", "));
        Err(self.error(spec, message))
    }

    /// Sets what was asked for and lets the other points of the axis follow.
    fn apply(&mut self, asked: &BTreeMap<(Point, String), usize>) {
        for ((point, axis), size) in asked {
            if let Some(range) = self.axes.get_mut(axis) {
                point.set(range, *size);
            }
        }
        for ((point, axis), size) in asked {
            let Some(range) = self.axes.get_mut(axis) else { continue };
            for other in Point::ALL.into_iter().filter(|o| !asked.contains_key(&(*o, axis.clone()))) {
                let now = other.of(range);
                let then = if other < *point { now.min(*size) } else { now.max(*size) };
                other.set(range, then);
            }
        }
    }

    /// The sums of a port against the sizes the user gave.
    fn agrees(
        &self,
        spec: &GraphSpec,
        port: &Port,
        point: Point,
        sizes: &[usize],
    ) -> Result<(), ProfileError> {
        let shape = self.shape(spec, port, point)?;
        for ((dim, have), asked) in port.dims.iter().zip(&shape).zip(sizes) {
            if have != asked {
                let message =
                    format!("`{dim}` of input `{}` is {have} at {point}, it cannot be {asked}", port.name);
                return Err(self.error(spec, message));
            }
        }
        Ok(())
    }
}
