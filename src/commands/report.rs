//! `--report` and `--junit`: the report files of `verify` and `parity`.

use camino::Utf8PathBuf;
use clap::Args;

use super::failure::Failure;
use super::printer::Printer;
use crate::bundle::digest;
use crate::loaded::LoadedBundle;
use crate::report::{DrawOptions, MOST_IMAGES, Page, Samples, html, junit};
use crate::staging::StagedFile;
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

    /// Takes, before the work, the names of the files.
    pub(super) fn take(&self) -> Result<ReportFiles, Failure> {
        let take = |path: &Option<Utf8PathBuf>, ending| {
            let Some(path) = path else { return Ok(None) };
            if path.extension() != Some(ending) {
                return Err(Failure::usage(format!("{path} does not end in .{ending}"), None));
            }
            Ok(Some(StagedFile::create(path, true)?))
        };
        Ok(ReportFiles { html: take(&self.report, "html")?, junit: take(&self.junit, "xml")? })
    }

    /// Number of images of the HTML report, where it has some.
    pub(super) fn images(&self) -> Option<u16> {
        self.report.as_ref().map(|_| self.report_images).filter(|n| *n > 0)
    }

    /// Draws the report's images with guidance `cfg_scale`, where a report was asked for.
    pub(super) fn samples(
        &self,
        runtime: &LoadedBundle<'_>,
        cfg_scale: f32,
        batch: usize,
        printer: Printer,
    ) -> Result<Option<Samples>, Failure> {
        let Some(num) = self.images() else { return Ok(None) };
        let draw = DrawOptions { num, seed: 0, cfg_scale, batch };
        let bar = printer.progress("drawing", "units");
        Ok(Some(Samples::draw(runtime, draw, &mut |done, total| bar.advance(done, total))?))
    }
}

/// The files that were asked for, whose names are taken.
pub(super) struct ReportFiles {
    html: Option<StagedFile>,
    junit: Option<StagedFile>,
}

impl ReportFiles {
    /// Writes them.
    pub(super) fn write(self, page: &Page) -> Result<(), Failure> {
        if let Some(file) = &self.html {
            file.write(html(page).as_bytes())?;
        }
        if let Some(file) = &self.junit {
            let xml = junit(page).map_err(|e| Failure::usage(format!("the JUnit file: {e}"), None))?;
            file.write(xml.as_bytes())?;
        }
        Ok([self.html, self.junit].into_iter().flatten().try_for_each(StagedFile::commit)?)
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
