//! What goes with a bundle to others: a model card in Markdown, with the front matter that model hubs read, and a bill of
//! materials (CycloneDX 1.6, JSON). What is said of the model is in its manifest, and every number comes from a report that is cited
//! by its SHA-256. Nothing in either depends on time or place.

mod bom;
mod markdown;
mod report;

use camino::Utf8PathBuf;
use dpar_export_bundle::Bundle;
use dpar_export_spec::Hinted;

pub use report::{CitedNumber, CitedReport};

/// The card's file.
pub const CARD: &str = "README.md";
/// The bill of materials.
pub const BOM: &str = "bom.cdx.json";

/// Why a card cannot be written, or is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum CardError {
    /// A report cannot be read, or is none of this tool.
    #[error("{path}: {message}")]
    Report {
        /// The file.
        path: Utf8PathBuf,
        /// Why.
        message: String,
    },
    /// A report that speaks of other files.
    #[error("{path} is a report of another bundle: its manifest has SHA-256 {found}, this one's is {wanted}")]
    OtherBundle {
        /// The report.
        path: Utf8PathBuf,
        /// What it speaks of.
        found: String,
        /// The bundle's.
        wanted: String,
    },
    /// Two reports with one name: a card cites them by it.
    #[error("two reports are called {0}")]
    Twice(String),
    /// A report is not the one that was cited.
    #[error("{name} has SHA-256 {found}, the card cites {cited}")]
    Changed {
        /// Name of the report.
        name: String,
        /// What is there.
        found: String,
        /// What the card says.
        cited: String,
    },
    /// The card is not what bundle and reports say.
    #[error("{0} is not what the bundle and these reports say")]
    Differs(Utf8PathBuf),
    /// JSON that cannot be written.
    #[error("the bill of materials cannot be written: {0}")]
    Json(#[from] serde_json::Error),
}

impl Hinted for CardError {
    fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Report { .. } => {
                "give what `verify`, `parity`, `reproduce`, `evaluate`, `bench` or `generate` print with --json"
            }
            Self::OtherBundle { .. } => "make the report again, with this bundle",
            Self::Twice(_) => "give them names of their own",
            Self::Changed { .. } | Self::Differs(_) => {
                "get bundle, reports and card from their maker again, or write the card anew"
            }
            Self::Json(_) => return None,
        };
        Some(hint.to_owned())
    }
}

/// What a card is made from.
#[derive(Debug)]
pub struct Card<'b> {
    /// The bundle.
    pub bundle: &'b Bundle,
    /// SHA-256 of the key that signed the bundle, where its attestation was checked.
    pub signed: Option<String>,
    /// An SPDX identifier, where the maker names one.
    pub license: Option<String>,
    /// The reports, in the order in which they are cited.
    pub reports: Vec<CitedReport>,
}

impl Card<'_> {
    /// The model card, Markdown.
    pub fn markdown(&self) -> String {
        markdown::write(self)
    }

    /// The bill of materials, CycloneDX 1.6 in JSON.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn bom(&self) -> Result<String, CardError> {
        Ok(serde_json::to_string_pretty(&bom::write(self))? + "\n")
    }

    /// Holds the bill of materials that was written earlier against the reports that are here.
    ///
    /// # Errors
    /// [`CardError::Changed`] when one of them is not the one that was cited.
    pub fn check_cited(&self, bom: &[u8]) -> Result<(), CardError> {
        let cited = bom::cited(bom);
        for report in &self.reports {
            let was = cited.iter().find(|(name, _)| *name == report.name);
            if let Some((_, cited)) = was.filter(|(_, cited)| *cited != report.sha256) {
                return Err(CardError::Changed {
                    name: report.name.clone(),
                    found: report.sha256.clone(),
                    cited: cited.clone(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
