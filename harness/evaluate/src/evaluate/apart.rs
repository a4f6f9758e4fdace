//! Work that cannot be asked to stop, such as a decomposition of a covariance.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::EvaluateError;
use crate::{Step, WorkPhase};

/// How long the wish to stop is not noticed.
const ASKED: Duration = Duration::from_millis(50);

enum Message<T> {
    Next(&'static str),
    Done(T),
}

/// Runs `work` on a thread of its own; it says what of its `total` parts comes next. Where `step` says stop, the work is left
/// where it is: its thread ends at its next word.
///
/// # Errors
/// What `work` returns; [`EvaluateError::Interrupted`] where `step` says stop; [`EvaluateError::Lost`] where its thread
/// ends without a result.
pub fn apart<T: Send + 'static, E: From<EvaluateError> + Send + 'static>(
    total: usize,
    work: impl FnOnce(&mut dyn FnMut(&'static str) -> bool) -> Result<T, E> + Send + 'static,
    step: Step<'_>,
) -> Result<T, E> {
    let (sender, messages) = mpsc::channel();
    let stopped = Arc::new(AtomicBool::new(false));
    let left = Arc::clone(&stopped);
    let body = move || {
        let mut next = |what| sender.send(Message::Next(what)).is_ok() && !left.load(Ordering::Relaxed);
        let done = work(&mut next);
        // Nobody listens any more where the user has stopped.
        let _ = sender.send(Message::Done(done));
    };
    std::thread::Builder::new()
        .name("metrics".to_owned())
        .spawn(body)
        .map_err(|source| E::from(EvaluateError::Io { path: "the thread of the metrics".into(), source }))?;
    let (mut what, mut at) = ("metrics", 0_usize);
    loop {
        match messages.recv_timeout(ASKED) {
            Ok(Message::Done(done)) => return done,
            Ok(Message::Next(next)) => (what, at) = (next, at + 1),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(EvaluateError::Lost.into()),
        }
        if !step(WorkPhase::Metric(what), at.saturating_sub(1), total) {
            stopped.store(true, Ordering::Relaxed);
            return Err(EvaluateError::Interrupted.into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_hears_nothing_is_left_and_a_result_is_passed_on() {
        let (release, held) = mpsc::channel::<()>();
        let deaf = move |next: &mut dyn FnMut(&'static str) -> bool| -> Result<(), EvaluateError> {
            next("deaf");
            let _ = held.recv();
            Ok(())
        };
        let mut asked = 0;
        let left = apart(1, deaf, &mut |_, _, _| {
            asked += 1;
            asked < 3
        });
        assert!(matches!(left, Err(EvaluateError::Interrupted)) && asked == 3);
        drop(release);
        let mut seen = Vec::new();
        let found =
            apart(2, |next| Ok::<_, EvaluateError>(next("a") && next("b")), &mut |phase, done, total| {
                seen.push((phase, done, total));
                true
            });
        assert!(found.unwrap());
        seen.dedup();
        assert_eq!(seen, [(WorkPhase::Metric("a"), 0, 2), (WorkPhase::Metric("b"), 1, 2)]);
        let lost = apart(1, |_| -> Result<(), EvaluateError> { panic!("a defect") }, &mut |_, _, _| true);
        assert!(matches!(lost, Err(EvaluateError::Lost)));
    }
}
