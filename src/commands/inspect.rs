//! `inspect`: what is in a bundle or a checkpoint.

use std::fmt::Write;

use camino::{Utf8Path, Utf8PathBuf};
use clap::Args;
use dpar_export_checkpoint::LoadOptions;
use dpar_export_spec::text::names;
use dpar_export_spec::{ComponentSpec, PatchRule, Port, SystemSpec, Tuning, TuningSource};
use serde_json::{Value, json};

use super::args::{CheckpointArgs, TrtLibraryArgs};
use super::failure::{Exit, Failure};
use super::printer::{Printer, Text, table};
use super::say;
use crate::bundle::{
    Bundle, EngineEntry, ExtractorBundle, MANIFEST, Manifest, Provenance, digests, is_extractor,
};
use crate::engines::{self, EngineOptions, Runs};

#[derive(Debug, Args)]
#[command(mut_arg("trt_lib", |a| a.requires("layers")))]
pub(crate) struct InspectArgs {
    /// Bundle, experiment folder or weight file
    path: Utf8PathBuf,
    /// Show the layers of the bundle's TensorRT engines; needs an NVIDIA GPU
    #[arg(long, help_heading = "Engine")]
    layers: bool,
    #[command(flatten)]
    library: TrtLibraryArgs,
    #[command(flatten)]
    parts: CheckpointArgs,
}

/// What the path is.
pub(super) enum Plan {
    /// A bundle; with the options of the engine whose layers are to be shown.
    Bundle(Utf8PathBuf, Option<EngineOptions>),
    /// A bundle of a feature network.
    Extractor(Utf8PathBuf),
    /// What a bundle can be made from.
    Checkpoint(Utf8PathBuf, LoadOptions),
}

impl InspectArgs {
    /// Looks at what the path is, and refuses options that are not for it.
    pub(super) fn resolve(self) -> Result<Plan, Failure> {
        let Self { path, layers, library, parts } = self;
        if !path.join(MANIFEST).is_file() {
            if layers {
                let message = format!("{path} is no bundle: only engines have layers to show");
                return Err(Failure::usage(message, Some("build them with `dpar-export --target trt`")));
            }
            return Ok(Plan::Checkpoint(path, parts.options()));
        }
        if parts.any() {
            let message = format!("{path} is a bundle: its parts cannot be chosen any more");
            return Err(Failure::usage(message, Some("leave the checkpoint options out")));
        }
        match is_extractor(&path)? {
            true if layers => {
                Err(Failure::usage("a feature extractor has no engines to show layers of", None))
            }
            true => Ok(Plan::Extractor(path)),
            false => {
                let trt_library = library.trt_lib;
                let options = layers.then(|| EngineOptions { trt_library, ..EngineOptions::default() });
                Ok(Plan::Bundle(path, options))
            }
        }
    }
}

pub(super) fn run(plan: Plan, printer: Printer) -> Result<Exit, Failure> {
    match plan {
        Plan::Bundle(path, engine) => bundle(&path, engine.as_ref(), printer),
        Plan::Extractor(path) => extractor(&path, printer),
        Plan::Checkpoint(path, options) => checkpoint(&path, &options, printer),
    }
}

fn bundle(folder: &Utf8Path, engine: Option<&EngineOptions>, printer: Printer) -> Result<Exit, Failure> {
    let bundle = Bundle::open(folder)?;
    let layers = engine.map(|options| layers(&bundle, options)).transpose()?;
    bundle.unchanged()?;
    let mut value = json!({
        "kind": "bundle", "manifest": bundle.manifest(), "config": bundle.system(),
        "manifest_sha256": bundle.manifest_sha256(), "provenance": bundle.provenance(),
    });
    if let Some(layers) = &layers {
        value["layers"] = layers.iter().cloned().collect::<serde_json::Map<_, _>>().into();
    }
    let text = || {
        let mut text = bundle_text(&bundle);
        text += layers_text(layers.as_deref().unwrap_or_default());
        text
    };
    printer.document(text, value)?;
    Ok(Exit::Pass)
}

