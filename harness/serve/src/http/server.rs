//! Connections: accepted within limits, served, ended in order.

use std::io;
use std::net::TcpListener as StdListener;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio::time::Sleep;

use super::routes::router;
use super::service::{ServedModel, Service, ServiceError};
use super::tls::Carrier;

/// Connections over the limit that are told so at a time; others are closed without a word.
const TOLD: usize = 64;
/// How long telling one of them may take.
const TELLING: Duration = Duration::from_secs(1);
/// What they are told.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-type: application/json\r\n\
    \r\n{\"error\": {\"type\": \"overloaded_error\", \"message\": \"too many connections are open\"}}";
/// How long nothing is accepted when the system has no more descriptors.
const BREATH: Duration = Duration::from_millis(50);

/// How a service ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stopped {
    /// It was asked to end, and all that it had accepted was answered.
    Finished,
    /// It was asked a second time, and gave up what was under way.
    Cancelled,
}

/// What serves, with its handlers of signals. They are there from the beginning: while bundles are opened, a signal without a handler
/// would end the process, or, where it is the first of its container, be lost.
pub struct HttpServer {
    runtime: Runtime,
    signals: Signals,
}

impl HttpServer {
    /// Takes the signals of the process.
    ///
    /// # Errors
    /// When the system refuses the threads or the handlers.
    pub fn new() -> Result<Self, ServiceError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let signals = {
            let _inside = runtime.enter();
            Signals::new()?
        };
        Ok(Self { runtime, signals })
    }

    /// Does what has to be done before anything is served; `work` looks at whether it was asked to end meanwhile, and how it then ended is
    /// what there is. It is not left where it is, unless it is asked a second time: libraries that start in one thread do not bear that
    /// the process ends in another. A change of the files is no matter: they are being read.
    ///
    /// # Errors
    /// When the work panics.
    pub fn prepare<T: Send + 'static>(
        mut self,
        work: impl FnOnce(&AtomicBool) -> T + Send + 'static,
    ) -> Result<Result<(Self, T), Stopped>, ServiceError> {
        let (signals, asked) = (&mut self.signals, Arc::new(AtomicBool::new(false)));
        let seen = asked.clone();
        let done = self.runtime.block_on(async {
            let mut work = tokio::task::spawn_blocking(move || work(&seen));
            loop {
                tokio::select! {
                    done = &mut work => return done.map(Some),
                    signal = signals.next() => match signal {
                        Signal::Stop if asked.swap(true, Ordering::Relaxed) => return Ok(None),
                        Signal::Stop => tracing::warn!("it ends before anything is served, when what is being opened is open"),
                        Signal::Change => {}
                    },
                }
            }
        });
        match done.map_err(io::Error::other)? {
            Some(_) if asked.load(Ordering::Relaxed) => Ok(Err(Stopped::Finished)),
            Some(done) => Ok(Ok((self, done))),
            None => {
                self.runtime.shutdown_background();
                Ok(Err(Stopped::Cancelled))
            }
        }
    }

    /// Serves until a signal asks to end: SIGTERM or SIGINT. SIGHUP opens the bundles again, and the certificate.
    ///
    /// # Errors
    /// When the system refuses the listener.
    pub fn run(self, listener: StdListener, service: Service) -> Result<Stopped, ServiceError> {
        let Self { runtime, signals } = self;
        let service = Arc::new(service);
        listener.set_nonblocking(true)?;
        let stopped = runtime.block_on(serve(listener, &service, signals))?;
        // What nobody waits for any more is dropped, with its connection.
        runtime.shutdown_background();
        service.models().iter().for_each(ServedModel::finish);
        Ok(stopped)
    }
}

