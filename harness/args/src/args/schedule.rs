//! Which images of a batch advance together.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Arg, Args};

use crate::generate::Schedule;

/// How images are decoded together; what is drawn does not depend on it.
#[derive(Debug, Clone, Copy, Args)]
pub struct ScheduleArgs {
    /// Which images of a batch advance together: all token by token, all patch by patch, or patch by patch with the next image
    /// in the place of one that is done; streams are the same
    #[arg(long, value_name = "WORD", default_value = Schedule::default().as_str(), value_parser = words(), help_heading = "Engine")]
    pub schedule: Schedule,
}

/// The option of [`ScheduleArgs`] in the parser.
pub fn is_schedule(arg: &Arg) -> bool {
    arg.get_id() == "schedule"
}

fn words() -> impl TypedValueParser<Value = Schedule> {
    PossibleValuesParser::new(Schedule::ALL.map(Schedule::as_str))
        .map(|word| Schedule::ALL.into_iter().find(|s| s.as_str() == word).unwrap_or_default())
}
