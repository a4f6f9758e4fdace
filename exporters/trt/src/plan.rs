//! What engines are to be built: profiles, devices and settings, resolved against a bundle's graphs. No TensorRT takes
//! part, so that the same plan can be built here and written down for other tools ([`super::trtexec`]).

use camino::Utf8PathBuf;
use dpar_export_bundle::{Manifest, TargetError};
use dpar_export_spec::{Capability, GraphSpec, Override, Point, Precision, Profile, Tuning, WeightMode};

/// Where the sizes to tune for come from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum TuneFor {
    /// The paper's table where it lists the system, else its ratio; see [`Tuning::of_system`].
    #[default]
    Table,
    /// The patch lengths of a `generate` run.
    Trace(Utf8PathBuf),
    /// That many images, generated for this.
    Images(u32),
}

/// How engines are built.
#[derive(Debug, Clone, Default)]
pub struct TrtPlan {
    /// Folder of the shared libraries; `None` = search.
    pub library_dir: Option<Utf8PathBuf>,
    /// Profiles: `default`, `decode`, or `AXIS=N`; none = `default`.
    pub profiles: Vec<String>,
    /// Sizes of inputs, `name:1x3`, at min, opt and max.
    pub shapes: [Vec<String>; 3],
    /// What the opt points follow from.
    pub tune_for: TuneFor,
    /// Devices; none = all of Ampere and later.
    pub compute_capabilities: Vec<String>,
    /// Builder optimization level.
    pub optimization_level: Option<u8>,
    /// Largest scratch memory of a layer in bytes.
    pub workspace: Option<usize>,
    /// Where the weights are.
    pub weights: WeightMode,
    /// Whether the engine keeps names and kernels of its layers for inspection.
    pub detailed: bool,
    /// Folder of engines that were built before, of this bundle or another.
    pub engine_cache: Option<Utf8PathBuf>,
}

impl TrtPlan {
    /// Checks how profiles, shapes and devices are written: what can be known without graphs and without a library.
    ///
    /// # Errors
    /// When one is malformed, or no engine can be built for a device.
    pub fn check_words(&self) -> Result<(), TargetError> {
        self.capabilities()?;
        self.profiles.iter().try_for_each(|name| ProfileWord::of(name).map(|_| ()))?;
        self.shapes.iter().flatten().try_for_each(|text| shape(text).map(|_| ()))
    }

    /// The devices, each one that an engine can be built for.
    ///
    /// # Errors
    /// For the first that is malformed or that TensorRT-RTX does not build for.
    pub fn capabilities(&self) -> Result<Vec<Capability>, TargetError> {
        self.compute_capabilities.iter().map(|text| Ok(text.parse()?)).collect()
    }

    /// The profiles of every graph, in the manifest's order, checked against the graphs' ranges.
    ///
    /// # Errors
    /// When a profile or shape is malformed, names no axis or input of any graph, or does not fit; when the graphs have a
    /// form that is for other engines.
    pub fn profiles(&self, manifest: &Manifest, tuning: &Tuning) -> Result<Vec<Vec<Profile>>, TargetError> {
        if manifest.precisions().all().any(|precision| precision == Precision::Bf16AutocastExplicit) {
            let message =
                "the graphs of this bundle round in float32, for engines without bfloat16; TensorRT has it";
            let hint = "export the checkpoint with --target trt --precision bf16-autocast";
            return Err(TargetError::refused(message.to_owned(), Some(hint)));
        }
        self.check_names(manifest)?;
        manifest
            .graphs
            .iter()
            .map(|graph| {
                let profiles = self.of_graph(&graph.spec, tuning)?;
                profiles.iter().try_for_each(|p| p.check(&graph.spec))?;
                Ok(profiles)
            })
            .collect()
    }

    /// The profiles of one graph, with the overrides that concern it.
    fn of_graph(&self, spec: &GraphSpec, tuning: &Tuning) -> Result<Vec<Profile>, TargetError> {
        let tuned = |name: &str| {
            let mut profile = Profile::from_spec(name, spec);
            tuning.apply(spec, &mut profile);
            profile
        };
        let mut profiles = Vec::new();
        for name in &self.profiles {
            match ProfileWord::of(name)? {
                ProfileWord::Default => profiles.push(tuned(name)),
                // A graph without a cache has nothing to decode step by step: its ranges serve.
                ProfileWord::Decode => {
                    profiles.extend(Profile::decode(name.as_str(), spec).map(|mut profile| {
                        tuning.apply(spec, &mut profile);
                        profile
                    }));
                }
                ProfileWord::Axis(axis, size) => {
                    if spec.axis(axis).is_some() {
                        let at = |point| Override::Axis { axis: axis.to_owned(), point, size };
                        profiles.push(tuned(name).with(spec, &[at(Point::Opt), at(Point::Max)])?);
                    }
                }
            }
        }
        if profiles.is_empty() {
            profiles.push(tuned("default"));
        }
        let mut overrides = Vec::new();
        for (point, shapes) in Point::ALL.into_iter().zip(&self.shapes) {
            for text in shapes {
                let (port, sizes) = shape(text)?;
                if spec.input(&port).is_some() {
                    overrides.push(Override::Port { port, point, sizes });
                }
            }
        }
        profiles.into_iter().map(|p| Ok(p.with(spec, &overrides)?)).collect()
    }

    /// Every axis and input that is named is one of some graph.
    fn check_names(&self, manifest: &Manifest) -> Result<(), TargetError> {
        let hint = Some("`dpar-export inspect BUNDLE` lists them");
        for (axis, _) in self.profiles.iter().filter_map(|p| p.split_once('=')) {
            if !manifest.graphs.iter().any(|g| g.spec.axis(axis).is_some()) {
                return Err(TargetError::refused(format!("no graph has an axis `{axis}`"), hint));
            }
        }
        for text in self.shapes.iter().flatten() {
            let (port, _) = shape(text)?;
            if !manifest.graphs.iter().any(|g| g.spec.input(&port).is_some()) {
                return Err(TargetError::refused(format!("no graph has an input `{port}`"), hint));
            }
        }
        for (i, name) in self.profiles.iter().enumerate() {
            if self.profiles[..i].contains(name) {
                return Err(TargetError::refused(format!("profile `{name}` is given twice"), None));
            }
        }
        Ok(())
    }
}

/// A profile as it is written.
enum ProfileWord<'a> {
    Default,
    Decode,
    Axis(&'a str, usize),
}

impl<'a> ProfileWord<'a> {
    fn of(name: &'a str) -> Result<Self, TargetError> {
        let axis = || {
            let (axis, size) = name.split_once('=')?;
            Some(Self::Axis(axis, size.parse().ok()?))
        };
        match name {
            "default" => Ok(Self::Default),
            "decode" => Ok(Self::Decode),
            _ => axis().ok_or_else(|| {
                let hint = "a profile is `default`, `decode`, or an axis with its size, such as `batch=8`";
                TargetError::refused(format!("`{name}` is no profile"), Some(hint))
            }),
        }
    }
}

/// `name:1x3x4`.
fn shape(text: &str) -> Result<(String, Vec<usize>), TargetError> {
    let parsed = text.rsplit_once(':').and_then(|(name, sizes)| {
        let sizes: Option<Vec<usize>> = sizes.split('x').map(|n| n.parse().ok()).collect();
        sizes.map(|s| (name.to_owned(), s))
    });
    parsed.ok_or_else(|| {
        TargetError::refused(
            format!("`{text}` is no shape"),
            Some("write it as name:1x3, sizes outermost first"),
        )
    })
}
