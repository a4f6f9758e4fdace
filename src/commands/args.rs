//! Groups of arguments that commands share: an option stands here once, with its help, its range and its default. A command
//! flattens the groups that it has, and says with `mut_arg` what differs for it; what it makes of them is its plan.

mod bundle;
mod checkpoint;
mod component;
mod engine;
mod export;
mod extractor;
mod libraries;
mod many;
mod output;
mod precision;
mod protocol;
mod resize;
mod rule;
mod sampling;
mod schedule;
mod talk;
mod threads;
mod trt;

pub(crate) use bundle::BundleArgs;
pub(crate) use checkpoint::CheckpointArgs;
pub(crate) use component::{Component, ComponentArgs, resize};
pub(crate) use engine::{ENGINE, EngineArgs, EnginesArgs, EnginesPlan, OnEngine, engine_names};
pub(crate) use export::{ExportArgs, Target};
pub(crate) use extractor::{ExtractorEngineArgs, ExtractorPlan};
pub(crate) use libraries::{LibraryArgs, TrtLibraryArgs};
pub(crate) use many::ManyArgs;
pub(crate) use output::{ArrayOutput, OptionalOutputArgs, OutputArgs};
pub(crate) use protocol::ProtocolArgs;
pub(crate) use resize::ResizeArgs;
pub(crate) use rule::{RULE, RuleArgs};
pub use sampling::MAX_IMAGES;
pub(crate) use sampling::{DrawArgs, SAMPLING, SamplerArgs, SamplingArgs};
pub(crate) use schedule::{ScheduleArgs, is_schedule};
pub(crate) use talk::TalkArgs;
pub(crate) use threads::ThreadsArgs;
