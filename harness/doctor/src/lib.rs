//! What can run here, and why not: every engine of this build, its library and where it was looked for, the driver and
//! its devices, and whether a bundle's engines fit them.

use dpar_engine_api::library::SearchedPlace;
use dpar_engine_api::{
    BuiltFile, Driver, Engine, EngineDescriptor, EngineError, EngineErrorKind, EngineInfo, LibraryFound,
    Survey,
};
use serde::Serialize;

use dpar_engine_table::{self as engines, EngineOptions, TableEntry};
use dpar_export_bundle::{Bundle, EngineEntry};

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct DoctorReport {
    /// One entry per engine that this version knows.
    pub engines: Vec<EngineReport>,
    /// The NVIDIA driver, where this build has an engine that needs one.
    pub driver: Option<Driver>,
    /// SHA-256 of the bundle's manifest, if a bundle was given.
    pub bundle: Option<String>,
}

/// One engine.
#[derive(Debug, Serialize)]
pub struct EngineReport {
    /// Name as given to `--engine`.
    pub name: String,
    /// Whether this program was built with it.
    pub built_in: bool,
    /// Whether it runs here; with a bundle, whether it runs that bundle.
    pub works: bool,
    /// What would run.
    pub info: Option<EngineInfo>,
    /// Why it does not run.
    pub reason: Option<String>,
    /// The next step.
    pub hint: Option<String>,
    /// Libraries that were found and fit.
    pub libraries: Vec<LibraryFound>,
    /// Where its library was looked for, the place that was taken last.
    pub searched: Vec<SearchedPlace>,
    /// Execution providers that the library was built with.
    pub providers: Vec<String>,
    /// The bundle's engine files against this machine.
    pub files: Vec<EngineFileReport>,
}

/// An engine file of a bundle.
#[derive(Debug, Serialize)]
pub struct EngineFileReport {
    /// Graph.
    pub graph: String,
    /// File in the bundle.
    pub file: String,
    /// Version of the library that built it.
    pub version: String,
    /// Devices it was built for; empty = all of Ampere and later.
    pub compute_capabilities: Vec<String>,
    /// Why it does not run here, or is not known to, if the reason is the file, the library's version or the device.
    pub reason: Option<String>,
    /// Whether the file is damaged: it would run nowhere.
    pub damaged: bool,
    #[serde(skip)]
    hint: Option<String>,
}

impl DoctorReport {
    /// The engine of that name.
    pub fn engine(&self, name: &str) -> Option<&EngineReport> {
        self.engines.iter().find(|e| e.name == name)
    }
}

/// Looks at every engine, and whether it runs the bundle where one is given.
pub fn examine(options: &EngineOptions, bundle: Option<&Bundle>) -> DoctorReport {
    let mut report = DoctorReport {
        engines: Vec::new(),
        driver: None,
        bundle: bundle.map(|b| b.manifest_sha256().to_owned()),
    };
    for entry in engines::all() {
        let mut engine = EngineReport::new(entry);
        match entry.descriptor() {
            Err(e) => engine.fails(&e),
            Ok(descriptor) => {
                let survey = engine.examine(descriptor, options, bundle);
                report.driver = report.driver.or(survey.driver);
            }
        }
        report.engines.push(engine);
    }
    report
}

/// Whether an engine computes with a bundle's numbers.
fn computes(engine: &dyn Engine, bundle: &Bundle) -> Result<(), EngineError> {
    let manifest = bundle.manifest();
    manifest.precisions().all().try_for_each(|precision| engine.arithmetic(precision).map(drop))?;
    let mut quantized = manifest.components.iter().filter_map(|c| c.quantized.as_ref());
    quantized.try_for_each(|q| engine.quantized(q.weights, q.accuracy_level).map(drop))
}

impl EngineReport {
    fn new(entry: &TableEntry) -> Self {
        Self {
            name: entry.name.to_owned(),
            built_in: false,
            works: false,
            info: None,
            reason: None,
            hint: None,
            libraries: Vec::new(),
            searched: Vec::new(),
            providers: Vec::new(),
            files: Vec::new(),
        }
    }

