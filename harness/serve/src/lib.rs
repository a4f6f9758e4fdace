//! A bundle as a service.
//!
//! [`Scheduler`] decodes what several requesters ask for at the same time, each image in a row of its own; it knows no protocol,
//! and a program may embed it. [`http`] is the service on top of it.
//!
//! ```no_run
//! use dpar_export_decode::generate::{DecodeOptions, Request};
//! use dpar_export_decode::loaded::{LoadedBundle, RunError};
//! use dpar_export_serve::{ImageJob, JobEvent, Scheduler, SchedulerLimits};
//!
//! fn draw(loaded: LoadedBundle<'static>, options: DecodeOptions) -> Result<(), Box<dyn std::error::Error>> {
//!     let scheduler = Scheduler::start(loaded, SchedulerLimits { rows: 8, ..SchedulerLimits::default() })?;
//!     let mut job = ImageJob::new(vec![Request { index: 0, class: 3 }], options);
//!     job.tokens = true;
//!     let mut running = scheduler.submit(job)?;
//!     while let Some(event) = running.next_blocking() {
//!         match event? {
//!             JobEvent::Patch { first, last, entropy, .. } => println!("{first}..={last}: {entropy} nats"),
//!             JobEvent::Done { drawn, .. } => println!("{} steps", drawn.stream.steps()),
//!             JobEvent::Token { .. } | JobEvent::Preview { .. } => {}
//!         }
//!     }
//!     Ok(())
//! }
//! ```

mod decoding;
pub mod http;
mod job;
mod limits;
mod queue;
mod scheduler;
mod stats;

pub use job::{DrawnImage, ImageJob, JobError, JobEvent, RunningJob};
pub use limits::SchedulerLimits;
pub use scheduler::Scheduler;
pub use stats::{Histogram, SchedulerCounts};
