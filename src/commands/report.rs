//! `--report` and `--junit`: the report files of `verify` and `parity`.

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;

use super::failure::Failure;
use super::outside;
use super::printer::Printer;
use crate::arrays::write_atomic;
use crate::bundle::digest;
use crate::report::{Draw, MOST_IMAGES, Page, Samples, html, junit};
use crate::runtime::Runtime;
use crate::verify::RecordedFile;

/// Report files for people and for CI systems.
#[derive(Debug, Clone, Args)]
pub(crate) struct ReportArgs {
    /// Write an offline HTML report; an earlier one is replaced
    #[arg(long, value_name = "FILE.html", help_heading = "Report")]
    report: Option<Utf8PathBuf>,
    /// Write JUnit XML: a test case for each check; an earlier file is replaced
    #[arg(long, value_name = "FILE.xml", help_heading = "Report")]
    junit: Option<Utf8PathBuf>,
    /// Images drawn for the HTML report
    #[arg(long, value_name = "N", default_value = "24", value_parser = clap::value_parser!(u16).range(0..=i64::from(MOST_IMAGES)), requires = "report", help_heading = "Report")]
    report_images: u16,
}

impl ReportArgs {
    /// Whether a page must be made.
    pub(super) fn any(&self) -> bool {
        self.report.is_some() || self.junit.is_some()
    }

    /// Checks, before the work, that the files can be written: their endings, their folders, not in the bundle.
    pub(super) fn check(&self, bundle: &Utf8Path) -> Result<(), Failure> {
        for (path, ending) in [(&self.report, "html"), (&self.junit, "xml")] {
            let Some(path) = path else { continue };
            if path.extension() != Some(ending) {
                return Err(Failure::usage(format!("{path} does not end in .{ending}"), None));
            }
            let folder = path.parent().filter(|p| !p.as_str().is_empty()).unwrap_or(Utf8Path::new("."));
            fs_err::canonicalize(folder)?;
            if path.exists() && !path.is_file() {
                return Err(Failure::usage(format!("{path} is not a regular file"), None));
            }
            outside(path, bundle)?;
        }
        Ok(())
    }

    /// Number of images of the HTML report, where it has some.
    pub(super) fn images(&self) -> Option<u16> {
        self.report.as_ref().map(|_| self.report_images).filter(|n| *n > 0)
    }

    /// Draws the report's images with guidance `cfg_scale`, where a report was asked for.
    pub(super) fn samples(
        &self,
        runtime: &Runtime<'_>,
        cfg_scale: f32,
        batch: usize,
        printer: Printer,
    ) -> Result<Option<Samples>, Failure> {
        let Some(num) = self.images() else { return Ok(None) };
        let draw = Draw { num, seed: 0, cfg_scale, batch };
        let bar = printer.progress("drawing", "units");
        Ok(Some(Samples::draw(runtime, draw, &mut |done, total| bar.advance(done, total))?))
    }

    /// Writes the files that were asked for.
    pub(super) fn write(&self, page: &Page) -> Result<(), Failure> {
        if let Some(path) = &self.report {
            write_atomic(path, html(page).as_bytes())?;
        }
        if let Some(path) = &self.junit {
            let xml = junit(page).map_err(|e| Failure::usage(format!("{path}: {e}"), None))?;
            write_atomic(path, xml.as_bytes())?;
        }
        Ok(())
    }
}

/// The files that are there, by name and digest.
pub(super) fn compared(paths: &[Utf8PathBuf]) -> Result<Vec<RecordedFile>, Failure> {
    let mut files = Vec::new();
    for path in paths.iter().filter(|p| p.is_file()) {
        let (size, sha256) = digest(path)?;
        files.push(RecordedFile { name: path.file_name().unwrap_or_default().to_owned(), size, sha256 });
    }
    Ok(files)
}
