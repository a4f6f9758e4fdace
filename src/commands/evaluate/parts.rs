//! `evaluate --on` and `--pull`: one evaluation by many machines. Who gives out the parts is the Python package; each is evaluated
//! here, by the command that does them all in one process.

use std::io::BufRead;

use camino::Utf8PathBuf;
use serde_json::{Value, json};

use super::args::{MOST, On};
use crate::commands::failure::{Cause, Exit, Failure};
use crate::commands::printer::{Phases, Printer};
use crate::evaluate::job::{Job, SampleSource, Shard};

/// An evaluation whose parts others do.
pub(super) struct Handout {
    pub(super) on: On,
    /// What the words of the command line name, for who has to write them again for another machine.
    pub(super) named: Value,
}

impl Handout {
    /// Refused where nobody is there to give out the parts.
    pub(super) fn driver(printer: Printer<'_>) -> Result<(), Failure> {
        if printer.host.is_some() {
            return Ok(());
        }
        let message = "--on needs the Python package dpar_export, which gives the parts to the machines, and this is the program alone";
        Err(Failure {
            cause: Cause::Absent,
            error: anyhow::Error::msg(message),
            details: Vec::new(),
            hint: Some(
                "install the package with its extra `ray`, and call its dpar-export; --shard, --merge and --emit need none"
                    .to_owned(),
            ),
        })
    }

    /// Checks what can be wrong, takes the output folder, and says what there is to do.
    pub(super) fn tell(
        self,
        job: &Job,
        source: &SampleSource<'_>,
        output: &Utf8PathBuf,
        printer: Printer<'_>,
    ) -> Result<Exit, Failure> {
        let id = job.id(source)?;
        let stored = job.begin(source)?;
        let shards = id.images.div_ceil(id.chunk).clamp(1, usize::from(MOST));
        let mut value = serde_json::to_value(id).map_err(std::io::Error::from)?;
        value["shards"] = shards.into();
        value["stored"] = stored.into();
        value["output"] = output.as_str().into();
        value["on"] = self.on.0.into();
        value["named"] = self.named;
        printer.document(|| format!("{output}: {shards} parts"), value)?;
        Ok(Exit::Pass)
    }
}

/// Evaluates the parts of `count` whose numbers come as lines on standard input, until it ends. Each line has its answer, a
/// document in one line; before the first comes one that says what the parts belong to.
pub(super) fn pull(
    mut job: Job,
    source: &SampleSource<'_>,
    count: u16,
    output: &Utf8PathBuf,
    printer: Printer<'_>,
) -> Result<Exit, Failure> {
    let answer = |value: &Value| printer.raw(format!("{value}\n").as_bytes());
    let id = serde_json::to_value(job.id(source)?).map_err(std::io::Error::from)?;
    answer(&id)?;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let number = line.trim().parse().ok();
        let Some(shard) = number.and_then(|index| Shard::new(index, usize::from(count))) else {
            let message =
                format!("standard input: expected the number of a part, 1 to {count}, found {line:?}");
            return Err(Failure::usage(message, None));
        };
        let folder = output.join(format!("part-{}", shard.index()));
        let mut phases = Phases::new(printer);
        let done =
            job.part(source, shard, &folder, &mut |phase, done, total| phases.show(phase, done, total));
        drop(phases);
        let done = done?;
        answer(&json!({ "part": shard.index(), "images": done.images, "rows_sha256": done.rows_sha256 }))?;
    }
    Ok(Exit::Pass)
}