fn checkpoint(path: &Utf8Path, options: &LoadOptions, printer: Printer) -> Result<Exit, Failure> {
    let loaded = dpar_export_checkpoint::load(path, options)?;
    say(&loaded.notes);
    let paths: Vec<&Utf8Path> = loaded.sources.iter().map(|s| s.path.as_path()).collect();
    let mut sources = Vec::new();
    for (source, digest) in loaded.sources.iter().zip(digests(&paths)) {
        let (size, sha256) = digest?;
        sources.push((source.role.clone(), source.name.clone(), size, sha256));
    }
    let components: Vec<(String, u64)> =
        loaded.components.iter().map(|c| (c.spec.kind().name().to_owned(), c.weights.parameters())).collect();
    let value = json!({
        "kind": "checkpoint", "config": loaded.system,
        "components": components.iter().map(|(name, parameters)| json!({ "kind": name, "parameters": parameters }))
            .collect::<Vec<_>>(),
        "sources": sources.iter().map(|(role, name, size, sha256)| {
            json!({ "role": role, "name": name, "size": size, "sha256": sha256 })
        }).collect::<Vec<_>>(),
    });
    let text = || {
        let mut text = Text::from(format!("checkpoint {path}"));
        text += system_text(&loaded.system);
        text += component_table(&loaded.system, &components);
        text += source_table(&sources);
        text
    };
    printer.document(text, value)?;
    Ok(Exit::Pass)
}

fn extractor(folder: &Utf8Path, printer: Printer) -> Result<Exit, Failure> {
    let bundle = ExtractorBundle::open(folder)?;
    let (manifest, spec) = (bundle.manifest(), bundle.spec());
    let value = json!({
        "kind": "extractor", "manifest": manifest, "config": spec, "distance": spec.distance_name(),
        "manifest_sha256": bundle.manifest_sha256(), "provenance": bundle.manifest().provenance(),
    });
    let text = || {
        let parts: Vec<Vec<String>> = manifest
            .components
            .iter()
            .map(|c| vec![c.kind.name().to_owned(), c.parameters.to_string()])
            .collect();
        let own = || "the resize rule's own".to_owned();
        let normalise = spec.normalise.map_or_else(own, |n| format!("(v - {:?}) / {:?}", n.mean, n.std));
        let mut what = Text::from(format!(
            "feature extractor `{}`: {} px, resize {}, normalisation {normalise}",
            spec.name,
            spec.input_size,
            spec.resize.name(),
        ));
        what.line(format_args!("distance: {}", spec.distance_name()));
        what.gap();
        what += table(&["component", "parameters"], &parts);
        manifest_text(folder, manifest, what, bundle.manifest_sha256())
    };
    printer.document(text, value)?;
    Ok(Exit::Pass)
}

/// Layers of the bundle's engines, by graph.
fn layers(bundle: &Bundle, options: &EngineOptions) -> Result<Vec<(String, Value)>, Failure> {
    if bundle.manifest().engines.is_empty() {
        let message = format!("{} has no engines", bundle.folder());
        return Err(Failure::usage(message, Some("build them with `dpar-export --target trt BUNDLE`")));
    }
    let runs = engines::all().iter().find(|e| e.runs == Runs::BuiltFiles);
    let files = runs.ok_or_else(|| Failure::usage("no engine runs them", None))?.files()?;
    let layers = |entry: &EngineEntry| {
        let text =
            (files.layers)(&bundle.path(&entry.file), options).map_err(|e| e.in_graph(&entry.graph))?;
        // Not JSON is still what the library said.
        let value = serde_json::from_str(&text).unwrap_or(Value::String(text));
        Ok((entry.graph.clone(), value))
    };
    bundle.manifest().engines.iter().map(layers).collect()
}

/// One line per layer: its name, or what TensorRT says of it.
fn layers_text(layers: &[(String, Value)]) -> Text {
    let mut text = Text::default();
    for (graph, value) in layers {
        text.gap();
        text.line(format_args!("layers of {graph}"));
        let list = value["Layers"].as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        for (i, layer) in list.iter().enumerate() {
            let name = layer.as_str().or(layer["Name"].as_str());
            let kind = layer["LayerType"].as_str().map(|t| format!(" ({t})")).unwrap_or_default();
            match name {
                Some(name) => text.line(format_args!("{i:4} {name}{kind}")),
                None => text.line(format_args!("{i:4} {layer}")),
            }
        }
    }
    text
}

/// What the opt points of a bundle's engines follow from.
fn tuning_text(tuning: &Tuning) -> String {
    let source = match tuning.source {
        TuningSource::Rule => "the patch rule".to_owned(),
        TuningSource::Table => "the paper's table".to_owned(),
        TuningSource::Assumed => "the paper's 256-px systems, as nothing else is known".to_owned(),
        TuningSource::Trace => format!("a trace of {} images", tuning.images.unwrap_or_default()),
        TuningSource::Calibration => format!("{} generated images", tuning.images.unwrap_or_default()),
    };
    format!("tuned for {:.2} patches of {} tokens an image, from {source}", tuning.patches, tuning.tokens)
}

