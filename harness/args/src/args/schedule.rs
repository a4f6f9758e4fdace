//! Which images of a batch advance together.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Arg, Args};

use crate::generate::Schedule;

/// How images are decoded together; what is drawn does not depend on it.
#[derive(Debug, Clone, Copy, Args)]
pub struct ScheduleArgs {
    /// Which images of a batch advance together: all token by token, all patch by patch, patch by patch with the next image
    /// in the place of one that is done, or token by token with the next image in that place; streams are the same
    #[arg(long, value_name = "WORD", default_value = Schedule::default().as_str(), value_parser = words(), help_heading = "Engine")]
    pub schedule: Schedule,
}

/// The option of [`ScheduleArgs`] in the parser.
pub fn is_schedule(arg: &Arg) -> bool {
    arg.get_id() == "schedule"
}

/// How requests share rows. An image that is done leaves its row to the next one.
#[derive(Debug, Clone, Copy, Args)]
pub struct RefillArgs {
    /// Which rows advance together: each a token in every step, or patch by patch, which pays where the global transformer is most of the
    /// weights; images are the same
    #[arg(long, value_name = "WORD", default_value = Schedule::Rolling.as_str(), value_parser = words_of(Schedule::refills), help_heading = "Engine")]
    pub schedule: Schedule,
}

fn words() -> impl TypedValueParser<Value = Schedule> {
    words_of(|_| true)
}

fn words_of(fits: fn(Schedule) -> bool) -> impl TypedValueParser<Value = Schedule> {
    PossibleValuesParser::new(Schedule::ALL.into_iter().filter(move |s| fits(*s)).map(Schedule::as_str))
        .map(|word| Schedule::ALL.into_iter().find(|s| s.as_str() == word).unwrap_or_default())
}
