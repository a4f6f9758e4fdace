//! A job as server-sent events, as it goes.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body::Frame;
use serde_json::{Value, json};
use tokio::time::{Sleep, sleep};

use super::drawn::{image_document, png};
use super::problem::{Problem, typed};
use crate::job::{JobEvent, RunningJob};
use crate::scheduler::Scheduler;

/// A comment is sent after so long without an event, so that nobody between takes the connection for dead.
const QUIET: Duration = Duration::from_secs(10);
/// Events in one piece of the body end with the one that reaches this.
const PIECE: usize = 1 << 16;

/// How the events of a job are written, whichever protocol they are of.
pub(crate) trait EventWriter: Send + Unpin + 'static {
    /// An event of images of `size` pixels; empty where it is not told.
    fn event(&mut self, event: JobEvent, size: usize) -> Result<String, Problem>;

    /// What stands behind the last image.
    fn end(&self) -> String;
}

/// The answer: what the writer makes of the events; or an `error` event, and nothing behind it. Dropped with its connection, it
/// gives up the job.
pub(crate) fn event_stream<W: EventWriter>(
    scheduler: Arc<Scheduler>,
    running: RunningJob,
    writer: W,
) -> Response {
    let quiet = Box::pin(sleep(QUIET));
    let body = EventBody { scheduler, running, writer, quiet, ended: false };
    typed("text/event-stream", Body::new(body))
}

struct EventBody<W> {
    scheduler: Arc<Scheduler>,
    running: RunningJob,
    writer: W,
    quiet: Pin<Box<Sleep>>,
    ended: bool,
}

/// `patch`, `token`, `preview` and `done` events, then `end`.
pub(crate) struct OwnEvents {
    /// For the documents of images.
    pub(crate) seed: u64,
    pub(crate) trace: bool,
}

impl EventWriter for OwnEvents {
    fn event(&mut self, event: JobEvent, size: usize) -> Result<String, Problem> {
        let finite = |e: f32| e.is_finite().then_some(e);
        let (name, data) = match event {
            JobEvent::Token { image, slot, token, entropy } => {
                ("token", json!({ "image": image, "slot": slot, "token": token, "entropy": finite(entropy) }))
            }
            JobEvent::Patch { image, first, last, entropy } => {
                ("patch", json!({ "image": image, "first": first, "last": last, "entropy": finite(entropy) }))
            }
            JobEvent::Preview { image, tokens, pixels } => {
                let png = STANDARD.encode(png(size, &pixels)?);
                ("preview", json!({ "image": image, "tokens": tokens, "png": png }))
            }
            JobEvent::Done { image, drawn } => {
                let mut document = image_document(size, self.seed, self.trace, drawn)?;
                document["image"] = image.into();
                ("done", document)
            }
        };
        Ok(line(name, &data))
    }

    fn end(&self) -> String {
        line("end", &json!({}))
    }
}

/// One event. JSON has no line breaks.
pub(crate) fn line(name: &str, data: &Value) -> String {
    format!("event: {name}\ndata: {data}\n\n")
}

fn error(problem: &Problem) -> String {
    line("error", &problem.document())
}

impl<W: EventWriter> http_body::Body for EventBody<W> {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let size = self.scheduler.bundle().system().image_size;
        let mut text = String::new();
        while !self.ended && text.len() < PIECE {
            match self.running.poll_next(context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(event))) => match self.writer.event(event, size) {
                    Ok(written) => text += &written,
                    Err(problem) => {
                        text += &error(&problem);
                        self.ended = true;
                    }
                },
                Poll::Ready(Some(Err(e))) => {
                    text += &error(&e.into());
                    self.ended = true;
                }
                Poll::Ready(None) => {
                    text += &self.writer.end();
                    self.ended = true;
                }
            }
        }
        if text.is_empty() && self.ended {
            return Poll::Ready(None);
        }
        if text.is_empty() {
            if self.quiet.as_mut().poll(context).is_pending() {
                return Poll::Pending;
            }
            text.push_str(": quiet\n\n");
        }
        let later = tokio::time::Instant::now() + QUIET;
        self.quiet.as_mut().reset(later);
        if !self.ended {
            // The clock is asked again when it has begun anew.
            let _ = self.quiet.as_mut().poll(context);
        }
        Poll::Ready(Some(Ok(Frame::data(text.into()))))
    }
}