    /// Whether a file of the bundle that it would run is damaged.
    pub fn finds_damage(&self) -> bool {
        self.files.iter().any(|f| f.damaged)
    }

    fn fails(&mut self, e: &EngineError) {
        self.works = false;
        self.reason = Some(e.message.clone());
        self.hint.clone_from(&e.hint);
    }

    /// Asks the engine, and looks for what it needs whether it works or not.
    fn examine(
        &mut self,
        descriptor: &EngineDescriptor,
        options: &EngineOptions,
        bundle: Option<&Bundle>,
    ) -> Survey {
        self.built_in = true;
        // Each engine looks at its own library.
        let others = options.given().into_iter().filter(|option| !descriptor.options.contains(option));
        let options = others.fold(options.clone(), EngineOptions::without);
        match engines::create(descriptor.name, &options).and_then(|e| e.probe().map(|info| (e, info))) {
            Ok((engine, info)) => {
                (self.works, self.info) = (true, Some(info));
                if let Some(Err(e)) = bundle.map(|b| computes(engine.as_ref(), b)) {
                    self.fails(&e);
                }
            }
            Err(e) => self.fails(&e),
        }
        let mut survey = (descriptor.survey)(&options);
        self.libraries.append(&mut survey.libraries.clone());
        self.searched.append(&mut survey.searched);
        self.providers.append(&mut survey.providers);
        // What is asked first when something runs may be the driver; a library that is missing as well is named too.
        if let (Some(e), Some(reason)) = (&survey.missing, &mut self.reason)
            && !reason.contains(&e.message)
        {
            *reason = format!("{reason}; {}", e.message);
        }
        if let (Some(bundle), Some(files)) = (bundle, descriptor.files) {
            let entries = bundle.manifest().engines.iter();
            self.files = entries.map(|e| EngineFileReport::new(bundle, e, files.judge, &survey)).collect();
            self.judge_files(bundle);
        }
        survey
    }

    /// Every graph needs a file that fits.
    fn judge_files(&mut self, bundle: &Bundle) {
        let built = |graph: &str| self.files.iter().any(|f| f.graph == graph);
        let missing = bundle.manifest().graphs.iter().find(|g| !built(&g.spec.name)).map(|g| {
            let hint = "build the engines with `dpar-export --target trt BUNDLE`";
            (format!("the bundle has no engine of graph `{}`", g.spec.name), Some(hint.to_owned()))
        });
        // What is damaged is named before what does not fit.
        let unfit = self.files.iter().filter(|f| f.reason.is_some()).min_by_key(|f| !f.damaged).map(|f| {
            let reason = f.reason.as_deref().unwrap_or_default();
            (format!("the engine of graph `{}`: {reason}", f.graph), f.hint.clone())
        });
        let Some((reason, hint)) = missing.or(unfit) else { return };
        let first = self.reason.take().map(|r| format!("{r}; ")).unwrap_or_default();
        self.reason = Some(format!("{first}{reason}"));
        if self.works || self.hint.is_none() {
            self.hint = hint;
        }
        self.works = false;
    }
}

impl EngineFileReport {
    fn new(
        bundle: &Bundle,
        entry: &EngineEntry,
        judge: fn(&BuiltFile<'_>, &Survey) -> Result<(), EngineError>,
        found: &Survey,
    ) -> Self {
        let file = BuiltFile {
            graph: &entry.graph,
            path: &bundle.path(&entry.file),
            builder: &entry.builder,
            version: &entry.version,
            compute_capabilities: &entry.compute_capabilities,
        };
        let judged = judge(&file, found).err();
        Self {
            graph: entry.graph.clone(),
            file: entry.file.clone(),
            version: entry.version.clone(),
            compute_capabilities: entry.compute_capabilities.clone(),
            damaged: judged.as_ref().is_some_and(|e| e.kind == EngineErrorKind::Damaged),
            reason: judged.as_ref().map(|e| e.message.clone()),
            hint: judged.and_then(|e| e.hint),
        }
    }
}
