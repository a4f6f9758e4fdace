//! What the commands share: groups of arguments, with what each makes of them; what every error of the workspace means, and how a
//! command ends.

#![allow(missing_docs, reason = "what is said of an option is its help, which has the same words")]

pub mod args;
pub mod cause;
pub mod failure;
pub mod stop;

use dpar_engine_table::{self as engines, device};
use dpar_export_bundle::{self as bundle, attest};
use dpar_export_compare::{CompareError, parity};
use dpar_export_decode::{generate, loaded};
use dpar_export_deploy::{self as deploy, triton};
use dpar_export_evaluate::{evaluate, features};
use dpar_export_files::{arrays, picture, samples, staging};
#[cfg(feature = "serve")]
use dpar_export_serve as serve;
use dpar_export_trt as targets;

#[cfg(test)]
use dpar_export_compare::ReferenceError;