fn bundle_text(bundle: &Bundle) -> Text {
    let manifest = bundle.manifest();
    let components: Vec<(String, u64)> =
        manifest.components.iter().map(|c| (c.kind.name().to_owned(), c.parameters)).collect();
    let mut what = system_text(bundle.system());
    what += component_table(bundle.system(), &components);
    manifest_text(bundle.folder(), manifest, what, bundle.manifest_sha256())
}

/// What every bundle has: graphs, engines, sources, files. `what` says what it is.
fn manifest_text(folder: &Utf8Path, manifest: &Manifest, what: Text, sha256: &str) -> Text {
    let mut text = Text::from(format!("bundle {folder} (every hash matches)"));
    text.line(format_args!(
        "written by {} {}, opset {}, {}",
        manifest.tool.name,
        manifest.tool.version,
        manifest.opset,
        manifest.numbers()
    ));
    for component in &manifest.components {
        let Some(own) = component.arithmetic else { continue };
        text.line(format_args!("{} is {}, opset {}", component.kind.name(), own.precision, own.opset));
    }
    if let Some(precision) = manifest.precisions().all().find(|p| p.rounds_to() != p.dtype()) {
        let (numbers, held) = (precision.rounds_to(), precision.dtype());
        text.line(format_args!("matrices, products and KV caches are numbers of {numbers}, held in {held}"));
    }
    text += what;
    for component in &manifest.components {
        let Some(quantized) = &component.quantized else { continue };
        text.line(format_args!("{} is quantized: {quantized}", component.kind.name()));
        if !quantized.kept.is_empty() {
            text.line(format_args!("  as they are: {}", names(&quantized.kept)));
        }
    }
    for graph in &manifest.graphs {
        text.gap();
        let others =
            graph.dialects.iter().map(|d| format!(", {}: {}", d.dialect, d.file)).collect::<String>();
        text.line(format_args!("graph {} ({}{others})", graph.spec.name, graph.file));
        let ports = [("in", &graph.spec.inputs), ("out", &graph.spec.outputs)];
        let rows: Vec<Vec<String>> =
            ports.iter().flat_map(|(side, ports)| ports.iter().map(|p| port_row(side, p))).collect();
        text += table(&["", "port", "type", "shape"], &rows);
        let axes: Vec<String> =
            graph.spec.axes.iter().map(|a| format!("{} {}/{}/{}", a.name, a.min, a.opt, a.max)).collect();
        text.line(format_args!("axes (min/opt/max): {}", axes.join(", ")));
    }
    let engines: Vec<Vec<String>> = manifest
        .engines
        .iter()
        .map(|e| {
            let profiles: Vec<&str> = e.profiles.iter().map(|p| p.name.as_str()).collect();
            let devices = match e.compute_capabilities.as_slice() {
                [] => "Ampere and later".to_owned(),
                some => some.join(", "),
            };
            let builder = format!("{} {}", e.builder, e.version);
            vec![
                e.graph.clone(),
                builder,
                e.precision.to_string(),
                devices,
                profiles.join(", "),
                e.layers.to_string(),
            ]
        })
        .collect();
    if !engines.is_empty() {
        text.gap();
        text += table(&["engine", "builder", "precision", "devices", "profiles", "layers"], &engines);
        if let Some(tuning) = manifest.engines.iter().find_map(|e| e.tuning.as_ref()) {
            text.line(tuning_text(tuning));
        }
        for (graph, warning) in
            manifest.engines.iter().flat_map(|e| e.warnings.iter().map(move |w| (&e.graph, w)))
        {
            text.line(format_args!("warning of {graph}: {warning}"));
        }
    }
    text += provenance_text(&manifest.provenance());
    let files: Vec<Vec<String>> =
        manifest.files.iter().map(|f| vec![f.path.clone(), f.size.to_string(), f.sha256.clone()]).collect();
    text.gap();
    text += table(&["file", "bytes", "sha256"], &files);
    text.line(format_args!("{MANIFEST} sha256 {sha256} (reports carry it as `bundle`)"));
    text
}

