//! What holds of the entries of every manifest that an export writes, apart from files and their hashes.

use std::collections::{BTreeMap, BTreeSet};

use dpar_export_spec::{ComponentKind, GraphSpec, Precision, Profile, SystemKind, is_name};

use super::{ComponentEntry, EngineEntry, Manifest, ManifestError, ProfileEntry};

/// Largest opset and number of parameters that an entry may claim: far above any, and sums do not overflow.
const MAX_OPSET: i64 = 1 << 10;
const MAX_PARAMETERS: u64 = 1 << 48;

impl ProfileEntry {
    /// As the specs know it.
    pub fn profile(&self) -> Profile {
        let axes = self.axes.iter().map(|a| (a.name.clone(), a.clone())).collect();
        Profile { name: self.name.clone(), axes }
    }
}

impl Manifest {
    /// Checks names and sizes, and that every graph is one of a component's, both ways.
    pub(super) fn check_entries(&self) -> Result<(), ManifestError> {
        fit((1..=MAX_OPSET).contains(&self.opset), || format!("there is no opset {}", self.opset))?;
        let mut files = BTreeSet::from([super::CONFIG]);
        for graph in &self.graphs {
            let name = &graph.spec.name;
            if let Some((_, file)) = graph.files().find(|(_, file)| !files.insert(file)) {
                return Err(ManifestError::Duplicate(file.to_owned()));
            }
            let of = self.components.iter().find(|c| c.kind.name() == graph.spec.component);
            fit(of.is_some(), || format!("`{name}` is no graph of a component"))?;
            // Ports of a network of another tool have the names that it gave them.
            let foreign = self.system == SystemKind::Extractor;
            let valid = graph.spec.validate(foreign);
            valid.map_err(|e| ManifestError::Entry(format!("graph `{name}`: {e}")))?;
        }
        for component in &self.components {
            self.check_component(component)?;
        }
        let graphs: BTreeMap<&str, &GraphSpec> =
            self.graphs.iter().map(|g| (g.spec.name.as_str(), &g.spec)).collect();
        self.engines.iter().try_for_each(|engine| check_engine(engine, &graphs))
    }

    fn check_component(&self, component: &ComponentEntry) -> Result<(), ManifestError> {
        let name = component.kind.name();
        let own = component.kind.is_extractor() == (self.system == SystemKind::Extractor);
        fit(own, || format!("component `{name}` is none of this kind of bundle"))?;
        fit(component.parameters <= MAX_PARAMETERS, || {
            format!("component `{name}` has {} parameters", component.parameters)
        })?;
        if let Some(own) = component.arithmetic {
            // The bundle's is that of the transformer that draws.
            let differs = self.precisions().own().contains_key(&component.kind);
            let draws = matches!(component.kind, ComponentKind::Dpar | ComponentKind::Llamagen);
            let leaves = component.kind == ComponentKind::Vq && own.precision.is_autocast();
            let fits = differs
                && !draws
                && !leaves
                && !component.kind.is_extractor()
                && (1..=MAX_OPSET).contains(&own.opset);
            fit(fits, || format!("component `{name}` has an arithmetic of its own that no export gives it"))?;
        }
        if let Some(quantized) = &component.quantized {
            let fits = (0..=MAX_OPSET).contains(&quantized.opset)
                && self.precision_of(name) == Precision::Fp32
                && quantized.can_be();
            fit(fits, || format!("component `{name}` is quantized as no export does it"))?;
        }
        let listed: BTreeSet<&str> = component.graphs.iter().map(String::as_str).collect();
        let graphs = self.graphs.iter().filter(|g| g.spec.component == name);
        let found: BTreeSet<&str> = graphs.map(|g| g.spec.name.as_str()).collect();
        fit(listed == found && listed.len() == component.graphs.len(), || {
            format!("the graphs of component `{name}` are not those in `graphs`")
        })
    }
}

/// The profiles of an engine are boxes that its graph can be called with.
fn check_engine(engine: &EngineEntry, graphs: &BTreeMap<&str, &GraphSpec>) -> Result<(), ManifestError> {
    let Some(graph) = graphs.get(engine.graph.as_str()) else {
        return Err(ManifestError::Entry(format!("`{}` is no graph of the bundle", engine.graph)));
    };
    for profile in &engine.profiles {
        // `default`, `decode`, or an axis with its size.
        let (word, size) = profile.name.split_once('=').unwrap_or((&profile.name, "1"));
        fit(is_name(word) && size.parse::<usize>().is_ok(), || {
            format!("`{}` is no name of a profile", profile.name)
        })?;
        profile.profile().check(graph).map_err(|e| ManifestError::Entry(e.to_string()))?;
    }
    Ok(())
}

fn fit(ok: bool, message: impl FnOnce() -> String) -> Result<(), ManifestError> {
    match ok {
        true => Ok(()),
        false => Err(ManifestError::Entry(message())),
    }
}
