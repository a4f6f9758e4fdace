//! A browser, and a service with its clients, for the development tasks.
#![allow(clippy::print_stdout, reason = "tasks say what they found")]

pub mod aiperf;
pub mod api;
pub mod browser;
mod chart;
pub mod load;
pub mod page;
mod served;
