//! The service: HTTP/1.1 on top of [`Scheduler`](crate::Scheduler).

mod admin;
mod ask;
mod body;
mod drawn;
mod events;
mod generations;
mod guard;
mod images;
mod metrics;
mod page;
mod problem;
mod routes;
mod server;
mod service;
mod tensors;
mod tls;
mod v2;

pub use server::{HttpServer, Stopped};
pub use service::{AccessToken, HttpLimits, Opener, ServedModel, Service, ServiceError};
pub use tls::{ServedCertificate, TlsError};
