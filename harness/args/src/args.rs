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
mod triton;
mod trt;

pub use bundle::BundleArgs;
pub use checkpoint::CheckpointArgs;
pub use component::{Component, ComponentArgs, resize};
pub use engine::{ENGINE, EngineArgs, EnginesArgs, EnginesPlan, OnEngine, engine_names};
pub use export::{ExportArgs, Target};
pub use extractor::{ExtractorEngineArgs, ExtractorPlan};
pub use libraries::{LibraryArgs, TrtLibraryArgs};
pub use many::ManyArgs;
pub use output::{ArrayOutput, OptionalOutputArgs, OutputArgs};
pub use protocol::ProtocolArgs;
pub use resize::ResizeArgs;
pub use rule::{RULE, RuleArgs};
pub use sampling::MAX_IMAGES;
pub use sampling::{DrawArgs, SAMPLING, SamplerArgs, SamplingArgs};
pub use schedule::{RefillArgs, ScheduleArgs, is_schedule};
pub use talk::{LogFormat, TalkArgs};
pub use threads::ThreadsArgs;