async fn serve(listener: StdListener, service: &Arc<Service>, mut signals: Signals) -> io::Result<Stopped> {
    let listener = TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(service.limits.connections));
    let told = Arc::new(Semaphore::new(TOLD));
    let connections = GracefulShutdown::new();
    let app = router(service);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            signal = signals.next() => match signal {
                Signal::Stop => break,
                Signal::Change => {
                    let service = service.clone();
                    tokio::task::spawn_blocking(move || change_all(&service));
                    continue;
                }
            },
        };
        let Ok((stream, _)) = accepted else {
            // Too many descriptors, or a connection that ended before it began.
            tokio::time::sleep(BREATH).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let stream = match service.certificate() {
            Some(certificate) => certificate.carry(stream),
            None => Carrier::Plain(stream),
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            service.refused_connections.fetch_add(1, Ordering::Relaxed);
            if let Ok(permit) = told.clone().try_acquire_owned() {
                tokio::spawn(async move {
                    let _ = tokio::time::timeout(TELLING, refuse(stream)).await;
                    drop(permit);
                });
            }
            continue;
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(service.limits.idle)
            .serve_connection(
                TokioIo::new(Patient::new(stream, service.limits.idle)),
                TowerToHyperService::new(app.clone()),
            );
        let connection = connections.watch(connection);
        let service = service.clone();
        service.connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection ended");
            }
            service.connections.fetch_sub(1, Ordering::Relaxed);
            drop(slot);
        });
    }
    drop(listener);
    service.stopping.store(true, Ordering::Relaxed);
    tracing::info!("no connection is accepted any more; what was accepted is answered");
    let finished = connections.shutdown();
    tokio::pin!(finished);
    loop {
        tokio::select! {
            () = &mut finished => return Ok(Stopped::Finished),
            signal = signals.next() => if signal == Signal::Stop { return Ok(Stopped::Cancelled) },
        }
    }
}

/// Reads the certificate again and opens every bundle again; what is wrong with one is logged, and changes nothing.
fn change_all(service: &Service) {
    match service.certificate().map(super::tls::ServedCertificate::change) {
        None => {}
        Some(Ok(())) => tracing::warn!("the certificate was read again"),
        Some(Err(error)) => tracing::error!(%error, "the certificate was not changed"),
    }
    for model in service.models() {
        match model.change() {
            None => tracing::warn!(model = model.name(), "another change is under way"),
            Some(Ok(())) => tracing::warn!(model = model.name(), "the bundle was opened again"),
            Some(Err(error)) => {
                tracing::error!(model = model.name(), %error, "the bundle was not changed");
            }
        }
    }
}

/// Tells a connection over the limit that it is.
async fn refuse(mut stream: Carrier) -> io::Result<()> {
    stream.write_all(FULL).await?;
    stream.shutdown().await?;
    // What was sent is taken, or the system would take the answer back.
    let mut sink = [0; 4096];
    while stream.read(&mut sink).await? > 0 {}
    Ok(())
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signal {
    Stop,
    Change,
}

/// What asks the process to end, or to look at its files again.
struct Signals {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    hang_up: tokio::signal::unix::Signal,
}

impl Signals {
    #[cfg(unix)]
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    #[cfg(not(unix))]
    fn new() -> io::Result<Self> {
        Ok(Self {})
    }

    #[cfg(unix)]
    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.terminate.recv() => Signal::Stop,
            _ = self.interrupt.recv() => Signal::Stop,
            _ = self.hang_up.recv() => Signal::Change,
        }
    }

    #[cfg(not(unix))]
    async fn next(&mut self) -> Signal {
        match tokio::signal::ctrl_c().await {
            Ok(()) => Signal::Stop,
            Err(_) => std::future::pending().await,
        }
    }
}

/// A connection whose reader must read on: when nothing can be written for too long, it ends.
struct Patient<S> {
    inner: S,
    limit: Duration,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    fn new(inner: S, limit: Duration) -> Self {
        Self { inner, limit, stalled: None }
    }

    /// Lets the clock run while `poll` is pending.
    fn watch<T>(
        &mut self,
        context: &mut Context<'_>,
        poll: impl FnOnce(&mut S, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        match poll(&mut self.inner, context) {
            Poll::Ready(done) => {
                self.stalled = None;
                Poll::Ready(done)
            }
            Poll::Pending => {
                let limit = self.limit;
                let clock = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
                ready!(clock.as_mut().poll(context));
                Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.watch(context, |inner, context| Pin::new(inner).poll_write(context, buffer))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch(context, |inner, context| Pin::new(inner).poll_flush(context))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.watch(context, |inner, context| Pin::new(inner).poll_shutdown(context))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.watch(context, |inner, context| Pin::new(inner).poll_write_vectored(context, buffers))
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
