//! `deploy`: files that run `serve` on a cluster or a host, from one set of templates.

use dpar_export_bundle::Bundle;
use dpar_export_spec::Hinted;

use crate::memory::{BODY, CONNECTIONS, memory};

/// Who runs the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeployHost {
    /// Kubernetes: Deployment, Service, HorizontalPodAutoscaler.
    Kubernetes,
    /// KServe: an InferenceService with a custom container.
    KServe,
    /// Docker Compose, with Prometheus and Grafana.
    Compose,
    /// systemd: one unit.
    Systemd,
}

/// A file: its path, and its template.
type Template = (&'static str, &'static str);

impl DeployHost {
    /// Every host.
    pub const ALL: [Self; 4] = [Self::Kubernetes, Self::KServe, Self::Compose, Self::Systemd];

    fn templates(self) -> &'static [Template] {
        match self {
            Self::Kubernetes => &[
                ("deployment.yaml", include_str!("../templates/deployment.yaml")),
                ("service.yaml", include_str!("../templates/service.yaml")),
                ("autoscaler.yaml", include_str!("../templates/autoscaler.yaml")),
            ],
            Self::KServe => &[("inferenceservice.yaml", include_str!("../templates/inferenceservice.yaml"))],
            Self::Compose => &[
                ("compose.yaml", include_str!("../templates/compose.yaml")),
                ("prometheus.yml", include_str!("../templates/prometheus.yml")),
                ("grafana/dashboards/dpar.json", include_str!("../templates/dashboard.json")),
                ("grafana/provisioning/dashboards.yml", include_str!("../templates/dashboards.yml")),
                ("grafana/provisioning/datasources.yml", include_str!("../templates/datasources.yml")),
            ],
            Self::Systemd => &[("dpar-export.service", include_str!("../templates/dpar-export.service"))],
        }
    }

    /// The files that are written for it.
    pub fn files(self) -> impl Iterator<Item = &'static str> {
        self.templates().iter().map(|(path, _)| *path)
    }
}

/// What a service is told.
#[derive(Debug, Clone)]
pub struct Deployment {
    /// Name of the engine.
    pub engine: String,
    /// Images that are decoded together.
    pub rows: usize,
    /// Processors, and threads of one run of a graph.
    pub threads: usize,
    /// The container's image.
    pub image: String,
    /// Most copies of the service on a cluster.
    pub replicas: usize,
    /// The bundle's folder on the host that reads these files.
    pub folder: String,
}

/// Why there are no files.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DeploymentError {
    /// A folder that such a file cannot hold.
    #[error("the folder `{}` has a control character in its name", .0.escape_debug())]
    Folder(String),
    /// What is no reference to an image.
    #[error("`{}` is no image (letters, digits and ._-:/@)", .0.escape_debug())]
    Image(String),
}

impl Hinted for DeploymentError {}

impl Deployment {
    /// Files for a host: paths and contents. Nothing in them depends on the time or on this machine, but for the folder where the host is
    /// this machine.
    ///
    /// # Errors
    /// When a text has characters that have no place in such files.
    pub fn files(
        &self,
        host: DeployHost,
        bundle: &Bundle,
    ) -> Result<Vec<(&'static str, String)>, DeploymentError> {
        if self.folder.contains(char::is_control) {
            return Err(DeploymentError::Folder(self.folder.clone()));
        }
        let known = |c: char| c.is_ascii_alphanumeric() || "._-:/@".contains(c);
        if !self.image.starts_with(|c: char| c.is_ascii_alphanumeric()) || !self.image.chars().all(known) {
            return Err(DeploymentError::Image(self.image.clone()));
        }
        let need = memory(bundle, self.rows);
        let mib = |bytes: u64| bytes.div_ceil(1 << 20).to_string();
        let words = [
            ("name", label(&bundle.manifest().name)),
            ("image", self.image.clone()),
            ("engine", self.engine.clone()),
            ("rows", self.rows.to_string()),
            ("threads", self.threads.to_string()),
            ("replicas", self.replicas.to_string()),
            ("connections", CONNECTIONS.to_string()),
            ("body", BODY.to_string()),
            ("need", need.terms(self.rows)),
            ("memory", mib(need.all)),
            ("limit", mib(need.reload)),
            ("folder", quoted(&self.folder)),
            ("folder_word", systemd_word(&self.folder)),
            ("bundle", bundle.manifest_sha256().to_owned()),
        ];
        Ok(host.templates().iter().map(|(path, template)| (*path, fill(template, &words))).collect())
    }
}

/// A template with its words. What they stand for is not looked into; what is no word, as a legend of Grafana, stays.
fn fill(template: &str, words: &[(&str, String)]) -> String {
    let mut filled = String::with_capacity(template.len());
    let mut rest = template;
    while let Some((before, behind)) = rest.split_once("{{") {
        filled.push_str(before);
        let known = behind.split_once("}}").and_then(|(key, behind)| {
            let (_, value) = words.iter().find(|(word, _)| *word == key)?;
            Some((value, behind))
        });
        rest = match known {
            Some((value, behind)) => {
                filled.push_str(value);
                behind
            }
            None => {
                filled.push_str("{{");
                behind
            }
        };
    }
    filled + rest
}

/// A name as DNS takes labels: what is none of a letter, a digit or a hyphen becomes one.
fn label(name: &str) -> String {
    let known = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let label: String = name.chars().map(known).take(40).collect();
    match label.trim_matches('-') {
        "" => "dpar".to_owned(),
        label => format!("dpar-{label}"),
    }
}

/// A text as JSON has it, which YAML takes too. A template language may look into it: Compose's variables.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text.replace('$', "$$")).to_string()
}

/// A word of a command line of systemd: quoted, and without specifiers and variables.
fn systemd_word(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    format!("\"{text}\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels() {
        assert_eq!(label("DPAR_B 256.x"), "dpar-dpar-b-256-x");
        assert_eq!(label("--"), "dpar");
        assert!(label(&"x".repeat(99)).len() < 63);
    }

    #[test]
    fn what_is_filled_in_is_no_template() {
        let words = [("a", "{{b}}".to_owned()), ("b", "{{a}}".to_owned())];
        assert_eq!(fill("{x: {{a}}} {{b}}, {{graph}} {{a}", &words), "{x: {{b}}} {{a}}, {{graph}} {{a}");
        assert_eq!(fill("{{ {{a}}", &words), "{{ {{b}}");
    }

    #[test]
    fn words_stay_words() {
        assert_eq!(quoted("a\"$b"), "\"a\\\"$$b\"");
        assert_eq!(systemd_word("/a b%n$x\\\""), "\"/a b%%n$$x\\\\\\\"\"");
    }
}