/// checkpoint → weights → graph → engine.
fn provenance_text(chain: &Provenance) -> Text {
    let mut rows: Vec<[String; 3]> = Vec::new();
    let mut row =
        |step: &str, file: String, sha256: &str| rows.push([step.to_owned(), file, sha256.to_owned()]);
    for source in &chain.shared_sources {
        row("checkpoint", format!("{} ({})", source.name, source.role), &source.sha256);
    }
    for component in &chain.components {
        for source in &component.sources {
            row("checkpoint", format!("{} ({})", source.name, source.role), &source.sha256);
        }
        row(" → weights", component.weights.file.clone(), &component.weights.sha256);
        for graph in &component.graphs {
            let form = graph.dialect.map(|d| format!(" ({d})")).unwrap_or_default();
            row("   → graph", format!("{}{form}", graph.link.file), &graph.link.sha256);
            for engine in &graph.engines {
                let file = format!("{} ({} {})", engine.link.file, engine.builder, engine.version);
                row("     → engine", file, &engine.link.sha256);
            }
        }
    }
    let rows: Vec<Vec<String>> = rows.into_iter().map(Vec::from).collect();
    behind_gap(table(&["provenance", "file", "sha256"], &rows))
}

fn port_row(side: &str, port: &Port) -> Vec<String> {
    let dims: Vec<String> = port.dims.iter().map(ToString::to_string).collect();
    vec![side.to_owned(), port.name.clone(), port.dtype.to_string(), format!("[{}]", dims.join(", "))]
}

fn system_text(system: &SystemSpec) -> Text {
    let mut text = Text::from(format!(
        "{} `{}`: {} px, {} tokens ({} a row), codebook {}, {} classes",
        system.kind,
        system.name,
        system.image_size,
        system.tokens(),
        system.grid(),
        system.vocab,
        system.num_classes,
    ));
    text.line(format_args!("patches: {}", rule_text(&system.patch_rule)));
    text
}

fn rule_text(rule: &PatchRule) -> String {
    let mode = serde_json::to_value(rule.mode).ok();
    let mut text = mode.as_ref().and_then(|m| m.as_str()).unwrap_or("?").to_owned();
    if let Some(threshold) = rule.threshold {
        let _ = write!(text, ", threshold {threshold}");
    }
    if let Some(max) = rule.max_patch_length {
        let _ = write!(text, ", at most {max} tokens");
    }
    if let Some(size) = rule.patch_size {
        let _ = write!(text, ", patch size {size}");
    }
    if let Some(row) = rule.block_size {
        let _ = write!(text, ", rows of {row}");
    }
    if rule.monotonicity {
        text += ", monotonicity";
    }
    text
}

fn sizes_text(spec: &ComponentSpec, system: &SystemSpec) -> String {
    match spec {
        ComponentSpec::Dpar(d) => format!(
            "D {}, {} heads, E{} G{} D{}, ffn {}, patches by {}, decoder attention {}",
            d.width,
            d.heads,
            d.encoder_layers,
            d.global_layers,
            d.decoder_layers,
            d.ffn,
            d.patch_rope.word(),
            d.decoder_cross.word()
        ),
        ComponentSpec::Entropy(g) | ComponentSpec::Llamagen(g) => {
            format!("D {}, {} heads, {} layers, ffn {}", g.width, g.heads, g.layers, g.ffn)
        }
        ComponentSpec::Vq(v) => {
            let (vocab, downsample) = (system.vocab, system.downsample());
            format!("codebook {vocab} x {}, z {}, 1/{downsample} px", v.code_width, v.z_channels)
        }
        ComponentSpec::Inception(_) | ComponentSpec::EfficientnetLite0(_) | ComponentSpec::Features(_) => {
            String::new()
        }
    }
}

fn component_table(system: &SystemSpec, components: &[(String, u64)]) -> Text {
    let rows: Vec<Vec<String>> = components
        .iter()
        .map(|(name, parameters)| {
            let spec = system.components.iter().find(|c| c.kind().name() == name);
            vec![
                name.clone(),
                parameters.to_string(),
                spec.map(|s| sizes_text(s, system)).unwrap_or_default(),
            ]
        })
        .collect();
    behind_gap(table(&["component", "parameters", "sizes"], &rows))
}

fn source_table(sources: &[(String, String, u64, String)]) -> Text {
    let rows: Vec<Vec<String>> = sources
        .iter()
        .map(|(role, name, size, sha256)| vec![role.clone(), name.clone(), size.to_string(), sha256.clone()])
        .collect();
    behind_gap(table(&["source", "file", "bytes", "sha256"], &rows))
}

fn behind_gap(table: Text) -> Text {
    let mut text = Text::default();
    text.gap();
    text += table;
    text
}
